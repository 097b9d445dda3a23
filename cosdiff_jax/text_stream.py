"""Moving whole text streams about: by prompt, never by token or layer.

Rows of prompts are the second axis of per-layer arrays and the first of the others.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from cosdiff_jax.shapes import TextStream


def _over_rows(change: Callable[..., jax.Array], *streams: TextStream) -> TextStream:
    """Apply ``change(axis, arrays...)`` to every field along its axis of prompts."""
    first = streams[0]
    parts = {}
    for name, axis in (("keys", 1), ("values", 1), ("hidden", 0), ("mask", 0), ("layers", 1)):
        arrays = [getattr(s, name) for s in streams]
        parts[name] = None if getattr(first, name) is None else change(axis, *arrays)
    return TextStream(**parts)


def repeat(text: TextStream, times: int) -> TextStream:
    """Every prompt ``times`` times, copies side by side."""
    return _over_rows(lambda axis, x: jnp.repeat(x, times, axis=axis), text)


def concatenate(*streams: TextStream) -> TextStream:
    """The prompts of several streams of the same length, one after the other.

    With the empty prompt's stream repeated beside the real one's, both branches of classifier-free
    guidance are one call of the backbone.
    """
    return _over_rows(lambda axis, *x: jnp.concatenate(x, axis=axis), *streams)


def where(condition: Bool[Array, " P"], a: TextStream, b: TextStream) -> TextStream:
    """Prompt by prompt ``a`` where the condition [P] holds, else ``b``: caption dropout."""

    def pick(axis: int, x: jax.Array, y: jax.Array) -> jax.Array:
        shape = [1] * x.ndim
        shape[axis] = -1
        return jnp.where(condition.reshape(shape), x, y)

    return _over_rows(pick, a, b)
