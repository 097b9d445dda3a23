import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.flow import grid
from cosdiff_jax.flow.multistep import DpmSolver, UniPc
from cosdiff_jax.flow.solver import Euler
from cosdiff_jax.flow.stochastic import Ddim
from cosdiff_jax.flow.trajectory import Cosine, LdmLinear, RectifiedFlow

ORDERS = [
    (DpmSolver(order=1), 1),
    (DpmSolver(order=2), 2),
    (DpmSolver(order=3), 3),
    # The usual third-order update halves its second difference, and with that loses an order.
    (DpmSolver(order=3, published=True), 2),
    # The corrector gives an order more than its predictor has.
    (UniPc(), 3),
]


PATHS = [RectifiedFlow(), Cosine(), LdmLinear()]
each_path = pytest.mark.parametrize("index", range(3), ids=lambda i: type(PATHS[i]).__name__)


@each_path
@pytest.mark.parametrize(("method", "order"), ORDERS)
def test_order_of_convergence_away_from_the_ends(method, order, index, gaussian, orders):
    method = dataclasses.replace(method, trajectory=PATHS[index])
    errors = gaussian(trajectory=PATHS[index]).errors(method, (32, 64, 128), inner=True)
    # What is left of the next order is largest where the leading error is halved most.
    late = getattr(method, "published", False) and index == 2
    np.testing.assert_allclose(orders(errors), order, atol=0.26 if late else 0.13)


# Measured orders over the whole way for 32, 64 and 128 steps, path by path.
WHOLE = [
    (Ddim(), [(0.99, 0.99), (0.99, 0.99), (0.92, 0.93)]),
    (DpmSolver(order=2), [(1.67, 1.75), (1.82, 1.81), (1.06, 1.01)]),
    (DpmSolver(order=3), [(2.11, 2.08), (1.92, 1.96), (1.04, 1.03)]),
    (UniPc(), [(2.23, 2.18), (1.77, 1.89), (1.01, 1.01)]),
]


@each_path
@pytest.mark.parametrize(("method", "measured"), WHOLE, ids=lambda x: repr(x)[:18])
def test_over_the_whole_way_the_infinite_ends_leave_order_two_at_most(
    method, measured, index, gaussian, orders
):
    """And order one on a chain, whose b grows like sqrt(t) in the last step."""
    problem = gaussian(trajectory=PATHS[index])
    errors = problem.errors(dataclasses.replace(method, trajectory=PATHS[index]), (32, 64, 128))
    np.testing.assert_allclose(orders(errors), measured[index], atol=0.05)
    if index == 0 and not isinstance(method, Ddim):
        assert np.all(errors < problem.errors(Euler(), (32, 64, 128)) / 5)


@pytest.mark.parametrize("path", [Cosine(), LdmLinear()])
def test_order_one_is_ddim(path, gaussian):
    z, field = jax.random.normal(jax.random.key(0), (5, 3)), gaussian(trajectory=path).velocity
    dpm, ddim = DpmSolver(order=1, trajectory=path), Ddim(trajectory=path)
    np.testing.assert_allclose(dpm(field, z, 7), ddim(field, z, 7), rtol=1e-4, atol=1e-5)


def test_between_survives_the_corrector(gaussian):
    z = jax.random.normal(jax.random.key(0), (5, 3))

    def zero(z, t, index):
        return jnp.where(index == 5, 100.0, z)

    moved = UniPc()(gaussian().velocity, z, 7, between=zero)
    plain = UniPc()(gaussian().velocity, z, 7)
    assert np.all(np.abs(moved - plain) > 10)


def test_clean_estimates_that_do_not_change_are_reached_on_any_grid():
    x0, z = jnp.full((2, 3), 0.7), jnp.ones((2, 3))
    spread = grid.Karras(rho=3.0)
    for method in (DpmSolver(order=2, grid=spread), DpmSolver(order=3, grid=spread), UniPc()):
        out = method(lambda z, t: (z - x0) / jnp.maximum(t, 1e-6)[:, None], z, 6)
        np.testing.assert_allclose(out, x0, rtol=1e-5)


def test_no_other_orders():
    with pytest.raises(ValueError, match="order must be 1, 2 or 3, not 4"):
        DpmSolver(order=4)
