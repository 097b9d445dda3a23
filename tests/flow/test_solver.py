import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.flow import grid, multistep, solver, stochastic
from cosdiff_jax.flow.trajectory import Cosine, DdpmLinear, Edm, LdmLinear, RectifiedFlow

SINGLE = [solver.Euler(), solver.Heun(), solver.Midpoint(), solver.RungeKutta4()]
MULTISTEP = [
    multistep.DpmSolver(order=2),
    multistep.DpmSolver(order=3),
    multistep.UniPc(),
]
NOISY = [
    stochastic.Ddim(eta=0.5),
    stochastic.Ddpm(),
    stochastic.Ddpm(large=True),
    stochastic.FlowSde(),
    stochastic.Edm(churn=20.0),
]
SILENT = [*SINGLE, *MULTISTEP, stochastic.Ddim(), stochastic.Edm(), stochastic.Edm(corrected=False)]
ALL = [*SILENT, *NOISY]
PATHS = [RectifiedFlow(), Cosine(), Edm(), DdpmLinear(), LdmLinear()]
KEY = jax.random.key(3)


def velocity(z, t):
    """dz/dt = z (1 + 2 t): z(0) = z(1) exp(-2)."""
    return z * (1 + 2 * t)[:, None]


def name(method):
    return type(method).__name__


@pytest.mark.parametrize(("method", "order"), zip(SINGLE, (1, 2, 2, 4), strict=True), ids=name)
def test_order_of_convergence(method, order, gaussian, orders):
    # On the cosine path: on straight lines the midpoint rule's leading error happens to cancel.
    errors = gaussian(trajectory=Cosine()).errors(method, (32, 64, 128))
    np.testing.assert_allclose(orders(errors), order, atol=0.06)


@pytest.mark.parametrize("method", ALL, ids=name)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_from_pure_noise_to_data_nothing_is_lost_in_infinities(method, dtype, path, gaussian):
    if hasattr(method, "trajectory"):
        method = dataclasses.replace(method, trajectory=path)
    field = gaussian(trajectory=path).velocity
    z = jax.random.normal(KEY, (8, 3), dtype)
    for steps in (1, 4):
        # Step by step: nothing of all this has to be compiled.
        with jax.disable_jit():
            out = method(field, z, steps, key=KEY)
        assert out.dtype == dtype and bool(jnp.all(jnp.isfinite(out))), steps


@pytest.mark.parametrize("method", NOISY, ids=name)
def test_a_solver_that_draws_noise_asks_for_a_key(method):
    with pytest.raises(ValueError, match="draws noise and was given no key"):
        method(velocity, jnp.ones((2, 1)), 4)


@pytest.mark.parametrize("method", ALL, ids=name)
def test_the_last_time_reached_is_zero_and_all_are_the_grids(method):
    seen, times = [], (1.0, 0.7, 0.35, 0.3, 0.0)
    method = dataclasses.replace(method, grid=grid.Given(times=times))

    def between(z, t, index):
        jax.debug.callback(lambda t, i: seen.append((int(i), float(t[0]))), t, index)
        return z

    method(velocity, jnp.ones((2, 1)), 4, between=between, key=KEY)
    jax.effects_barrier()
    assert sorted(seen) == list(enumerate(np.float32(times[1:]).tolist()))


def test_a_field_that_remembers_is_handed_what_it_said():
    def ask(z, t, asked):
        return jnp.full_like(z, asked), asked + 1

    field = solver.Remembering(start=lambda z: jnp.zeros(()), ask=ask)
    seen = []

    def between(z, t, index):
        jax.debug.callback(lambda z: seen.append(float(z[0, 0])), z)
        return z

    solver.Euler()(field, jnp.zeros((2, 1)), 4, between=between)
    jax.effects_barrier()
    assert sorted(seen) == [-1.5, -0.75, -0.25, 0.0]
    with pytest.raises(ValueError, match="momentum to 0"):
        field(jnp.zeros((2, 1)), jnp.zeros(2))


def test_a_straight_flow_is_solved_in_one_step():
    x0, eps = jnp.full((1, 2), 3.0), jnp.array([[0.5, -1.0]])
    z = solver.Euler()(lambda z, t: eps - x0, eps, 1)
    np.testing.assert_allclose(z, x0, atol=1e-6)


WHOLE = [method for method in ALL if method not in MULTISTEP]


@pytest.mark.parametrize("method", WHOLE, ids=name)
def test_two_stretches_are_the_whole(method):
    z = jnp.ones((2, 1))
    half = method(velocity, z, 7, last=3, key=KEY)
    whole = method(velocity, z, 7, key=KEY)
    np.testing.assert_allclose(method(velocity, half, 7, first=3, key=KEY), whole, rtol=1e-6)


def test_between_sees_the_time_reached_and_may_change_the_state():
    seen = []

    def between(z, t, index):
        jax.debug.callback(lambda t, i: seen.append((int(i), float(t[0]))), t, index)
        return jnp.zeros_like(z)

    z = solver.Euler()(velocity, jnp.ones((2, 1)), 4, between=between)
    jax.effects_barrier()
    assert sorted(seen) == [(0, 0.75), (1, 0.5), (2, 0.25), (3, 0.0)]
    np.testing.assert_array_equal(z, 0)


def test_steps_outside_the_grid_are_refused():
    with pytest.raises(ValueError, match="no such stretch"):
        solver.Euler()(velocity, jnp.ones((1, 1)), 4, first=3, last=5)


@pytest.mark.parametrize("method", ALL, ids=name)
def test_calls_are_what_a_step_costs(method):
    asked = []

    def counted(z, t):
        asked.append(t)
        return velocity(z, t)

    method(counted, jnp.ones((2, 1)), 5, key=KEY)  # traced once for all steps
    assert len(asked) == method.calls
