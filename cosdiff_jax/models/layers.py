"""The small parts that every transformer here is made of.

Fused kernels keep their parts on an axis of their own ([D, H + 2 G, E], [D, 2, M]): one matmul, and
a mesh can still split heads or hidden units without cutting through a part.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Initializer = Callable[..., jax.Array]


def precision(name: str) -> AbstractContextManager[Any]:
    """The context in which JAX multiplies matrices in the precision of this name.

    Args:
      name: as ``jax.default_matmul_precision`` takes it; "" leaves it as it is.

    Raises:
      ValueError: JAX knows no such precision.
    """
    if not name:
        return nullcontext()
    try:
        return jax.default_matmul_precision(name)
    except ValueError as error:
        raise ValueError(f"matmul_precision: {error}") from None


def matmul(x: Float[Array, "R D"], kernel: Float[Array, "D M"]) -> Float[Array, "R M"]:
    """x W, in the precision that ``jax.default_matmul_precision`` asks for.

    "bfloat16" (bfloat16 factors, float32 sums, as TPUs multiply float32) is an offer that XLA for
    CPU declines, though processors with instructions for it are 1.7 to 1.9 times as fast: for that
    name the factors are cast here, in both directions.
    """
    asked = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    if asked == "bfloat16":
        return _bfloat16(x, kernel)
    return x @ kernel


@jax.custom_vjp
def _bfloat16(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _product(x, kernel, 1, 0).astype(x.dtype)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    narrow = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    # The empty ones carry the dtypes that the gradients must have.
    return _bfloat16(x, kernel), (*narrow, x[:0], kernel[:0])


def _backward(kept: tuple[jax.Array, ...], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel, like_x, like_kernel = kept
    to_x = _product(g, kernel, 1, 1).astype(like_x.dtype)
    return to_x, _product(x, g, 0, 0).astype(like_kernel.dtype)


def _product(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    return jax.lax.dot_general(
        a.astype(jnp.bfloat16),
        b.astype(jnp.bfloat16),
        (((axis_a,), (axis_b,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


_bfloat16.defvjp(_forward, _backward)


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
    def __call__(
        self,
        x: Float[Array, "*rows D"],
        shift: Float[Array, "#B D"] | None = None,
        scale: Float[Array, "#B D"] | None = None,
    ) -> Float[Array, "*rows D"]:
        """Normalise each row; with a modulation of [B N D], norm(x) (1 + scale) + shift.

        Both gains meet before they touch x: one multiplication of the tokens, and in the backward
        pass one sum over them, instead of two.
        """
        gain = 1 + self.param("scale", nn.initializers.zeros, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        if scale is None or shift is None:
            return (wide * gain.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)
        gain = gain[None] * (1 + scale.astype(jnp.float32))
        return (wide * gain[:, None, :] + shift.astype(jnp.float32)[:, None, :]).astype(x.dtype)


class Linear(nn.Module):
    """y = x W (+ b), over the last ``axes`` axes of x, onto the axes ``features``.

    The kernel has the shape [*inputs, *features]; initialisers see it as one matrix. Rows are
    flattened around the matmul: on CPU the gradient of a three-dimensional one is half as fast.
    """

    features: tuple[int, ...]
    axes: int = 1
    use_bias: bool = False
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*rows"]) -> Float[Array, "*out"]:
        """Project; every leading axis is a batch axis."""
        rows, inputs = x.shape[: -self.axes], x.shape[-self.axes :]
        flat = (int(np.prod(inputs)), int(np.prod(self.features)))
        kernel = _kernel(self, inputs + self.features, flat).astype(self.dtype).reshape(flat)
        y = matmul(x.astype(self.dtype).reshape(-1, flat[0]), kernel)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, self.features)
            y = y + bias.astype(self.dtype).reshape(1, -1)
        return y.reshape(*rows, *self.features)


def _kernel(module: Any, shape: tuple[int, ...], flat: tuple[int, int]) -> jax.Array:
    def init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return module.kernel_init(key, flat, jnp.float32).reshape(shape)

    return module.param("kernel", init, shape)


class QKV(nn.Module):
    """Queries, keys and values of one stream from one matmul with a [D, H + 2 G, E] kernel."""

    heads: int
    kv_heads: int
    head_size: int
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"]
    ) -> tuple[Float[Array, "B N H E"], Float[Array, "B N G E"], Float[Array, "B N G E"]]:
        """Project to q, k, v."""
        h, g, e = self.heads, self.kv_heads, self.head_size
        init = side_by_side(self.kernel_init, h * e, g * e, g * e)
        qkv = Linear((h + 2 * g, e), kernel_init=init, dtype=self.dtype, name="project")(x)
        return qkv[:, :, :h], qkv[:, :, h : h + g], qkv[:, :, h + g :]


class HeadsOut(nn.Module):
    """[B N H E] back to [B N D]."""

    width: int
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N H E"]) -> Float[Array, "B N D"]:
        """Project all heads together."""
        return Linear(
            (self.width,), axes=2, kernel_init=self.kernel_init, dtype=self.dtype, name="project"
        )(x)


class _GateUp(nn.Module):
    """The kernel [D, 2, M] and its two matmuls.

    Two, not one: cutting activations in two costs more in the backward pass than it saves.
    """

    hidden: int
    kernel_init: Initializer
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "R D"]) -> tuple[Float[Array, "R M"], Float[Array, "R M"]]:
        shape = (x.shape[-1], 2, self.hidden)
        kernel = _kernel(self, shape, (shape[0], 2 * self.hidden)).astype(self.dtype)
        return matmul(x, kernel[:, 0]), matmul(x, kernel[:, 1])


class GeGLU(nn.Module):
    """W_down (gelu(W_gate x) * (W_up x)), gelu in its tanh form (Shazeer, arXiv 2002.05202)."""

    hidden: int
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Up, gate, down."""
        width = x.shape[-1]
        init = side_by_side(self.kernel_init, self.hidden, self.hidden)
        gate, up = _GateUp(self.hidden, init, self.dtype, name="gate_up")(
            x.astype(self.dtype).reshape(-1, width)
        )
        mixed = nn.gelu(gate, approximate=True) * up
        down = Linear((width,), kernel_init=self.kernel_init, dtype=self.dtype, name="down")
        return down(mixed).reshape(x.shape)
