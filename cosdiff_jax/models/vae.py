"""A convolutional KL autoencoder of the SD3 shape, at any size (https://arxiv.org/abs/2403.03206).

The encoder gives a diagonal Gaussian over latents, q(z | x) = N(mean, exp(logvar)), with 16
channels at 1/8 of the picture's size and no convolutions between it and the decoder. Every other
network sees normalised latents:

    latent = (z - shift) * scale            z = latent / scale + shift

``patch`` > 1 folds patch x patch pixels into channels before the first convolution (and unfolds
after the last), which takes the dearest resolution out of the network; ``patch = 1`` is SD3.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def fold(images: Float[Array, "B X Y C"], patch: int) -> Float[Array, "B x y D"]:
    """Put each patch x patch square of pixels into channels: D = patch patch C."""
    b, x, y, c = images.shape
    if x % patch or y % patch:
        raise ValueError(
            f"pictures of {x} x {y} pixels cannot be cut into {patch} x {patch} squares"
        )
    squares = images.reshape(b, x // patch, patch, y // patch, patch, c)
    return squares.transpose(0, 1, 3, 2, 4, 5).reshape(b, x // patch, y // patch, -1)


def unfold(squares: Float[Array, "B x y D"], patch: int) -> Float[Array, "B X Y C"]:
    """The inverse of ``fold``."""
    b, x, y, d = squares.shape
    pixels = squares.reshape(b, x, y, patch, patch, d // patch**2)
    return pixels.transpose(0, 1, 3, 2, 4, 5).reshape(b, x * patch, y * patch, -1)


class Normalised(nn.Module):
    """GroupNorm in float32, then SiLU."""

    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B X Y D"]) -> Float[Array, "B X Y D"]:
        """Normalise and bend ``x``."""
        x = nn.GroupNorm(num_groups=self.groups, epsilon=1e-6, dtype=jnp.float32, name="norm")(x)
        return nn.silu(x.astype(self.dtype))


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut, 1x1 where the width changes."""

    width: int
    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B X Y C"]) -> Float[Array, "B X Y D"]:
        """Transform at one resolution."""
        h = Normalised(self.groups, self.dtype, name="norm1")(x)
        h = nn.Conv(self.width, (3, 3), dtype=self.dtype, name="conv1")(h)
        h = Normalised(self.groups, self.dtype, name="norm2")(h)
        h = nn.Conv(self.width, (3, 3), dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.width:
            x = nn.Conv(self.width, (1, 1), dtype=self.dtype, name="shortcut")(x)
        return x + h


class Attention(nn.Module):
    """One head of self-attention over all positions of the smallest resolution."""

    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B X Y D"]) -> Float[Array, "B X Y D"]:
        """Mix positions, with a shortcut around."""
        b, height, width, d = x.shape
        h = nn.GroupNorm(num_groups=self.groups, epsilon=1e-6, dtype=jnp.float32, name="norm")(x)
        h = h.reshape(b, height * width, d).astype(self.dtype)
        q, k, v = (nn.Dense(d, dtype=self.dtype, name=name)(h) for name in ("q", "k", "v"))
        scores = jnp.einsum("bnd,bmd->bnm", q, k).astype(jnp.float32) / np.sqrt(d)
        h = jnp.einsum("bnm,bmd->bnd", nn.softmax(scores).astype(self.dtype), v)
        return x + nn.Dense(d, dtype=self.dtype, name="out")(h).reshape(x.shape)


class Mid(nn.Module):
    """ResBlock, attention, ResBlock."""

    width: int
    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B X Y D"]) -> Float[Array, "B X Y D"]:
        """Transform the smallest resolution."""
        x = ResBlock(self.width, self.groups, self.dtype, name="block0")(x)
        x = Attention(self.groups, self.dtype, name="attention")(x)
        return ResBlock(self.width, self.groups, self.dtype, name="block1")(x)


class Encoder(nn.Module):
    """Pictures to the mean and log variance of their latents, side by side in channels."""

    widths: Sequence[int]
    blocks: int
    latent: int
    groups: int
    patch: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "B X Y C"]) -> Float[Array, "B h w c2"]:
        """Encode; c2 = 2 ``latent``."""
        x = fold(images, self.patch).astype(self.dtype)
        x = nn.Conv(self.widths[0], (3, 3), dtype=self.dtype, name="stem")(x)
        for level, width in enumerate(self.widths):
            for block in range(self.blocks):
                name = f"level{level}_block{block}"
                x = ResBlock(width, self.groups, self.dtype, name=name)(x)
            if level < len(self.widths) - 1:
                # Padding only below and to the right is what the published weights were made with.
                down = nn.Conv(
                    width, (3, 3), (2, 2), ((0, 1), (0, 1)), dtype=self.dtype, name=f"down{level}"
                )
                x = down(x)
        x = Mid(self.widths[-1], self.groups, self.dtype, name="mid")(x)
        x = Normalised(self.groups, self.dtype, name="norm")(x)
        return nn.Conv(2 * self.latent, (3, 3), dtype=self.dtype, name="out")(x)


