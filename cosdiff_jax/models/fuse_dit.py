"""FuseDiT: a diffusion transformer fused with a frozen language model, layer by layer.

Layer l, with n an RMSNorm, (b, s, g) shift, scale and gate from the modulation and A_l the
attention that mixes the text of layer l in:

    x <- x + g1 A_l(n(x) (1 + s1) + b1, text_l)
    x <- x + g2 GeGLU(n(x) (1 + s2) + b2)

In the deep self-attention form A_l runs one softmax over [text keys of layer l ; own keys]. The
text never sees the image, so it is an argument, computed once a prompt (``gemma.Gemma``), not a
second stream. Source: Exploring the Deep Fusion of Large Language Models and Diffusion
Transformers, arXiv 2505.10046, section 3 and its published implementation.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cosdiff_jax.models import attention as attend
from cosdiff_jax.models import modulation as modulations
from cosdiff_jax.models import position as positions
from cosdiff_jax.models import rope
from cosdiff_jax.models.layers import QKV, GeGLU, HeadsOut, Linear, RMSNorm
from cosdiff_jax.shapes import TextStream
from cosdiff_jax.sharding import constrain


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

    def start(self, text: TextStream) -> Int[Array, " P"]:
        """The position of the first image token of each prompt."""
        ...

    def prepare(self, depth: int, width: int, heads: Heads) -> nn.Module:
        """Module: TextStream -> (what layer l reads, stacked over l; what all layers read)."""
        ...

    def mix(self, heads: Heads) -> nn.Module:
        """Module: (x, modulated n(x), gate, text of the layer, shared text, angles) -> x."""
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
    def __call__(self, x, normed, gate, text, shared, angles):
        q, k, v = ImageHeads(self.shape, name="image")(normed, angles)
        text_k, text_v, read = text
        mixed = attend.attend_prefix(q, k, v, text_k, text_v, shared & read)
        return x + gate * Out(self.shape, x.shape[-1], name="out")(mixed)


class _DeepCross(nn.Module):
    shape: Heads

    @nn.compact
    def __call__(self, x, normed, gate, text, shared, angles):
        s = self.shape
        q, k, v = ImageHeads(s, name="image")(normed, angles)
        x = x + gate * Out(s, x.shape[-1], name="out")(attend.attend(q, k, v))
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
    if text_layers is None:
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
        reads, or None for a layer that sees the image only. By default layer i reads
        ``initial_layers + i`` as long as there is one.
      initial_layers: language-model layers passed over at the bottom.
    """

    text_layers: tuple[int | None, ...] | None = None
    initial_layers: int = 0
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

    text_layers: tuple[int | None, ...] | None = None
    initial_layers: int = 0
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


class Block(nn.Module):
    """One layer. Carries x; takes the text of its layer; hands out mean-pooled x if asked."""

    fusion: Fusion
    modulation: modulations.Modulation
    heads: Heads
    mlp: int
    features: bool

    @nn.compact
    def __call__(self, x, text, shared, condition, angles):
        """Mix and transform; shapes as in the module's docstring."""
        h, width = self.heads, x.shape[-1]
        modulate = self.modulation.layer(width, h.dtype)
        if modulate is None:
            one = jnp.ones((1, width), x.dtype)
            six = (None, None, one, None, None, one)
        else:
            six = modulate(condition)
        shift1, scale1, gate1, shift2, scale2, gate2 = six
        normed = RMSNorm(h.eps, name="attention_norm")(x, shift1, scale1)
        x = self.fusion.mix(h)(x, normed, gate1[:, None, :], text, shared, angles)
        normed = RMSNorm(h.eps, name="mlp_norm")(x, shift2, scale2)
        mixed = GeGLU(self.mlp, dtype=h.dtype, name="mlp")(normed)
        if h.sandwich_norm:
            mixed = RMSNorm(h.eps, name="mlp_post_norm")(mixed)
        x = constrain(x + gate2[:, None, :] * mixed)
        return x, x.astype(jnp.float32).mean(axis=1) if self.features else None


