"""Sums of products of features in full float32, however the rest of a run multiplies."""

import jax
import jax.numpy as jnp


def product(letters: str, *factors: jax.Array) -> jax.Array:
    """``einsum`` with exact factors, and so are those of its derivatives.

    Accelerators multiply float32 with 8 or 11 bits by default, and a recipe may ask for as few
    (``matmul_precision``): errors of 1e-3 in a cosine, where ties are told at 1e-6. Features are
    small beside the networks that make them, so that it costs nothing.
    """
    return jnp.einsum(letters, *factors, precision=jax.lax.Precision.HIGHEST)
