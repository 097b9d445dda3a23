"""How the language model is trained: predict every token from those before it."""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cosdiff_jax.models.gemma import Gemma
from cosdiff_jax.shapes import Batch, Frozen, Logs, Memory, Params


def cross_entropy(logits: Float[Array, "P T V"], targets: Int[Array, "P T"]) -> Float[Array, "P T"]:
    """-log softmax(logits)[target] in nats, computed in float32."""
    logits = logits.astype(jnp.float32)
    # Picking the one target logit avoids a second array of the vocabulary's size.
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def masked_mean(values: Float[Array, "P T"], mask: Bool[Array, "P T"]) -> Float[Array, ""]:
    """Mean over the True positions; 0 where there are none."""
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextToken:
    """loss = mean over real targets of -log p(token_{i+1} | tokens_{<=i}).

    Attributes:
      llm: the network; its ``logits(tokens, mask)`` give "P T V".
    """

    llm: Gemma

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Fresh parameters."""
        tokens, mask = batch.tokens[:1], batch.mask[:1]
        return self.llm.init(key, tokens, mask, method="logits")["params"]

    def start(self, frozen: Frozen, batch: Batch, prompts: int) -> Memory:
        """Nothing is remembered."""
        return {}

    def __call__(
        self,
        params: Params,
        frozen: Frozen,
        batch: Batch,
        key: jax.Array,
        step: jax.Array,
        memory: Memory,
    ) -> tuple[Float[Array, ""], tuple[Logs, Memory]]:
        """The loss on ``batch.tokens``; ``frozen``, ``key`` and ``step`` are not read."""
        inputs, targets = batch.tokens[:, :-1], batch.tokens[:, 1:]
        # Right padding: a real target always has a real token before it.
        mask = batch.mask[:, 1:]
        out = self.llm.apply({"params": params}, inputs, batch.mask[:, :-1], method="logits")
        logits = cast(jax.Array, out)
        loss = masked_mean(cross_entropy(logits, targets), mask)
        hits = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
        logs = {
            "loss": loss,
            "accuracy": masked_mean(hits, mask),
            "perplexity": jnp.exp(loss),
        }
        return loss, (logs, memory)
