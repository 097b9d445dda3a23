from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.features.clip import ClipFeature
from cosdiff_jax.features.feature import Feature
from cosdiff_jax.features.hidden import HiddenFeature
from cosdiff_jax.features.latent import LatentFeature
from cosdiff_jax.features.mix import Mix
from cosdiff_jax.flow import parameterization, trajectory
from cosdiff_jax.models.clip import CLIP
from cosdiff_jax.models.vae import AutoencoderKL
from cosdiff_jax.shapes import TextStream

SMALL = CLIP(
    vocab=10, context=4, size=16, patch=8, width=8, depth=1, heads=2,
    text_width=8, text_depth=1, text_heads=2, features=6,
)  # fmt: skip
VAE = AutoencoderKL(widths=(8, 8), latent=4, groups=4, patch=2, scale=0.7)
TOKENS = jnp.asarray([[2, 5, 6, 7]])
TEXT = TextStream(
    keys=jnp.zeros((1, 1, 2, 1, 4)),
    values=jnp.zeros((1, 1, 2, 1, 4)),
    hidden=jnp.zeros((1, 2, 4)),
    mask=jnp.ones((1, 2), bool),
)


class Pooling(nn.Module):
    """Stands for a backbone: its middle state is the average of what it is shown, and t."""

    times: ClassVar[list] = []
    shown: ClassVar[list] = []

    @nn.compact
    def __call__(self, z, t, text, *, features=False):
        bias = self.param("bias", nn.initializers.zeros, (z.shape[-1],))
        self.times.append(t)
        self.shown.append(z)
        return z, z.mean((1, 2)) + bias[None]


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def frozen():
    images = draw(1, 16, 16, 3)
    key = jax.random.key(0)
    return {
        "clip": jax.jit(SMALL.init)(key, images, TOKENS, TOKENS > 0)["params"],
        "vae": jax.jit(VAE.init)(key, images)["params"],
        "anchor": {"bias": jnp.zeros(4)},
    }


def test_clip_decodes_latents_first(frozen):
    latents = draw(3, 4, 4, 4)

    @jax.jit
    def by_hand(frozen, latents):
        images = VAE.apply({"params": frozen["vae"]}, latents, method="to_images")
        seen = SMALL.apply({"params": frozen["clip"]}, jnp.clip(images, -1, 1), method="image")
        return images, seen

    images, want = by_hand(frozen, latents)
    got = jax.jit(ClipFeature(clip=SMALL, vae=VAE))(frozen, latents)
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(jax.jit(ClipFeature(clip=SMALL))(frozen, images), want, atol=1e-6)


def test_a_sample_cannot_differ_outside_the_range_of_pictures(frozen):
    feature = jax.jit(ClipFeature(clip=SMALL))
    images = jnp.ones((2, 16, 16, 3)).at[:, :8].set(-0.5)
    np.testing.assert_array_equal(feature(frozen, images), feature(frozen, images.at[0, 9].set(4)))


def test_clip_reads_captions_into_the_same_space(frozen):
    text = ClipFeature(clip=SMALL).text(frozen, TOKENS, TOKENS > 0)
    assert text.shape == (1, 6)
    np.testing.assert_allclose(jnp.linalg.norm(text, axis=1), 1, atol=1e-5)


def test_latents_without_their_average_colour():
    z = draw(3, 4, 4, 2)
    feature = LatentFeature()
    np.testing.assert_allclose(feature({}, z + 5), feature({}, z), atol=1e-5)
    plain = LatentFeature(centre=False)({}, z)
    want = z.reshape(3, -1) / jnp.linalg.norm(z.reshape(3, -1), axis=1, keepdims=True)
    np.testing.assert_allclose(plain, want, atol=1e-6)


def test_a_flat_sample_has_no_direction_and_no_nan():
    flat = jnp.ones((2, 4, 4, 2))
    value, slope = jax.value_and_grad(lambda z: LatentFeature()({}, z).sum())(flat)
    assert value == 0 and np.isfinite(slope).all()


