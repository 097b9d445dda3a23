"""From noise to data: integrate dz/dt = v(z, t) from t = 1 to t = 0 on a uniform grid.

The grid is t_i = 1 - i / steps. A solver can be asked for a part of it (``first`` to ``last``),
which is how a rollout keeps its early steps out of the gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Velocity = Callable[[Array, Array], Array]
"""(z "B ...", t "B") -> v "B ..."."""

Between = Callable[[Array, Array, Array], Array]
"""(z "B ...", t "B", index "") -> z "B ...": called after step ``index`` with the time reached."""


@runtime_checkable
class Solver(Protocol):
    """A rule for integrating a velocity field from noise to data.

    Attributes:
      calls: velocity evaluations of a step.
    """

    calls: ClassVar[int]

    def __call__(
        self,
        velocity: Velocity,
        z: Float[Array, "B *x"],
        steps: int,
        *,
        first: int = 0,
        last: int | None = None,
        between: Between | None = None,
    ) -> Float[Array, "B *x"]:
        """``z`` at grid point ``first`` to the solution at grid point ``last``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Euler:
    """z_{i+1} = z_i - v(z_i, t_i) / steps: order 1, one evaluation a step."""

    calls: ClassVar[int] = 1

    def __call__(
        self,
        velocity: Velocity,
        z: Float[Array, "B *x"],
        steps: int,
        *,
        first: int = 0,
        last: int | None = None,
        between: Between | None = None,
    ) -> Float[Array, "B *x"]:
        """Integrate over the grid's steps ``first`` (inclusive) to ``last`` (exclusive).

        Args:
          velocity: the field, (z "B ...", t "B") -> v "B ...".
          z: the state at grid point ``first``; pure noise where that is 0.
          steps: how many steps the whole way from t = 1 to t = 0 takes.
          first: index of the first step taken.
          last: index after the last step taken; all of them by default.
          between: changes the state after a step: (z, time reached, index of the step) -> z.
        """

        def step(z, t, dt):
            return z - dt * velocity(z, t)

        return _walk(step, z, steps, first, last, between)


@dataclass(frozen=True, kw_only=True)
class Heun:
    """The trapezoidal rule with an Euler predictor: order 2, two evaluations a step.

    z'      = z_i - v(z_i, t_i) / steps
    z_{i+1} = z_i - (v(z_i, t_i) + v(z', t_{i+1})) / (2 steps)
    """

    calls: ClassVar[int] = 2

    def __call__(
        self,
        velocity: Velocity,
        z: Float[Array, "B *x"],
        steps: int,
        *,
        first: int = 0,
        last: int | None = None,
        between: Between | None = None,
    ) -> Float[Array, "B *x"]:
        """Integrate over the grid's steps ``first`` to ``last``; arguments as for ``Euler``."""

        def step(z, t, dt):
            here = velocity(z, t)
            there = velocity(z - dt * here, t - dt)
            return z - dt * 0.5 * (here + there)

        return _walk(step, z, steps, first, last, between)


def _walk(
    step: Callable[[Array, Array, float], Array],
    z: Array,
    steps: int,
    first: int,
    last: int | None,
    between: Between | None,
) -> Array:
    last = steps if last is None else last
    if steps < 1 or not 0 <= first <= last <= steps:
        raise ValueError(f"no such stretch: steps {first} to {last} of a grid of {steps}")
    rows, dt = z.shape[0], 1.0 / steps

    def body(z, index):
        # The time comes from the index, never from a running sum, so t = 0 is hit exactly.
        t = jnp.full((rows,), 1.0 - index / steps)
        z = step(z, t, dt)
        if between is not None:
            z = between(z, jnp.full((rows,), 1.0 - (index + 1) / steps), index)
        return z, None

    return jax.lax.scan(body, z, jnp.arange(first, last))[0]
