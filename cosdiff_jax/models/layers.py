"""The small parts that every transformer here is made of.

Fused kernels keep their parts on an axis of their own ([D, H + 2 G, E], [D, 2, M]): one matmul, and
a mesh can still split heads or hidden units without cutting through a part.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Initializer = Callable[..., jax.Array]


def side_by_side(init: Initializer, *sizes: int) -> Initializer:
    """Initialise a fused kernel [D, sum(sizes)] part by part, as if each were its own layer."""

    def fused(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        keys = jax.random.split(key, len(sizes))
        parts = [init(k, (shape[0], n), dtype) for k, n in zip(keys, sizes, strict=True)]
        return jnp.concatenate(parts, axis=1)

    return fused


class RMSNorm(nn.Module):
    """x (1 + w) / sqrt(mean(x^2) + eps) over the last axis: Gemma's form, w = 0 at the start.

    Computed in float32 whatever the dtype of x, which it keeps.
    """

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Normalise each row."""
        weight = self.param("scale", nn.initializers.zeros, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        weight = weight.reshape((1,) * (x.ndim - 1) + (-1,))
        return (wide * (1 + weight)).astype(x.dtype)


class QKV(nn.Module):
    """Queries, keys and values of one stream from one matmul with a [D, H + 2 G, E] kernel."""

    heads: int
    kv_heads: int
    head_size: int
    init: Initializer = nn.initializers.xavier_uniform()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"]
    ) -> tuple[Float[Array, "B N H E"], Float[Array, "B N G E"], Float[Array, "B N G E"]]:
        """Project to q, k, v."""
        h, g, e = self.heads, self.kv_heads, self.head_size
        qkv = nn.DenseGeneral(
            (h + 2 * g, e),
            use_bias=False,
            kernel_init=side_by_side(self.init, h * e, g * e, g * e),
            dtype=self.dtype,
            name="project",
        )(x)
        return qkv[:, :, :h], qkv[:, :, h : h + g], qkv[:, :, h + g :]


class HeadsOut(nn.Module):
    """[B N H E] back to [B N D]."""

    width: int
    init: Initializer = nn.initializers.xavier_uniform()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N H E"]) -> Float[Array, "B N D"]:
        """Project all heads together."""
        return nn.DenseGeneral(
            self.width,
            axis=(-2, -1),
            use_bias=False,
            kernel_init=self.init,
            dtype=self.dtype,
            name="project",
        )(x)


class GeGLU(nn.Module):
    """W_down (gelu(W_gate x) * (W_up x)), gelu in its tanh form (Shazeer, arXiv 2002.05202)."""

    hidden: int
    init: Initializer = nn.initializers.xavier_uniform()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Up, gate, down."""
        both = nn.DenseGeneral(
            (2, self.hidden),
            use_bias=False,
            kernel_init=side_by_side(self.init, self.hidden, self.hidden),
            dtype=self.dtype,
            name="gate_up",
        )(x)
        mixed = nn.gelu(both[:, :, 0], approximate=True) * both[:, :, 1]
        return nn.Dense(
            x.shape[-1], use_bias=False, kernel_init=self.init, dtype=self.dtype, name="down"
        )(mixed)
