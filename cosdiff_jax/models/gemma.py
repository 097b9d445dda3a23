"""Gemma and Gemma 2: the causal language models whose layers the diffusion transformer reads.

Layer l, with n the RMSNorm of Gemma (1 + w) and, in Gemma 2 only, n' after each branch:

    x <- x + n'(attention(n(x)));   x <- x + n'(GeGLU(n(x)))

Sources: Gemma, arXiv 2403.08295; Gemma 2, arXiv 2408.00118.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cosdiff_jax.models import attention, rope
from cosdiff_jax.models.layers import QKV, GeGLU, HeadsOut, RMSNorm
from cosdiff_jax.shapes import TextStream

_INIT = nn.initializers.normal(0.02)


class GemmaBlock(nn.Module):
    """One decoder layer; hands out its keys and values, and its input if asked."""

    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    eps: float
    post_norms: bool
    attention_cap: float | None
    attention_scale: float | None
    rotate: bool
    inputs: bool
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "P T D"],
        local: Bool[Array, ""],
        visible: Bool[Array, "P T T"],
        near: Bool[Array, "T T"],
        angles: Float[Array, "#P T half"],
    ) -> tuple[Float[Array, "P T D"], tuple[Array, Array, Array | None]]:
        """``visible`` may be seen by every layer, ``near`` alone by those where ``local``."""
        before = x if self.inputs else None
        q, k, v = QKV(self.heads, self.kv_heads, self.head_size, _INIT, self.dtype, name="qkv")(
            RMSNorm(self.eps, name="attention_norm")(x)
        )
        turned = rope.rotate(k, angles)
        mixed = attention.attend(
            rope.rotate(q, angles),
            turned,
            v,
            visible & (near | ~local)[None],
            scale=self.attention_scale,
            cap=self.attention_cap,
        )
        mixed = HeadsOut(x.shape[-1], _INIT, self.dtype, name="attention_out")(mixed)
        if self.post_norms:
            mixed = RMSNorm(self.eps, name="attention_post_norm")(mixed)
        x = x + mixed
        mixed = GeGLU(self.mlp, _INIT, self.dtype, name="mlp")(
            RMSNorm(self.eps, name="mlp_norm")(x)
        )
        if self.post_norms:
            mixed = RMSNorm(self.eps, name="mlp_post_norm")(mixed)
        return x + mixed, (turned if self.rotate else k, v, before)


class Gemma(nn.Module):
    """A Gemma-shaped causal language model with tied embeddings.

    Fields:
      vocab, width, depth, heads, kv_heads, head_size, mlp: sizes.
      rope_base: base of the rotary frequencies.
      eps: of every RMSNorm.
      post_norms: Gemma 2's norm after each branch.
      attention_cap, attention_scale, window, final_cap: what else Gemma 2 has when it is used as
        a language model: the soft cap on attention logits, their factor (query_pre_attn_scalar
        ** -0.5), the sliding window in tokens of layers 0, 2, 4 ..., the soft cap on the logits.
        Deep fusion as published runs Gemma 2 without the first three: leave them None there.
      embed_std: standard deviation of fresh embeddings. Words used alike pull together, and in a
        small vocabulary end as one; from far apart they stay words to the layers above.
      remat: recompute each layer in the backward pass.
      unroll: layers per iteration of the scan over depth; ``depth`` removes the loop: slower to
        compile, and on CPU a little faster to run.
      dtype: of matmuls; parameters, norms and softmax stay float32.
    """

    vocab: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    rope_base: float = 10000.0
    eps: float = 1e-6
    post_norms: bool = False
    attention_cap: float | None = None
    attention_scale: float | None = None
    window: int | None = None
    final_cap: float | None = None
    embed_std: float = 0.02
    remat: bool = False
    unroll: int = 1
    dtype: Any = jnp.float32

    def setup(self):
        """Name what both entry points read."""
        self.embed = nn.Embed(
            self.vocab, self.width, embedding_init=nn.initializers.normal(self.embed_std)
        )
        self.final_norm = RMSNorm(self.eps)

    @nn.compact
    def _run(
        self, tokens: Int[Array, "P T"], mask: Bool[Array, "P T"], rotate: bool, layers: bool
    ) -> TextStream:
        length = tokens.shape[1]
        x = self.embed(tokens).astype(self.dtype)
        x = x * jnp.asarray(self.width**0.5, self.dtype)
        index = jnp.arange(length)
        causal = index[:, None] >= index[None, :]
        # Real tokens never see padding; a padded one sees real ones, so no softmax row is empty.
        visible = causal[None] & mask[:, None, :]
        if self.window is None:
            near, local = causal, jnp.zeros(self.depth, bool)
        else:
            near = index[:, None] - index[None, :] < self.window
            local = jnp.arange(self.depth) % 2 == 0
        angles = rope.angles_1d(index[None, :], self.head_size, self.rope_base)
        axes: Any = (0, nn.broadcast, nn.broadcast, nn.broadcast)
        block = nn.remat(GemmaBlock, prevent_cse=False) if self.remat else GemmaBlock
        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=axes,
            length=self.depth,
            unroll=self.unroll,
        )
        out: Any = scanned(
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_size=self.head_size,
            mlp=self.mlp,
            eps=self.eps,
            post_norms=self.post_norms,
            attention_cap=self.attention_cap,
            attention_scale=self.attention_scale,
            rotate=rotate,
            inputs=layers,
            dtype=self.dtype,
            name="blocks",
        )(x, local, visible, near, angles)
        x, (keys, values, before) = out
        hidden = self.final_norm(x)
        if layers:
            before = jnp.concatenate([before, hidden[None]])
        return TextStream(keys=keys, values=values, hidden=hidden, mask=mask, layers=before)

    def __call__(
        self,
        tokens: Int[Array, "P T"],
        mask: Bool[Array, "P T"],
        *,
        rotate: bool = True,
        layers: bool = False,
    ) -> TextStream:
        """Read P right-padded prompts.

        Args:
          tokens: token numbers.
          mask: True at real tokens.
          rotate: hand out the keys after RoPE (deep fusion by self attention), or before it
            (cross attention).
          layers: also hand out the L inputs of the layers and the last hidden state.

        Returns:
          Keys and values of every layer and the last hidden state, after the final norm.
        """
        return self._run(tokens, mask, rotate, layers)

    def logits(self, tokens: Int[Array, "P T"], mask: Bool[Array, "P T"]) -> Float[Array, "P T V"]:
        """Next-token logits in float32: hidden embed^T, soft-capped where ``final_cap`` is set."""
        hidden = self._run(tokens, mask, True, False).hidden
        logits = jnp.einsum(
            "ptd,vd->ptv",
            hidden,
            self.embed.embedding.astype(self.dtype),
            preferred_element_type=jnp.float32,
        )
        if self.final_cap is not None:
            logits = self.final_cap * jnp.tanh(logits / self.final_cap)
        return logits
