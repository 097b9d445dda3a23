from dataclasses import dataclass
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.flow import timestep, trajectory
from cosdiff_jax.objectives.flow_matching import FlowMatching
from cosdiff_jax.shapes import Batch, TextStream

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


def marginal(path, t):
    """(m, s, m', s') of z_t ~ N(m, s^2), from the coefficients alone."""

    def law(t):
        a, b = path.coefficients(t)
        return a * MEAN, jnp.sqrt(a**2 * STD**2 + b**2)

    at = jnp.full(1, t, float)
    return (float(x[0]) for x in jax.tree.leaves(jax.jvp(law, (at,), (jnp.ones_like(at),))))


@each_path
@pytest.mark.parametrize("t", [0.02, 0.3, 0.6, 0.9])
def test_the_marginal_field_is_the_conditional_ones_weighted_by_their_posterior(path, t):
    """Esser et al. 2024, eq. (6): the average carries z_t, so it is m' + s' / s (z - m)."""
    with jax.enable_x64(True):
        a, b = (float(x[0]) for x in path.coefficients(jnp.full(1, t, float)))
        z = np.linspace(-3, 3, 25)[None]
        x0 = MEAN + np.linspace(-12 * STD, 12 * STD, 6001)[:, None]
        posterior = np.exp(-0.5 * ((x0 - MEAN) / STD) ** 2 - 0.5 * ((z - a * x0) / b) ** 2)
        posterior = posterior / posterior.sum(0)
        x0, eps = jnp.broadcast_to(x0, posterior.shape), jnp.asarray((z - a * x0) / b)
        z_t, conditional = path.corrupt(x0, eps, jnp.full(len(x0), t, float))
        mean, std, mean_slope, std_slope = marginal(path, t)
        z_t, conditional = np.asarray(z_t), np.asarray(conditional)
    np.testing.assert_allclose(z_t, np.broadcast_to(z, z_t.shape), atol=1e-12)
    field = (conditional * posterior).sum(0)
    # All in double precision: nodes are an eighth of the posterior's width or less apart, where
    # the quadrature of something smooth has no error left.
    expected = mean_slope + std_slope / std * (z[0] - mean)
    np.testing.assert_allclose(field, expected, rtol=1e-9, atol=1e-9)


class Reads(NamedTuple):
    rotate: bool = True
    layers: bool = False
    echo: int | None = None


class Silent(nn.Module):
    """A language model that says nothing."""

    @nn.compact
    def __call__(self, tokens, mask, **kwargs):
        none = jnp.zeros((1, *tokens.shape, 1, 1))
        return TextStream(keys=none, values=none, hidden=none[0, ..., 0], mask=mask)


class Curved(nn.Module):
    """v = theta_0 + theta_1 z + theta_2 z^2."""

    attention: Reads = Reads()

    @nn.compact
    def __call__(self, z, t, text):
        theta = self.param("theta", nn.initializers.ones, (3,))
        return theta[0] + theta[1] * z + theta[2] * z**2


@dataclass(frozen=True, kw_only=True)
class At(timestep.Uniform):
    """One time for all rows."""

    time: float

    def __call__(self, key, batch):
        return jnp.full(batch, self.time, float)


THETA = np.array([-0.3, 0.8, 0.25])


@each_path
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_loss_has_the_gradient_of_the_one_against_the_marginal_field(path, t, monkeypatch):
    """Eqs. (7) and (8): FlowMatching's own gradient, expected over data and noise, exactly.

    The gradient is of fourth order in x0 and eps, for which three Gauss-Hermite nodes suffice:
    -sqrt(3), 0 and sqrt(3) with weights 1, 4 and 1, so rows repeat them as often.
    """
    nodes = np.sqrt(3) * np.array([-1, 0, 0, 0, 0, 1])
    x0, eps = (x.reshape(36, 1, 1, 1) for x in np.meshgrid(MEAN + STD * nodes, nodes))
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: jnp.asarray(eps, dtype))
    objective = FlowMatching(
        backbone=Curved(), language_model=Silent(), trajectory=path, times=At(time=t), samples=36
    )
    with jax.enable_x64(True):
        tokens = jnp.ones((1, 2), int)
        batch = Batch(tokens=tokens, mask=tokens > 0, images=jnp.asarray(x0))

        def loss(theta):
            params, step = {"theta": theta}, jnp.zeros((), int)
            return objective(params, {"llm": {}}, batch, jax.random.key(0), step, {})[0]

        conditional = jax.grad(loss)(jnp.asarray(THETA))
        mean, std, mean_slope, std_slope = marginal(path, t)
    # The marginal loss by more nodes than its order needs.
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    z = mean + std * nodes
    powers = np.stack([np.ones(8), z, z**2])
    error = THETA @ powers - (mean_slope + std_slope * nodes)
    expected = (weights / weights.sum() * 2 * error * powers).sum(1)
    # The objective takes its errors in single precision; the sums over nodes are exact.
    np.testing.assert_allclose(conditional, expected, rtol=1e-6, atol=1e-6)
