"""Two towers, one for pictures (or their latents) and one for captions, that meet in unit vectors.

The layout is that of CLIP (https://arxiv.org/abs/2103.00020) as OpenAI and open_clip publish it,
so that their weights fit: pre-LayerNorm blocks, learned positions, a class token and a LayerNorm
before the picture's blocks, a causal mask over the caption, projections without bias.

    similarity(p, q) = exp(scale) image_p . text_q
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x): the GELU of OpenAI's weights (open_clip's own use the exact one)."""
    return x * nn.sigmoid(1.702 * x)


def unit(x: Float[Array, "... F"]) -> Float[Array, "... F"]:
    """Scale rows to length 1; a zero row stays zero, with a zero gradient."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    safe = square > 1e-24
    return jnp.where(safe, x * jax.lax.rsqrt(jnp.where(safe, square, 1.0)), 0.0)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    width: int
    heads: int
    mlp: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], allowed: Bool[Array, "T T"] | None
    ) -> tuple[Float[Array, "B T D"], None]:
        """One layer; the second result is what ``nn.scan`` wants and is always None.

        Args:
          x: the residual stream.
          allowed: ``[query, key]``, True where the query may look; None lets all see all.
        """
        d = x.shape[-1]
        h = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm1")(x).astype(self.dtype)
        # One matmul for all three, as in the published weights.
        size = d // self.heads
        qkv = nn.DenseGeneral((3, self.heads, size), dtype=self.dtype, name="qkv")(h)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        scores = jnp.einsum("bthe,bshe->bhts", q, k).astype(jnp.float32) / np.sqrt(size)
        if allowed is not None:
            scores = jnp.where(allowed[None, None], scores, jnp.finfo(jnp.float32).min)
        weights = nn.softmax(scores).astype(self.dtype)
        mixed = jnp.einsum("bhts,bshe->bthe", weights, v)
        x = x + nn.DenseGeneral(d, axis=(-2, -1), dtype=self.dtype, name="out")(mixed)
        h = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm2")(x).astype(self.dtype)
        h = self.activation(nn.Dense(self.mlp, dtype=self.dtype, name="up")(h))
        return x + nn.Dense(d, dtype=self.dtype, name="down")(h), None


def blocks(depth: int) -> type[nn.Module]:
    """``Block`` scanned over ``depth`` layers: parameters gain a leading layer axis."""
    return nn.scan(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
        length=depth,
    )


class ImageTower(nn.Module):
    """A vision transformer read out at its class token; latents are pictures of more channels."""

    size: int
    patch: int
    width: int
    depth: int
    heads: int
    features: int
    stem: int
    activation: Callable[[jax.Array], jax.Array]
    channels: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "B X Y C"]) -> Float[Array, "B F"]:
        """Features of any length, float32.

        Raises:
          ValueError: pictures of another size than the learned positions are for, or of other
            channels.
        """
        if images.shape[1:] != (self.size, self.size, self.channels):
            got = " x ".join(str(n) for n in images.shape[1:])
            fits = f"{self.size} x {self.size} x {self.channels}"
            raise ValueError(f"this CLIP reads pictures of {fits}, got {got}")
        x = images.astype(self.dtype)
        patch = self.patch
        if self.stem:
            x = nn.Conv(self.stem, (4, 4), (2, 2), dtype=self.dtype, name="stem0")(x)
            x = nn.Conv(2 * self.stem, (3, 3), (2, 2), dtype=self.dtype, name="stem1")(nn.gelu(x))
            x = nn.gelu(x)
            patch = patch // 4
        x = nn.Conv(
            self.width,
            (patch, patch),
            (patch, patch),
            use_bias=False,
            dtype=self.dtype,
            name="patches",
        )(x)
        b, height, width, d = x.shape
        start = nn.initializers.normal(self.width**-0.5)
        first = self.param("class_token", start, (1, 1, d)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (b, 1, d)), x.reshape(b, -1, d)], axis=1)
        x = x + self.param("positions", start, (1, 1 + height * width, d)).astype(self.dtype)
        x = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm_in")(x).astype(self.dtype)
        x, _ = blocks(self.depth)(d, self.heads, 4 * d, self.activation, self.dtype, name="blocks")(
            x, None
        )
        x = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm_out")(x[:, 0])
        return nn.Dense(self.features, use_bias=False, name="projection")(x)


class TextTower(nn.Module):
    """A causal transformer read out at the last real token."""

    vocab: int
    context: int
    width: int
    depth: int
    heads: int
    features: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "P T"], mask: Bool[Array, "P T"]) -> Float[Array, "P F"]:
        """Features of any length, float32; what stands after the last real token has no influence.

        Raises:
          ValueError: more tokens than learned positions.
        """
        t = tokens.shape[1]
        if t > self.context:
            raise ValueError(f"this CLIP reads at most {self.context} tokens, got {t}")
        x = nn.Embed(
            self.vocab,
            self.width,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name="tokens",
        )(tokens)
        start = nn.initializers.normal(0.01)
        positions = self.param("positions", start, (self.context, self.width))
        x = x + positions[None, :t].astype(self.dtype)
        # Causal is enough: padding stands to the right of every token that is read.
        allowed = jnp.tril(jnp.ones((t, t), bool))
        x, _ = blocks(self.depth)(
            self.width, self.heads, 4 * self.width, self.activation, self.dtype, name="blocks"
        )(x, allowed)
        last = jnp.maximum(jnp.sum(mask, axis=1) - 1, 0)
        x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        x = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm_out")(x)
        return nn.Dense(self.features, use_bias=False, name="projection")(x)


class CLIP(nn.Module):
    """Pictures and captions to unit vectors of one space.

    Attributes:
      vocab: size of the tokenizer.
      context: most tokens of a caption.
      size: side of the pictures in pixels, or of the latents it reads instead.
      patch: side of a picture token, likewise.
      width, depth, heads: of the picture tower.
      text_width, text_depth, text_heads: of the caption tower.
      features: F, the length of the common vectors.
      stem: channels of a two-convolution stem before the patches; 0 is the published form. It
        needs ``patch`` to be a multiple of 4.
      channels: of the pictures, or of the latents.
      quick: ``quick_gelu`` (OpenAI's weights) rather than the exact GELU.
      dtype: of the computation; parameters, norms and softmax stay float32.
    """

    vocab: int
    context: int = 48
    size: int = 64
    patch: int = 8
    width: int = 128
    depth: int = 4
    heads: int = 4
    text_width: int = 128
    text_depth: int = 3
    text_heads: int = 4
    features: int = 128
    stem: int = 0
    channels: int = 3
    quick: bool = True
    dtype: Any = jnp.float32

    def setup(self):
        """Name the towers, so that either can be used or stored alone."""
        if self.stem and self.patch % 4:
            raise ValueError(f"a stem needs patches of a multiple of 4 pixels, got {self.patch}")
        activation = quick_gelu if self.quick else _exact_gelu
        self.image_tower = ImageTower(
            self.size,
            self.patch,
            self.width,
            self.depth,
            self.heads,
            self.features,
            self.stem,
            activation,
            self.channels,
            self.dtype,
        )
        self.text_tower = TextTower(
            self.vocab,
            self.context,
            self.text_width,
            self.text_depth,
            self.text_heads,
            self.features,
            activation,
            self.dtype,
        )
        # Trained from a temperature of 0.07, as in the paper's section 2.5.
        self.scale = self.param("scale", nn.initializers.constant(np.log(1 / 0.07)), ())

    def image(self, images: Float[Array, "B X Y C"]) -> Float[Array, "B F"]:
        """Unit vectors of pictures in [-1, 1], or of normalised latents."""
        return unit(self.image_tower(images))

    def text(self, tokens: Int[Array, "P T"], mask: Bool[Array, "P T"]) -> Float[Array, "P F"]:
        """Unit vectors of captions, right-padded."""
        return unit(self.text_tower(tokens, mask))

    def __call__(
        self,
        images: Float[Array, "B X Y C"],
        tokens: Int[Array, "P T"],
        mask: Bool[Array, "P T"],
    ) -> tuple[Float[Array, "B F"], Float[Array, "P F"], Float[Array, ""]]:
        """Unit vectors of pictures, of captions, and exp(scale), at most 100."""
        scale = jnp.exp(jnp.minimum(self.scale, np.log(100.0)))
        return self.image(images), self.text(tokens, mask), scale


def _exact_gelu(x: jax.Array) -> jax.Array:
    return nn.gelu(x, approximate=False)
