import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.flow import grid, inversion, multistep, solver, stochastic
from cosdiff_jax.flow.trajectory import Cosine, DdpmLinear, Edm, LdmLinear, RectifiedFlow


@dataclass(frozen=True)
class Squared:
    """Even in sqrt(t), as b is near t = 0 on a discrete chain's path."""

    def __call__(self, steps):
        return grid.Uniform()(steps) ** 2


CHAIN = {"trajectory": LdmLinear(), "grid": Squared()}
# Measured orders of there and back, and of the noise, for 32, 64 and 128 steps.
SOLVERS = [
    (solver.Euler(), (0.99, 1.0), (1.0, 1.0)),
    # There and back, the leading errors of a symmetric rule cancel.
    (solver.Heun(grid=grid.Shifted(alpha=2.0)), (2.97, 2.99), (2.06, 2.04)),
    (solver.RungeKutta4(), (4.99, 5.0), (3.92, 3.96)),
    (solver.Midpoint(), (2.97, 2.99), (2.0, 2.0)),
    # One step of order 1 at either end; EDM's last one is Euler's.
    (multistep.DpmSolver(order=2), (2.20, 1.52), (1.71, 1.75)),
    (multistep.DpmSolver(order=3), (1.89, 2.0), (1.95, 1.97)),
    (multistep.UniPc(), (1.97, 2.06), (1.98, 2.05)),
    (stochastic.Edm(), (1.69, 1.76), (1.43, 1.63)),
    (stochastic.Ddim(), (0.97, 0.98), (0.98, 0.99)),
    # The paths above look the same from both ends; this one does not.
    (stochastic.Ddim(**CHAIN), (0.97, 0.99), (0.98, 0.99)),
    (multistep.DpmSolver(order=2, **CHAIN), (2.67, 1.50), (1.68, 1.73)),
]


@pytest.mark.parametrize(("method", "order", "noise_order"), SOLVERS)
def test_sampling_from_the_inverted_noise_gives_the_sample_back(
    method, order, noise_order, gaussian, orders
):
    # The cosine path for rules of time alone: on it their errors shrink evenly.
    problem = gaussian(trajectory=getattr(method, "trajectory", Cosine()))
    with jax.enable_x64(True):
        x0 = jnp.asarray(problem.flow(np.random.default_rng(1).standard_normal((4, 3)), 1.0, 0.0))
        missed, noise_missed = [], []
        for steps in (32, 64, 128):

            def there_and_back(x0, steps=steps):
                noise = inversion.invert(method, problem.velocity, x0, steps)
                return noise, method(problem.velocity, noise, steps)

            noise, back = jax.jit(there_and_back)(x0)
            missed.append(np.abs(back - x0).max())
            noise_missed.append(np.abs(noise - problem.flow(x0, 0.0, 1.0)).max())
    np.testing.assert_allclose(orders(np.array(missed)), order, atol=0.05)
    np.testing.assert_allclose(orders(np.array(noise_missed)), noise_order, atol=0.05)
    assert missed[-1] < 0.03 and noise_missed[-1] < 0.03


def test_the_grid_is_walked_from_its_other_end():
    spread, asked = grid.Shifted(alpha=3.0), []

    def field(z, t):
        jax.debug.callback(lambda t: asked.append(float(t[0])), t)
        return z

    inversion.invert(solver.Euler(grid=spread), field, jnp.ones((2, 1)), 5)
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(asked, reverse=True), spread(5)[1:], atol=1e-6)


@pytest.mark.parametrize(
    "method", [stochastic.Ddpm(), stochastic.Ddim(eta=0.5), stochastic.Edm(churn=5.0)]
)
def test_a_solver_that_draws_noise_cannot_invert(gaussian, method):
    with pytest.raises(ValueError, match=rf"solver\.{type(method).__name__.lower()}.* draws noise"):
        inversion.invert(method, gaussian().velocity, jnp.ones((2, 3)), 4)


@pytest.mark.parametrize("path", [RectifiedFlow(), Cosine(), Edm(), DdpmLinear(), LdmLinear()])
def test_a_path_seen_backwards_is_a_path(path):
    back, keys = inversion.Backwards(trajectory=path), jax.random.split(jax.random.key(0), 3)
    x0, eps = (jax.random.normal(key, (5, 3)) for key in keys[:2])
    t = jax.random.uniform(keys[2], (5,), minval=0.1, maxval=0.9)
    z, v = path.corrupt(x0, eps, 1 - t)
    z_back, v_back = back.corrupt(eps, x0, t)
    np.testing.assert_allclose(z_back, z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(v_back, -v, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(back.clean(z_back, v_back, t), eps, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(back.noise(z_back, v_back, t), x0, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(back.log_snr(t), -path.log_snr(1 - t), rtol=1e-5)
    np.testing.assert_allclose(back.time(back.log_snr(t)), t, rtol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("path", [RectifiedFlow(), Cosine(), Edm(), DdpmLinear(), LdmLinear()])
@pytest.mark.parametrize(
    "method", [solver.Euler(), stochastic.Ddim(), multistep.DpmSolver(order=2), stochastic.Edm()]
)
def test_from_end_to_end_nothing_is_nan(dtype, method, path):
    if hasattr(method, "trajectory"):
        method = dataclasses.replace(method, trajectory=path)
    x0 = jax.random.normal(jax.random.key(0), (4, 3), dtype)
    field = lambda z, t: z - jnp.asarray(0.5, z.dtype)  # noqa: E731
    # Step by step: nothing of all this has to be compiled.
    with jax.disable_jit():
        found = inversion.invert(method, field, x0, 4)
    assert found.dtype == dtype and np.isfinite(np.asarray(found, np.float32)).all()
    for end in (0.0, 1.0):
        line = inversion.straight(field, x0, jnp.full(4, end, dtype))
        assert line.dtype == dtype and np.isfinite(np.asarray(line, np.float32)).all()


def test_the_straight_line_is_exact_where_paths_are_straight(gaussian):
    keys = jax.random.split(jax.random.key(0), 2)
    x0, eps = (jax.random.normal(key, (5, 3)) for key in keys)
    t = jnp.linspace(0.1, 0.9, 5)
    expected = (1 - t[:, None]) * x0 + t[:, None] * eps
    straight = inversion.straight(lambda z, t: eps - x0, x0, t)
    np.testing.assert_allclose(straight, expected, rtol=1e-5, atol=1e-6)
    given = inversion.straight(gaussian().velocity, x0, t, eps)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)
    # On curved paths it is the tangent at the data: its error grows with the square of t.
    small = [0.02, 0.04]
    missed = []
    for time in small:
        at = inversion.straight(gaussian().velocity, x0, jnp.full(5, time))
        missed.append(np.abs(at - gaussian().flow(x0, 0.0, time)).max())
    np.testing.assert_allclose(missed[1] / missed[0], 4, rtol=0.2)
