import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.flow import trajectory

PATHS = [
    trajectory.RectifiedFlow(),
    trajectory.Cosine(),
    trajectory.Edm(),
    trajectory.DdpmLinear(),
    trajectory.LdmLinear(),
    trajectory.LdmLinear(steps=40, first=0.01, last=0.15),
]
PURE = PATHS[:3]  # t = 1 is noise and nothing else
each_path = pytest.mark.parametrize("path", PATHS, ids=repr)
ENDS = [0.0, 1e-30, 1e-7, 1.0 - 2.0**-24, 1.0]


@pytest.fixture
def rows():
    keys = jax.random.split(jax.random.key(0), 3)
    x0, eps = (jax.random.normal(k, (5, 4, 4, 3)) for k in keys[:2])
    return x0, eps, jax.random.uniform(keys[2], (5,))


@each_path
def test_velocity_is_the_derivative_of_the_path(path, rows):
    x0, eps, t = rows
    z_t, v = path.corrupt(x0, eps, t)
    moved, slope = jax.jvp(lambda t: path.corrupt(x0, eps, t)[0], (t,), (jnp.ones(5),))
    chex.assert_trees_all_equal(moved, z_t)
    chex.assert_trees_all_close(slope, v, rtol=1e-4, atol=1e-4)


def test_velocity_is_what_a_small_step_finds(rows):
    x0, eps, t = rows
    flow = trajectory.RectifiedFlow()
    h = 1e-2
    ahead, behind = flow.corrupt(x0, eps, t + h)[0], flow.corrupt(x0, eps, t - h)[0]
    chex.assert_trees_all_close((ahead - behind) / (2 * h), flow.corrupt(x0, eps, t)[1], atol=1e-4)


@each_path
def test_log_snr_is_that_of_the_coefficients_and_its_slope_that_of_the_rates(path):
    t = jnp.linspace(0.01, 0.99, 50)
    (a, b), (da, db) = path.coefficients(t), path.rates(t)
    log_snr, slope = jax.jvp(path.log_snr, (t,), (jnp.ones(50),))
    chex.assert_trees_all_close(log_snr, 2 * jnp.log(a / b), rtol=1e-4, atol=2e-5)
    chex.assert_trees_all_close(slope, -2 * (a * db - da * b) / (a * b), rtol=1e-4)
    assert (slope < 0).all()


@each_path
def test_time_is_the_inverse_of_log_snr(path):
    t = jnp.concatenate([jnp.array([0.0, 1e-4, 1e-3]), jnp.linspace(0.01, 1, 100)])
    back = path.time(path.log_snr(t))
    chex.assert_trees_all_close(back, t, rtol=1e-4, atol=1e-6)
    assert (back >= 0).all() and (back <= 1).all()
    beyond = path.time(jnp.array([jnp.inf, 300.0, -300.0, -jnp.inf]))
    chex.assert_trees_all_close(beyond, jnp.array([0.0, 0.0, 1.0, 1.0]), atol=1e-6)


@each_path
def test_at_the_start_there_is_data_alone(path, rows):
    x0, eps, _ = rows
    chex.assert_trees_all_equal(path.corrupt(x0, eps, jnp.zeros(5))[0], x0)


@pytest.mark.parametrize("path", PURE, ids=repr)
def test_at_the_end_there_is_noise_alone(path, rows):
    x0, eps, _ = rows
    chex.assert_trees_all_equal(path.corrupt(x0, eps, jnp.ones(5))[0], eps)


@each_path
@pytest.mark.parametrize("t", [0.0, 1e-6, 0.3, 0.999, 1.0])
def test_clean_and_noise_undo_corrupt_ends_included(path, t, rows):
    x0, eps, _ = rows
    t = jnp.full(5, t)
    z_t, v = path.corrupt(x0, eps, t)
    chex.assert_trees_all_close(path.clean(z_t, v, t), x0, atol=1e-5)
    chex.assert_trees_all_close(path.noise(z_t, v, t), eps, atol=1e-5)


@each_path
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_nothing_is_nan_or_infinite_at_the_ends(path, dtype, rows):
    x0, eps = (x.astype(dtype) for x in rows[:2])
    t = jnp.array(ENDS, dtype)
    assert not jnp.isnan(path.log_snr(t)).any()
    chex.assert_tree_all_finite((path.coefficients(t), path.rates(t), path.time(path.log_snr(t))))
    z_t, v = path.corrupt(x0, eps, t)
    assert z_t.dtype == v.dtype == dtype
    chex.assert_tree_all_finite((z_t, v))
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05
    chex.assert_trees_all_close(path.clean(z_t, v, t), x0, atol=tolerance)
    chex.assert_trees_all_close(path.noise(z_t, v, t), eps, atol=tolerance)


