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
