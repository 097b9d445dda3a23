"""CLIP's view of a sample: what a caption could tell apart."""

import dataclasses
from typing import Any, cast

import jax
from jaxtyping import Array, Bool, Float, Int

from cosdiff_jax.features.pictures import fit, shown
from cosdiff_jax.models.clip import CLIP
from cosdiff_jax.models.vae import AutoencoderKL
from cosdiff_jax.shapes import Frozen, Params, TextStream


def see(clip: Any, params: Params, images: Float[Array, "B X Y C"]) -> Float[Array, "B F"]:
    """What CLIP sees of pictures of any size and shape: their middle squares, as unit vectors."""
    f = clip.apply({"params": params}, fit(images, clip.size), method="image")
    return cast(jax.Array, f)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipFeature:
    """Pictures, or latents decoded first, through CLIP's picture tower.

    Of pictures of another size or shape than its own it sees the middle square, resized.

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
        return see(self.clip, frozen["clip"], shown(frozen, samples, self.vae))

    def text(
        self, frozen: Frozen, tokens: Int[Array, "P T"], mask: Bool[Array, "P T"]
    ) -> Float[Array, "P F"]:
        """Unit vectors of captions in the same space, for the alignment term."""
        f = self.clip.apply({"params": frozen["clip"]}, tokens, mask, method="text")
        return cast(jax.Array, f)
