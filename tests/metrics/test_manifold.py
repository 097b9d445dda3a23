import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from cosdiff_jax.metrics.manifold import NAMES, Manifold

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "metrics"
PUBLISHED = json.loads((FIXTURES / "values.json").read_text())


def draw(n, features=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n, features))


def measure(made, real, **changes):
    metric = Manifold(**changes)
    return metric.result(metric.update(metric.init(), made, real))


def written_out(made, real, k):
    """All distances at once, in float64."""

    def apart(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=-1)

    r, s = (np.sort(apart(f, f), axis=1)[:, k] for f in (real, made))
    across = apart(real, made)
    inside = across <= r[:, None]
    return {
        "precision": inside.any(axis=0).mean(),
        "recall": (across <= s[None, :]).any(axis=1).mean(),
        "density": inside.sum() / (k * len(made)),
        "coverage": (across.min(axis=1) <= r).mean(),
    }


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("block", [64, 1024])
def test_it_is_the_published_packages(k, block):
    f = load_file(FIXTURES / "features.safetensors")
    real, made = f["X"], f["Y"]
    found = measure(made, real, neighbours=k, block=block)
    assert found == pytest.approx(PUBLISHED[f"prdc_k{k}"], rel=1e-6)
    # torch-fidelity's first set is the made one; the other way round the two change places.
    right = PUBLISHED[f"torch_fidelity_prc_features1=Y_features2=X_k{k}"]
    swapped = PUBLISHED[f"torch_fidelity_prc_features1=X_features2=Y_k{k}"]
    for ours, theirs in (("precision", "recall"), ("recall", "precision")):
        assert found[ours] == pytest.approx(right[ours], rel=1e-6)
        assert found[ours] == pytest.approx(swapped[theirs], rel=1e-6)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_blocks_give_what_all_distances_at_once_give(block):
    made, real = draw(23, seed=1) * 1.3 + 0.4, draw(31)
    assert measure(made, real, block=block) == pytest.approx(written_out(made, real, 3), rel=1e-6)


def test_a_large_common_offset_does_not_matter():
    made, real = draw(40, seed=1) * 1.2, draw(50)
    near, far = measure(made, real), measure(made + 1000.0, real + 1000.0)
    # The vectors themselves are float32, which at 1,000 is 6e-5 coarse.
    assert far == pytest.approx(near, abs=0.03)


def test_equal_sets_are_right_and_reached_and_sets_far_apart_are_neither():
    f = draw(60)
    same = measure(f, f)
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    assert measure(f + 100.0, f) == dict.fromkeys(NAMES, 0.0)


def test_dropped_modes_cost_recall_and_coverage_but_not_precision():
    modes = np.arange(240) % 6
    centres = 20 * np.eye(6, 8)
    real = centres[modes] + draw(240, 8)
    made = centres[modes] + draw(240, 8, seed=1)
    found = [measure(made[modes < kept], real) for kept in (6, 4, 2, 1)]
    for name in ("recall", "coverage"):
        assert np.all(np.diff([one[name] for one in found]) < -0.1)
        assert found[-1][name] < 0.2
    assert min(one["precision"] for one in found) > 0.6


def test_duplicates_cost_recall_and_coverage():
    real, made = draw(200), draw(200, seed=1)
    found = [measure(np.resize(made[:kept], made.shape), real) for kept in (200, 100, 50)]
    for name in ("recall", "coverage"):
        assert np.all(np.diff([one[name] for one in found]) < 0)
    # Four copies of each and k = 3: every ball is a point.
    assert found[2]["recall"] == 0


def test_noise_costs_precision_and_density():
    real, made, noise = draw(200), draw(200, seed=1), draw(200, seed=2)
    found = [measure(made + s * noise, real) for s in (0.0, 0.7, 1.5, 4.0)]
    for name in ("precision", "density"):
        assert np.all(np.diff([one[name] for one in found]) < 0)


def test_a_set_wider_than_the_real_one_has_recall_without_precision():
    real = draw(200)
    found = measure(draw(200, seed=1) * 4.0, real)
    assert found["recall"] > 0.9 and found["precision"] < 0.4
    back = measure(real, draw(200, seed=1) * 4.0)
    assert back["precision"] == pytest.approx(found["recall"])
    assert back["recall"] == pytest.approx(found["precision"])


def test_parts_and_hosts_give_what_all_at_once_gives():
    made, real = draw(23, seed=1) * 1.3, draw(31)
    metric = Manifold(block=8)
    here = metric.update(metric.update(metric.init(), made[:3], real[:10]), made[3:9], real[:0])
    there = metric.update(metric.init(), made[9:], real[10:])
    whole = measure(made, real)
    assert metric.result(metric.merge(here, there)) == pytest.approx(whole, rel=1e-6)
    assert metric.result(metric.merge(there, here)) == pytest.approx(whole, rel=1e-6)


def test_too_few_vectors_are_refused_and_nothing_is_nan():
    assert np.isnan(list(Manifold().result(Manifold().init()).values())).all()
    with pytest.raises(ValueError, match=r"manifold\.neighbours is 3.* got 3"):
        measure(draw(9), draw(3))
