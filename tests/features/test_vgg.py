import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.features.feature import Feature
from cosdiff_jax.features.mix import Mix
from cosdiff_jax.features.vgg import VggFeature
from cosdiff_jax.models.vae import AutoencoderKL
from cosdiff_jax.models.vgg import VGG

TRUNK = VGG(widths=(4, 6, 5), convolutions=(1, 2, 1))
VAE = AutoencoderKL(widths=(8, 8), latent=4, groups=4, patch=2, scale=0.7)
LAYERS = ("relu1_1", "relu2_2", "relu3_1")


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def frozen():
    images, key = draw(1, 16, 16, 3), jax.random.key(0)
    params = jax.jit(TRUNK.init)(key, images)["params"]
    params = {name: {**layer, "bias": layer["bias"] + 0.5} for name, layer in params.items()}
    return {"vgg": params, "vae": jax.jit(VAE.init)(key, images)["params"]}


def feature(**changes):
    return VggFeature(**{"vgg": TRUNK, "layers": LAYERS, **changes})


def cosine(f):
    return f[0] @ f[1]


@pytest.mark.parametrize("pooled", [False, True])
def test_the_cosine_is_the_mean_of_the_layers_cosines(frozen, pooled):
    images = draw(2, 12, 16, 3)
    views = [feature(pooled=pooled), *(feature(layers=(n,), pooled=pooled) for n in LAYERS)]
    got, *each = jax.jit(lambda x: [cosine(view(frozen, x)) for view in views])(images)
    assert np.ptp(each) > 1e-3
    np.testing.assert_allclose(got, np.mean(each), atol=1e-6)


def test_the_cosine_is_the_unweighted_perceptual_distance(frozen):
    images = jnp.clip(draw(2, 12, 16, 3), -1, 1)
    # Weights of one sign above a lifted first layer leave no place without any activation.
    params = {k: {**layer, "kernel": abs(layer["kernel"])} for k, layer in frozen["vgg"].items()}
    params["conv1_1"] = {"kernel": frozen["vgg"]["conv1_1"]["kernel"], "bias": jnp.full(4, 4.0)}
    found = TRUNK.apply({"params": params}, images, LAYERS)
    distance = 0.0
    for a in map(np.asarray, found.values()):
        assert (np.abs(a).sum(-1) > 0).all()
        u = a / np.linalg.norm(a, axis=-1, keepdims=True)
        distance += np.mean(np.sum((u[0] - u[1]) ** 2, axis=-1))
    got = cosine(feature()({"vgg": params}, images))
    np.testing.assert_allclose(got, 1 - distance / (2 * len(LAYERS)), atol=1e-6)


@pytest.mark.parametrize("pooled", [False, True])
def test_unit_vectors_row_by_row(frozen, pooled):
    images = draw(4, 12, 16, 3)
    see = jax.jit(lambda x: feature(pooled=pooled)(frozen, x))
    f = see(images)
    assert f.shape[1] == (4 + 6 + 5 if pooled else 12 * 16 * 4 + 6 * 8 * 6 + 3 * 4 * 5)
    np.testing.assert_allclose(jnp.linalg.norm(f, axis=1), 1, atol=1e-5)
    order = jnp.asarray([2, 0, 3, 1])
    np.testing.assert_allclose(see(images[order]), f[order], atol=1e-6)


def test_pooled_does_not_mind_where_things_are():
    a = jnp.abs(draw(2, 3, 4, 5))
    moved = a.reshape(2, 12, 5)[:, np.random.default_rng(0).permutation(12)].reshape(a.shape)
    pooled, placed = feature(pooled=True)._view, feature()._view
    np.testing.assert_allclose(pooled(moved), pooled(a), atol=1e-6)
    assert np.abs(placed(moved) - placed(a)).max() > 0.1


@pytest.mark.parametrize("pooled", [False, True])
def test_gradients_reach_latents_and_no_weights(frozen, pooled):
    see = feature(pooled=pooled, vae=VAE)
    assert isinstance(see, Feature)
    z = draw(2, 4, 4, 4)
    assert jax.eval_shape(see, frozen, z).shape[0] == 2

    @jax.jit
    def slopes(frozen, z):
        return jax.grad(lambda frozen, z: cosine(see(frozen, z)), argnums=(0, 1))(frozen, z)

    weights, latents = slopes(frozen, z)
    assert np.isfinite(latents).all() and latents[0].any() and latents[1].any()
    assert not any(leaf.any() for leaf in jax.tree.leaves(weights))


def test_latents_are_decoded_and_clipped(frozen):
    z = 3 * draw(2, 4, 4, 4)
    images = jnp.clip(VAE.apply({"params": frozen["vae"]}, z, method="to_images"), -1, 1)
    want = feature()(frozen, images)
    np.testing.assert_allclose(feature(vae=VAE)(frozen, z), want, atol=1e-5)
    far = jnp.ones((2, 12, 16, 3)).at[0, 3].set(7.0)
    f = feature()(frozen, far)
    np.testing.assert_allclose(f[0], f[1], atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("pooled", [False, True])
def test_a_flat_picture_gives_no_nan(frozen, value, pooled):
    flat = jnp.full((2, 12, 16, 3), value)
    see = jax.jit(jax.value_and_grad(lambda p, x: cosine(feature(pooled=pooled)({"vgg": p}, x)), 1))
    cos, slope = see(frozen["vgg"], flat)
    np.testing.assert_allclose(cos, 1, atol=1e-5)
    assert np.isfinite(slope).all()
    # A trunk that says nothing at all gives no direction.
    cos, slope = see(jax.tree.map(jnp.zeros_like, frozen["vgg"]), flat)
    assert cos == 0 and not slope.any()


def test_a_mix_takes_it_by_its_weight(frozen):
    images = draw(2, 12, 16, 3)
    parts = (feature(), feature(layers=("relu3_1",), pooled=True))
    mixed = Mix(parts=parts, weights=(3.0, 1.0))(frozen, images)
    want = 0.75 * cosine(parts[0](frozen, images)) + 0.25 * cosine(parts[1](frozen, images))
    np.testing.assert_allclose(cosine(mixed), want, atol=1e-6)


@pytest.mark.parametrize("layers", [(), ("relu1_1", "relu1_1"), ("relu9_1",)])
def test_layers_that_cannot_be_are_refused(layers):
    with pytest.raises(ValueError, match=r"layers? "):
        feature(layers=layers)
