import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.models.clip import CLIP, unit

TINY = CLIP(
    vocab=20, context=8, size=16, patch=8, width=16, depth=2, heads=2,
    text_width=16, text_depth=2, text_heads=2, features=6,
)  # fmt: skip


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


TOKENS = jnp.asarray([[2, 5, 6, 7, 8, 9], [2, 5, 6, 0, 0, 0], [2, 11, 12, 13, 0, 0]])
MASK = jnp.asarray([[1] * 6, [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]], bool)


@pytest.fixture(scope="module")
def params():
    return jax.jit(TINY.init)(jax.random.key(0), draw(3, 16, 16, 3), TOKENS, MASK)


@pytest.fixture(scope="module")
def text(params):
    return jax.jit(lambda tokens, mask: TINY.apply(params, tokens, mask, method="text"))


def test_both_sides_are_unit_vectors(params, text):
    image = TINY.apply(params, draw(5, 16, 16, 3), method="image")
    assert image.shape == (5, 6)
    np.testing.assert_allclose(jnp.linalg.norm(image, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(text(TOKENS, MASK), axis=-1), 1, atol=1e-5)


def test_padding_has_no_influence(text):
    want = text(TOKENS, MASK)
    other = jnp.where(MASK, TOKENS, 17)
    np.testing.assert_allclose(text(other, MASK), want, atol=1e-6)
    short = text(TOKENS[1:, :4], MASK[1:, :4])
    np.testing.assert_allclose(short, want[1:], atol=1e-5)


def test_every_real_token_has_influence(text):
    want = text(TOKENS, MASK)
    for i in range(6):
        got = text(TOKENS.at[:, i].set(19), MASK)
        changed = jnp.abs(got - want).max(axis=-1) > 1e-4
        np.testing.assert_array_equal(changed, MASK[:, i])


def test_text_is_causal(params):
    # Read out one token early, the vector may not depend on the token that comes after.
    early = MASK.at[0, 5].set(False)
    got = TINY.apply(params, TOKENS, early, method="text")[0]
    other = TINY.apply(params, TOKENS.at[0, 5].set(19), early, method="text")[0]
    np.testing.assert_allclose(got, other, atol=1e-6)


def test_temperature_is_bounded(params):
    def scale(value):
        p = {"params": {**params["params"], "scale": jnp.float32(value)}}
        return TINY.apply(p, draw(3, 16, 16, 3), TOKENS, MASK)[2]

    np.testing.assert_allclose(params["params"]["scale"], np.log(1 / 0.07), rtol=1e-6)
    np.testing.assert_allclose([scale(1.0), scale(9.0)], [np.e, 100], rtol=1e-5)


@pytest.mark.parametrize("knobs", [{"stem": 4}, {"quick": False}, {"dtype": jnp.bfloat16}])
def test_variants_keep_the_interface(knobs):
    model = TINY.clone(**knobs)

    def run(key):
        out, p = model.init_with_output(key, jnp.zeros((3, 16, 16, 3)), TOKENS, MASK)
        return out, p

    (image, text, scale), p = jax.eval_shape(run, jax.random.key(0))
    assert image.shape == text.shape == (3, 6) and scale.shape == ()
    assert {image.dtype, text.dtype} == {jnp.dtype("float32")}
    assert {a.dtype for a in jax.tree.leaves(p)} == {jnp.dtype("float32")}


def test_the_published_shape_has_the_published_size():
    """ViT-B/32 of OpenAI has 151,277,313 parameters."""
    model = CLIP(
        vocab=49408, context=77, size=224, patch=32, width=768, depth=12, heads=12,
        text_width=512, text_depth=12, text_heads=8, features=512,
    )  # fmt: skip
    tokens = jnp.zeros((1, 77), jnp.int32)
    shapes = jax.eval_shape(
        lambda k: model.init(k, jnp.zeros((1, 224, 224, 3)), tokens, tokens == 0),
        jax.random.key(0),
    )
    assert sum(np.prod(a.shape, dtype=int) for a in jax.tree.leaves(shapes)) == 151_277_313


def test_wrong_sizes_are_refused(params):
    with pytest.raises(ValueError, match="16 x 16 x 3, got 8 x 16 x 3"):
        TINY.apply(params, draw(1, 8, 16, 3), method="image")
    with pytest.raises(ValueError, match="at most 8 tokens, got 9"):
        TINY.apply(params, jnp.zeros((1, 9), jnp.int32), jnp.ones((1, 9), bool), method="text")


def test_unit_of_a_zero_row():
    x = draw(3, 4).at[1].set(0)
    value, slope = unit(x), jax.grad(lambda x: unit(x)[:, 0].sum())(x)
    np.testing.assert_allclose(jnp.linalg.norm(value, axis=1), [1, 0, 1], atol=1e-6)
    assert np.isfinite(slope).all() and not slope[1].any()
