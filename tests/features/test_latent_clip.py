import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.features.feature import Feature, Reader
from cosdiff_jax.features.latent_clip import LatentClipFeature
from cosdiff_jax.models.clip import CLIP

SMALL = CLIP(
    vocab=10, context=4, size=4, patch=1, width=8, depth=1, heads=2,
    text_width=8, text_depth=1, text_heads=2, features=6, channels=5,
)  # fmt: skip
TOKENS = jnp.asarray([[2, 5, 6, 7]])
FEATURE = LatentClipFeature(clip=SMALL)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def frozen():
    init = jax.jit(SMALL.init)
    return {"latent_clip": init(jax.random.key(0), draw(1, 4, 4, 5), TOKENS, TOKENS > 0)["params"]}


def test_unit_vectors_row_by_row_of_latents_as_they_are(frozen):
    assert isinstance(FEATURE, Feature) and isinstance(FEATURE, Reader)
    z = 3 * draw(4, 4, 4, 5)
    see = jax.jit(lambda z: FEATURE(frozen, z))
    f = see(z)
    np.testing.assert_allclose(jnp.linalg.norm(f, axis=1), 1, atol=1e-5)
    order = jnp.asarray([2, 0, 3, 1])
    np.testing.assert_allclose(see(z[order]), f[order], atol=1e-6)
    # Latents reach beyond [-1, 1] and are not cut off there.
    assert np.abs(see(jnp.clip(z, -1, 1)) - f).max() > 1e-2


def test_gradients_reach_latents_and_no_weights(frozen):
    @jax.jit
    def slopes(frozen, z):
        return jax.grad(lambda p, z: FEATURE(p, z)[:, 0].sum(), argnums=(0, 1))(frozen, z)

    weights, latents = slopes(frozen, draw(2, 4, 4, 5))
    assert np.isfinite(latents).all() and latents[0].any() and latents[1].any()
    assert not any(leaf.any() for leaf in jax.tree.leaves(weights))


def test_captions_have_unit_vectors_where_latents_have_theirs(frozen):
    tokens = jnp.asarray([[2, 5, 6, 7], [2, 5, 6, 0], [2, 5, 6, 9]])
    mask = tokens > 0
    text = jax.jit(FEATURE.text)(frozen, tokens, mask)
    assert text.shape == FEATURE(frozen, draw(3, 4, 4, 5)).shape
    np.testing.assert_allclose(jnp.linalg.norm(text, axis=1), 1, atol=1e-5)
    want = SMALL.apply({"params": frozen["latent_clip"]}, tokens, mask, method="text")
    np.testing.assert_allclose(text, want, atol=1e-6)
    assert np.abs(text[0] - text[1]).max() > 1e-3 and np.abs(text[0] - text[2]).max() > 1e-3


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_flat_latents_give_no_nan(frozen, value):
    see = jax.jit(jax.value_and_grad(lambda z: FEATURE(frozen, z).sum()))
    total, slope = see(jnp.full((2, 4, 4, 5), value))
    assert np.isfinite(total) and np.isfinite(slope).all()


@pytest.mark.parametrize("shape", [(2, 8, 8, 5), (2, 4, 4, 3)])
def test_samples_of_another_shape_are_one_line(frozen, shape):
    with pytest.raises(ValueError, match="reads pictures of 4 x 4 x 5, got"):
        FEATURE(frozen, jnp.zeros(shape))
