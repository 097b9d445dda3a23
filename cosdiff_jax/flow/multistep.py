"""Solvers that remember: order 2 or 3 for one evaluation a step.

All work on the clean estimate x0(z, t) and on the half log-SNR l = ln(a_t / b_t), in which the
flow of z_t = a_t x0 + b_t eps is exact but for how x0 changes on the way,

    z_{i+1} = b_{i+1} / b_i z_i + b_{i+1} integral from l_i to l_{i+1} of exp(l) x0(l) dl

With h_i = l_{i+1} - l_i, x0 held fixed and a' = a_{i+1}, b' = b_{i+1}, this is

    z_{i+1} = b' / b_i z_i + c_i x0_i,   c_i = a' (1 - exp(-h_i)) = a' - b' a_i / b_i

and the form on the right is finite at t = 1, where h_0 is infinite because a is 0, and at t = 0.
What x0 did over an infinite h says nothing about its slope: it enters with weight 0, and the last
step is of order 1, as in the published code where the last noise level is 0. On a grid that is
fine in t at both ends such a step's error is of order h^2 in t, so over the whole way no rule here
is of higher order than 2.

A stretch that begins inside a grid begins without memory, at order 1.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cosdiff_jax.flow.grid import Grid, Uniform
from cosdiff_jax.flow.solver import Between, Step, Velocity, rows, walk
from cosdiff_jax.flow.trajectory import RectifiedFlow, Trajectory


@dataclass(frozen=True, kw_only=True)
class DpmSolver:
    """DPM-Solver++ multistep, 2M and 3M (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

        order 2:  z_{i+1} = b' / b_i z_i + c_i (x0_i + D / 2),   D = h_i / h_{i-1} (x0_i - x0_{i-1})
        order 3:  z_{i+1} = b' / b_i z_i + c_i x0_i + a' p2 D1 - 2 a' p3 D2

        p2 = (exp(-h_i) - 1) / h_i + 1,   p3 = p2 / h_i - 1 / 2
        D2 = (D - E) h_i / (h_{i-1} + h_{i-2}),      E = h_i / h_{i-2} (x0_{i-1} - x0_{i-2})
        D1 = D + h_{i-1} / h_i D2

    D1 and 2 D2 are h_i and h_i^2 times the first and second derivative of the parabola through the
    last three x0. The first step is of order 1, the second of order 2, the last of order 1.

    Attributes:
      order: 1 (that is DDIM), 2 or 3.
      published: the third order as its usual implementations have it, with p3 D2 in place of
        2 p3 D2. That leaves an error of h^3 x0'' / 12 in every step, hence order 2.
      grid: the times t_i.
      trajectory: a and b, and x0 from a velocity.
    """

    order: int = 2
    published: bool = False
    grid: Grid = field(default_factory=Uniform)
    trajectory: Trajectory = field(default_factory=RectifiedFlow)
    calls: int = field(default=1, init=False)

    def __post_init__(self):
        if self.order not in (1, 2, 3):
            raise ValueError(f"solver.dpm_solver.order must be 1, 2 or 3, not {self.order}")

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
        k = _coefficients(self.trajectory, self.grid, steps, first, self.order)

        def rule(v: Velocity, z: Array, step: Step, held: Any) -> tuple[Array, Any]:
            i, t = step.index, rows(z, step.t)
            x0 = self.trajectory.clean(z, v(z, t), t)
            after = k.keep[i] * z + k.clean[i] * x0
            if self.order == 1:
                return after, held
            seen = (x0, *held)
            slope = k.ratio[i] * (x0 - seen[1])
            after = after + jnp.where(k.order[i] == 2, 0.5 * k.clean[i] * slope, 0)
            if self.order > 2:
                # Step i - 1 went from t_{i-1} to t_i: its own ratio is h_{i-1} / h_{i-2}.
                earlier = k.ratio[i] * k.ratio[i - 1] * (seen[1] - seen[2])
                bend = (slope - earlier) * k.share[i]
                factor = 1 if self.published else 2
                third = k.linear[i] * (slope + bend * k.back[i]) - factor * k.square[i] * bend
                after = after + jnp.where(k.order[i] == 3, third, 0)
            return after, tuple(x.astype(z.dtype) for x in seen[: self.order - 1])

        held = (jnp.zeros_like(z),) * (self.order - 1)
        return walk(rule, velocity, z, self.grid, steps, first, last, between, held)[0]


@dataclass(frozen=True, kw_only=True)
class UniPc:
    """UniPC of order 2 with B(h) = exp(-h) - 1, "bh2" (Zhao et al. 2023, arXiv 2302.04867).

    The predictor is DPM-Solver++ 2M. Each point is corrected once the velocity there is known,
    which costs no evaluation: with m = x0(z', t_{i+1}) at the predicted point z',

        z_{i+1} = b' / b_i z_i + c_i (x0_i + r1 D + r2 (m - x0_i)),  D as for DPM-Solver++
        r1 = (g1 - g2) w / (1 + w),   r2 = g1 - r1,   w = h_i / h_{i-1}
        g1 = f1 / (exp(-h_i) - 1),    g2 = 2 f2 / (exp(-h_i) - 1)
        f1 = (1 - exp(-h_i)) / h_i - 1,   f2 = -f1 / h_i - 1 / 2

    where the predictor is of order 1, r1 = 0 and r2 = 1/2. m counts as the next step's x0; the last
    point is not corrected. What ``between`` changed at z' is added to the corrected point.

    Attributes:
      grid: the times t_i.
      trajectory: a and b, and x0 from a velocity.
    """

    grid: Grid = field(default_factory=Uniform)
    trajectory: Trajectory = field(default_factory=RectifiedFlow)
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
        """Integrate over the grid's steps ``first`` to ``last``; arguments as for ``Euler``."""
        del key
        k = _coefficients(self.trajectory, self.grid, steps, first, 2)
        f1 = -jnp.expm1(-k.h) / k.h - 1
        g1, g2 = f1 / jnp.expm1(-k.h), 2 * (-f1 / k.h - 0.5) / jnp.expm1(-k.h)
        r1 = jnp.where(k.order == 1, 0.0, (g1 - g2) * k.ratio / (1 + k.ratio))
        r2 = jnp.where(k.order == 1, 0.5, g1 - r1)

        def rule(v: Velocity, z: Array, step: Step, held: Any) -> tuple[Array, Any]:
            i, t = step.index, rows(z, step.t)
            x0_1, x0_2, before, predicted = held
            m = self.trajectory.clean(z, v(z, t), t)
            j = i - 1
            slope = k.ratio[j] * (x0_1 - x0_2)
            mean = x0_1 + r1[j] * slope + r2[j] * (m - x0_1)
            corrected = z + (k.keep[j] * before + k.clean[j] * mean - predicted)
            z = jnp.where(i > first, corrected, z).astype(z.dtype)
            second = jnp.where(k.order[i] == 2, 0.5 * k.ratio[i] * (m - x0_1), 0)
            after = (k.keep[i] * z + k.clean[i] * (m + second)).astype(z.dtype)
            return after, (m.astype(z.dtype), x0_1, z, after)

        held = (jnp.zeros_like(z),) * 4
        return walk(rule, velocity, z, self.grid, steps, first, last, between, held)[0]


class _Coefficients(NamedTuple):
    """Of each step i, all finite.

    Attributes:
      order: that the step can have.
      keep: b' / b_i.
      clean: c_i = a' - b' a_i / b_i.
      h: h_i, or 1 where it is infinite; read only where it is not.
      ratio: h_i / h_{i-1}, 0 where h_{i-1} is infinite.
      share: h_i / (h_{i-1} + h_{i-2}).
      back: h_{i-1} / h_i.
      linear: a' p2.
      square: a' p3.
    """

    order: Int[Array, " steps"]
    keep: Float[Array, " steps"]
    clean: Float[Array, " steps"]
    h: Float[Array, " steps"]
    ratio: Float[Array, " steps"]
    share: Float[Array, " steps"]
    back: Float[Array, " steps"]
    linear: Float[Array, " steps"]
    square: Float[Array, " steps"]


def _coefficients(
    trajectory: Trajectory, grid: Grid, steps: int, first: int, order: int
) -> _Coefficients:
    a, b = trajectory.coefficients(jnp.asarray(grid(steps), float))
    here, there = (a[:-1], b[:-1]), (a[1:], b[1:])
    whole = (here[0] > 0) & (there[1] > 0)
    ratio_a, ratio_b = (jnp.where(whole, x / y, 1.0) for x, y in zip(there, here, strict=True))
    h = jnp.where(whole, jnp.log(ratio_a) - jnp.log(ratio_b), 1.0)
    # 1 / h is finite where h is not.
    inverse = jnp.where(whole, 1 / h, 0.0)
    earlier = jnp.roll(inverse, 1)
    earliest = jnp.roll(inverse, 2)
    total = jnp.maximum(earlier + earliest, jnp.finfo(h.dtype).tiny)
    p2 = jnp.expm1(-h) / h + 1
    p3 = p2 / h - 0.5
    index = jnp.arange(steps)
    possible = jnp.minimum(order, index - first + 1)
    return _Coefficients(
        order=jnp.where((index == steps - 1) | ~whole, 1, possible),
        keep=there[1] / here[1],
        clean=there[0] - there[1] * here[0] / here[1],
        h=h,
        ratio=h * earlier,
        share=h * earlier * earliest / total,
        back=jnp.where(earlier > 0, inverse / jnp.where(earlier > 0, earlier, 1.0), 0.0),
        linear=there[0] * p2,
        square=there[0] * p3,
    )
