import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.diversity import similarity
from cosdiff_jax.metrics import intra_prompt


def draw(prompts=5, samples=6, features=7, seed=0):
    return np.random.default_rng(seed).normal(size=(prompts, samples, features)).astype(np.float32)


def measure(pairs, mask=None, percent=10.0):
    state = intra_prompt.update(intra_prompt.init(), pairs, mask, percent)
    return intra_prompt.result(state, "cosine")


@pytest.mark.parametrize("percent", [10.0, 40.0, 100.0])
def test_it_is_all_pairs_written_out(percent):
    f = draw()
    found = measure(intra_prompt.cosines(f), percent=percent)
    u = f / np.linalg.norm(f, axis=-1, keepdims=True)
    pairs = np.array([[u[p, i] @ u[p, j] for i in range(6) for j in range(i)] for p in range(5)])
    k = {10.0: 2, 40.0: 6, 100.0: 15}[percent]
    ranked = np.sort(pairs, axis=1)
    assert found["cosine_mean"] == pytest.approx(pairs.mean(), abs=1e-6)
    assert found["cosine_variance"] == pytest.approx(pairs.var(axis=1).mean(), abs=1e-6)
    assert found["cosine_highest"] == pytest.approx(ranked[:, -k:].mean(), abs=1e-6)
    assert found["cosine_lowest"] == pytest.approx(ranked[:, :k].mean(), abs=1e-6)
    # The same as what training sees.
    top = similarity.top_cosine(jnp.asarray(f), percent).mean()
    assert found["cosine_highest"] == pytest.approx(float(top), abs=1e-6)


def test_the_variance_tells_clusters_from_an_even_spread():
    angles = 2 * np.pi * np.arange(6) / 6
    even = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # Two tight clusters, face to face.
    poles = np.repeat(even[[0, 3]], 3, axis=0)
    found = [measure(intra_prompt.cosines(f[None].astype(np.float32))) for f in (even, poles)]
    assert found[0]["cosine_mean"] == pytest.approx(found[1]["cosine_mean"], abs=1e-6)
    assert found[1]["cosine_variance"] > 1.5 * found[0]["cosine_variance"]


def test_samples_that_do_not_count_are_as_if_not_there():
    f = draw(prompts=3)
    mask = np.array([[1, 1, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]], bool)
    found = measure(intra_prompt.cosines(f), mask, 30.0)
    kept = [
        measure(intra_prompt.cosines(f[0][mask[0]][None]), percent=30.0),
        measure(intra_prompt.cosines(f[2:]), percent=30.0),
    ]
    # The second prompt has one sample, and no pair.
    assert found == pytest.approx({k: (kept[0][k] + kept[1][k]) / 2 for k in found}, abs=1e-6)


def test_parts_and_hosts_give_what_all_at_once_gives():
    pairs = np.asarray(intra_prompt.cosines(draw()))
    whole = measure(pairs)
    here = intra_prompt.update(intra_prompt.update(intra_prompt.init(), pairs[:1]), pairs[1:3])
    there = intra_prompt.update(intra_prompt.init(), pairs[3:])
    merged = intra_prompt.merge(here, there)
    assert merged.prompts == 5
    assert intra_prompt.result(merged, "cosine") == pytest.approx(whole, rel=1e-6)


def test_nothing_is_nan_and_a_share_that_cannot_be_is_refused():
    found = intra_prompt.result(intra_prompt.init(), "lpips")
    assert list(found) == ["lpips_mean", "lpips_variance", "lpips_highest", "lpips_lowest"]
    assert np.isnan(list(found.values())).all()
    with pytest.raises(ValueError, match="percent"):
        measure(np.zeros((1, 2, 2)), percent=0.0)
