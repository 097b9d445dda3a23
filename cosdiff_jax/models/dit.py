"""Shallow fusion: the baseline that reads one hidden state of the language model, not its layers.

The chosen state is normed and projected once to the width of the transformer; every layer then
makes its own text keys and values from it. Everything else is FuseDiT's, so a shallow DiT is

    FuseDiT(..., attention=ShallowSelf())    or    FuseDiT(..., attention=ShallowCross())

Source: arXiv 2505.10046, section 3.1 (the self- and cross-attention DiT baselines).
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cosdiff_jax.models import attention as attend
from cosdiff_jax.models import rope
from cosdiff_jax.models.fusion import Heads, ImageHeads, Out, joint, own
from cosdiff_jax.models.layers import QKV, Linear, RMSNorm, side_by_side
from cosdiff_jax.shapes import TextStream


class _Context(nn.Module):
    """One hidden state of the language model at the transformer's width."""

    width: int
    layer: int
    shape: Heads

    @nn.compact
    def __call__(self, text: TextStream) -> tuple[None, tuple[Array, Bool[Array, "P T"]]]:
        if self.layer == -1:
            state = text.hidden
        elif text.layers is None or not -len(text.layers) <= self.layer < len(text.layers):
            raise ValueError(f"the text stream holds no hidden state number {self.layer}")
        else:
            state = text.layers[self.layer]
        state = RMSNorm(self.shape.eps, name="norm")(state)
        init = nn.initializers.normal(0.02)
        context = nn.Dense(self.width, kernel_init=init, dtype=self.shape.dtype, name="project")
        return None, (context(state), text.mask)


class _TextHeads(nn.Module):
    """Text keys and values of one layer."""

    shape: Heads

    @nn.compact
    def __call__(
        self, context: Float[Array, "P T D"]
    ) -> tuple[Float[Array, "P T G E"], Float[Array, "P T G E"]]:
        s = self.shape
        g, e = s.kv_heads, s.head_size
        kv = Linear(
            (2 * g, e),
            kernel_init=side_by_side(nn.initializers.xavier_uniform(), g * e, g * e),
            dtype=s.dtype,
            name="project",
        )(context)
        return kv[:, :, :g], kv[:, :, g:]


class _Self(nn.Module):
    shape: Heads

    @nn.compact
    def __call__(self, x, normed, gate, text, shared, angles, alone):
        s, (context, mask) = self.shape, shared
        q, k, v = QKV(s.heads, s.kv_heads, s.head_size, dtype=s.dtype, name="qkv")(normed)
        text_k, text_v = _TextHeads(s, name="text")(context)
        if s.qk_norm:
            # One norm for both kinds of keys; text keys are normed but never turned.
            key_norm = RMSNorm(s.eps, name="k_norm")
            q, k = RMSNorm(s.eps, name="q_norm")(q), key_norm(k)
            text_k = key_norm(text_k)
        if angles is not None:
            q, k = rope.rotate(q, angles), rope.rotate(k, angles)
        mixed = joint(q, k, v, text_k, text_v, mask, alone)
        return x + gate * Out(s, x.shape[-1], name="out")(mixed)


class _Cross(nn.Module):
    shape: Heads

    @nn.compact
    def __call__(self, x, normed, gate, text, shared, angles, alone):
        s, (context, mask) = self.shape, shared
        q, k, v = ImageHeads(s, name="image")(normed, angles)
        mixed = own(q, k, v, alone)
        x = x + gate * Out(s, x.shape[-1], name="out")(mixed)
        q = Linear(
            (s.heads, s.head_size),
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=s.dtype,
            name="cross_q",
        )(x)
        text_k, text_v = _TextHeads(s, name="text")(context)
        if s.qk_norm:
            q = RMSNorm(s.eps, name="cross_q_norm")(q)
            text_k = RMSNorm(s.eps, name="cross_k_norm")(text_k)
        mixed = attend.attend_shared(q, text_k, text_v, mask)
        return x + Out(s, x.shape[-1], name="cross_out")(mixed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Shallow:
    """Fields.

    layer: the hidden state that is read: -1 the last, -2 the input of the last layer.
    echo: as for the deep forms.
    """

    layer: int = -1
    echo: int | None = None
    rotate: bool = dataclasses.field(default=True, init=False)

    @property
    def layers(self) -> bool:
        """Only the last hidden state comes for free."""
        return self.layer != -1

    def start(self, text: TextStream) -> Int[Array, " P"]:
        """Text keys are not rotated, so image positions start at 0."""
        return jnp.zeros(text.mask.shape[0], jnp.int32)

    def prepare(self, depth: int, width: int, heads: Heads) -> nn.Module:
        """The hidden state, normed and projected."""
        return _Context(width, self.layer, heads, name="context")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShallowSelf(_Shallow):
    """One softmax over [text ; image] in every layer."""

    def mix(self, heads: Heads) -> nn.Module:
        """Joint attention."""
        return _Self(heads, name="attention")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShallowCross(_Shallow):
    """Self attention, then cross attention to the text, in every layer."""

    def mix(self, heads: Heads) -> nn.Module:
        """Two attentions."""
        return _Cross(heads, name="attention")
