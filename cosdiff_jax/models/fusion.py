"""Deep fusion: how image tokens read the text stream, layer by layer.

A ``Fusion`` pairs the layers of the text stream with those of the transformer and makes the
attention of one layer. Here are the two deep forms: one softmax over [text keys of layer l ; own
keys], or a second attention from the image to the text. The shallow baselines are in ``dit``.

Source: arXiv 2505.10046, section 3 and its published implementation.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cosdiff_jax.models import attention as attend
from cosdiff_jax.models import rope
from cosdiff_jax.models.layers import QKV, HeadsOut, Linear, RMSNorm
from cosdiff_jax.shapes import TextStream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heads:
    """The shape of one attention: what every fusion is built from."""

    heads: int
    kv_heads: int
    head_size: int
    qk_norm: bool
    sandwich_norm: bool
    eps: float
    dtype: Any


@runtime_checkable
class Fusion(Protocol):
    """How image tokens read the text."""

    @property
    def rotate(self) -> bool:
        """Whether the text stream's keys should carry their rotary embedding."""
        ...

    @property
    def layers(self) -> bool:
        """Whether the text stream needs its ``layers``."""
        ...

    @property
    def echo(self) -> int | None:
        """The token between the two copies of a caption that is read twice; None reads it once."""
        ...

    def start(self, text: TextStream) -> Int[Array, " P"]:
        """The position of the first image token of each prompt."""
        ...

    def prepare(self, depth: int, width: int, heads: Heads) -> nn.Module:
        """Module: TextStream -> (what layer l reads, stacked over l; what all layers read)."""
        ...

    def mix(self, heads: Heads) -> nn.Module:
        """Module: (x, modulated n(x), gate, text of the layer, shared text, angles, alone) -> x.

        ``alone``, where it is not None, is a boolean: every image token sees, of the image, itself
        alone (perturbed-attention guidance).
        """
        ...


class ImageHeads(nn.Module):
    """Queries, keys and values of the image, normed and turned."""

    shape: Heads

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], angles: Float[Array, "#B N half"] | None
    ) -> tuple[Float[Array, "B N H E"], Float[Array, "B N G E"], Float[Array, "B N G E"]]:
        """q, k, v, ready for the matmuls."""
        s = self.shape
        q, k, v = QKV(s.heads, s.kv_heads, s.head_size, dtype=s.dtype, name="qkv")(x)
        if s.qk_norm:
            q = RMSNorm(s.eps, name="q_norm")(q)
            k = RMSNorm(s.eps, name="k_norm")(k)
        if angles is not None:
            q, k = rope.rotate(q, angles), rope.rotate(k, angles)
        return q, k, v


def own(
    q: Float[Array, "B N H E"],
    k: Float[Array, "B N G E"],
    v: Float[Array, "B N G E"],
    alone: Bool[Array, ""] | None,
) -> Float[Array, "B N H E"]:
    """The image's attention to itself; each token's own value where ``alone`` says so."""
    mixed = attend.attend(q, k, v)
    if alone is None:
        return mixed
    return jnp.where(alone, jnp.repeat(v, q.shape[2] // v.shape[2], axis=2), mixed)


def joint(
    q: Float[Array, "B N H E"],
    k: Float[Array, "B N G E"],
    v: Float[Array, "B N G E"],
    text_k: Float[Array, "P T G E"],
    text_v: Float[Array, "P T G E"],
    mask: Bool[Array, "P T"],
    alone: Bool[Array, ""] | None,
) -> Float[Array, "B N H E"]:
    """One softmax over [text ; image], or over [text ; itself] where ``alone`` says so."""
    mixed = attend.attend_prefix(q, k, v, text_k, text_v, mask)
    if alone is None:
        return mixed
    return jnp.where(alone, attend.attend_alone(q, k, v, text_k, text_v, mask), mixed)


class Out(nn.Module):
    """Heads to residual, with the sandwich's second norm where there is one."""

    shape: Heads
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "B N H E"]) -> Float[Array, "B N D"]:
        """Project, and norm in a sandwich."""
        x = HeadsOut(self.width, dtype=self.shape.dtype, name="heads")(x)
        return RMSNorm(self.shape.eps, name="post_norm")(x) if self.shape.sandwich_norm else x


class _DeepSelf(nn.Module):
    shape: Heads

    @nn.compact
    def __call__(self, x, normed, gate, text, shared, angles, alone):
        q, k, v = ImageHeads(self.shape, name="image")(normed, angles)
        text_k, text_v, read = text
        mixed = joint(q, k, v, text_k, text_v, shared & read, alone)
        return x + gate * Out(self.shape, x.shape[-1], name="out")(mixed)


