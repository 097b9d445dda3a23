"""The published forms of guidance, all at once, in one order.

What one of them leaves to the next, for each evaluation of a field:

    0  the caption      annealed, where ``condition.Annealed`` is wrapped around all of this
    1  evaluation       v_text and v_empty in one call, then v_j of each ``weaker`` field
    2  CFG-zero*        v_empty <- k v_empty,   k = <v_text, v_empty> / |v_empty|^2
    3  difference       d = v_text - v_empty
    4  APG              d gains momentum, then is bounded, then loses what is along x0_text
    5  classifier-free  v = v_text + (s(t) - 1) d,   s(t) = s inside ``interval``, else 1
    6  weaker fields    v <- v + sum_j (s_j(t) - 1) (v_text - v_j)
    7  rescaling        v <- (1 - phi) v + phi std(v_text) / std(v) v
    8  zero start       v <- 0 at t = 1

Repulsion and the solver come after. Every scale counts as s does: 1 is no guidance.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cosdiff_jax import text_stream
from cosdiff_jax.flow.guidance import Guidance, is_none
from cosdiff_jax.flow.solver import Remembering, Velocity
from cosdiff_jax.flow.trajectory import RectifiedFlow, Trajectory, along_rows
from cosdiff_jax.flow.weaker import Backbone, Weaker, check_interval, check_scale
from cosdiff_jax.shapes import TextStream


@dataclass(frozen=True, kw_only=True)
class Composed:
    """Classifier-free guidance with what was published to go with it; the order is above.

        CFG-zero*   Fan et al. 2025, arXiv 2503.18886, eq. 11 and section 3.2
        APG         Sadat et al. 2024, arXiv 2410.02416, section 4
        rescaling   Lin et al. 2023, arXiv 2305.08891, eq. 15 and 16

    APG is defined on the difference of the two clean estimates, D = x0_text - x0_empty:

        m <- D + momentum m,   m <- min(1, radius / |m|) m,   m <- m - (1 - parallel) <m, e> e

    with e the direction of x0_text and norms over all values of a row; what is remembered is the m
    of the first line. Here d is a difference of velocities, D = -c d with c = b / (a b' - a' b),
    which is t on rectified flow. Where c is 0, at t = 0, there is no momentum.

    With its defaults for the rest this is ``ClassifierFree`` up to rounding.

    Attributes:
      scale: s; 1 is no guidance by the empty caption and costs no second evaluation.
      interval: guide only while lo <= t <= hi, elsewhere s = 1.
      start: whether t = 1 is guided too, as for ``ClassifierFree``.
      optimal: CFG-zero*'s factor k on v_empty.
      zero_start: CFG-zero*'s other half: no velocity at t = 1. Euler's first step then stands
        still; rules that ask at later times too (Heun) move by those. Not where s = 1. Of rectified
        flow alone: there v = 0 leaves z where it is, whatever the solver.
      parallel: eta, what is kept of the difference along x0_text; 1 is all of it.
      momentum: beta of APG; the paper takes negative ones. 0 is none. Otherwise the velocity is a
        ``Remembering`` one.
      radius: r, bound on |D|; 0 is none.
      rescale: phi in [0, 1]: 1 gives v the std that v_text has, row by row.
      weaker: further fields to move away from.
      trajectory: turns velocities into clean estimates.
    """

    scale: float | Float[Array, ""] = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    start: bool = True
    optimal: bool = False
    zero_start: bool = False
    parallel: float = 1.0
    momentum: float = 0.0
    radius: float = 0.0
    rescale: float = 0.0
    weaker: tuple[Weaker, ...] = ()
    trajectory: Trajectory = field(default_factory=RectifiedFlow)

    def __post_init__(self):
        check_interval("guidance.composed", self.interval)
        if self.zero_start and not isinstance(self.trajectory, RectifiedFlow):
            raise ValueError(
                "guidance.composed.zero_start is of rectified flow and the model follows "
                f"{type(self.trajectory).__name__}: set it to false"
            )
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance.composed.rescale must lie in 0..1, not {self.rescale}")
        if not 0 <= self.radius < math.inf:
            raise ValueError(f"guidance.composed.radius must be at least 0, not {self.radius}")
        check_scale("guidance.composed", self.scale)
        for knob, value in {"momentum": self.momentum, "parallel": self.parallel}.items():
            if not math.isfinite(value):
                raise ValueError(f"guidance.composed.{knob} must be a finite number, not {value}")
        if self.zero_start and not self.start:
            raise ValueError(
                "guidance.composed.zero_start stops the step that start=False leaves unguided: "
                "choose one of them"
            )

    def __call__(self, backbone: Backbone, text: TextStream, empty: TextStream | None) -> Velocity:
        """The guided field; arguments as for ``ClassifierFree``.

        Raises:
          ValueError: guidance without an empty caption.
        """
        contrasted = not is_none(self.scale)
        weaker = [(w, w.field(backbone)) for w in self.weaker if not is_none(w.scale)]
        if not contrasted and not weaker:
            return lambda z, t: backbone(z, t, text)
        both = None
        if contrasted:
            if empty is None:
                raise ValueError(f"guidance of scale {self.scale} needs the empty caption's stream")
            prompts = text.mask.shape[0]
            both = text_stream.concatenate(text, text_stream.repeat(empty, prompts))

        def ask(z: Array, t: Array, remembered: Array) -> tuple[Array, Array]:
            if both is None:
                v = v_text = backbone(z, t, text)
            else:
                v = backbone(jnp.concatenate([z, z]), jnp.concatenate([t, t]), both)
                v_text, v_empty = jnp.split(v, 2)
                v, remembered = self.combine(v_text, v_empty, z, t, remembered)
            for each, weak in weaker:
                strength = _strength(each.scale, each.interval, t)
                v = v + along_rows(strength, v) * (v_text - weak(z, t, text))
            if self.rescale:
                share = _ratio(_std(v_text), _std(v), 1.0)
                v = self.rescale * share * v + (1 - self.rescale) * v
            if self.zero_start and contrasted:
                v = jnp.where(along_rows(t, v) >= 1, 0, v)
            return v, remembered

        if contrasted and self.momentum:
            return Remembering(start=jnp.zeros_like, ask=ask)
        return lambda z, t: ask(z, t, jnp.zeros_like(z))[0]

    def combine(
        self,
        v_text: Float[Array, "B *x"],
        v_empty: Float[Array, "B *x"],
        z: Float[Array, "B *x"],
        t: Float[Array, " B"],
        remembered: Float[Array, "B *x"],
    ) -> tuple[Float[Array, "B *x"], Float[Array, "B *x"]]:
        """Steps 2 to 5: the two branches' velocities to one, and what APG remembers of it."""
        if self.optimal:
            v_empty = optimal_scale(v_text, v_empty) * v_empty
        d, remembered = self._project(v_text - v_empty, v_text, z, t, remembered)
        strength = _strength(self.scale, self.interval, t)
        strength = strength * (self.start | (t < 1))
        return v_text + along_rows(strength, d) * d, remembered

    def _project(
        self, d: Array, v_text: Array, z: Array, t: Array, remembered: Array
    ) -> tuple[Array, Array]:
        a, b = self.trajectory.coefficients(t)
        da, db = self.trajectory.rates(t)
        c = along_rows(b / (a * db - da * b), d)
        if self.momentum:
            remembered = -c * d + self.momentum * remembered
            d = jnp.where(c > 0, -remembered / jnp.where(c > 0, c, 1), d)
        if self.radius:
            length = c * _root(_dot(d, d))
            far = length > self.radius
            d = jnp.where(far, self.radius / jnp.where(far, length, 1), 1) * d
        if self.parallel != 1:
            x0 = self.trajectory.clean(z, v_text, t)
            along = _ratio((1 - self.parallel) * _dot(d, x0), _dot(x0, x0), 0.0)
            d = d - along * x0
        return d, remembered


