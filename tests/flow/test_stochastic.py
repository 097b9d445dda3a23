import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cosdiff_jax.flow import grid
from cosdiff_jax.flow.solver import Heun
from cosdiff_jax.flow.stochastic import Ddim, Ddpm, Edm, FlowSde
from cosdiff_jax.flow.trajectory import Cosine, RectifiedFlow

KEY = jax.random.key(1)
NOISY = [
    (Ddim(eta=0.5), 100),
    (Ddpm(trajectory=Cosine()), 100),
    (Ddpm(large=True), 200),
    (FlowSde(level=0.7), 150),
    (Edm(churn=20.0, inflation=1.0, trajectory=Cosine()), 60),
]


@pytest.mark.parametrize(("method", "steps"), NOISY)
def test_mean_and_covariance_are_those_of_the_data(method, steps, gaussian):
    problem = gaussian(trajectory=method.trajectory)
    number = 8192
    z = jax.random.normal(jax.random.key(0), (number, 3))
    run = jax.jit(lambda z: method(problem.velocity, z, steps, key=KEY))
    x, truth = np.asarray(run(z), np.float64), problem.covariance
    variances = np.diag(truth)
    # Four standard errors of the moments of so many draws.
    mean_error = np.sqrt(variances / number)
    covariance_error = np.sqrt((np.outer(variances, variances) + truth**2) / number)
    assert np.all(np.abs(x.mean(0) - problem.mean) < 4 * mean_error)
    assert np.all(np.abs(np.cov(x.T) - truth) < 4 * covariance_error)
    # Noise was drawn: the same start leads elsewhere.
    other = jax.jit(lambda z: method(problem.velocity, z, steps, key=jax.random.key(9)))(z)
    assert np.abs(other - x).mean() > 0.1


def test_eta_one_is_ddpm(gaussian):
    z = jax.random.normal(jax.random.key(0), (5, 3))
    draw = [method(gaussian().velocity, z, 9, key=KEY) for method in (Ddim(eta=1.0), Ddpm())]
    np.testing.assert_array_equal(*draw)
    with pytest.raises(ValueError, match=r"eta must lie in 0\.\.1"):
        Ddim(eta=1.5)


@pytest.mark.parametrize(("method", "order"), [(Ddim(), 1), (Edm(corrected=False), 1), (Edm(), 2)])
def test_without_noise_they_converge_at_their_order(method, order, gaussian, orders):
    errors = gaussian().errors(method, (32, 64, 128), inner=True)
    np.testing.assert_allclose(orders(errors), order, atol=0.15)


@pytest.mark.parametrize("method", [method for method, _ in NOISY])
def test_a_rows_noise_is_its_keys_alone(method, gaussian):
    field = gaussian(trajectory=method.trajectory).velocity
    z, keys = jax.random.normal(KEY, (6, 3)), jax.random.split(KEY, 6)
    rows = jnp.array([4, 1])
    whole = method(field, z, 5, key=keys)
    np.testing.assert_allclose(method(field, z[rows], 5, key=keys[rows]), whole[rows], rtol=1e-5)
    one = method(field, jnp.zeros((3, 3)), 5, key=KEY)
    assert len(np.unique(np.asarray(one)[:, 0])) == 3


def test_a_step_of_the_flow_sde_is_the_published_one(gaussian):
    """Flow-GRPO's rule in its own letters, for which dt is negative."""
    z, steps, level = jax.random.normal(KEY, (4, 3)), 5, 0.7
    field, times = gaussian().velocity, np.linspace(1, 0, 6)
    path = FlowSde(level=level).path(field, z, steps, key=KEY)
    for i in range(steps):
        x, after = np.asarray(path.states[i]), np.asarray(path.states[i + 1])
        sigma, dt = times[i], times[i + 1] - times[i]
        v = np.asarray(field(path.states[i], jnp.full(4, sigma)))
        std = np.sqrt(sigma / (1 - (times[1] if sigma == 1 else sigma))) * level
        mean = x * (1 + std**2 / (2 * sigma) * dt)
        mean = mean + v * (1 + std**2 * (1 - sigma) / (2 * sigma)) * dt
        expected = stats.norm.logpdf(after, mean, std * math.sqrt(-dt)).mean(axis=1)
        np.testing.assert_allclose(path.log_probs[i], expected, rtol=1e-4)
        noise = (after - mean) / (std * math.sqrt(-dt))
        assert np.abs(noise).max() < 4


def test_log_probs_of_the_same_velocity_are_those_of_the_walk(gaussian):
    z, method = jax.random.normal(KEY, (4, 3)), FlowSde(grid=grid.Shifted(alpha=3.0))
    field = gaussian().velocity
    path = jax.jit(lambda z: method.path(field, z, 6, key=KEY))(z)
    np.testing.assert_array_equal(path.states[0], z)
    np.testing.assert_allclose(path.states[-1], method(field, z, 6, key=KEY), rtol=1e-5)
    for i in (0, 3, 5):
        again = method.log_prob(field, path.states[i], path.states[i + 1], 6, i)
        np.testing.assert_allclose(again, path.log_probs[i], rtol=1e-4)
    # A velocity that leads elsewhere makes the step less likely.
    other = method.log_prob(lambda z, t: field(z, t) + 9.0, path.states[3], path.states[4], 6, 3)
    assert np.all(other < path.log_probs[3])


def test_the_log_prob_has_the_gradient_of_its_mean(gaussian):
    """d log p / d shift at the walk's own velocity is -h (z' - mean) / (g^2 h), per value."""
    z, method, field = jax.random.normal(KEY, (4, 3)), FlowSde(), gaussian().velocity
    path = method.path(field, z, 5, key=KEY)

    def log_prob(shift):
        moved = lambda z, t: field(z, t) + shift  # noqa: E731
        return method.log_prob(moved, path.states[2], path.states[3], 5, 2).sum()

    t, h = 0.6, 0.2
    variance = 0.7**2 * t / (1 - t)
    eps = path.states[2] + (1 - t) * field(path.states[2], jnp.full(4, t))
    mean = path.states[2] - h * (field(path.states[2], jnp.full(4, t)) + variance / (2 * t) * eps)
    # The shift moves eps by (1 - t) of itself as well.
    pull = -(1 + variance / (2 * t) * (1 - t)) * (path.states[3] - mean) / variance
    np.testing.assert_allclose(jax.grad(log_prob)(0.0), pull.mean(axis=1).sum(), rtol=1e-3)
    with pytest.raises(ValueError, match="level must be above 0"):
        FlowSde(level=0.0)


def test_edm_with_a_corrector_follows_the_flow(gaussian):
    z = jax.random.normal(KEY, (8, 3))
    problem = gaussian()
    spread = grid.Karras(smallest=0.01, trajectory=RectifiedFlow())
    edm = Edm(grid=spread)(problem.velocity, z, 40)
    heun = Heun(grid=spread)(problem.velocity, z, 40)
    exact = problem.flow(z, 1.0, 0.0)
    assert np.abs(edm - exact).max() < 0.02 and np.abs(heun - exact).max() < 0.02
