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

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cosdiff_jax.models import modulation as modulations
from cosdiff_jax.models import position as positions
from cosdiff_jax.models.fusion import Fusion, Heads, SelfAttention
from cosdiff_jax.models.layers import GeGLU, Linear, RMSNorm
from cosdiff_jax.shapes import TextStream
from cosdiff_jax.sharding import constrain


class Block(nn.Module):
    """One layer. Carries x; takes the text of its layer; hands out mean-pooled x if asked.

    ``weakened`` says of a layer, where it says anything: left out?, image tokens alone?
    """

    fusion: Fusion
    modulation: modulations.Modulation
    heads: Heads
    mlp: int
    features: bool

    @nn.compact
    def __call__(self, x, text, weakened, shared, condition, angles):
        """Mix and transform; shapes as in the module's docstring."""
        skipped, alone = (None, None) if weakened is None else weakened
        before, h, width = x, self.heads, x.shape[-1]
        modulate = self.modulation.layer(width, h.dtype)
        if modulate is None:
            one = jnp.ones((1, width), x.dtype)
            six = (None, None, one, None, None, one)
        else:
            six = modulate(condition)
        shift1, scale1, gate1, shift2, scale2, gate2 = six
        normed = RMSNorm(h.eps, name="attention_norm")(x, shift1, scale1)
        x = self.fusion.mix(h)(x, normed, gate1[:, None, :], text, shared, angles, alone)
        normed = RMSNorm(h.eps, name="mlp_norm")(x, shift2, scale2)
        mixed = GeGLU(self.mlp, dtype=h.dtype, name="mlp")(normed)
        if h.sandwich_norm:
            mixed = RMSNorm(h.eps, name="mlp_post_norm")(mixed)
        x = constrain(x + gate2[:, None, :] * mixed)
        if skipped is not None:
            x = jnp.where(skipped, before, x)
        return x, x.astype(jnp.float32).mean(axis=1) if self.features else None


class FuseDiT(nn.Module):
    """The velocity field v(z_t, t, text) of deep fusion; any of its choices combine.

    Fields:
      width, depth, heads, kv_heads, head_size, mlp: sizes; kv_heads and head_size must be the
        language model's in deep fusion, width, depth and mlp are free.
      patch: side of a square of latents that becomes one token.
      channels: c of the latents.
      position: positional encoding of image tokens (``position.Ape``, ``Rope1D``, ``Rope2D``,
        ``ScaledRope2D``, ``MRope``).
      modulation: timestep conditioning (``modulation.AdaLnZero``, ``AdaLnSingle``, ``Addition``,
        ``Unconditioned``).
      attention: how text is read: from ``fusion`` the deep forms, from ``dit`` the shallow ones.
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
        skip: tuple[int, ...] | None = None,
        perturb: tuple[int, ...] | None = None,
    ) -> Float[Array, "B h w c"] | tuple[Float[Array, "B h w c"], Float[Array, "B D"]]:
        """Predict the velocity of B = P K noisy pictures under P prompts.

        Args:
          z_t: noisy latents.
          t: times in [0, 1].
          text: the language model's stream of P prompts, never repeated.
          pooled: pooled text vectors, where the field ``pooled`` says there are any.
          features: also return the mean over tokens after ``feature_layer``.
          skip: numbers of layers that are left out, as guidance by a weaker field wants it; an
            empty tuple is the middle one.
          perturb: likewise, numbers of layers in which every image token sees, of the image,
            itself alone.

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

        weakened = None
        if skip is not None or perturb is not None:
            weakened = self._marked(skip), self._marked(perturb)
        per_layer, shared = self.attention.prepare(self.depth, self.width, heads)(text)
        axes: Any = (0, 0, nn.broadcast, nn.broadcast, nn.broadcast)
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
        )(constrain(x), per_layer, weakened, shared, condition, angles)
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

    def _marked(self, layers: tuple[int, ...] | None) -> Bool[Array, " depth"]:
        layers = () if layers is None else layers or (self.depth // 2,)
        if not set(layers) <= set(range(self.depth)):
            raise ValueError(f"layers {layers}: this network has those from 0 to {self.depth - 1}")
        return jnp.array([layer in layers for layer in range(self.depth)])


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
