"""The latents themselves as a feature: free of cost, and blind to what they mean."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from cosdiff_jax.models.clip import unit
from cosdiff_jax.shapes import Frozen, TextStream


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentFeature:
    """f = flatten(z - mean over positions of z), per channel.

    Centring takes out the average colour that all pictures share, which would hold every cosine
    near 1.

    Attributes:
      centre: subtract each channel's mean over positions.
    """

    centre: bool = True

    def __call__(
        self, frozen: Frozen, samples: Float[Array, "B h w c"], text: TextStream | None = None
    ) -> Float[Array, "B F"]:
        """Unit vectors of normalised latents, or of pictures; only ``samples`` are read."""
        f = samples.astype(jnp.float32)
        if self.centre:
            f = f - jnp.mean(f, axis=(1, 2), keepdims=True)
        return unit(f.reshape(f.shape[0], -1))
