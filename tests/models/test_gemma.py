import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax import text_stream
from cosdiff_jax.models import rope
from cosdiff_jax.models.gemma import Gemma

SIZES = {"vocab": 32, "width": 24, "depth": 3, "heads": 4, "kv_heads": 2, "head_size": 8, "mlp": 20}
SECOND = {"post_norms": True, "attention_cap": 5.0, "attention_scale": 0.3, "final_cap": 3.0}
TOKENS = jnp.array([[2, 7, 9, 4, 11, 30], [2, 5, 0, 0, 0, 0]])
MASK = jnp.array([[True] * 6, [True, True] + [False] * 4])


@functools.cache
def weights(**options):
    params = jax.jit(Gemma(**SIZES, **options).init)(jax.random.key(0), TOKENS, MASK)
    # The embeddings start small; larger ones let attention matter.
    return jax.tree.map(lambda x: x * 5, params)


def run(tokens=TOKENS, mask=MASK, *, method=None, rotate=True, layers=False, **options):
    model = Gemma(**SIZES, **options)
    shape = {k: v for k, v in options.items() if k == "post_norms"}
    if method == "logits":
        return jax.jit(lambda p: model.apply(p, tokens, mask, method=method))(weights(**shape))
    return jax.jit(lambda p: model.apply(p, tokens, mask, rotate=rotate, layers=layers))(
        weights(**shape)
    )


@pytest.mark.parametrize("options", [{}, SECOND, {"window": 2}])
def test_a_token_sees_no_later_one(options):
    later = TOKENS.at[0, 4].set(3)
    a, b = run(layers=True, **options), run(later, layers=True, **options)
    for name in ("keys", "values", "layers"):
        x, y = getattr(a, name), getattr(b, name)
        np.testing.assert_array_equal(x[:, 0, :4], y[:, 0, :4])
        assert not np.allclose(x[:, 0, 4], y[:, 0, 4])
    np.testing.assert_array_equal(a.hidden[1], b.hidden[1])


def test_padding_has_no_influence():
    other = jnp.where(MASK, TOKENS, 17)
    a, b = run(), run(other)
    for name in ("keys", "values"):
        np.testing.assert_array_equal(getattr(a, name)[:, 1, :2], getattr(b, name)[:, 1, :2])
    np.testing.assert_array_equal(a.hidden[1, :2], b.hidden[1, :2])
    short = run(TOKENS[1:, :3], MASK[1:, :3])
    np.testing.assert_allclose(short.keys[:, 0, :2], a.keys[:, 1, :2], atol=1e-5)


def test_keys_are_handed_out_before_or_after_rope():
    after, before = run(), run(rotate=False)
    angles = rope.angles_1d(jnp.arange(6)[None, :], 8, 10000.0)
    turned = jax.vmap(lambda k: rope.rotate(k, angles))(before.keys)
    np.testing.assert_allclose(after.keys, turned, atol=1e-5)
    np.testing.assert_array_equal(after.values, before.values)


@pytest.mark.parametrize("options", [{"remat": True}, {"unroll": 3}])
def test_memory_and_loop_choices_change_nothing(options):
    def loss(params, **options):
        out = Gemma(**SIZES, **options).apply(params, TOKENS, MASK, method="logits")
        return jnp.sum(jnp.sin(out[:, 1]))

    plain, other = (
        jax.jit(jax.value_and_grad(functools.partial(loss, **o)))(weights()) for o in ({}, options)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, other)


def test_layers_are_the_inputs_of_each_layer_and_the_output():
    text = run(layers=True)
    assert text.layers.shape == (4, 2, 6, 24)
    embedded = weights()["params"]["embed"]["embedding"][TOKENS] * 24**0.5
    np.testing.assert_allclose(text.layers[0], embedded, rtol=1e-6)
    np.testing.assert_array_equal(text.layers[-1], text.hidden)


def test_gemma_2_differs_where_it_should():
    plain = run(post_norms=True, method="logits")
    capped = run(post_norms=True, final_cap=3.0, method="logits")
    np.testing.assert_allclose(capped, 3 * jnp.tanh(plain / 3), rtol=1e-5, atol=1e-6)
    for option in ({"attention_cap": 0.1}, {"window": 2}, {"attention_scale": 2.0}):
        other = run(post_norms=True, method="logits", **option)
        assert not np.allclose(other[0, -1], plain[0, -1], atol=1e-3), option
    # A window as long as the text hides nothing.
    wide = run(post_norms=True, window=6, method="logits")
    np.testing.assert_array_equal(wide, plain)


def test_bfloat16_computes_low_and_keeps_parameters_high():
    model = Gemma(**SIZES, dtype=jnp.bfloat16)
    params = jax.eval_shape(model.init, jax.random.key(0), TOKENS, MASK)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    keys = jax.eval_shape(lambda p: model.apply(p, TOKENS, MASK).keys, params)
    assert keys.dtype == jnp.bfloat16
    logits = jax.eval_shape(lambda p: model.apply(p, TOKENS, MASK, method="logits"), params)
    assert logits.dtype == jnp.float32


def test_streams_move_by_prompt():
    text = run(layers=True)
    twice = text_stream.repeat(text, 2)
    np.testing.assert_array_equal(twice.keys[:, 1], text.keys[:, 0])
    np.testing.assert_array_equal(twice.hidden[2], text.hidden[1])
    both = text_stream.concatenate(text, twice)
    assert both.keys.shape[1] == both.mask.shape[0] == both.layers.shape[1] == 6
    empty = run(TOKENS[1:], MASK[1:], layers=True)
    picked = text_stream.where(jnp.array([True, False]), text, empty)
    np.testing.assert_array_equal(picked.values[:, 0], text.values[:, 0])
    np.testing.assert_array_equal(picked.values[:, 1], empty.values[:, 0])
    np.testing.assert_array_equal(picked.mask[1], empty.mask[0])


@pytest.mark.parametrize("std", [0.02, 0.2])
def test_embeddings_start_as_far_apart_as_asked(std):
    llm = Gemma(**SIZES, embed_std=std)
    params = jax.jit(llm.init)(jax.random.key(0), TOKENS, MASK)["params"]
    embedding = params["embed"]["embedding"]
    np.testing.assert_allclose(jnp.std(embedding), std, rtol=0.1)
