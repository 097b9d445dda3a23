"""Reading captions once: the streams that training and sampling share.

The empty caption is bos alone. It is read as a single row, which serves every prompt.
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
      backbone: says in its ``attention`` which form of the stream it reads.
      tokens: right-padded, bos first.
      mask: True at real tokens.
      layers: hand out every hidden state, also where the backbone does without.
    """
    reads = backbone.attention

    def stream(tokens: jax.Array, mask: jax.Array) -> TextStream:
        text: Any = language_model.apply(
            {"params": params}, tokens, mask, rotate=reads.rotate, layers=reads.layers or layers
        )
        return jax.lax.stop_gradient(text)

    first = jnp.arange(tokens.shape[1])[None, :] == 0
    return stream(tokens, mask), stream(jnp.where(first, tokens[:1], 0), first)


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
