"""Several views of a sample as one feature."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from cosdiff_jax.features.feature import Feature
from cosdiff_jax.shapes import Frozen, TextStream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix:
    """f = [sqrt(w_1) f_1 ; sqrt(w_2) f_2 ; ...], the weights scaled to sum 1.

    The parts are unit vectors, so the cosine of two mixed vectors is the weighted mean of the
    parts' cosines: cos(f, g) = sum_i w_i cos(f_i, g_i).

    Attributes:
      parts: the views.
      weights: one for each, none below 0, some above.
    """

    parts: tuple[Feature, ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        if len(self.parts) != len(self.weights) or not self.parts:
            raise ValueError(f"{len(self.parts)} features cannot take {len(self.weights)} weights")
        if min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ValueError(f"weights of a mix of features must be positive, not {self.weights}")

    def __call__(
        self, frozen: Frozen, samples: Float[Array, "B h w c"], text: TextStream | None = None
    ) -> Float[Array, "B F"]:
        """The parts' vectors side by side."""
        total = sum(self.weights)
        views = [
            (weight / total) ** 0.5 * part(frozen, samples, text)
            for part, weight in zip(self.parts, self.weights, strict=True)
        ]
        return jnp.concatenate(views, axis=-1)
