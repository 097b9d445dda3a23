"""Reading captions once: the streams that training and sampling share.

The empty caption is bos alone. It is read as a single row, which serves every prompt.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from cosdiff_jax.shapes import Params, TextStream


def read(
    language_model: nn.Module,
    params: Params,
    backbone: nn.Module,
    tokens: Int[Array, "P T"],
    mask: Bool[Array, "P T"],
) -> tuple[TextStream, TextStream]:
    """P captions, and the empty one as a single row; no gradient reaches the language model.

    Args:
      language_model: (tokens, mask) -> TextStream.
      params: its parameters.
      backbone: says in its ``attention`` which form of the stream it reads.
      tokens: right-padded, bos first.
      mask: True at real tokens.
    """
    reads = backbone.attention

    def stream(tokens: jax.Array, mask: jax.Array) -> TextStream:
        text: Any = language_model.apply(
            {"params": params}, tokens, mask, rotate=reads.rotate, layers=reads.layers
        )
        return jax.lax.stop_gradient(text)

    first = jnp.arange(tokens.shape[1])[None, :] == 0
    return stream(tokens, mask), stream(jnp.where(first, tokens[:1], 0), first)
