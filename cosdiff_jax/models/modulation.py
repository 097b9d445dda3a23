"""How the time reaches the image stream: adaLN-Zero, adaLN-single, addition, or not at all.

A family member hands out three modules, c being the embedded time [B, D]:

    shared(width)   c -> what every layer is given, computed once a step
    layer(width)    that -> (shift, scale, gate) of attention and of the MLP, or None
    out(width)      c -> (shift, scale) before the last projection, or None

and says whether it uses the time (``timed``) and whether it is added to the tokens (``added``).

Sources: DiT, arXiv 2212.09748, section 3.2 (adaLN-Zero); PixArt-alpha, arXiv 2310.00426, section
2.3 (adaLN-single); Deep fusion, arXiv 2505.10046 (all four side by side).
"""

import dataclasses
from typing import Any, ClassVar, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cosdiff_jax.models.layers import Linear

Six = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]
"""shift, scale, gate of attention, then of the MLP, each [B D]."""


@runtime_checkable
class Modulation(Protocol):
    """What a timestep conditioning offers a backbone."""

    timed: ClassVar[bool]
    added: ClassVar[bool]

    def shared(self, width: int, dtype: Any) -> nn.Module:
        """Module: c -> what every layer is given."""
        ...

    def layer(self, width: int, dtype: Any) -> nn.Module | None:
        """Module: that -> Six; None for no modulation."""
        ...

    def out(self, width: int, dtype: Any) -> nn.Module | None:
        """Module: c -> (shift, scale); None for no modulation."""
        ...


class TimeEmbedding(nn.Module):
    """c = W2 silu(W1 [cos(1000 t f); sin(1000 t f)]), f_i = 10000^(-i / 128), i < 128."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, t: Float[Array, " B"]) -> Float[Array, "B D"]:
        """Embed times in [0, 1]."""
        f = 10000.0 ** (-jnp.arange(128, dtype=jnp.float32) / 128)
        phase = 1000.0 * t.astype(jnp.float32)[:, None] * f[None, :]
        waves = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)
        init = nn.initializers.normal(0.02)
        x = nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name="in")(waves)
        return nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name="out")(nn.silu(x))


class _Pass(nn.Module):
    activate: bool

    @nn.compact
    def __call__(self, c: Float[Array, "B D"]) -> Float[Array, "B D"]:
        return nn.silu(c) if self.activate else c


class _ZeroLinear(nn.Module):
    """``parts`` vectors of the width from one projection that starts at zero."""

    width: int
    parts: int
    activate: bool
    dtype: Any
    kernel_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, c: Float[Array, "B D"]) -> Float[Array, "B parts W"]:
        c = nn.silu(c) if self.activate else c
        return Linear(
            (self.parts, self.width),
            use_bias=True,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="project",
        )(c)


class _ZeroLayer(nn.Module):
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, c: Float[Array, "B D"]) -> Six:
        x = _ZeroLinear(self.width, 6, False, self.dtype, name="linear")(c)
        return tuple(x[:, i] for i in range(6))  # pyright: ignore[reportReturnType]


class _ZeroOut(nn.Module):
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, c: Float[Array, "B D"]) -> tuple[Array, Array]:
        x = _ZeroLinear(self.width, 2, True, self.dtype, name="linear")(c)
        return x[:, 0], x[:, 1]


class _TableLayer(nn.Module):
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, shared: Float[Array, "B six D"]) -> Six:
        table = self.param("table", nn.initializers.normal(self.width**-0.5), (6, self.width))
        x = table.astype(self.dtype)[None] + shared
        return tuple(x[:, i] for i in range(6))  # pyright: ignore[reportReturnType]


class _TableOut(nn.Module):
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, c: Float[Array, "B D"]) -> tuple[Array, Array]:
        table = self.param("table", nn.initializers.normal(self.width**-0.5), (2, self.width))
        table = table.astype(self.dtype)
        return table[0][None] + c, table[1][None] + c


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaLnZero:
    """Every layer projects silu(c) to its own shifts, scales and gates; all start at zero."""

    timed: ClassVar[bool] = True
    added: ClassVar[bool] = False

    def shared(self, width: int, dtype: Any) -> nn.Module:
        """silu(c), the same for every layer, once."""
        return _Pass(True, name="condition")

    def layer(self, width: int, dtype: Any) -> nn.Module:
        """A [D, 6, D] projection per layer."""
        return _ZeroLayer(width, dtype, name="modulation")

    def out(self, width: int, dtype: Any) -> nn.Module:
        """A [D, 2, D] projection of silu(c)."""
        return _ZeroOut(width, dtype, name="modulation_out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaLnSingle:
    """One projection of silu(c) for all layers, plus a learned [6, D] table per layer."""

    timed: ClassVar[bool] = True
    added: ClassVar[bool] = False

    def shared(self, width: int, dtype: Any) -> nn.Module:
        """The one projection [D, 6, D]."""
        init = nn.initializers.normal(0.02)
        return _ZeroLinear(width, 6, True, dtype, init, name="condition")

    def layer(self, width: int, dtype: Any) -> nn.Module:
        """A table per layer."""
        return _TableLayer(width, dtype, name="modulation")

    def out(self, width: int, dtype: Any) -> nn.Module:
        """A [2, D] table plus c itself."""
        return _TableOut(width, dtype, name="modulation_out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Addition:
    """c is added to every image token, once, before the first layer."""

    timed: ClassVar[bool] = True
    added: ClassVar[bool] = True

    def shared(self, width: int, dtype: Any) -> nn.Module:
        """c as it is."""
        return _Pass(False, name="condition")

    def layer(self, width: int, dtype: Any) -> None:
        """Layers are not modulated."""
        return None

    def out(self, width: int, dtype: Any) -> None:
        """Nor is the output."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unconditioned:
    """The time is not told: the noise level has to be read from the picture itself."""

    timed: ClassVar[bool] = False
    added: ClassVar[bool] = False

    def shared(self, width: int, dtype: Any) -> nn.Module:
        """Never called on a time."""
        return _Pass(False, name="condition")

    def layer(self, width: int, dtype: Any) -> None:
        """Layers are not modulated."""
        return None

    def out(self, width: int, dtype: Any) -> None:
        """Nor is the output."""
        return None
