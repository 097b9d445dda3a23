import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from cosdiff_jax.features.vgg import VggFeature
from cosdiff_jax.metrics import intra_prompt, lpips
from cosdiff_jax.models.vgg import VGG

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "metrics"
PUBLISHED = json.loads((FIXTURES / "packages.json").read_text())
SMALL = VGG(widths=(4, 6, 5), convolutions=(1, 2, 1))
LAYERS = ("relu1_1", "relu2_2", "relu3_1")


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def recorded():
    """VGG16 with the weights that the package was given, and its pictures, channels last."""
    rng = np.random.RandomState(0)
    params, before = {}, 3
    for level, (width, number) in enumerate(zip(VGG().widths, VGG().convolutions, strict=True), 1):
        for index in range(1, number + 1):
            scale = np.sqrt(2 / (9 * before))
            kernel = (scale * rng.standard_normal((width, before, 3, 3))).astype(np.float32)
            bias = (0.1 * rng.standard_normal(width)).astype(np.float32)
            params[f"conv{level}_{index}"] = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
            before = width
    weights = [rng.uniform(0, 1, width).astype(np.float32) for width in VGG().widths]
    images = np.random.RandomState(1).uniform(-1, 1, (4, 3, 32, 40)).astype(np.float32)
    others = np.clip(images[::-1] * 0.6 + 0.4 * images, -1, 1).astype(np.float32)
    pictures = (jnp.asarray(x.transpose(0, 2, 3, 1)) for x in (images, others))
    a, b = (lpips.Lpips(vgg=VGG()).levels({"vgg": params}, x) for x in pictures)
    return a, b, weights


@pytest.fixture(scope="module")
def small():
    params = jax.jit(SMALL.init)(jax.random.key(0), draw(1, 16, 16, 3))["params"]
    return {"vgg": {k: {**layer, "bias": layer["bias"] + 0.3} for k, layer in params.items()}}


WEIGHTS = [np.random.default_rng(9).uniform(size=d).astype(np.float32) for d in (4, 6, 5)]
METRIC = lpips.Lpips(vgg=SMALL, layers=LAYERS)


def test_it_is_the_published_packages_distance(recorded):
    a, b, weights = recorded
    found = lpips.distance(a, b, weights)
    print(f"relative error {np.max(np.abs(found / np.array(PUBLISHED['lpips']) - 1)):.1e}")
    np.testing.assert_allclose(found, PUBLISHED["lpips"], rtol=1e-4)
    plain = lpips.distance(a, b, lpips.unweighted(a))
    np.testing.assert_allclose(plain, PUBLISHED["lpips_unweighted"], rtol=1e-4)


