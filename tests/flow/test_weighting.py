import chex
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.flow import parameterization, trajectory, weighting

PATHS = [
    trajectory.RectifiedFlow(),
    trajectory.Cosine(),
    trajectory.Edm(),
    trajectory.DdpmLinear(),
    trajectory.LdmLinear(),
]
MEANINGS = [
    parameterization.Velocity(),
    parameterization.Noise(),
    parameterization.V(),
    parameterization.Clean(),
    parameterization.Score(),
    parameterization.Edm(),
]


def edm(log_snr):
    normal = np.exp(-0.5 * ((log_snr - 2.4) / 2.4) ** 2) / (2.4 * np.sqrt(2 * np.pi))
    return normal * (np.exp(-log_snr) + 0.25)


# The weighting, and w as a function of the log-SNR by its own formula.
WEIGHTS = [
    (weighting.Exponential(), lambda x: np.exp(-x / 2)),
    (weighting.Sech(), lambda x: 1 / np.cosh(x / 2)),
    (weighting.Sigmoid(bias=0.5), lambda x: 1 / (1 + np.exp(x - 0.5))),
    (weighting.Edm(), edm),
]
each_path = pytest.mark.parametrize("path", PATHS, ids=repr)
each_meaning = pytest.mark.parametrize("meaning", MEANINGS, ids=repr)


def double(*arrays):
    return [np.asarray(x, np.float64) for x in arrays]


@each_path
@each_meaning
def test_the_factor_on_any_output_is_the_common_loss_by_quadrature(path, meaning):
    """L_w of a wrong predictor on data of one dimension, as it stands and by the factor."""
    nodes, share = np.polynomial.legendre.leggauss(40)
    t = jnp.asarray(0.5 + 0.48 * nodes, jnp.float32)
    (a, b), (da, db) = double(*path.coefficients(t)), double(*path.rates(t))
    p, q = double(*meaning.mixture(t, path))
    log_snr, slope = 2 * np.log(a / b), -2 * (a * db - da * b) / (a * b)

    points, mass = np.polynomial.hermite_e.hermegauss(16)
    mass = mass[:, None] * mass[None] / mass.sum() ** 2
    x0, eps = 0.4 + 0.5 * points[:, None], points[None]

    def at(i):
        z = a[i] * x0 + b[i] * eps
        guess = 0.3 * z + 0.2 * t[i] + 0.1 * z**2
        x0_hat = (z - b[i] * guess) / a[i]
        output, target = p[i] * x0_hat + q[i] * guess, p[i] * x0 + q[i] * eps
        return (mass * (guess - eps) ** 2).sum(), (mass * (output - target) ** 2).sum()

    noise_error, output_error = np.array([at(i) for i in range(t.size)], np.float64).T
    for weight, formula in WEIGHTS:
        common = (share * -0.5 * formula(log_snr) * slope * noise_error).sum()
        factor = np.asarray(weight(t, path, meaning), np.float64)
        np.testing.assert_allclose((share * factor * output_error).sum(), common, rtol=1e-3)


def test_constant_on_the_velocity_of_rectified_flow_is_t_over_one_minus_t():
    t = jnp.linspace(0.01, 0.99, 50)
    path, meaning = PATHS[0], MEANINGS[0]
    factor = weighting.Constant()(t, path, meaning)
    chex.assert_trees_all_equal(factor, jnp.ones(50))
    got = weighting.common_weight(factor, t, path, meaning)
    chex.assert_trees_all_close(got, t / (1 - t), rtol=1e-5)


def test_on_the_cosine_path_plain_eps_is_sech_and_plain_v_is_exponential():
    t, path = jnp.linspace(0.01, 0.99, 50), trajectory.Cosine()
    half = path.log_snr(t) / 2
    factor = weighting.Sech()(t, path, parameterization.Noise())
    chex.assert_trees_all_close(factor, jnp.full(50, jnp.pi), rtol=1e-4)
    factor = weighting.Exponential()(t, path, parameterization.V())
    chex.assert_trees_all_close(factor, jnp.full(50, jnp.pi / 2), rtol=1e-4)
    plain = weighting.common_weight(jnp.ones(50), t, path, parameterization.Noise())
    chex.assert_trees_all_close(plain * jnp.pi, 1 / jnp.cosh(half), rtol=1e-4)


def test_edms_weight_on_its_own_output_is_the_density_of_the_noise_level():
    """With sigma_data^2 before it, as L_w knows weights up to a constant."""
    t, path = jnp.linspace(0.02, 0.98, 50), trajectory.Edm()
    factor = weighting.Edm()(t, path, parameterization.Edm())
    log_sigma = np.log(t / (1 - t))
    normal = np.exp(-0.5 * ((log_sigma + 1.2) / 1.2) ** 2) / (2.4 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(factor, 0.25 * normal / (t * (1 - t)), rtol=1e-4)


@each_path
@each_meaning
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_factors_are_finite_at_the_ends_and_go_back_to_their_weight(path, meaning, dtype):
    t = jnp.array([0.0, 1e-30, 1e-7, 0.3, 1 - 2.0**-24, 1.0], dtype)
    for weight, formula in WEIGHTS:
        factor = weight(t, path, meaning)
        chex.assert_tree_all_finite(factor)
        assert factor.dtype == dtype and (factor >= 0).all()
        if dtype == jnp.float32:
            wanted = formula(float(path.log_snr(t[3:4])[0]))
            back = weighting.common_weight(factor, t, path, meaning)
            chex.assert_tree_all_finite(back)
            assert float(back[3]) == pytest.approx(wanted, rel=1e-3)


def test_widths_of_zero_are_refused():
    with pytest.raises(ValueError, match=r"weighting\.edm\.std and sigma_data"):
        weighting.Edm(std=0.0)
