import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cosdiff_jax.flow import grid, stochastic, trajectory
from cosdiff_jax.flow.solver import Heun
from cosdiff_jax.flow.stochastic import Ddim, Ddpm, Edm, FlowSde
from cosdiff_jax.flow.trajectory import Cosine, DdpmLinear, LdmLinear, RectifiedFlow

KEY = jax.random.key(1)
NOISY = [
    Ddim(eta=0.5),
    Ddpm(trajectory=Cosine()),
    Ddpm(large=True),
    FlowSde(level=0.7),
    Edm(churn=20.0, inflation=1.0, trajectory=Cosine()),
]
PATHS = [RectifiedFlow(), Cosine(), trajectory.Edm(), DdpmLinear(), LdmLinear()]
SIZES = (64, 128, 256)
CHURNED = dict(churn=8.0, inflation=1.0, smallest=0.0, largest=math.inf)
# Measured orders of the covariance for SIZES, path by path.
ORDERS = [
    (Ddim(eta=0.5), [(0.97, 0.98), (0.97, 0.98), (0.97, 0.98), (0.94, 0.96), (0.89, 0.91)]),
    (Ddpm(), [(0.95, 0.97), (0.94, 0.96), (0.95, 0.97), (0.89, 0.93), (0.84, 0.86)]),
    (Ddpm(large=True), [(0.99, 1.0), (1.0, 1.0), (0.99, 1.0), (1.0, 1.0), (1.01, 1.01)]),
    (
        Edm(**CHURNED, corrected=False),
        [(0.93, 0.96), (0.93, 0.97), (0.93, 0.96), (0.94, 0.97), (0.91, 0.94)],
    ),
    # Heun's rule keeps its order where noise is added in every step, but on the path that ends
    # with more of the data than the sampler starts from.
    (Edm(**CHURNED), [(1.97, 1.98), (1.94, 1.97), (1.97, 1.98), (1.98, 1.91), (1.0, 0.99)]),
]


@pytest.fixture
def moments(monkeypatch, gaussian):
    """(method, sizes) -> largest errors of mean and covariance at t = 0, exact but for rounding.

    On a Gaussian a walk is affine in its start and in each step's noise, so it is known from where
    it ends for each of them at 1 and the rest at 0. The start has the flow's law at its time.
    """

    def found(method, steps, first):
        problem = gaussian(trajectory=method.trajectory)
        size = 3 * (steps + 1)
        unit = np.concatenate([np.zeros((1, size)), np.eye(size)]).reshape(-1, steps + 1, 3)
        with jax.enable_x64(True):
            time = jnp.asarray(method.grid(steps)[first : first + 1])
            a, b = (float(x[0]) for x in problem.trajectory.coefficients(time))
            root = np.linalg.cholesky(a**2 * problem.covariance + b**2 * np.eye(3))
            z = jnp.asarray(a * problem.mean + unit[:, 0] @ root.T)
            noises = jnp.asarray(unit[:, 1:].swapaxes(0, 1))

            def run(z, noises):
                with monkeypatch.context() as patch:
                    patch.setattr(stochastic, "normal", lambda keys, z, index: noises[index])
                    return method(problem.velocity, z, steps, first=first, key=KEY)

            ends = np.asarray(jax.jit(run)(z, noises))
        moved = ends[1:] - ends[0]
        missed = ends[0] - problem.mean, moved.T @ moved - problem.covariance
        return [np.abs(x).max() for x in missed]

    def each(method, sizes, skipped=0.0):
        return np.transpose([found(method, steps, int(skipped * steps)) for steps in sizes])

    return each


@pytest.mark.parametrize("index", range(5), ids=lambda i: type(PATHS[i]).__name__)
@pytest.mark.parametrize(("method", "measured"), ORDERS, ids=lambda x: repr(x)[:16])
def test_the_covariance_nears_that_of_the_data_at_its_order(
    method, measured, index, moments, orders
):
    method = dataclasses.replace(method, trajectory=PATHS[index])
    mean, covariance = moments(method, SIZES)
    np.testing.assert_allclose(orders(covariance), measured[index], atol=0.02)
    assert covariance[-1] < 0.04
    # x0 and eps of the mean path do not change on the way, so the mean has no error.
    np.testing.assert_allclose(mean, 0, atol=1e-9)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_the_flow_sde_is_of_order_one_after_its_first_step(path, moments, orders):
    mean, covariance = moments(FlowSde(trajectory=path), SIZES, skipped=0.25)
    np.testing.assert_allclose(orders(covariance), 1, atol=0.1 if path == DdpmLinear() else 0.03)
    if path == RectifiedFlow():
        np.testing.assert_allclose(mean, 0, atol=1e-9)
    else:
        np.testing.assert_allclose(orders(mean), 1, atol=0.03)