@pytest.mark.parametrize("path", [PATHS[1], *PATHS[3:]], ids=repr)
def test_what_a_narrow_time_loses_is_its_own_rounding_alone(path):
    t = jnp.linspace(0, 1, 65).astype(jnp.bfloat16)
    narrow, wide = path.coefficients(t), path.coefficients(t.astype(jnp.float32))
    chex.assert_trees_all_equal(narrow, jax.tree.map(lambda x: x.astype(jnp.bfloat16), wide))


@pytest.mark.parametrize("path", PATHS[1:], ids=repr)
def test_all_but_rectified_flow_keep_the_size_of_unit_data(path):
    a, b = path.coefficients(jnp.linspace(0, 1, 101))
    chex.assert_trees_all_close(a**2 + b**2, jnp.ones(101), atol=1e-6)


def test_edm_is_rectified_flow_at_constant_size_with_the_same_noise_levels(rows):
    x0, eps, t = rows
    z_t, _ = trajectory.Edm().corrupt(x0, eps, t)
    sigma = (t / (1 - t))[:, None, None, None]
    chex.assert_trees_all_close(z_t * jnp.sqrt(1 + sigma**2), x0 + sigma * eps, rtol=1e-4)


@pytest.mark.parametrize(
    ("path", "beta"),
    [
        (trajectory.DdpmLinear(), np.linspace(1e-4, 0.02, 1000)),
        (trajectory.LdmLinear(), np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
        (PATHS[-1], np.linspace(0.1, 0.15**0.5, 40) ** 2),
    ],
    ids=repr,
)
def test_chains_go_through_every_value_of_the_discrete_chain(path, beta):
    t = np.arange(1, beta.size + 1) / beta.size
    a, b = path.coefficients(jnp.asarray(t, jnp.float32))
    left = np.cumprod(1 - beta)
    np.testing.assert_allclose(a, np.sqrt(left), rtol=2e-6)
    np.testing.assert_allclose(b, np.sqrt(1 - left), rtol=2e-6)


def test_a_chain_that_is_none_is_refused():
    with pytest.raises(ValueError, match="LdmLinear: steps must be at least 2"):
        trajectory.LdmLinear(first=0.5)
    with pytest.raises(ValueError, match="DdpmLinear"):
        trajectory.DdpmLinear(steps=1)


# Data of one dimension, x0 ~ N(MEAN, STD^2): everything below has a closed form.
MEAN, STD = 0.7, 0.6


def numbers(path, t):
    """(a, b, a', b') at one time, in double precision from there on."""
    at = jnp.full(1, t)
    return [float(x[0]) for x in (*path.coefficients(at), *path.rates(at))]


def marginal(a, b, da, db, z):
    """u_t(z) = a' E[x0 | z] + b' E[eps | z] of Gaussian data."""
    gain = (z - a * MEAN) / (a**2 * STD**2 + b**2)
    return da * (MEAN + a * STD**2 * gain) + db * b * gain


@each_path
@pytest.mark.parametrize("t", [0.1, 0.5, 0.85])
def test_the_marginal_field_is_the_conditional_ones_weighted_by_their_posterior(path, t):
    """Esser et al. 2024, eq. (6), by quadrature over the noise, with eq. (10) inside."""
    a, b, da, db = numbers(path, t)
    slope = -2 * (a * db - da * b) / (a * b)  # of the log-SNR
    eps = np.linspace(-9, 9, 4001)[:, None]
    z = np.linspace(-3, 3, 25)[None]

    def normal(x, mean, std):
        return np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))

    joint = normal(z, a * MEAN + b * eps, a * STD) * normal(eps, 0, 1)
    conditional = da / a * z - b / 2 * slope * eps
    field = (conditional * joint).sum(0) / joint.sum(0)
    np.testing.assert_allclose(field, marginal(a, b, da, db, z[0]), rtol=1e-5, atol=1e-5)


@each_path
def test_flow_matching_and_its_conditional_form_have_the_same_gradient(path):
    """Eqs. (7) and (8) for v = theta_0 z + theta_1, with Gauss-Hermite nodes, exact here."""
    a, b, da, db = numbers(path, 0.4)
    nodes, weights = np.polynomial.hermite_e.hermegauss(6)
    weights = weights / weights.sum()
    x0, eps = MEAN + STD * nodes[:, None], nodes[None]
    pairs = weights[:, None] * weights[None]
    z = a * x0 + b * eps

    def gradient(target):
        error = 2 * (0.8 * z - 0.3 - target)
        return [(pairs * error * z).sum(), (pairs * error).sum()]

    conditional = gradient(da * x0 + db * eps)
    np.testing.assert_allclose(gradient(marginal(a, b, da, db, z)), conditional, rtol=1e-5)
