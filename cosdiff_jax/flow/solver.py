"""From noise to data: integrate dz/dt = v(z, t) from t = 1 to t = 0 on a time grid.

A solver can be asked for a part of the grid (``first`` to ``last``), which is how a rollout keeps
its early steps out of the gradient. This file has the protocol, the loop over steps that all
solvers share (``walk``) and the single-step rules; ``multistep`` has those that remember earlier
steps, ``stochastic`` those that add noise.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cosdiff_jax.flow.grid import Grid, Uniform, checked

Velocity = Callable[[Array, Array], Array]
"""(z "B ...", t "B") -> v "B ..."."""

Between = Callable[[Array, Array, Array], Array]
"""(z "B ...", t "B", index "") -> z "B ...": called after step ``index`` with the time reached."""


@dataclass(frozen=True, kw_only=True)
class Remembering:
    """A velocity whose answer depends on what it was asked before, as guidance with momentum does.

    ``walk`` hands what is remembered from call to call. Nothing else does, so that what calls a
    field itself (repulsion, pruning) or wraps it (a rollout's checkpoints) refuses this one.

    Attributes:
      start: z -> what is remembered before the first call.
      ask: (z, t, remembered) -> (v, remembered).
    """

    start: Callable[[Array], Any]
    ask: Callable[[Array, Array, Any], tuple[Array, Any]]

    def __call__(self, z: Array, t: Array) -> Array:
        """Raises: there is nothing to remember by."""
        raise ValueError(
            "guidance with momentum needs a solver that asks it directly: set its momentum to 0 "
            "beside repulsion, descent, pruning or a rollout"
        )


@runtime_checkable
class Solver(Protocol):
    """A rule for integrating a velocity field from noise to data.

    Solvers that need x0 or eps get them from the velocity by their ``trajectory``.

    Attributes:
      calls: velocity evaluations of a step.
      grid: where the steps are.
    """

    @property
    def calls(self) -> int:
        """Velocity evaluations of a step."""
        ...

    @property
    def grid(self) -> Grid:
        """Where the steps are."""
        ...

    def __call__(
        self,
        velocity: Velocity,
        z: Float[Array, "B *x"],
        steps: int,
        *,
        first: int = 0,
        last: int | None = None,
        between: Between | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "B *x"]:
        """``z`` at grid point ``first`` to the solution at grid point ``last``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Euler:
    """z_{i+1} = z_i - (t_i - t_{i+1}) v(z_i, t_i): order 1, one evaluation a step.

    Attributes:
      grid: the times t_i.
    """

    grid: Grid = field(default_factory=Uniform)
    calls: int = field(default=1, init=False)

    def __call__(
        self,
        velocity: Velocity,
        z: Float[Array, "B *x"],
        steps: int,
        *,
        first: int = 0,
        last: int | None = None,
        between: Between | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "B *x"]:
        """Integrate over the grid's steps ``first`` (inclusive) to ``last`` (exclusive).

        Args:
          velocity: the field, (z "B ...", t "B") -> v "B ...".
          z: the state at grid point ``first``; pure noise where that is 0.
          steps: how many steps the whole way from t = 1 to t = 0 takes.
          first: index of the first step taken.
          last: index after the last step taken; all of them by default.
          between: changes the state after a step: (z, time reached, index of the step) -> z.
          key: not read; solvers that draw noise need one.
        """
        del key

        def rule(v: Velocity, z: Array, step: Step, held: Any) -> tuple[Array, Any]:
            return z - step.length * v(z, rows(z, step.t)), held

        return walk(rule, velocity, z, self.grid, steps, first, last, between)[0]


@dataclass(frozen=True, kw_only=True)
class Heun:
    """The trapezoidal rule with an Euler predictor: order 2, two evaluations a step.

    With h = t_i - t_{i+1},

        z'      = z_i - h v(z_i, t_i)
        z_{i+1} = z_i - h (v(z_i, t_i) + v(z', t_{i+1})) / 2

    Attributes:
      grid: the times t_i.
    """

    grid: Grid = field(default_factory=Uniform)
    calls: int = field(default=2, init=False)

    def __call__(
        self,
        velocity: Velocity,
        z: Float[Array, "B *x"],
        steps: int,
        *,
        first: int = 0,
        last: int | None = None,
        between: Between | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "B *x"]:
        """Integrate over the grid's steps ``first`` to ``last``; arguments as for ``Euler``."""
        del key

        def rule(v: Velocity, z: Array, step: Step, held: Any) -> tuple[Array, Any]:
            here = v(z, rows(z, step.t))
            there = v(z - step.length * here, rows(z, step.ahead))
            return z - step.length * 0.5 * (here + there), held

        return walk(rule, velocity, z, self.grid, steps, first, last, between)[0]


@dataclass(frozen=True, kw_only=True)
class Midpoint:
    """The velocity half-way, found by half an Euler step: order 2, two evaluations a step.

    With h = t_i - t_{i+1},

        z_{i+1} = z_i - h v(z_i - h/2 v(z_i, t_i), t_i - h/2)

    Unlike ``Heun`` it never asks for the velocity at t = 0.

    Attributes:
      grid: the times t_i.
    """

    grid: Grid = field(default_factory=Uniform)
    calls: int = field(default=2, init=False)

    def __call__(
        self,
        velocity: Velocity,
        z: Float[Array, "B *x"],
        steps: int,
        *,
        first: int = 0,
        last: int | None = None,
        between: Between | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "B *x"]:
        """Integrate over the grid's steps ``first`` to ``last``; arguments as for ``Euler``."""
        del key

        def rule(v: Velocity, z: Array, step: Step, held: Any) -> tuple[Array, Any]:
            half = 0.5 * step.length
            between = z - half * v(z, rows(z, step.t))
            return z - step.length * v(between, rows(z, step.t - half)), held

        return walk(rule, velocity, z, self.grid, steps, first, last, between)[0]


@dataclass(frozen=True, kw_only=True)
class RungeKutta4:
    """The classical Runge-Kutta rule: order 4, four evaluations a step.

    With h = t_i - t_{i+1},

        k1 = v(z_i, t_i)                    k2 = v(z_i - h/2 k1, t_i - h/2)
        k3 = v(z_i - h/2 k2, t_i - h/2)     k4 = v(z_i - h k3, t_{i+1})
        z_{i+1} = z_i - h (k1 + 2 k2 + 2 k3 + k4) / 6

    Attributes:
      grid: the times t_i.
    """

    grid: Grid = field(default_factory=Uniform)
    calls: int = field(default=4, init=False)

    def __call__(
        self,
        velocity: Velocity,
        z: Float[Array, "B *x"],
        steps: int,
        *,
        first: int = 0,
        last: int | None = None,
        between: Between | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "B *x"]:
        """Integrate over the grid's steps ``first`` to ``last``; arguments as for ``Euler``."""
        del key

        def rule(v: Velocity, z: Array, step: Step, held: Any) -> tuple[Array, Any]:
            h, half = step.length, 0.5 * step.length
            middle = rows(z, step.t - half)
            k1 = v(z, rows(z, step.t))
            k2 = v(z - half * k1, middle)
            k3 = v(z - half * k2, middle)
            k4 = v(z - h * k3, rows(z, step.ahead))
            return z - h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), held

        return walk(rule, velocity, z, self.grid, steps, first, last, between)[0]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a grid.

    Attributes:
      index: i, counted from the grid's start.
      t: t_i, where it begins.
      ahead: t_{i+1}, where it ends.
      length: t_i - t_{i+1} > 0, rounded once.
    """

    index: Int[Array, ""]
    t: Float[Array, ""]
    ahead: Float[Array, ""]
    length: Float[Array, ""]


Rule = Callable[[Velocity, Array, Step, Any], tuple[Array, Any]]
"""(velocity, z, step, what is held) -> (z at the step's end, what is held for the next one)."""


def walk(
    rule: Rule,
    velocity: Velocity,
    z: Float[Array, "B *x"],
    grid: Grid,
    steps: int,
    first: int = 0,
    last: int | None = None,
    between: Between | None = None,
    held: Any = (),
) -> tuple[Float[Array, "B *x"], Any]:
    """Take a grid's steps one after the other, compiled as one loop.

    Args:
      rule: what a step does.
      velocity: the field, or a ``Remembering`` one.
      z: the state at grid point ``first``.
      grid: the times.
      steps: how many steps the whole grid has.
      first: index of the first step taken.
      last: index after the last step taken; all of them by default.
      between: called after each step.
      held: what the rule keeps from step to step, a pytree of arrays.

    Returns:
      z at grid point ``last``, and what the rule held then.

    Raises:
      ValueError: a stretch that the grid does not have, or times that do not fall from 1 to 0.
    """
    last = steps if last is None else last
    if steps < 1 or not 0 <= first <= last <= steps:
        raise ValueError(f"no such stretch: steps {first} to {last} of a grid of {steps}")
    # The times come from a table, never from a running sum, so t = 0 is hit exactly.
    exact = checked(grid(steps), steps)
    times, lengths = jnp.asarray(exact, float), jnp.asarray(-np.diff(exact), float)
    remembered = velocity.start(z) if isinstance(velocity, Remembering) else ()

    def body(carry, index):
        z, held, remembered = carry
        asked = _Asked(velocity, remembered)
        step = Step(index=index, t=times[index], ahead=times[index + 1], length=lengths[index])
        after, held = rule(asked, z, step, held)
        after = after.astype(z.dtype)
        if between is not None:
            after = between(after, rows(z, step.ahead), index)
        return (after, held, asked.remembered), None

    (z, held, _), _ = jax.lax.scan(body, (z, held, remembered), jnp.arange(first, last))
    return z, held


def rows(z: Float[Array, "B *x"], t: Float[Array, ""]) -> Float[Array, " B"]:
    """One time for every row of z."""
    return jnp.full(z.shape[:1], t)


class _Asked:
    """A field within one step: carries what a ``Remembering`` one remembers from call to call."""

    def __init__(self, velocity: Velocity, remembered: Any):
        self._velocity, self.remembered = velocity, remembered

    def __call__(self, z: Array, t: Array) -> Array:
        if not isinstance(self._velocity, Remembering):
            return self._velocity(z, t)
        v, self.remembered = self._velocity.ask(z, t, self.remembered)
        return v
