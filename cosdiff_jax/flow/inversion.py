"""From data back to the noise that it comes from, and the straight line instead.

Seen backwards, with s = 1 - t, a flow is a flow again in which data and noise have changed places:

    z_s = b_{1-s} eps + a_{1-s} x0,   dz/ds = -v(z, 1 - s)

So every deterministic solver inverts, at its own order, and those that work on x0 work on eps.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from cosdiff_jax.flow.grid import Reversed
from cosdiff_jax.flow.solver import Solver, Velocity
from cosdiff_jax.flow.trajectory import RectifiedFlow, Trajectory


def invert(
    solver: Solver, velocity: Velocity, x0: Float[Array, "B *x"], steps: int
) -> Float[Array, "B *x"]:
    """The noise at t = 1 that the velocity field carries to ``x0``.

    Solving from it with the same solver gives x0 back up to the solver's error, which shrinks at
    its order.

    Args:
      solver: a deterministic one; its grid is walked from the other end.
      velocity: the field, (z "B ...", t "B") -> v "B ...".
      x0: data.
      steps: from t = 0 to t = 1.

    Raises:
      ValueError: a solver that draws noise.
    """
    changes: dict[str, Any] = {"grid": Reversed(grid=solver.grid)}
    trajectory = getattr(solver, "trajectory", None)
    if trajectory is not None:
        changes["trajectory"] = Backwards(trajectory=trajectory)
    backwards = dataclasses.replace(solver, **changes)  # pyright: ignore[reportArgumentType]
    return backwards(lambda z, s: -velocity(z, 1 - s), x0, steps)


def straight(
    velocity: Velocity,
    x0: Float[Array, "B *x"],
    t: Float[Array, " B"],
    noise: Float[Array, "B *x"] | None = None,
) -> Float[Array, "B *x"]:
    """The shortcut of rectified flow: z_t = (1 - t) x0 + t eps_hat, without a solver.

    eps_hat is what one evaluation at the data says, x0 + v(x0, 0), exact where paths are straight.
    A fresh draw in its place gives a point that is noised right and leads elsewhere.

    Args:
      velocity: the field; not asked where ``noise`` is given.
      x0: data.
      t: where to, one time for each row.
      noise: stands in for eps_hat.
    """
    if noise is None:
        start = jnp.zeros_like(t)
        noise = RectifiedFlow().noise(x0, velocity(x0, start), start)
    return RectifiedFlow().corrupt(x0, noise, t)[0]


@dataclass(frozen=True, kw_only=True)
class Backwards(Trajectory):
    """A path from noise to data: a_s = b_{1-s}, b_s = a_{1-s}; its x0 is the other's eps.

    Attributes:
      trajectory: the path seen the usual way.
    """

    trajectory: Trajectory

    def coefficients(self, t: Float[Array, " B"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(b, a) at 1 - t."""
        a, b = self.trajectory.coefficients(1 - t)
        return b, a

    def rates(self, t: Float[Array, " B"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """(-b', -a') at 1 - t."""
        da, db = self.trajectory.rates(1 - t)
        return -db, -da

    def log_snr(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """-lambda at 1 - t."""
        return -self.trajectory.log_snr(1 - t)

    def time(self, log_snr: Float[Array, " B"]) -> Float[Array, " B"]:
        """1 - the time of -lambda."""
        return 1 - self.trajectory.time(-log_snr)

    def clean(
        self, z_t: Float[Array, "B *x"], v: Float[Array, "B *x"], t: Float[Array, " B"]
    ) -> Float[Array, "B *x"]:
        """The other's eps."""
        return self.trajectory.noise(z_t, -v, 1 - t)

    def noise(
        self, z_t: Float[Array, "B *x"], v: Float[Array, "B *x"], t: Float[Array, " B"]
    ) -> Float[Array, "B *x"]:
        """The other's x0."""
        return self.trajectory.clean(z_t, -v, 1 - t)
