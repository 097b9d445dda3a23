"""The view of a CLIP that reads latents: what a caption could tell apart, without decoding."""

import dataclasses
from typing import cast

import jax
from jaxtyping import Array, Bool, Float, Int

from cosdiff_jax.models.clip import CLIP
from cosdiff_jax.shapes import Frozen, TextStream


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentClipFeature:
    """Latents through the picture tower of a CLIP that was trained on latents.

    Neither the decoder nor its gradient is computed. Latents have no range that they could be
    clipped to: where a sample leaves what the VAE gives, this view means nothing.

    Attributes:
      clip: the network; its weights are ``frozen["latent_clip"]``. It knows the latents of one
        VAE only.
    """

    clip: CLIP

    def __call__(
        self, frozen: Frozen, samples: Float[Array, "B h w c"], text: TextStream | None = None
    ) -> Float[Array, "B F"]:
        """Unit vectors of normalised latents."""
        variables = {"params": jax.lax.stop_gradient(frozen["latent_clip"])}
        return cast(jax.Array, self.clip.apply(variables, samples, method="image"))

    def text(
        self, frozen: Frozen, tokens: Int[Array, "P T"], mask: Bool[Array, "P T"]
    ) -> Float[Array, "P F"]:
        """Unit vectors of captions in the same space, for the alignment term."""
        f = self.clip.apply({"params": frozen["latent_clip"]}, tokens, mask, method="text")
        return cast(jax.Array, f)
