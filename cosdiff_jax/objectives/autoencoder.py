"""How the autoencoder is trained: reconstruction plus a faint pull of the latents to N(0, I)."""

import dataclasses
from collections.abc import Iterable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cosdiff_jax import rng
from cosdiff_jax.models.vae import AutoencoderKL
from cosdiff_jax.shapes import Batch, Frozen, Logs, Memory, Params


def kl_divergence(
    mean: Float[Array, "B h w c"], logvar: Float[Array, "B h w c"]
) -> Float[Array, " B"]:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, averaged over latent dimensions, per picture.

    kl = (mean^2 + exp(logvar) - 1 - logvar) / 2      (https://arxiv.org/abs/1312.6114, app. B)
    """
    return 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1.0 - logvar, axis=(1, 2, 3))


def gradient_difference(
    images: Float[Array, "B X Y C"], others: Float[Array, "B X Y C"]
) -> Float[Array, " B"]:
    """Mean absolute difference of horizontal and vertical finite differences, per picture."""
    error = images - others
    across = jnp.mean(jnp.abs(jnp.diff(error, axis=2)), axis=(1, 2, 3))
    down = jnp.mean(jnp.abs(jnp.diff(error, axis=1)), axis=(1, 2, 3))
    return across + down


def psnr(images: Float[Array, "B X Y C"], others: Float[Array, "B X Y C"]) -> Float[Array, " B"]:
    """Peak signal-to-noise ratio in dB, per picture, of pictures in [-1, 1] clipped to it.

    psnr = 10 log10(4 / mean (a - b)^2)      the peak-to-peak range is 2
    """
    error = jnp.mean((jnp.clip(images, -1, 1) - jnp.clip(others, -1, 1)) ** 2, axis=(1, 2, 3))
    # A perfect picture reads 100 dB, not infinity, so that averages stay finite.
    return 10.0 * jnp.log10(4.0 / jnp.maximum(error, 4e-10))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """loss = l2 mean (x - y)^2 + l1 mean |x - y| + edges |grad x - grad y| + kl KL, mean over B.

    Attributes:
      vae: the network.
      l2: weight of the squared error.
      l1: weight of the absolute error, which keeps pulling at small errors.
      edges: weight of ``gradient_difference``.
      kl: weight of the divergence per latent dimension.
    """

    vae: AutoencoderKL
    l2: float = 1.0
    l1: float = 0.1
    edges: float = 0.0
    kl: float = 1e-4

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Fresh parameters, for pictures of this batch's shape."""
        return self.vae.init(key, _pictures(batch)[:1])["params"]

    def start(self, frozen: Frozen, batch: Batch, prompts: int) -> Memory:
        """Nothing is remembered."""
        return {}

    def __call__(
        self,
        params: Params,
        frozen: Frozen,
        batch: Batch,
        key: jax.Array,
        step: jax.Array,
        memory: Memory,
    ) -> tuple[Float[Array, ""], tuple[Logs, Memory]]:
        """The loss on ``batch.images`` and its parts; ``frozen`` and ``step`` are not read."""
        noise = rng.named(key, "latent")["latent"]
        images = _pictures(batch)
        restored, moments = self.vae.apply({"params": params}, images, noise)
        mean, logvar = cast(tuple[jax.Array, jax.Array], moments)
        error = restored - images
        mse, mae = jnp.mean(error**2), jnp.mean(jnp.abs(error))
        kl = jnp.mean(kl_divergence(mean, logvar))
        loss = self.l2 * mse + self.l1 * mae + self.kl * kl
        logs = {"mse": mse, "mae": mae, "kl": kl, "psnr": jnp.mean(psnr(restored, images))}
        if self.edges:
            logs["edges"] = jnp.mean(gradient_difference(restored, images))
            loss = loss + self.edges * logs["edges"]
        return loss, ({"loss": loss, **logs}, memory)

    def calibrate(
        self, params: Params, batches: Iterable[Float[np.ndarray, "B X Y C"]]
    ) -> dict[str, tuple[float, ...]]:
        """The fields ``shift`` and ``scale`` that bring every channel to mean 0 and variance 1.

        A channel that carries (almost) nothing is not blown up: its scale stays at most 10.

        Args:
          params: of the trained network.
          batches: pictures in [-1, 1] to measure on.
        """
        encode = jax.jit(lambda p, x: self.vae.apply({"params": p}, x, method="encode")[0])
        # Batches may be of several shapes.
        parts = [np.asarray(encode(params, images)) for images in batches]
        z = np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts]).astype(np.float64)
        return {
            "shift": tuple(np.round(z.mean(axis=0), 5).tolist()),
            "scale": tuple(np.round(1.0 / np.maximum(z.std(axis=0), 0.1), 5).tolist()),
        }


def _pictures(batch: Batch) -> jax.Array:
    if batch.images is None:
        raise ValueError("training an autoencoder needs a batch with images")
    return batch.images
