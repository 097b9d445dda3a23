import json
import pathlib

import numpy as np
import pytest
import scipy.linalg
from safetensors.numpy import load_file

from cosdiff_jax.metrics import frechet

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "metrics"
PUBLISHED = json.loads((FIXTURES / "values.json").read_text())


def draw(n, features=6, seed=0, mean=0.0):
    return np.random.default_rng(seed).normal(size=(n, features)) + mean


def moments(f):
    return frechet.update(frechet.init(f.shape[1]), f)


def gaussian(mean, c):
    """Moments that are exactly those of a Gaussian."""
    return frechet.Moments(2, np.asarray(mean, float), np.asarray(c, float))


@pytest.fixture(scope="module")
def published():
    return load_file(FIXTURES / "features.safetensors")


def test_it_is_the_published_packages_distance(published):
    found = frechet.distance(moments(published["X"]), moments(published["Y"]))
    for package in ("fid_pytorch_fid", "fid_cleanfid", "fid_torch_fidelity"):
        print(f"{package}: relative error {abs(found / PUBLISHED[package] - 1):.1e}")
        assert found == pytest.approx(PUBLISHED[package], rel=1e-9)


def test_fewer_pictures_than_features(published):
    x, y = published["X"][:10], published["Y"][:10]
    found = frechet.distance(moments(x), moments(y))
    theirs = PUBLISHED["fid_rank_deficient_pytorch_fid"]
    print(f"relative error {abs(found / theirs - 1):.1e}")
    assert found == pytest.approx(theirs, rel=1e-6)
    assert frechet.distance(moments(x), moments(x)) == pytest.approx(0, abs=1e-12)


def test_the_closed_form_of_gaussians_that_commute():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    m, w, n, u = rng.normal(size=5), rng.uniform(0, 3, 5), rng.normal(size=5), rng.uniform(0, 3, 5)
    one, other = gaussian(m, turn @ np.diag(w) @ turn.T), gaussian(n, turn @ np.diag(u) @ turn.T)
    wanted = np.sum((m - n) ** 2) + np.sum((np.sqrt(w) - np.sqrt(u)) ** 2)
    assert frechet.distance(one, other) == pytest.approx(wanted, rel=1e-12)


def test_it_is_the_matrix_square_root_of_scipy():
    a, b = moments(draw(40)), moments(draw(50, seed=1) @ draw(6, seed=2))
    c, e = frechet.covariance(a), frechet.covariance(b)
    root = scipy.linalg.sqrtm(c @ e).real
    wanted = np.sum((a.mean - b.mean) ** 2) + np.trace(c + e - 2 * root)
    assert frechet.distance(a, b) == pytest.approx(wanted, rel=1e-9)
    assert frechet.distance(b, a) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("n", "features"), [(50, 6), (20, 64)])
def test_equal_sets_are_0_apart_and_a_shift_costs_its_square(n, features):
    f = draw(n, features, mean=30.0)
    assert frechet.distance(moments(f), moments(f[::-1])) == pytest.approx(0, abs=1e-9)
    found = frechet.distance(moments(f), moments(f + 2.0))
    assert found == pytest.approx(4.0 * features, rel=1e-9)


def test_parts_and_hosts_give_what_all_at_once_gives():
    # A mean of 1e4 deviations: raw squares would lose eight digits.
    f = draw(101, mean=1e4)
    whole = moments(f)
    np.testing.assert_allclose(frechet.covariance(whole), np.cov(f.T), rtol=1e-9, atol=1e-12)
    parts = [f[:7], f[7:7], f[7:60], f[60:]]
    stream = frechet.init(6)
    for part in parts:
        stream = frechet.update(stream, part)
    merged = frechet.merge(frechet.merge(moments(parts[0]), frechet.init(6)), moments(f[7:]))
    swapped = frechet.merge(moments(f[7:]), moments(parts[0]))
    for state in (stream, merged, swapped):
        assert state.number == 101
        np.testing.assert_allclose(state.mean, whole.mean, rtol=1e-13)
        np.testing.assert_allclose(state.scatter, whole.scatter, rtol=1e-6, atol=1e-8)


def test_it_grows_with_noise_and_with_modes_dropped():
    real = draw(400) + 8.0 * np.eye(6)[np.arange(400) % 4]
    noise = draw(400, seed=1)
    noisy = [frechet.distance(moments(real), moments(real + s * noise)) for s in (0, 0.5, 1, 2)]
    assert np.all(np.diff(noisy) > 0)
    modes = np.arange(400) % 4
    few = [frechet.distance(moments(real), moments(real[modes < kept])) for kept in (4, 3, 2, 1)]
    assert np.all(np.diff(few) > 0)


def test_subsets_read_higher_and_the_line_takes_it_off():
    # Sets of one distribution: the truth is 0, and the average over sets comes near it.
    real, sizes = gaussian(np.zeros(8), np.eye(8)), [250, 500, 1000, 2000]
    sets = [draw(2000, 8, seed) for seed in range(20)]
    curves = np.array([frechet.curve(f, real, sizes) for f in sets])
    np.testing.assert_allclose(curves[0, -1], frechet.distance(moments(sets[0]), real), rtol=1e-9)
    assert np.all(np.diff(curves.mean(axis=0)) < 0)
    lines = [frechet.extrapolate(sizes, curve) for curve in curves]
    assert np.mean([line.slope for line in lines]) > 0
    assert abs(np.mean([line.value for line in lines])) < 0.2 * curves[:, -1].mean()
    assert frechet.infinity(sets[0], real, lowest=250, points=5).value < curves[0, -1]


def test_the_line_is_exact_where_the_bias_is():
    sizes = [10, 20, 40]
    line = frechet.extrapolate(sizes, 3.0 + 7.0 / np.asarray(sizes))
    assert line == pytest.approx((3.0, 7.0), rel=1e-9)


def test_what_cannot_be_is_refused_and_nothing_is_nan():
    two, three = moments(draw(9, 2)), moments(draw(9, 3))
    with pytest.raises(ValueError, match="2 and of 3"):
        frechet.distance(two, three)
    with pytest.raises(ValueError, match="at least 2 feature vectors, got 1"):
        frechet.distance(two, moments(draw(1, 2)))
    with pytest.raises(ValueError, match=r"2 \.\. 9"):
        frechet.curve(draw(9, 2), two, [4, 10])
    with pytest.raises(ValueError, match="two different sizes"):
        frechet.extrapolate([5, 5], np.ones(2))
    assert np.isnan(frechet.result(frechet.init(2), two)["frechet"])
    assert frechet.result(two, two)["frechet"] == pytest.approx(0, abs=1e-12)
