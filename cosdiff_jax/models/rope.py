"""Rotary position embedding: one rotation, and the angle tables of its 1-D, 2-D and M- forms.

A head of size E is read as E/2 planes (x_i, x_{i + E/2}); position p turns plane i by p f_i:

    x'_i         = x_i cos(p f_i) - x_{i + E/2} sin(p f_i)
    x'_{i + E/2} = x_{i + E/2} cos(p f_i) + x_i sin(p f_i)

(RoFormer, arXiv 2104.09864, eq. 34, in the half-split layout of Gemma.) Only differences of
positions reach the attention logits.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num


def frequencies(head_size: int, base: float) -> Float[Array, " half"]:
    """f_i = base^(-2 i / E), i = 0 .. E/2 - 1, in radians per position."""
    return base ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)


def angles_1d(
    positions: Num[Array, "P N"], head_size: int, base: float
) -> Float[Array, "P N half"]:
    """Plane i turns by p f_i."""
    return positions[:, :, None] * frequencies(head_size, base)[None, None, :]


def angles_2d(
    rows: Num[Array, "P N"], columns: Num[Array, "P N"], head_size: int, base: float
) -> Float[Array, "P N half"]:
    """The first E/4 planes turn with the row, the other E/4 with the column.

    Each half runs through the whole range of frequencies of a head of size E/2.
    """
    f = frequencies(head_size // 2, base)[None, None, :]
    return jnp.concatenate([rows[:, :, None] * f, columns[:, :, None] * f], axis=-1)


def angles_m(
    rows: Num[Array, "P N"], columns: Num[Array, "P N"], head_size: int, base: float
) -> Float[Array, "P N half"]:
    """M-RoPE: the fast half of the frequencies follows the row, the slow half the column.

    With rows = columns = p it is ``angles_1d``: text keys need no table of their own.
    """
    fast, slow = jnp.split(frequencies(head_size, base), 2)
    return jnp.concatenate(
        [rows[:, :, None] * fast[None, None, :], columns[:, :, None] * slow[None, None, :]], axis=-1
    )


def rotate(
    x: Float[Array, "B N G E"], angles: Float[Array, "#B N half"]
) -> Float[Array, "B N G E"]:
    """Turn every head of ``x`` by ``angles`` (radians), in float32; keeps the dtype of ``x``."""
    cos = jnp.cos(angles)[:, :, None, :]
    sin = jnp.sin(angles)[:, :, None, :]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