def optimal_scale(
    v_text: Float[Array, "B *x"], v_empty: Float[Array, "B *x"]
) -> Float[Array, "B *ones"]:
    """CFG-zero*'s k = <v_text, v_empty> / |v_empty|^2 of each row: argmin |v_text - k v_empty|."""
    return _ratio(_dot(v_text, v_empty), _dot(v_empty, v_empty), 0.0)


# Where guidance begins, between the first time with it and the last one without: above the former,
# which may round up, and below what is asked for within the step.
_ABOVE = 1 / 16


def late(guidance: Guidance, times: Float[np.ndarray, " points"], steps: int) -> Guidance:
    """The same guidance with none in the first ``steps`` steps of a grid.

    Its intervals, those of weaker fields included, are cut just above t_k, where the first guided
    step begins: what a solver asks for within the first steps (Midpoint) has no guidance. What
    stands at t_k itself is guided, whichever step asks: the second evaluation of Heun's step k - 1
    and the fourth of Runge-Kutta's. Where the guidance has no ``start``, its own interval, not that
    of weaker fields, is cut above t_1 at least.

    Args:
      guidance: to be cut. One of another kind, without an ``interval``, is left as it is where
        there is nothing to cut.
      times: of the grid, falling from 1 to 0. Of a solver that raises the noise before it asks,
        the raised ones.
      steps: k; 0 changes nothing where there is a ``start``.

    Raises:
      ValueError: the grid has no more than that many steps; the guidance has no interval, or has a
        ``zero_start``, which stops the first step instead.
    """
    if not 0 <= steps < len(times) - 1:
        raise ValueError(f"cannot leave {steps} of {len(times) - 1} steps without guidance")

    def cut(interval: tuple[float, float], k: int) -> tuple[float, float]:
        if k == 0:
            return interval
        latest = float(times[k] + _ABOVE * (times[k - 1] - times[k]))
        lo, hi = interval[0], min(interval[1], latest)
        # Nothing is asked for between t_k and the cut: that point is no guidance at all.
        return min(lo, hi), hi

    form: Any = guidance
    own = max(steps, int(not getattr(form, "start", True)))
    if own == 0:
        return guidance
    if not hasattr(form, "interval"):
        raise ValueError(
            f"{type(form).__name__} has no interval that would leave the first steps unguided"
        )
    if steps and getattr(form, "zero_start", False):
        raise ValueError(
            "guidance.composed.zero_start stops the first step, which unguided="
            f"{steps} leaves to the caption alone: choose one of them"
        )
    changes: dict[str, Any] = {"interval": cut(form.interval, own)}
    if steps and hasattr(form, "weaker"):
        cuts = [dataclasses.replace(w, interval=cut(w.interval, steps)) for w in form.weaker]
        changes["weaker"] = tuple(cuts)
    return dataclasses.replace(form, **changes)


