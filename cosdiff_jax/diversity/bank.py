"""What the last samples of each prompt looked like: more partners than one batch can hold.

A bank keeps the newest feature vectors of every training prompt, first in, first out. They have no
gradient: today's samples are pushed away from yesterday's, never the other way. The cost is
prompts x slots x F numbers in the train state, which a mesh splits by prompt.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cosdiff_jax.diversity import similarity

Contents = dict[str, jax.Array]
"""``bank`` [prompts, slots, F], newest first, and ``bank_count`` [prompts]: how many are real."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bank:
    """A FIFO memory per prompt.

    Attributes:
      slots: vectors kept of each prompt.
    """

    slots: int = 8

    def start(self, prompts: int, features: int) -> Contents:
        """Empty, for so many training prompts and vectors of length F = ``features``."""
        return {
            "bank": jnp.zeros((prompts, self.slots, features)),
            "bank_count": jnp.zeros((prompts,), jnp.int32),
        }

    def beside(
        self,
        contents: Contents,
        prompt: Int[Array, " P"],
        f: Float[Array, "P K F"],
        mask: Bool[Array, "P K"],
    ) -> tuple[Float[Array, "P J F"], Bool[Array, "P J"]]:
        """Today's vectors with those kept of the same prompts after them, and which of all count.

        Args:
          contents: of the bank.
          prompt: number of each row's prompt.
          f: today's vectors.
          mask: which of today's count.

        Returns:
          J = K + slots vectors of each prompt, and their mask.
        """
        old = jax.lax.stop_gradient(contents["bank"][prompt])
        real = jnp.arange(self.slots)[None, :] < contents["bank_count"][prompt][:, None]
        return jnp.concatenate([f, old], axis=1), jnp.concatenate([mask, real], axis=1)

    def after(
        self,
        contents: Contents,
        prompt: Int[Array, " P"],
        f: Float[Array, "P K F"],
        mask: Bool[Array, "P K"],
    ) -> Contents:
        """Today's vectors that count go in, the oldest go out.

        A prompt that stands twice in a batch keeps one of its two rows.
        """
        every, real = self.beside(contents, prompt, similarity.unit(f), mask)
        # Real ones first, in the order they have: today's, then from newest to oldest.
        order = jnp.argsort(~real, axis=1, stable=True)[:, : self.slots]
        kept = jnp.take_along_axis(every, order[:, :, None], axis=1)
        count = jnp.minimum(jnp.sum(real, axis=1), self.slots).astype(jnp.int32)
        kept = jax.lax.stop_gradient(kept)
        return {
            "bank": contents["bank"].at[prompt].set(kept),
            "bank_count": contents["bank_count"].at[prompt].set(count),
        }