class _DeepCross(nn.Module):
    shape: Heads

    @nn.compact
    def __call__(self, x, normed, gate, text, shared, angles, alone):
        s = self.shape
        q, k, v = ImageHeads(s, name="image")(normed, angles)
        mixed = own(q, k, v, alone)
        x = x + gate * Out(s, x.shape[-1], name="out")(mixed)
        text_k, text_v, read = text
        q = Linear(
            (s.heads, s.head_size),
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=s.dtype,
            name="cross_q",
        )(x)
        if s.qk_norm:
            q = RMSNorm(s.eps, name="cross_q_norm")(q)
        mixed = attend.attend_shared(q, text_k, text_v, shared)
        mixed = Out(s, x.shape[-1], name="cross_out")(mixed)
        return x + jnp.where(read, mixed, 0)


def pair(
    text_layers: tuple[int | None, ...] | None, initial_layers: int, depth: int, number: int
) -> tuple[int | None, ...]:
    """The text layer, of ``number``, that each of ``depth`` layers reads; None for no text.

    Raises:
      ValueError: the choice does not fit.
    """
    if not text_layers:
        text_layers = tuple(
            i if i < number else None for i in range(initial_layers, initial_layers + depth)
        )
    fits = all(i is None or 0 <= i < number for i in text_layers)
    if len(text_layers) != depth or not fits:
        raise ValueError(
            f"text_layers {text_layers} does not pair {depth} layers of the transformer with the "
            f"{number} of the language model"
        )
    return tuple(text_layers)


class _Layerwise(nn.Module):
    """Pair the layers of the text stream with those of the transformer."""

    depth: int
    shape: Heads
    text_layers: tuple[int | None, ...] | None
    initial_layers: int

    @nn.compact
    def __call__(self, text: TextStream) -> tuple[Any, Bool[Array, "P T"]]:
        number, _, _, g, e = text.keys.shape
        if (g, e) != (self.shape.kv_heads, self.shape.head_size):
            raise ValueError(
                f"deep fusion needs the language model's key heads and head size ({g} of {e}), "
                f"the transformer has {self.shape.kv_heads} of {self.shape.head_size}"
            )
        pairs = pair(self.text_layers, self.initial_layers, self.depth, number)
        read = jnp.array([i is not None for i in pairs])
        if list(pairs) == list(range(number)):
            return (text.keys, text.values, read), text.mask
        index = jnp.array([0 if i is None else i for i in pairs])
        return (text.keys[index], text.values[index], read), text.mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfAttention:
    """Deep fusion in one softmax over [text ; image].

    Fields:
      text_layers: for each layer of the transformer the layer of the language model that it
        reads, or None for a layer that sees the image only. Where it is empty, or None as
        models saved before have it, layer i reads ``initial_layers + i`` as long as there is
        one.
      initial_layers: language-model layers passed over at the bottom.
      echo: captions are read twice with this token in between (``captions.twice``); None reads
        them once, as the published implementation does.
    """

    text_layers: tuple[int | None, ...] | None = ()
    initial_layers: int = 0
    echo: int | None = None
    rotate: bool = dataclasses.field(default=True, init=False)
    layers: bool = dataclasses.field(default=False, init=False)

    def start(self, text: TextStream) -> Int[Array, " P"]:
        """The image goes on where the real text ends."""
        return text.mask.sum(axis=-1).astype(jnp.int32)

    def prepare(self, depth: int, width: int, heads: Heads) -> nn.Module:
        """Choose and check the text layers."""
        return _Layerwise(depth, heads, self.text_layers, self.initial_layers, name="pairing")

    def mix(self, heads: Heads) -> nn.Module:
        """Joint attention."""
        return _DeepSelf(heads, name="attention")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossAttention:
    """Deep fusion by a second attention, from the image to the un-rotated keys of layer l.

    Its queries are neither normed before the projection nor rotated. Fields as in SelfAttention.
    """

    text_layers: tuple[int | None, ...] | None = ()
    initial_layers: int = 0
    echo: int | None = None
    rotate: bool = dataclasses.field(default=False, init=False)
    layers: bool = dataclasses.field(default=False, init=False)

    def start(self, text: TextStream) -> Int[Array, " P"]:
        """Image positions start at 0: they are never compared with text positions."""
        return jnp.zeros(text.mask.shape[0], jnp.int32)

    def prepare(self, depth: int, width: int, heads: Heads) -> nn.Module:
        """Choose and check the text layers."""
        return _Layerwise(depth, heads, self.text_layers, self.initial_layers, name="pairing")

    def mix(self, heads: Heads) -> nn.Module:
        """Self attention, then cross attention."""
        return _DeepCross(heads, name="attention")
