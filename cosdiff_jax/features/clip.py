"""CLIP's view of a sample: what a caption could tell apart."""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cosdiff_jax.models.clip import CLIP
from cosdiff_jax.models.vae import AutoencoderKL
from cosdiff_jax.shapes import Frozen, TextStream


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipFeature:
    """Pictures, or latents decoded first, through CLIP's picture tower.

    Attributes:
      clip: the network; its weights are ``frozen["clip"]``.
      vae: decodes latents with the weights ``frozen["vae"]``; None where samples are pictures.
    """

    clip: CLIP
    vae: AutoencoderKL | None = None

    def __call__(
        self, frozen: Frozen, samples: Float[Array, "B h w c"], text: TextStream | None = None
    ) -> Float[Array, "B F"]:
        """Unit vectors of normalised latents if there is a ``vae``, else of pictures."""
        images = samples
        if self.vae is not None:
            variables = {"params": frozen["vae"]}
            images = cast(jax.Array, self.vae.apply(variables, samples, method="to_images"))
        # What is shown is clipped, so what is judged is: a sample cannot move its vector, and so
        # lower the penalty, by leaving the range that pictures have.
        images = jnp.clip(images, -1.0, 1.0)
        f = self.clip.apply({"params": frozen["clip"]}, images, method="image")
        return cast(jax.Array, f)

    def text(
        self, frozen: Frozen, tokens: Int[Array, "P T"], mask: Bool[Array, "P T"]
    ) -> Float[Array, "P F"]:
        """Unit vectors of captions in the same space, for the alignment term."""
        f = self.clip.apply({"params": frozen["clip"]}, tokens, mask, method="text")
        return cast(jax.Array, f)
