import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.models import vae

TINY = vae.AutoencoderKL(
    widths=(8, 8), latent=4, groups=4, patch=2, shift=(0.1, -0.2, 0.3, 1.0), scale=0.5
)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(TINY.init)(jax.random.key(0), draw(1, 16, 16, 3))


def test_unfold_undoes_fold():
    images = draw(2, 8, 12, 3)
    squares = vae.fold(images, 4)
    assert squares.shape == (2, 2, 3, 48)
    np.testing.assert_array_equal(vae.unfold(squares, 4), images)
    # One square holds the pixels of one place and of no other.
    np.testing.assert_array_equal(squares[0, 1, 2], images[0, 4:8, 8:12].reshape(-1))
    with pytest.raises(ValueError, match="cannot be cut"):
        vae.fold(images, 3)


@pytest.mark.parametrize(
    ("patch", "widths", "channels"),
    [(1, (8, 8, 8, 8), 3), (2, (8, 8, 16), 1), (4, (8, 16), 3)],
)
def test_every_layout_makes_16_channels_at_an_eighth(patch, widths, channels):
    model = vae.AutoencoderKL(widths=widths, patch=patch, channels=channels, groups=4)

    def run(key):
        images = jnp.zeros((2, 64, 32, channels))
        p = model.init(key, images)
        return p, model.apply(p, images)

    p, (restored, (mean, logvar)) = jax.eval_shape(run, jax.random.key(0))
    assert restored.shape == (2, 64, 32, channels)
    assert mean.shape == logvar.shape == (2, 8, 4, 16)
    assert set(p["params"]) == {"encoder", "decoder"}


def test_pictures_come_back_in_float32_from_bfloat16():
    model = TINY.clone(dtype=jnp.bfloat16)
    p, (restored, (mean, _)) = jax.eval_shape(
        lambda k: model.init_with_output(k, jnp.zeros((2, 16, 16, 3)))[::-1], jax.random.key(0)
    )
    assert restored.dtype == mean.dtype == jnp.float32
    assert {a.dtype for a in jax.tree.leaves(p)} == {jnp.dtype("float32")}


def test_normalisation_is_undone(params):
    images = draw(2, 16, 16, 3)

    @jax.jit
    def both(p, x):
        mean, _ = TINY.apply(p, x, method="encode")
        latents = TINY.apply(p, x, method="to_latents")
        restored = TINY.apply(p, latents, method="to_images")
        return mean, latents, restored, TINY.apply(p, x)[0]

    mean, latents, restored, direct = both(params, images)
    shift = jnp.asarray(TINY.shift).reshape(1, 1, 1, 4)
    np.testing.assert_allclose(latents, (mean - shift) * 0.5, atol=1e-6)
    np.testing.assert_allclose(restored, direct, atol=1e-5)


def test_a_key_draws_from_the_posterior(params):
    images = jnp.repeat(draw(1, 16, 16, 3), 256, axis=0)

    @jax.jit
    def both(p, x):
        return TINY.apply(p, x[:1], method="encode"), TINY.apply(
            p, x, jax.random.key(1), method="to_latents"
        )

    (mean, logvar), latents = both(params, images)
    z = latents / 0.5 + jnp.asarray(TINY.shift).reshape(1, 1, 1, 4)
    score = (z - mean) / jnp.exp(0.5 * logvar)
    np.testing.assert_allclose(jnp.mean(score), 0, atol=0.02)
    np.testing.assert_allclose(jnp.std(score), 1, atol=0.02)


def test_pictures_do_not_meet(params):
    images = draw(2, 16, 16, 3)
    apply = jax.jit(lambda x: TINY.apply(params, x)[0])
    alone = apply(images.at[1].set(0))
    np.testing.assert_allclose(apply(images)[0], alone[0], atol=1e-5)


def test_sides_that_do_not_divide_are_refused(params):
    with pytest.raises(ValueError, match="18 x 16 pixels: both sides must divide by 4"):
        TINY.apply(params, draw(1, 18, 16, 3))