def test_all_pairs_are_the_published_packages(recorded):
    a, _, weights = recorded
    found = lpips.pairwise(a, weights, 4)[0]
    np.testing.assert_allclose(found, PUBLISHED["lpips_pairs"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_all_pairs_of_a_group_are_its_pairs_one_by_one(small, weights):
    images = jnp.clip(draw(2, 3, 12, 16, 3), -1, 1)
    found = METRIC.pairs(small, images, weights)
    for p in range(2):
        for i in range(3):
            same = jnp.broadcast_to(images[p, i], (3, 12, 16, 3))
            want = METRIC(small, same, images[p], weights)
            np.testing.assert_allclose(found[p, i], want, atol=1e-6)
            assert found[p, i, i] == 0


def test_equal_pictures_are_0_apart_and_order_does_not_matter(small):
    a, b = jnp.clip(draw(2, 12, 16, 3), -1, 1), jnp.clip(draw(2, 12, 16, 3, seed=1), -1, 1)
    np.testing.assert_allclose(METRIC(small, a, a, WEIGHTS), 0, atol=1e-7)
    here, there = METRIC(small, a, b, WEIGHTS), METRIC(small, b, a, WEIGHTS)
    np.testing.assert_allclose(here, there, rtol=1e-6)
    assert (here > 0.01).all()


def test_it_grows_with_noise(small):
    image, noise = 0.5 * draw(1, 12, 16, 3), draw(1, 12, 16, 3, seed=1)
    found = [float(METRIC(small, image, image + s * noise, WEIGHTS)[0]) for s in (0, 0.05, 0.2, 1)]
    assert np.all(np.diff(found) > 0)


def test_the_unweighted_one_is_the_feature_as_a_cosine(small):
    images = draw(2, 12, 16, 3)
    # Weights of one sign above a lifted first layer leave no place without any activation.
    params = {k: {**layer, "kernel": abs(layer["kernel"])} for k, layer in small["vgg"].items()}
    params["conv1_1"] = {"kernel": small["vgg"]["conv1_1"]["kernel"], "bias": jnp.full(4, 4.0)}
    images = jnp.clip(images, -1, 1)
    f = VggFeature(vgg=SMALL, layers=LAYERS)({"vgg": params}, images)
    found = METRIC({"vgg": params}, images[:1], images[1:])[0]
    np.testing.assert_allclose(found, 2 * len(LAYERS) * (1 - f[0] @ f[1]), atol=1e-5)


def test_a_place_without_activation_gives_no_nan():
    dark = [jnp.zeros((2, 3, 4, 5))]
    ones = lpips.unweighted(dark)
    assert (lpips.distance(dark, dark, ones) == 0).all()
    # Against a place that has a direction, its length: 1.
    np.testing.assert_allclose(lpips.distance(dark, [draw(2, 3, 4, 5)], ones), 1, rtol=1e-6)


def test_a_group_of_copies_has_no_variety_and_a_group_of_two_kinds_has_variance(small):
    kinds = jnp.clip(draw(4, 12, 16, 3), -1, 1)
    groups = jnp.stack([kinds[jnp.array(i)] for i in ([0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 2, 3])])
    pairs = METRIC.pairs(small, groups, WEIGHTS)
    found = [
        intra_prompt.result(intra_prompt.update(intra_prompt.init(), pairs[p : p + 1]), "lpips")
        for p in range(3)
    ]
    means = [one["lpips_mean"] for one in found]
    assert means[0] < 1e-5 and np.all(np.diff(means) > 0)
    assert found[1]["lpips_variance"] > 4 * found[2]["lpips_variance"] > 0


def test_published_weights_are_read(tmp_path):
    tensors = {f"lin{i}.model.1.weight": w.reshape(1, -1, 1, 1) for i, w in enumerate(WEIGHTS)}
    tensors["net.slice1.0.weight"] = np.ones((2, 3), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    for found, wanted in zip(lpips.load(tmp_path), WEIGHTS, strict=True):
        np.testing.assert_array_equal(found, wanted)
    gap = {name: x for name, x in tensors.items() if "lin1" not in name}
    with pytest.raises(ValueError, match=r"levels \[0, 2\]"):
        lpips.from_published(gap)
    with pytest.raises(ValueError, match="below 0"):
        lpips.from_published({"lin0.model.1.weight": np.full((1, 3, 1, 1), -0.1, np.float32)})
    with pytest.raises(ValueError, match=r"not \(1, D, 1, 1\)"):
        lpips.from_published({"lin0.model.1.weight": np.ones((2, 3, 1, 1), np.float32)})


def test_what_does_not_fit_is_refused(small):
    levels = METRIC.levels(small, draw(2, 12, 16, 3))
    with pytest.raises(ValueError, match="do not fit"):
        lpips.distance(levels, levels, WEIGHTS[:2])
    with pytest.raises(ValueError, match="groups of 3"):
        lpips.pairwise(levels, WEIGHTS, 3)
    with pytest.raises(ValueError, match="relu9_9"):
        lpips.Lpips(vgg=SMALL, layers=("relu9_9",))
    with pytest.raises(ValueError, match=r"lpips\.layers"):
        lpips.Lpips(vgg=SMALL, layers=())