class FuseDiT(nn.Module):
    """The velocity field v(z_t, t, text) of deep fusion; any of its choices combine.

    Fields:
      width, depth, heads, kv_heads, head_size, mlp: sizes; kv_heads and head_size must be the
        language model's in deep fusion, width, depth and mlp are free.
      patch: side of a square of latents that becomes one token.
      channels: c of the latents.
      position: positional encoding of image tokens (``position.Ape``, ``Rope1D``, ``Rope2D``,
        ``MRope``).
      modulation: timestep conditioning (``modulation.AdaLnZero``, ``AdaLnSingle``, ``Addition``,
        ``Unconditioned``).
      attention: how text is read: ``SelfAttention``, ``CrossAttention``, or from ``dit.py`` the
        shallow forms.
      qk_norm: RMSNorm on the image's queries and keys, never on the text's.
      sandwich_norm: a second norm after each branch.
      pooled: size of a pooled text vector that joins the time, or None.
      feature_layer: the layer whose output ``features`` pools; the middle one unless given.
      eps: of every RMSNorm.
      remat: recompute each layer in the backward pass.
      unroll: layers per iteration of the scan over depth; ``depth`` removes the loop.
      dtype: of matmuls; parameters, norms, softmax and the velocity stay float32.
    """

    width: int
    depth: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    patch: int = 2
    channels: int = 16
    position: positions.Position = positions.Rope2D()
    modulation: modulations.Modulation = modulations.AdaLnZero()
    attention: Fusion = SelfAttention()
    qk_norm: bool = True
    sandwich_norm: bool = False
    pooled: int | None = None
    feature_layer: int | None = None
    eps: float = 1e-6
    remat: bool = False
    unroll: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        z_t: Float[Array, "B h w c"],
        t: Float[Array, " B"],
        text: TextStream,
        *,
        pooled: Float[Array, "P F"] | None = None,
        features: bool = False,
    ) -> Float[Array, "B h w c"] | tuple[Float[Array, "B h w c"], Float[Array, "B D"]]:
        """Predict the velocity of B = P K noisy pictures under P prompts.

        Args:
          z_t: noisy latents.
          t: times in [0, 1].
          text: the language model's stream of P prompts, never repeated.
          pooled: pooled text vectors, where the field ``pooled`` says there are any.
          features: also return the mean over tokens after ``feature_layer``.

        Returns:
          v, in float32; with ``features`` a pair of it and the pooled hidden state.

        Raises:
          ValueError: if rows, sizes or chosen layers do not fit one another.
        """
        b, h, w, c = z_t.shape
        p, rows = self.patch, text.mask.shape[0]
        if h % p or w % p or c != self.channels:
            raise ValueError(
                f"latents of {h} x {w} x {c} do not divide into patches of {p} x {p} x "
                f"{self.channels}"
            )
        if b % rows:
            raise ValueError(f"{b} image rows cannot be shared among {rows} prompts")
        if (pooled is None) != (self.pooled is None):
            raise ValueError("a pooled text vector is needed exactly where the field pooled is set")
        samples = b // rows
        heads = Heads(
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_size=self.head_size,
            qk_norm=self.qk_norm,
            sandwich_norm=self.sandwich_norm,
            eps=self.eps,
            dtype=self.dtype,
        )

        x = z_t.astype(self.dtype).reshape(b, h // p, p, w // p, p, c)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // p * (w // p), p * p * c)
        x = Linear((self.width,), use_bias=True, dtype=self.dtype, name="patch_embed")(x)
        table = self.position.embedding(h // p, w // p, self.width)
        if table is not None:
            x = x + table.astype(self.dtype)[None]
        angles = self.position.angles(h // p, w // p, self.attention.start(text), self.head_size)
        if angles is not None:
            angles = jnp.repeat(angles, samples, axis=0)

        time = condition = None
        if self.modulation.timed:
            time = modulations.TimeEmbedding(self.width, self.dtype, name="time")(t)
            if pooled is not None:
                summary = _Summary(self.width, self.eps, self.dtype, name="summary")(pooled)
                time = time + jnp.repeat(summary, samples, axis=0)
            condition = self.modulation.shared(self.width, self.dtype)(time)
            if self.modulation.added:
                x = x + condition[:, None, :]

        per_layer, shared = self.attention.prepare(self.depth, self.width, heads)(text)
        axes: Any = (0, nn.broadcast, nn.broadcast, nn.broadcast)
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        out: Any = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=axes,
            length=self.depth,
            unroll=self.unroll,
        )(
            fusion=self.attention,
            modulation=self.modulation,
            heads=heads,
            mlp=self.mlp,
            features=features,
            name="blocks",
        )(constrain(x), per_layer, shared, condition, angles)
        x, pools = out

        last = self.modulation.out(self.width, self.dtype)
        shift, scale = (None, None) if last is None else last(time)
        x = RMSNorm(self.eps, name="final_norm")(x, shift, scale)
        zeros = nn.initializers.zeros
        x = Linear(
            (p * p * c,), use_bias=True, kernel_init=zeros, dtype=self.dtype, name="patch_out"
        )(x)
        v = x.astype(jnp.float32).reshape(b, h // p, w // p, p, p, c)
        v = v.transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        if not features:
            return v
        chosen = (self.depth - 1) // 2 if self.feature_layer is None else self.feature_layer
        return v, pools[chosen]


class _Summary(nn.Module):
    """A pooled text vector into the space of the embedded time."""

    width: int
    eps: float
    dtype: Any

    @nn.compact
    def __call__(self, pooled: Float[Array, "P F"]) -> Float[Array, "P D"]:
        init = nn.initializers.normal(0.02)
        x = RMSNorm(self.eps, name="norm")(pooled.astype(self.dtype))
        x = nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name="in")(x)
        return nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name="out")(nn.silu(x))
