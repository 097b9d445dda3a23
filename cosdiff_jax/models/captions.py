"""Reading captions: the streams that training and sampling share, made once a prompt.

The empty caption is bos alone. It is read as a single row, which serves every prompt.

A causal language model knows of a word what stands before it, so in "a red circle" nothing at
"red" says circle, and at "circle" red is a faint trace. Said twice, "a red circle = a red circle",
every token of the second copy follows the whole caption (echo embeddings, Springer et al. 2024,
arXiv 2402.15449): there "red" has the circle in its values, and a picture's red spot finds its
shape by its colour.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cosdiff_jax.shapes import Params, TextStream


def read(
    language_model: nn.Module,
    params: Params,
    backbone: nn.Module,
    tokens: Int[Array, "P T"],
    mask: Bool[Array, "P T"],
    layers: bool = False,
) -> tuple[TextStream, TextStream]:
    """P captions, and the empty one as a single row; no gradient reaches the language model.

    Args:
      language_model: (tokens, mask) -> TextStream.
      params: its parameters.
      backbone: says in its ``attention`` which form of the stream it reads, and whether captions
        are said twice: then the streams have 2 T tokens.
      tokens: right-padded, bos first.
      mask: True at real tokens.
      layers: hand out every hidden state, also where the backbone does without.
    """
    reads = backbone.attention
    if reads.echo is not None:
        tokens, mask = twice(tokens, mask, reads.echo)

    def stream(tokens: jax.Array, mask: jax.Array) -> TextStream:
        text: Any = language_model.apply(
            {"params": params}, tokens, mask, rotate=reads.rotate, layers=reads.layers or layers
        )
        return jax.lax.stop_gradient(text)

    first = jnp.arange(tokens.shape[1])[None, :] == 0
    return stream(tokens, mask), stream(jnp.where(first, tokens[:1], 0), first)


def twice(
    tokens: Int[Array, "P T"], mask: Bool[Array, "P T"], separator: int
) -> tuple[Int[Array, "P U"], Bool[Array, "P U"]]:
    """Captions said twice, U = 2 T: bos, the words, the separator, the words; bos alone stays so.

    Args:
      tokens: right-padded, bos first.
      mask: True at real tokens.
      separator: the token between the copies.
    """
    length = mask.sum(axis=1, keepdims=True)
    place = jnp.arange(2 * tokens.shape[1])[None, :]
    # The second copy's first word comes `length` places after the first copy's.
    source = jnp.where(place < length, place, place - length)
    said = jnp.take_along_axis(tokens, jnp.minimum(source, tokens.shape[1] - 1), axis=1)
    said = jnp.where(place == length, separator, said)
    real = place < jnp.where(length > 1, 2 * length, 1)
    return jnp.where(real, said, 0), real


def pooled(text: TextStream, layer: int | None = None) -> Float[Array, "P D"]:
    """One hidden state, averaged over each caption's real tokens, in float32.

    Args:
      text: with its ``layers``.
      layer: 0 the embeddings, ... L the last state; negative counts from there, None is the middle.

    Raises:
      ValueError: there is no such state.
    """
    states = 0 if text.layers is None else len(text.layers)
    layer = states // 2 if layer is None else layer
    if text.layers is None or not -states <= layer < states:
        raise ValueError(f"layer = {layer}: the text stream holds {states} hidden states")
    real = text.mask[:, :, None]
    total = jnp.sum(jnp.where(real, text.layers[layer].astype(jnp.float32), 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(real, axis=1), 1)