@pytest.mark.parametrize(
    ("path", "measured", "largest"),
    [
        # Errors of both signs meet on the straight path: 0.005, 0.009, 0.009.
        (RectifiedFlow(), None, 0.01),
        # The limits are level^2 / |a'_1|: 0.31 here and 0.49 on the next.
        (Cosine(), (0.23, 0.26), 0.022),
        (trajectory.Edm(), (0.36, 0.40), 0.036),
        (DdpmLinear(), (1.02, 1.01), 0.026),
        (LdmLinear(), (1.05, 1.03), 0.0063),
    ],
)
def test_the_flow_sdes_first_step_costs_order_where_the_path_ends_in_noise(
    path, measured, largest, moments, orders
):
    _, covariance = moments(FlowSde(trajectory=path), SIZES)
    assert np.all(covariance < largest)
    if measured is not None:
        np.testing.assert_allclose(orders(covariance), measured, atol=0.02)


@pytest.mark.parametrize(
    ("path", "largest"),
    [
        (RectifiedFlow(), 8e-4),
        (Cosine(), 7e-4),
        (trajectory.Edm(), 8e-4),
        (DdpmLinear(), 8e-4),
        (LdmLinear(), 3.4e-3),
    ],
)
def test_churned_walks_have_the_covariance_of_the_data(path, largest, moments):
    # No order is asked for: the steps that churn is kept from differ from size to size. Where it
    # is kept from none, ORDERS has it.
    method = Edm(churn=20.0, inflation=1.0, trajectory=path)
    mean, covariance = moments(method, (64, 256))
    np.testing.assert_allclose(mean, 0, atol=1e-9)
    assert covariance[1] < largest and covariance[1] < 0.55 * covariance[0]


def test_noise_is_standard_and_new_for_every_step_and_row():
    z, keys = jnp.zeros((1000, 3)), jax.random.split(KEY, 1000)
    draw = jax.vmap(lambda i: stochastic.normal(keys, z, i))(jnp.arange(20))
    draw = np.asarray(draw, np.float64)
    assert stats.kstest(draw.ravel(), stats.norm.cdf).pvalue > 1e-3
    assert abs((draw**2).mean() - 1) < 4 * np.sqrt(2 / draw.size)
    # Steps against steps and values against values, over rows: 1,770 pairs.
    table = np.corrcoef(draw.transpose(0, 2, 1).reshape(60, 1000))
    assert np.abs(table - np.eye(60)).max() < 4.5 / np.sqrt(1000)


@pytest.mark.parametrize("method", NOISY, ids=lambda method: type(method).__name__)
def test_the_same_start_leads_elsewhere_with_another_key(method, gaussian):
    field, z = gaussian(trajectory=method.trajectory).velocity, jax.random.normal(KEY, (64, 3))
    one, other = (method(field, z, 5, key=jax.random.key(i)) for i in (1, 9))
    assert np.abs(one - other).mean() > 0.05


def test_eta_one_is_ddpm(gaussian):
    z = jax.random.normal(jax.random.key(0), (5, 3))
    draw = [method(gaussian().velocity, z, 9, key=KEY) for method in (Ddim(eta=1.0), Ddpm())]
    np.testing.assert_array_equal(*draw)
    with pytest.raises(ValueError, match=r"eta must lie in 0\.\.1"):
        Ddim(eta=1.5)


@pytest.mark.parametrize("method", [Ddim(eta=0.5), Ddpm(), Ddpm(large=True)], ids=repr)
def test_the_step_to_data_adds_no_noise(method, gaussian):
    z = jax.random.normal(jax.random.key(0), (5, 3))
    for first, same in ((3, False), (4, True)):
        one, other = (
            method(gaussian().velocity, z, 5, first=first, last=first + 1, key=jax.random.key(i))
            for i in (1, 9)
        )
        assert np.array_equal(one, other) == same


def test_eta_is_the_share_of_the_posteriors_std(gaussian):
    z = jax.random.normal(jax.random.key(0), (5, 3))

    def spread(method):
        one, other = (
            method(gaussian().velocity, z, 9, first=3, last=4, key=jax.random.key(i))
            for i in (1, 9)
        )
        return one - other

    np.testing.assert_allclose(spread(Ddim(eta=0.3)), 0.3 * spread(Ddpm()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("method", "order"), [(Ddim(), 1), (Edm(corrected=False), 1), (Edm(), 2)])
def test_without_noise_they_converge_at_their_order(method, order, gaussian, orders):
    errors = gaussian().errors(method, (32, 64, 128), inner=True)
    np.testing.assert_allclose(orders(errors), order, atol=0.15)


@pytest.mark.parametrize("method", NOISY)
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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("path", [RectifiedFlow(), Cosine()])
def test_from_end_to_end_a_walk_and_its_log_probs_are_finite(dtype, path):
    z = jax.random.normal(KEY, (4, 3), dtype)
    field = lambda z, t: z - jnp.asarray(0.5, z.dtype)  # noqa: E731
    method = FlowSde(trajectory=path)
    walked = method.path(field, z, 5, key=KEY)
    assert walked.states.dtype == dtype and walked.log_probs.dtype == jnp.float32
    for i in range(5):
        again = method.log_prob(field, walked.states[i], walked.states[i + 1], 5, i)
        assert np.isfinite(np.asarray(again, np.float32)).all()
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in walked)


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
