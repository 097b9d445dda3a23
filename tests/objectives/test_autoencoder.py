import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cosdiff_jax.models.vae import AutoencoderKL
from cosdiff_jax.objectives import autoencoder
from cosdiff_jax.shapes import Batch

TOKENS = jnp.zeros((4, 1), jnp.int32)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_divergence_of_gaussians():
    zero = jnp.zeros((3, 2, 2, 4))
    np.testing.assert_array_equal(autoencoder.kl_divergence(zero, zero), 0)
    # KL(N(m, s^2) || N(0, 1)) = log(1 / s) + (s^2 + m^2 - 1) / 2
    got = autoencoder.kl_divergence(zero + 0.5, zero + 2 * np.log(0.3))
    np.testing.assert_allclose(got, -np.log(0.3) + (0.09 + 0.25 - 1) / 2, rtol=1e-5)


def test_divergence_by_sampling():
    mean, logvar = jnp.full((1, 1, 1, 1), 0.7), jnp.full((1, 1, 1, 1), -1.0)
    z = 0.7 + np.exp(-0.5) * np.random.default_rng(0).normal(size=200_000)
    log_q = -((z - 0.7) ** 2) / (2 * np.exp(-1)) + 0.5
    want = np.mean(log_q + z**2 / 2)
    np.testing.assert_allclose(autoencoder.kl_divergence(mean, logvar), want, atol=0.01)


def test_psnr():
    images = jnp.zeros((1, 4, 4, 3))
    got = [autoencoder.psnr(images, images + e)[0] for e in (0.2, 0.02, 0.0)]
    np.testing.assert_allclose(got, [20, 40, 100], rtol=1e-5)
    # Beyond the range of pictures nothing is seen, so nothing is counted.
    np.testing.assert_allclose(autoencoder.psnr(images + 1, images + 3), 100, rtol=1e-5)


def test_edges_see_differences_not_levels():
    images = draw(2, 6, 6, 3)
    got = autoencoder.gradient_difference(images, images + 0.4)
    np.testing.assert_allclose(got, 0, atol=1e-6)
    ramp = jnp.broadcast_to(jnp.arange(6.0).reshape(1, 1, 6, 1), images.shape)
    got = autoencoder.gradient_difference(images, images + ramp)
    np.testing.assert_allclose(got, 1, rtol=1e-5)


def test_training_restores_pictures():
    vae = AutoencoderKL(widths=(8, 8), latent=4, groups=4, patch=2)
    objective = autoencoder.Autoencoder(vae=vae, edges=0.1)
    images = jnp.broadcast_to(jnp.tanh(draw(4, 1, 1, 3)), (4, 8, 8, 3))
    batch = Batch(tokens=TOKENS, mask=TOKENS == 0, images=images)
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    rule = optax.adam(1e-2)

    @jax.jit
    def step(params, moments, i):
        run = jax.value_and_grad(objective, has_aux=True)
        key = jax.random.fold_in(jax.random.key(1), i)
        (loss, (logs, _)), slope = run(params, {}, batch, key, i, {})
        change, moments = rule.update(slope, moments)
        return optax.apply_updates(params, change), moments, loss, logs

    moments = rule.init(params)
    first = step(params, moments, jnp.int32(0))[2]
    for i in range(30):
        params, moments, loss, logs = step(params, moments, jnp.int32(i))
    assert loss < 0.5 * first
    want = logs["mse"] + 0.1 * logs["mae"] + 0.1 * logs["edges"] + 1e-4 * logs["kl"]
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_array_equal(loss, logs["loss"])


def test_a_batch_without_pictures_is_refused():
    objective = autoencoder.Autoencoder(vae=AutoencoderKL())
    with pytest.raises(ValueError, match="images"):
        objective.init(jax.random.key(0), Batch(tokens=TOKENS, mask=TOKENS == 0))


def test_calibration_brings_every_channel_to_mean_0_and_variance_1():
    vae = AutoencoderKL(widths=(8, 8), latent=4, groups=4, patch=2)
    objective = autoencoder.Autoencoder(vae=vae)
    images = [np.asarray(draw(8, 16, 16, 3, seed=i)) for i in range(2)]
    batch = Batch(tokens=TOKENS, mask=TOKENS == 0, images=jnp.asarray(images[0]))
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    fitted = vae.clone(**objective.calibrate(params, images))
    z = fitted.apply({"params": params}, jnp.concatenate(images), method="to_latents")
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-3)
    assert (z.std((0, 1, 2)) < 1.001).all()
    wide = np.asarray(fitted.scale) < 10
    np.testing.assert_allclose(z.std((0, 1, 2))[wide], 1, atol=1e-3)
