import json
import math
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from vendi_score import vendi as published

from cosdiff_jax.diversity import measure
from cosdiff_jax.metrics import vendi

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "metrics"
PUBLISHED = json.loads((FIXTURES / "values.json").read_text())
ORDERS = (0.5, 1.0, 2.0, 4.0, math.inf)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape) + 0.4


def scores(f, mask=None):
    w = vendi.spectrum(f, mask)
    return np.array([vendi.score(w, q) for q in ORDERS])


@pytest.mark.parametrize("q", ORDERS)
def test_it_is_the_published_value_of_a_gaussian_kernel(q):
    x = load_file(FIXTURES / "features.safetensors")["X"]
    k = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / 32)
    found = vendi.score(np.linalg.eigvalsh(k / len(k))[None], q)[0]
    theirs = PUBLISHED["vendi_rbf_l2=16"][f"{q:g}"]
    print(f"relative error {abs(found / theirs - 1):.1e}")
    assert found == pytest.approx(theirs, rel=1e-6)


def test_it_is_the_published_value_through_either_matrix():
    x = load_file(FIXTURES / "features.safetensors")["X"]
    found = vendi.score(vendi.spectrum(x[None]), 1.0)[0]
    print(f"relative error {abs(found / PUBLISHED['vendi_cosine_dual'] - 1):.1e}")
    assert found == pytest.approx(PUBLISHED["vendi_cosine_dual"], rel=1e-9)
    # 200 columns of zeros change no cosine, but now the K x K matrix is the smaller one.
    wide = np.pad(x, ((0, 0), (0, 200)))
    np.testing.assert_allclose(scores(wide[None]), scores(x[None]), rtol=1e-5)


@pytest.mark.parametrize("q", ORDERS)
@pytest.mark.parametrize(("number", "features"), [(7, 5), (6, 40)])
def test_every_order_is_the_published_packages(q, number, features):
    f = draw(3, number, features)
    u = f / np.linalg.norm(f, axis=-1, keepdims=True)
    theirs = [published.score_K(g @ g.T, q="inf" if q == math.inf else q) for g in u]
    found = vendi.score(vendi.spectrum(f), q)
    # Zero eigenvalues that rounding made 1e-17 count there at q = 1/2, with 3e-9 each.
    np.testing.assert_allclose(found, theirs, rtol=1e-6)


def test_it_counts_orthogonal_samples_whatever_the_order():
    a, b, c = np.eye(3, 5)
    np.testing.assert_allclose(scores(np.stack([a, b, c])[None])[:, 0], 3, rtol=1e-9)
    np.testing.assert_allclose(scores(np.stack([a, 2 * a, 3 * a, a])[None])[:, 0], 1, rtol=1e-5)
    np.testing.assert_allclose(scores(np.stack([a, a, b, b])[None])[:, 0], 2, rtol=1e-5)


def test_a_higher_order_is_never_higher():
    found = scores(draw(20, 6, 4))
    assert np.all(np.diff(found, axis=0) < 1e-9) and np.all(found >= 1 - 1e-9)
    # Three common samples and a rare one: low orders see it as more of a sample.
    a, b = np.eye(2)
    rare = scores(np.stack([a, a, a, b])[None])[:, 0]
    assert np.all(np.diff(rare) < -1e-3)


def test_neighbouring_orders_meet_at_1_and_at_infinity():
    w = vendi.spectrum(draw(5, 6, 8))
    for near in (1 - 1e-6, 1 + 1e-6):
        np.testing.assert_allclose(vendi.score(w, near), vendi.score(w, 1.0), rtol=1e-5)
    np.testing.assert_allclose(vendi.score(w, 2000.0), vendi.score(w, math.inf), rtol=2e-3)


def test_order_1_is_the_measure_of_training():
    f = np.concatenate([draw(3, 5, 4), np.zeros((3, 2, 4))], axis=1)
    mask = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 0, 1], [1, 0, 0, 0, 0, 0, 0]], bool)
    wanted = np.exp(measure.spectral_entropy(jnp.asarray(f, jnp.float32), jnp.asarray(mask)))
    np.testing.assert_allclose(vendi.score(vendi.spectrum(f, mask), 1.0), wanted, rtol=1e-4)


@pytest.mark.parametrize("features", [3, 12])
def test_samples_that_do_not_count_are_as_if_not_there(features):
    f, mask = draw(2, 6, features), np.array([[1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 0]], bool)
    found = scores(f, mask)
    for p in range(2):
        np.testing.assert_allclose(found[:, p], scores(f[p][mask[p]][None])[:, 0], rtol=1e-6)


def test_lengths_do_not_matter_however_small_or_large():
    f = draw(1, 5, 4)
    scaled = f * np.array([1e-200, 1e-3, 1.0, 1e5, 1e200]).reshape(1, 5, 1)
    np.testing.assert_allclose(scores(scaled), scores(f), rtol=1e-9)


def test_duplicates_lower_it_and_dropped_modes_too():
    f = draw(1, 12, 40)
    fewer = [scores(np.resize(f[0, :kept], (12, 40))[None])[:, 0] for kept in (12, 6, 2, 1)]
    assert np.all(np.diff(fewer, axis=0) < -0.2)


def test_parts_and_hosts_give_what_all_at_once_gives():
    f = draw(9, 5, 4)
    mask = np.ones((9, 5), bool)
    mask[3] = False
    metric = vendi.Vendi()
    whole = metric.result(metric.update(metric.init(), f, mask))
    here = metric.update(metric.update(metric.init(), f[:2], mask[:2]), f[2:5], mask[2:5])
    there = metric.update(metric.init(), f[5:], mask[5:])
    assert metric.result(metric.merge(here, there)) == pytest.approx(whole, rel=1e-9)
    assert set(whole) == {"vendi_q0.5", "vendi_q1", "vendi_q2", "vendi_qinf"}
    # A prompt without any sample is no prompt.
    assert (scores(f[:1], np.zeros((1, 5), bool)) == 0).all()
    rest = np.delete(f, 3, axis=0)
    assert metric.result(metric.update(metric.init(), rest)) == pytest.approx(whole, rel=1e-9)
    assert np.isnan(metric.result(metric.init())["vendi_q1"])


def test_orders_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"vendi\.orders"):
        vendi.Vendi(orders=(1.0, 0.0))