def test_hidden_state_is_read_at_a_small_time(frozen):
    z = draw(3, 2, 2, 4)
    backbone = Pooling()
    feature = HiddenFeature(backbone=backbone, time=0.25)
    got = feature(frozen, z, TEXT)
    np.testing.assert_array_equal(backbone.times[-1], 0.25)
    mean = z.mean((1, 2))
    np.testing.assert_allclose(got, mean / jnp.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(ValueError, match="text stream"):
        feature(frozen, z)


def test_hidden_state_is_read_on_the_path_that_is_trained(frozen):
    z, share = draw(3, 2, 2, 4), np.cos(np.pi / 2 * 0.25)
    backbone = Pooling()
    knobs = {"backbone": backbone, "time": 0.25, "trajectory": trajectory.Cosine()}
    HiddenFeature(**knobs, parameterization=parameterization.V())(frozen, z, TEXT)
    np.testing.assert_allclose(backbone.shown[-1], share * z, rtol=1e-5)
    HiddenFeature(**knobs, parameterization=parameterization.Edm(sigma_data=0.5))(frozen, z, TEXT)
    size = np.sqrt(0.25 * share**2 + 1 - share**2)
    np.testing.assert_allclose(backbone.shown[-1], share / size * z, rtol=1e-5)


def test_centring_takes_out_what_all_share(frozen):
    z = draw(3, 2, 2, 4)
    feature = HiddenFeature(backbone=Pooling(), centre=True)
    np.testing.assert_allclose(feature(frozen, z + 9, TEXT), feature(frozen, z, TEXT), atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "latent", "hidden"])
def test_gradients_reach_the_samples(frozen, kind):
    feature, z = {
        "clip": (ClipFeature(clip=SMALL, vae=VAE), draw(2, 4, 4, 4)),
        "latent": (LatentFeature(), draw(2, 4, 4, 4)),
        "hidden": (HiddenFeature(backbone=Pooling()), draw(2, 4, 4, 4)),
    }[kind]
    assert isinstance(feature, Feature)
    value = jax.jit(lambda z: feature(frozen, z, TEXT))
    np.testing.assert_allclose(jnp.linalg.norm(value(z), axis=1), 1, atol=1e-5)
    slope = jax.jit(jax.grad(lambda z: feature(frozen, z, TEXT)[:, 0].sum()))(z)
    assert np.isfinite(slope).all() and slope[0].any() and slope[1].any()


def test_a_mix_has_the_weighted_mean_of_the_cosines(frozen):
    z = draw(3, 4, 4, 4)
    parts = (LatentFeature(), HiddenFeature(backbone=Pooling()))
    mixed = Mix(parts=parts, weights=(3.0, 1.0))(frozen, z, TEXT)

    def cosine(f):
        return f[0] @ f[1]

    want = 0.75 * cosine(parts[0](frozen, z)) + 0.25 * cosine(parts[1](frozen, z, TEXT))
    np.testing.assert_allclose(cosine(mixed), want, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(mixed, axis=1), 1, atol=1e-6)
    assert isinstance(Mix(parts=parts, weights=(1.0, 0.0)), Feature)
    with pytest.raises(ValueError, match="positive"):
        Mix(parts=parts, weights=(0.0, 0.0))
    with pytest.raises(ValueError, match="cannot take"):
        Mix(parts=parts, weights=(1.0,))


def test_clip_sees_the_middle_square_of_pictures_of_another_shape(frozen):
    view = jax.jit(ClipFeature(clip=SMALL))
    wide = draw(2, 16, 24, 3).clip(-1, 1)
    np.testing.assert_allclose(view(frozen, wide), view(frozen, wide[:, :, 4:20]), atol=1e-6)
    assert np.abs(view(frozen, wide) - view(frozen, wide[:, :, :16])).max() > 1e-3
    # Every pixel four times is the same picture larger, up to the borders of the filter.
    smooth = jnp.linspace(-1, 1, 16)[None, :, None, None] * jnp.ones((1, 16, 16, 3))
    large = jnp.repeat(jnp.repeat(smooth, 4, axis=1), 4, axis=2)
    np.testing.assert_allclose(view(frozen, large), view(frozen, smooth), atol=0.05)
    slope = jax.jit(jax.grad(lambda x: view(frozen, x)[0, 0]))(wide)
    assert jnp.abs(slope[:, :, 4:20]).max() > 0
