"""The caption while sampling: a text stream that changes with time.

At high noise a caption decides more than it has to, and all samples of a prompt start the same
way. Annealing hides it in noise at first and uncovers it while t falls.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from cosdiff_jax import text_stream
from cosdiff_jax.flow.guidance import Backbone, Guidance
from cosdiff_jax.flow.solver import Remembering, Velocity
from cosdiff_jax.rng import named
from cosdiff_jax.shapes import TextStream


@dataclass(frozen=True, kw_only=True)
class Cads:
    """Condition-annealed sampling (Sadat et al. 2023, arXiv 2310.17347, section 3).

        gamma(t) = 1 for t <= tau1,  (tau2 - t) / (tau2 - tau1) between,  0 for t >= tau2
        y_hat    = sqrt(gamma) y + scale sqrt(1 - gamma) std(y) n,           n ~ N(0, I)
        y_like   = (y_hat - mean(y_hat)) / std(y_hat) std(y) + mean(y)
        result   = rescale y_like + (1 - rescale) y_hat

    y is what a token says: its values, layer by layer, its ``hidden`` and its ``layers``; mean and
    std are over its features. The paper's noise has unit size. Values differ in size from layer to
    layer and from token to token, so here the noise is measured in their own std.

    Keys stay: they say where to look, in deep fusion with the position turned into them, and noise
    there would move the gaze rather than blur what is seen. Padding stays too.

    Attributes:
      tau1: t up to which the caption is clear.
      tau2: t from which on nothing of it is left.
      scale: size of the noise, in std of y.
      rescale: psi in [0, 1]: 1 keeps the mean and std that the network knows, 0 is bare noise.
    """

    tau1: float = 0.6
    tau2: float = 0.9
    scale: float = 0.25
    rescale: float = 1.0

    def __post_init__(self):
        if not self.tau1 < self.tau2:
            raise ValueError(
                f"condition.cads: tau1 must be below tau2, not {self.tau1} and {self.tau2}"
            )
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"condition.cads.scale must be at least 0, not {self.scale}")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"condition.cads.rescale must lie in 0..1, not {self.rescale}")

    def gamma(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """How much of the caption is there, as a share of its power."""
        falling = jnp.maximum((self.tau2 - t) / (self.tau2 - self.tau1), 0.0)
        # The quotient rounds: at t = tau1 it may be just below 1.
        return jnp.where(t <= self.tau1, 1.0, falling)

    def __call__(
        self, text: TextStream, t: Float[Array, " B"], keys: Key[Array, " B"]
    ) -> TextStream:
        """The stream at time t, one row per sample; where gamma is 1, the stream itself.

        Args:
          text: B rows, each prompt's repeated for its samples.
          t: the time of each row.
          keys: the noise of a row is its key's alone, and the same at every t.
        """

        def change(y: Array, axis: int, name: str) -> Array:
            def row(y: Array, mask: Array, gamma: Array, key: Array) -> Array:
                return self._anneal(y, mask, gamma, named(key, name)[name])

            features_last = y.reshape(*y.shape[: axis + 2], -1)
            rows = jax.vmap(row, (axis, 0, 0, 0), axis)
            return rows(features_last, text.mask, self.gamma(t), keys).reshape(y.shape)

        return dataclasses.replace(
            text,
            values=change(text.values, 1, "values"),
            hidden=change(text.hidden, 0, "hidden"),
            layers=None if text.layers is None else change(text.layers, 1, "layers"),
        )

    def _anneal(
        self,
        y: Float[Array, "*S T F"],
        mask: Bool[Array, " T"],
        gamma: Float[Array, ""],
        key: Key[Array, ""],
    ) -> Float[Array, "*S T F"]:
        """One row of one field."""
        clear = y.astype(jnp.float32)
        noise = _std(clear) * jax.random.normal(key, y.shape)
        hidden = jnp.sqrt(gamma) * clear + self.scale * jnp.sqrt(1 - gamma) * noise
        like = (hidden - _mean(hidden)) / jnp.maximum(_std(hidden), 1e-12)
        like = like * _std(clear) + _mean(clear)
        mixed = self.rescale * like + (1 - self.rescale) * hidden
        # Even at gamma = 1 rescaling rounds; the choice keeps what is not annealed bit for bit.
        real = mask.reshape((1,) * (y.ndim - 2) + (-1, 1))
        return jnp.where(real & (gamma < 1), mixed.astype(y.dtype), y)


@dataclass(frozen=True, kw_only=True)
class Annealed:
    """A guidance whose caption is annealed; the empty caption is not.

    The noise differs between the samples of a prompt, so the stream that they share otherwise is
    repeated: K times the memory of the text, and as much of its part in attention. The noise of a
    row does not change with t, so that the result is a velocity field like any other; the usual
    implementations draw it anew at every step.

    Attributes:
      guidance: how the annealed caption is followed.
      condition: how it is annealed.
      keys: one per row of z, as folded from the prompt's seed and the sample's number.
    """

    guidance: Guidance
    condition: Cads
    keys: Key[Array, " B"]

    def __call__(self, backbone: Backbone, text: TextStream, empty: TextStream | None) -> Velocity:
        """The guided field; arguments and errors as for the guidance's own call."""

        def field(z: Array, t: Array) -> Any:
            each = text_stream.repeat(text, z.shape[0] // text.mask.shape[0])
            return self.guidance(backbone, self.condition(each, t, self.keys), empty)

        clear = self.guidance(backbone, text, empty)
        if isinstance(clear, Remembering):
            # A field is made for each time; what it remembers goes to that of the next.
            return Remembering(
                start=clear.start, ask=lambda z, t, remembered: field(z, t).ask(z, t, remembered)
            )
        return lambda z, t: field(z, t)(z, t)


def _mean(y: Array) -> Array:
    return jnp.mean(y, axis=-1, keepdims=True)


def _std(y: Array) -> Array:
    return jnp.std(y, axis=-1, keepdims=True)
