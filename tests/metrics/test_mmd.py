import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from cosdiff_jax.metrics.mmd import Discrepancy, Gaussian, Polynomial

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "metrics"
PUBLISHED = json.loads((FIXTURES / "values.json").read_text())


def draw(n, features=8, seed=0, shift=0.0):
    f = np.random.default_rng(seed).normal(size=(n, features)) + shift
    return f / np.linalg.norm(f, axis=1, keepdims=True)


def measure(made, real, **changes):
    metric = Discrepancy(**changes)
    return metric.result(metric.update(metric.init(), made, real))


def written_out(x, y, sigma=10.0):
    """The published definition, all pairs, in float64."""

    def k(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * sigma**2))

    n, m, across = len(x), len(y), 2 * k(x, y).mean()
    biased = k(x, x).mean() + k(y, y).mean() - across
    unbiased = (k(x, x).sum() - n) / (n * (n - 1)) + (k(y, y).sum() - m) / (m * (m - 1)) - across
    return 1000 * biased, 1000 * unbiased


@pytest.mark.parametrize("block", [7, 1024])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_it_is_the_published_definition(block, shift):
    x, y = draw(30), draw(41, seed=1, shift=shift)
    biased, unbiased = written_out(x, y)
    found = measure(x, y, block=block)
    print(f"relative errors {found['mmd'] / biased - 1:.1e} {found['mmd_unbiased'] - unbiased:.1e}")
    assert found["mmd"] == pytest.approx(biased, rel=1e-5)
    assert found["mmd_unbiased"] == pytest.approx(unbiased, abs=1e-5)


def test_the_width_of_the_kernel():
    x, y = draw(20), draw(20, seed=1, shift=0.4)
    found = measure(x, y, kernel=Gaussian(sigma=0.5))["mmd"]
    assert found == pytest.approx(written_out(x, y, 0.5)[0], rel=1e-5)


def test_with_a_cubic_kernel_it_is_the_published_kernel_distance():
    f = load_file(FIXTURES / "features.safetensors")
    found = measure(f["X"], f["Y"][:200], kernel=Polynomial(), scale=1.0, block=64)
    theirs = PUBLISHED["kid_torch_fidelity_mmd2_poly3_200v200"]
    for ours, name in ((found["mmd"], "biased"), (found["mmd_unbiased"], "unbiased")):
        print(f"{name}: relative error {abs(ours / theirs[name] - 1):.1e}")
        assert ours == pytest.approx(theirs[name], rel=1e-5)
    assert found["mmd_unbiased"] == pytest.approx(PUBLISHED["kid_cleanfid_full_1subset"], rel=1e-5)


def test_equal_sets_are_0_apart():
    x = draw(50)
    assert measure(x, x[::-1], block=16)["mmd"] == pytest.approx(0, abs=1e-6)


def test_of_one_distribution_the_unbiased_one_is_0_on_average_and_the_biased_one_is_not():
    found = [measure(draw(20, seed=s), draw(20, seed=s + 1000)) for s in range(200)]
    unbiased = np.array([one["mmd_unbiased"] for one in found])
    error = unbiased.std() / np.sqrt(len(unbiased))
    assert abs(unbiased.mean()) < 3 * error
    assert np.mean([one["mmd"] for one in found]) > 10 * error


def test_it_grows_with_noise_with_modes_dropped_and_with_duplicates():
    rng = np.random.default_rng(0)
    modes = np.arange(120) % 4
    real = np.eye(8)[modes] + 0.1 * rng.normal(size=(120, 8))
    noise = rng.normal(size=(120, 8))
    noisy = [measure(real + s * noise, real)["mmd"] for s in (0.0, 0.2, 0.5, 1.0)]
    assert np.all(np.diff(noisy) > 0)
    few = [measure(real[modes < kept], real)["mmd"] for kept in (4, 3, 2, 1)]
    assert np.all(np.diff(few) > 0)
    copied = [measure(np.resize(real[:kept], (120, 8)), real)["mmd"] for kept in (120, 12, 1)]
    assert np.all(np.diff(copied) > 0)


def test_parts_hosts_and_blocks_give_what_all_at_once_gives():
    x, y = draw(33), draw(25, seed=1, shift=0.3)
    metric = Discrepancy(block=10)
    here = metric.update(metric.update(metric.init(), x[:5], y[:0]), x[5:20], y[:9])
    there = metric.update(metric.init(), x[20:], y[9:])
    whole = measure(x, y)
    for state in (metric.merge(here, there), metric.merge(there, here)):
        assert metric.result(state) == pytest.approx(whole, rel=1e-5, abs=1e-6)


def test_nothing_is_nan_and_no_block_is_larger_than_asked():
    metric = Discrepancy(block=4)
    assert np.isnan(metric.result(metric.init())["mmd"])
    one = metric.update(metric.init(), draw(1), draw(5))
    assert np.isnan(metric.result(one)["mmd_unbiased"])
    seen = []

    class Watched(Gaussian):
        def __call__(self, x, y):
            seen.append((len(x), len(y)))
            return super().__call__(x, y)

    jax.clear_caches()
    measure(draw(11), draw(9), kernel=Watched(), block=4)
    assert seen and max(max(shape) for shape in seen) <= 4
