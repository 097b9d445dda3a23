"""Guidance: a velocity field in, a velocity field out.

A conditional model is evaluated with the caption and with the empty caption; guidance says how
the two answers become one velocity.

Two conventions for how strong it is are in use. Here and in most code it is the scale s, 1 for no
guidance; Ho and Salimans write a weight w, 0 for none:

    v = v_empty + s (v_text - v_empty) = (1 + w) v_text - w v_empty,   s = 1 + w

``from_weight`` and ``to_weight`` turn one into the other. This file has the plain form;
``composed`` has those that go with it and the order they act in.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from cosdiff_jax import text_stream
from cosdiff_jax.flow.solver import Velocity
from cosdiff_jax.flow.trajectory import along_rows
from cosdiff_jax.flow.weaker import Backbone, check_interval, check_scale
from cosdiff_jax.shapes import TextStream


@runtime_checkable
class Guidance(Protocol):
    """A way to follow a caption."""

    def __call__(self, backbone: Backbone, text: TextStream, empty: TextStream | None) -> Velocity:
        """The guided velocity field of P captions."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClassifierFree:
    """v = v_empty + s (v_text - v_empty) (Ho and Salimans 2022, on velocities).

    Attributes:
      scale: s; 1 is no guidance and costs no second evaluation. (The paper's own w is s - 1.) An
        array lets one compiled program serve every scale, and always costs both evaluations.
      interval: guide only while lo <= t <= hi, elsewhere s = 1 (Kynkaanniemi et al. 2024).
      start: whether t = 1 is guided too. Without it, a solver's first step has s = 1, whatever the
        number of steps: samples part before guidance draws them together. Rules that ask within the
        step as well (Midpoint) need ``composed.late`` for that, which knows where the step ends.
    """

    scale: float | Float[Array, ""] = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    start: bool = True

    def __post_init__(self):
        check_interval("guidance.classifier_free", self.interval)
        check_scale("guidance.classifier_free", self.scale)

    def __call__(self, backbone: Backbone, text: TextStream, empty: TextStream | None) -> Velocity:
        """The guided field.

        Args:
          backbone: (z "B ...", t "B", text) -> v "B ...".
          text: the captions, P rows.
          empty: the empty caption, one row: it serves every prompt. Not read where s = 1.

        Raises:
          ValueError: guidance without an empty caption.
        """
        if is_none(self.scale):
            return lambda z, t: backbone(z, t, text)
        if empty is None:
            raise ValueError(f"guidance of scale {self.scale} needs the empty caption's stream")
        prompts = text.mask.shape[0]
        both = text_stream.concatenate(text, text_stream.repeat(empty, prompts))

        def velocity(z: Array, t: Array) -> Array:
            # One call of 2 B rows: prompt-major rows fall in line with the 2 P rows of text.
            v = backbone(jnp.concatenate([z, z]), jnp.concatenate([t, t]), both)
            v_text, v_empty = jnp.split(v, 2)
            return self.combine(v_text, v_empty, t)

        return velocity

    def combine(
        self, v_text: Float[Array, "B *x"], v_empty: Float[Array, "B *x"], t: Float[Array, " B"]
    ) -> Float[Array, "B *x"]:
        """The two branches' velocities to one."""
        lo, hi = self.interval
        guided = (t >= lo) & (t <= hi) & (self.start | (t < 1))
        scale = jnp.where(guided, self.scale, 1.0)
        return v_empty + along_rows(scale, v_text) * (v_text - v_empty)


def from_weight(weight: float) -> float:
    """The scale s = 1 + w of Ho and Salimans' weight w."""
    return 1 + weight


def to_weight(scale: float) -> float:
    """Ho and Salimans' weight w = s - 1 of a scale s."""
    return scale - 1


def is_none(scale: float | Float[Array, ""]) -> bool:
    """Whether a scale is known to be 1, so that nothing has to be contrasted."""
    return isinstance(scale, int | float) and scale == 1
