"""What a feature of pictures is shown: latents decoded, and nothing that no picture can have."""

from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cosdiff_jax.models.vae import AutoencoderKL
from cosdiff_jax.shapes import Frozen


def shown(
    frozen: Frozen, samples: Float[Array, "B h w c"], vae: AutoencoderKL | None
) -> Float[Array, "B X Y C"]:
    """Pictures in [-1, 1] of normalised latents if there is a ``vae``, else of pictures.

    What is displayed is clipped, so what is judged is: a sample cannot move its vector, and so
    lower the penalty, by leaving the range that pictures have.
    """
    images = samples
    if vae is not None:
        variables = {"params": jax.lax.stop_gradient(frozen["vae"])}
        images = cast(jax.Array, vae.apply(variables, samples, method="to_images"))
    return jnp.clip(images, -1.0, 1.0)


def fit(images: Float[Array, "B X Y C"], side: int) -> Float[Array, "B side side C"]:
    """The middle square of pictures, resized by a triangle filter: as CLIP's own are prepared.

    A filter widened for shrinking; pictures of that size are handed back as they are.
    """
    height, width = images.shape[1:3]
    if height == width == side:
        return images
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = images[:, top : top + short, left : left + short]
    shape = (images.shape[0], side, side, images.shape[3])
    return jax.image.resize(square, shape, "linear", antialias=True)