class Decoder(nn.Module):
    """Latents to pictures; ``widths`` are given from the largest resolution, like the encoder's."""

    widths: Sequence[int]
    blocks: int
    channels: int
    groups: int
    patch: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Float[Array, "B h w c"]) -> Float[Array, "B X Y C"]:
        """Decode."""
        x = nn.Conv(self.widths[-1], (3, 3), dtype=self.dtype, name="stem")(z.astype(self.dtype))
        x = Mid(self.widths[-1], self.groups, self.dtype, name="mid")(x)
        for level in reversed(range(len(self.widths))):
            for block in range(self.blocks):
                name = f"level{level}_block{block}"
                x = ResBlock(self.widths[level], self.groups, self.dtype, name=name)(x)
            if level:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
                up = nn.Conv(self.widths[level], (3, 3), dtype=self.dtype, name=f"up{level}")
                x = up(x)
        x = Normalised(self.groups, self.dtype, name="norm")(x)
        x = nn.Conv(self.channels * self.patch**2, (3, 3), dtype=self.dtype, name="out")(x)
        return unfold(x, self.patch)


class AutoencoderKL(nn.Module):
    """The autoencoder; pictures in [-1, 1] come out unclipped.

    Downsampling is patch * 2 ** (len(widths) - 1).

    Attributes:
      widths: channels per level, from the largest resolution to the smallest.
      blocks: ResBlocks per level of the encoder.
      decoder_widths: the decoder's own widths, of the same length; None means ``widths``.
      decoder_blocks: ResBlocks per level of the decoder; None means ``blocks + 1``, as in SD3.
      latent: channels of the latents.
      channels: channels of the pictures.
      groups: of every GroupNorm; must divide every width.
      patch: side of the pixel squares folded into channels; 1 is the SD3 form.
      shift: subtracted from raw latents, one number or one per channel.
      scale: multiplied afterwards, one number or one per channel.
      dtype: of the computation; parameters and norms stay float32.
    """

    widths: Sequence[int] = (32, 64, 96)
    blocks: int = 1
    decoder_widths: Sequence[int] | None = None
    decoder_blocks: int | None = None
    latent: int = 16
    channels: int = 3
    groups: int = 8
    patch: int = 2
    shift: float | Sequence[float] = 0.0
    scale: float | Sequence[float] = 1.0
    dtype: Any = jnp.float32

    def setup(self):
        """Name the two halves, so that either can be used or stored alone."""
        widths = self.decoder_widths or self.widths
        if len(widths) != len(self.widths):
            raise ValueError("the decoder needs as many widths as the encoder")
        blocks = self.blocks + 1 if self.decoder_blocks is None else self.decoder_blocks
        self.encoder = Encoder(
            self.widths, self.blocks, self.latent, self.groups, self.patch, self.dtype
        )
        self.decoder = Decoder(widths, blocks, self.channels, self.groups, self.patch, self.dtype)

    def encode(
        self, images: Float[Array, "B X Y C"]
    ) -> tuple[Float[Array, "B h w c"], Float[Array, "B h w c"]]:
        """Mean and log variance of the raw latents, float32.

        Raises:
          ValueError: the picture's sides are no multiple of the downsampling.
        """
        factor = self.patch * 2 ** (len(self.widths) - 1)
        if images.shape[1] % factor or images.shape[2] % factor:
            x, y = images.shape[1:3]
            raise ValueError(f"pictures of {x} x {y} pixels: both sides must divide by {factor}")
        moments = self.encoder(images).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        # The bounds keep exp() finite; no trained model comes near them.
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, z: Float[Array, "B h w c"]) -> Float[Array, "B X Y C"]:
        """Pictures of raw latents, float32, about [-1, 1]."""
        return self.decoder(z).astype(jnp.float32)

    def to_latents(
        self, images: Float[Array, "B X Y C"], key: jax.Array | None = None
    ) -> Float[Array, "B h w c"]:
        """Encode and normalise: the mean, or a draw from q(z | x) if a key is given."""
        mean, logvar = self.encode(images)
        if key is not None:
            mean = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        shift, scale = self._affine()
        return (mean - shift) * scale

    def to_images(self, latents: Float[Array, "B h w c"]) -> Float[Array, "B X Y C"]:
        """Undo the normalisation and decode."""
        shift, scale = self._affine()
        return self.decode(latents / scale + shift)

    def __call__(
        self, images: Float[Array, "B X Y C"], key: jax.Array | None = None
    ) -> tuple[Float[Array, "B X Y C"], tuple[Float[Array, "B h w c"], Float[Array, "B h w c"]]]:
        """Reconstruction from the mean (or from a draw, given a key), and (mean, logvar)."""
        mean, logvar = self.encode(images)
        z = mean
        if key is not None:
            z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        return self.decode(z), (mean, logvar)

    def _affine(self) -> tuple[jax.Array, jax.Array]:
        # Spelled out to rank 4: broadcasting never has to guess which axis the channels are.
        def spread(value):
            value = jnp.asarray(value, jnp.float32).reshape(-1)
            return jnp.broadcast_to(value, (self.latent,)).reshape(1, 1, 1, self.latent)

        return spread(self.shift), spread(self.scale)
