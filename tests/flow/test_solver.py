import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.flow import solver


def velocity(z, t):
    """dz/dt = z (1 + 2 t): z(0) = z(1) exp(-2)."""
    return z * (1 + 2 * t)[:, None]


def error(method, steps):
    z = method(velocity, jnp.ones((2, 1)), steps)
    return abs(float(z[0, 0]) - np.exp(-2.0))


@pytest.mark.parametrize(("method", "order"), [(solver.Euler(), 1), (solver.Heun(), 2)])
def test_order_of_convergence(method, order):
    errors = [error(method, steps) for steps in (16, 32, 64)]
    slopes = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(slopes, order, atol=0.3)


def test_a_straight_flow_is_solved_in_one_step():
    x0, eps = jnp.full((1, 2), 3.0), jnp.array([[0.5, -1.0]])
    z = solver.Euler()(lambda z, t: eps - x0, eps, 1)
    np.testing.assert_allclose(z, x0, atol=1e-6)


@pytest.mark.parametrize("method", [solver.Euler(), solver.Heun()])
def test_two_stretches_are_the_whole(method):
    z = jnp.ones((2, 1))
    half = method(velocity, z, 7, last=3)
    np.testing.assert_allclose(
        method(velocity, half, 7, first=3), method(velocity, z, 7), rtol=1e-6
    )


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


@pytest.mark.parametrize("method", [solver.Euler(), solver.Heun()])
def test_calls_are_what_a_step_costs(method):
    asked = []

    def counted(z, t):
        asked.append(t)
        return velocity(z, t)

    method(counted, jnp.ones((2, 1)), 5)  # traced once for all steps
    assert len(asked) == method.calls