def scales(guidance: Any) -> tuple[float | Float[Array, ""], ...]:
    """What can be another number in one program: its own scale, then those of weaker fields.

    Scales that are known to be 1 are left out: without them there is less to ask.
    """
    each = (guidance, *getattr(guidance, "weaker", ()))
    return tuple(part.scale for part in each if _acts(part))


def scaled(guidance: Any, to: Sequence[float | Float[Array, ""]]) -> Any:
    """The same guidance with other scales, in the order of ``scales``."""
    left = iter(to)

    def change(part: Any) -> Any:
        return dataclasses.replace(part, scale=next(left)) if _acts(part) else part

    changed = change(guidance)
    weaker = tuple(change(part) for part in getattr(guidance, "weaker", ()))
    return dataclasses.replace(changed, weaker=weaker) if weaker else changed


def _acts(part: Any) -> bool:
    return not is_none(getattr(part, "scale", 1.0))


def _strength(
    scale: float | Array, interval: tuple[float, float], t: Float[Array, " B"]
) -> Float[Array, " B"]:
    """s(t) - 1."""
    lo, hi = interval
    return jnp.where((t >= lo) & (t <= hi), scale - 1, 0.0)


def _dot(x: Array, y: Array) -> Array:
    return jnp.sum(x * y, axis=tuple(range(1, x.ndim)), keepdims=True)


def _std(x: Array) -> Array:
    return _root(jnp.var(x, axis=tuple(range(1, x.ndim)), keepdims=True))


def _root(x: Array) -> Array:
    # The slope of a root is infinite at 0, and a network that is not trained yet says 0.
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


def _ratio(x: Any, y: Array, otherwise: float) -> Array:
    """x / y, or ``otherwise`` where y = 0, with a gradient that is finite there too."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), otherwise)
