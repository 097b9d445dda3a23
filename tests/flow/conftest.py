"""A flow with a closed form: data N(m, S), for which the velocity is affine in z."""

import dataclasses
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.flow import grid
from cosdiff_jax.flow.trajectory import RectifiedFlow, Trajectory

MEAN = np.array([1.0, -0.5, 0.25])
VARIANCES = np.array([0.5, 1.7, 0.1])
AXES = np.linalg.qr(np.array([[1.0, 2.0, 0.3], [0.1, 1.0, -2.0], [1.5, 0.2, 1.0]]))[0]

START = np.random.default_rng(0).standard_normal((4, 3))


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """z_t ~ N(a m, C) with C = a^2 S + b^2 I, and v = a' m + (a a' S + b b' I) C^-1 (z - a m)."""

    trajectory: Trajectory = field(default_factory=RectifiedFlow)

    @property
    def mean(self):
        return MEAN

    @property
    def covariance(self):
        return (AXES * VARIANCES) @ AXES.T

    def velocity(self, z, t):
        a, b = (x[:, None] for x in self.trajectory.coefficients(t))
        da, db = (x[:, None] for x in self.trajectory.rates(t))
        axes, variances = jnp.asarray(AXES, z.dtype), jnp.asarray(VARIANCES, z.dtype)[None]
        m = jnp.asarray(MEAN, z.dtype)[None]
        spread = a**2 * variances + b**2
        turned = (z - a * m) @ axes
        return da * m + ((a * da * variances + b * db) / spread * turned) @ axes.T

    def flow(self, z, start, end):
        """z at t = ``start`` to ``end``: C_end^(1/2) C_start^(-1/2) about the means, exactly."""
        (a, b), (a_end, b_end) = (
            tuple(float(x[0]) for x in self.trajectory.coefficients(jnp.asarray([t], float)))
            for t in (start, end)
        )
        grown = np.sqrt((a_end**2 * VARIANCES + b_end**2) / (a**2 * VARIANCES + b**2))
        return a_end * MEAN + ((np.asarray(z) - a * MEAN) @ AXES * grown) @ AXES.T

    def errors(self, solver, sizes, inner=False, dtype=jnp.float64):
        """Largest error of the solution for each number of steps, in float64.

        Over the whole way on the solver's own grid, or over t = 0.8 to 0.2 alone on an even one,
        with short steps first for solvers that gather order while they walk.
        """
        found = []
        with jax.enable_x64(True):
            for steps in sizes:
                first, last, ends = 0, steps, (1.0, 0.0)
                if inner:
                    even = np.linspace(0, 1, steps + 1)[1:]
                    walked = np.array([0, 0.5 / steps**2, steps**-1.5, *even])
                    times = (1.0, *(0.8 - 0.6 * walked).tolist(), 0.0)
                    solver = dataclasses.replace(solver, grid=grid.Given(times=times))
                    ends, first, last = (0.8, 0.2), 1, len(times) - 2
                    steps = len(times) - 1
                z = jnp.asarray(self.flow(START, 1.0, ends[0]), dtype)
                run = lambda z, n=steps, i=first, j=last, s=solver: s(  # noqa: E731
                    self.velocity, z, n, first=i, last=j
                )
                found.append(np.abs(jax.jit(run)(z) - self.flow(z, *ends)).max())
        return np.array(found)


def slopes(errors):
    """Measured orders of convergence, for sizes that double."""
    return np.log2(errors[:-1] / errors[1:])


@pytest.fixture
def gaussian():
    return Gaussian


@pytest.fixture
def orders():
    return slopes
