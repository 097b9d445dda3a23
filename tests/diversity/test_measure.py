import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.diversity import measure

KEY = jax.random.key(3)
MEASURES = [
    measure.MeanCosine(),
    measure.TopCosine(percent=30.0),
    measure.SampledCosine(pairs=8),
    measure.LogDeterminant(),
    measure.Vendi(),
]


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def cosines(f):
    u = np.asarray(f, np.float64)
    u = u / np.linalg.norm(u, axis=-1, keepdims=True)
    return u @ u.T


def test_log_determinant_against_numpy():
    f, ridge = draw(3, 5, 7) + 0.5, 1e-3
    got = measure.LogDeterminant(ridge=ridge)(f)
    for p in range(3):
        c = (1 - ridge) * cosines(f[p]) + ridge * np.eye(5)
        want = np.linalg.slogdet(c)[1] / (4 * np.log(ridge))
        np.testing.assert_allclose(got[p], want, rtol=1e-4)


def test_vendi_against_numpy():
    f, ridge = draw(3, 5, 7) + 0.5, 1e-3
    got = measure.Vendi(ridge=ridge)(f)
    for p in range(3):
        w = np.linalg.eigvalsh((1 - ridge) * cosines(f[p]) + ridge * np.eye(5)) / 5
        want = 1 + np.sum(w * np.log(w)) / np.log(5)
        np.testing.assert_allclose(got[p], want, rtol=1e-4)
    exact = measure.spectral_entropy(f)
    w = np.linalg.eigvalsh(cosines(f[0])) / 5
    np.testing.assert_allclose(exact[0], -np.sum(w * np.log(w)), rtol=1e-5)


@pytest.mark.parametrize("form", [measure.LogDeterminant(), measure.Vendi()])
def test_spectral_forms_run_from_orthogonal_to_identical(form):
    np.testing.assert_allclose(form(jnp.eye(4)[None]), 0, atol=1e-5)
    same = form(jnp.ones((1, 4, 4)))
    assert 0.9 < float(same[0]) <= 1.0
    one_pair = form(jnp.eye(4).at[1].set(jnp.eye(4)[0])[None])
    assert 0.1 < float(one_pair[0]) < float(same[0])


def test_one_identical_pair_costs_its_share_of_the_log_determinant():
    f = jnp.eye(4).at[1].set(jnp.eye(4)[0])[None]
    np.testing.assert_allclose(measure.LogDeterminant(ridge=1e-4)(f), 1 / 3, atol=0.03)


def test_sampled_pairs_are_unbiased_and_never_a_sample_with_itself():
    f, mask = draw(2, 6, 3) + 0.3, jnp.array([[True] * 6, [True, False, True, True, False, True]])
    form = measure.SampledCosine(pairs=64)
    keys = jax.random.split(KEY, 500)
    got = np.asarray(jax.jit(jax.vmap(lambda key: form(f, mask, key)))(keys))
    want = measure.MeanCosine()(f, mask)
    error = got.std(axis=0) / np.sqrt(len(keys))
    assert (np.abs(got.mean(axis=0) - want) < 4 * error).all()
    # With orthogonal samples a pair of one with itself would show as a cosine of 1.
    assert not np.any(form(jnp.eye(4)[None], None, KEY))
    with pytest.raises(ValueError, match="need a key"):
        form(f)


def test_every_pair_is_drawn():
    f = jnp.asarray(np.arange(1, 5), jnp.float32)
    # Vectors in a plane at distinct angles: the cosine names the pair.
    f = jnp.stack([jnp.cos(f), jnp.sin(f)], axis=-1)[None]
    form = measure.SampledCosine(pairs=1)
    got = jax.vmap(lambda key: form(f, None, key))(jax.random.split(KEY, 400))
    want = {round(float(np.cos(a - b)), 3) for a, b in itertools.combinations(range(1, 5), 2)}
    assert {round(float(c), 3) for c in got[:, 0]} == want


@pytest.mark.parametrize("form", MEASURES)
def test_masked_samples_do_not_count_and_order_does_not_matter(form):
    f = draw(2, 5, 4) + 0.4
    mask = jnp.array([[True, True, False, True, False]] * 2)
    kept = f[:, jnp.array([0, 1, 3])]
    if not isinstance(form, measure.SampledCosine):
        np.testing.assert_allclose(form(f, mask, KEY), form(kept, None, KEY), rtol=2e-4)
        turned = form(f[:, ::-1], mask[:, ::-1], KEY)
        np.testing.assert_allclose(turned, form(f, mask, KEY), rtol=1e-4)
    moved = f.at[:, 2].set(9.0)
    np.testing.assert_allclose(form(moved, mask, KEY), form(f, mask, KEY), rtol=1e-5)
    alone = jnp.array([[False, True, False, False, False], [False] * 5])
    np.testing.assert_allclose(form(f, alone, KEY), 0, atol=1e-6)


@pytest.mark.parametrize("form", [m for m in MEASURES if not isinstance(m, measure.SampledCosine)])
def test_the_gradients_of_samples_follow_their_order(form):
    f, order = draw(2, 5, 4) + 0.4, np.array([3, 0, 4, 2, 1])
    mask = jnp.array([[True, True, False, True, True], [True] * 5])

    @jax.jit
    def slope(f, mask):
        return jax.grad(lambda f: jnp.array([1.0, -2.0]) @ form(f, mask, KEY))(f)

    want = slope(f, mask)
    assert (jnp.abs(want).max(axis=(1, 2)) > 1e-3).all() and not want[~mask].any()
    moved = slope(f[:, order], mask[:, order])
    np.testing.assert_allclose(moved, want[:, order], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("form", MEASURES)
@pytest.mark.parametrize("f", [jnp.zeros((1, 4, 3)), jnp.ones((1, 4, 3)), jnp.eye(4)[None]])
def test_no_nan_where_samples_are_zero_identical_or_orthogonal(form, f):
    value, slope = jax.value_and_grad(lambda f: form(f, None, KEY).sum())(f)
    assert np.isfinite(value) and np.isfinite(slope).all()


@pytest.mark.parametrize("form", MEASURES)
def test_gradients_are_those_of_finite_differences(form):
    f, way = draw(2, 4, 6) + 0.5, draw(2, 4, 6, seed=1)
    value = jax.jit(lambda f: form(f, None, KEY).sum())
    step = 1e-2
    want = (value(f + step * way) - value(f - step * way)) / (2 * step)
    got = jnp.sum(jax.grad(value)(f) * way)
    np.testing.assert_allclose(got, want, rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("form", MEASURES)
def test_each_fits_the_protocol_and_lowering_it_spreads_the_samples(form):
    assert isinstance(form, measure.Measure)
    f = draw(1, 5, 8) * 0.2 + 1.0
    before = measure.MeanCosine()(f)[0]
    slope = jax.jit(jax.grad(lambda f, key: form(f, None, key).sum()))
    for number in range(40):
        f = f - 0.3 * slope(f, jax.random.fold_in(KEY, number))
    assert float(measure.MeanCosine()(f)[0]) < float(before) - 0.02
