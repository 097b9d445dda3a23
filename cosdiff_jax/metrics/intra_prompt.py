"""How do the pairs of one prompt's samples spread? Of any number that a pair has.

For each prompt, over its pairs i < j: the mean, the variance (divided by the number of pairs), and
the means of the highest and of the lowest few percent. With cosines the highest are the
near-duplicates; with distances, such as ``metrics.lpips``, the lowest are. A mean alone does not
tell a group of two tight clusters from an evenly spread one; the variance does.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from cosdiff_jax.diversity import blockwise, similarity


class Sums(NamedTuple):
    """State: sums over prompts of the four statistics, and their number."""

    mean: float
    variance: float
    highest: float
    lowest: float
    prompts: int


def init() -> Sums:
    """Nothing seen yet."""
    return Sums(0.0, 0.0, 0.0, 0.0, 0)


def update(
    state: Sums,
    pairs: Float[Array, "P K K"] | Float[np.ndarray, "P K K"],
    mask: Bool[Array, "P K"] | Bool[np.ndarray, "P K"] | None = None,
    percent: float = 10.0,
) -> Sums:
    """Add P prompts with what each pair of their K samples has, from the upper triangle.

    Args:
      state: so far.
      pairs: a number for each pair, such as ``cosines(f)`` or ``lpips.pairwise``.
      mask: marks the samples that count. A prompt with fewer than two is left out.
      percent: which share of a prompt's pairs is the highest and the lowest; at least one pair.

    Raises:
      ValueError: ``percent`` outside (0, 100].
    """
    if not 0 < percent <= 100:
        raise ValueError(f"percent must be in (0, 100], got {percent}")
    pairs = np.asarray(pairs, np.float64)
    counts = np.ones(pairs.shape[:2], bool) if mask is None else np.asarray(mask)
    for values, real in zip(pairs, counts, strict=True):
        kept = values[np.ix_(real, real)]
        ranked = np.sort(kept[np.triu_indices(len(kept), 1)])
        if not len(ranked):
            continue
        # The same rounding of k as the cosine terms of training use.
        k = int(blockwise.wanted(jnp.asarray(float(len(ranked))), percent))
        state = Sums(
            state.mean + float(ranked.mean()),
            state.variance + float(ranked.var()),
            state.highest + float(ranked[-k:].mean()),
            state.lowest + float(ranked[:k].mean()),
            state.prompts + 1,
        )
    return state


def merge(a: Sums, b: Sums) -> Sums:
    """The state of both together."""
    return Sums(
        a.mean + b.mean,
        a.variance + b.variance,
        a.highest + b.highest,
        a.lowest + b.lowest,
        a.prompts + b.prompts,
    )


def result(state: Sums, name: str) -> dict[str, float]:
    """Means over prompts, ``{name}_mean``, ``_variance``, ``_highest``, ``_lowest``; else NaN."""
    number = state.prompts or math.nan
    return {
        f"{name}_{what}": total / number
        for what, total in state._asdict().items()
        if what != "prompts"
    }


def cosines(f: Float[Array, "P K F"] | Float[np.ndarray, "P K F"]) -> Float[Array, "P K K"]:
    """cos(f_i, f_j) of the samples of each prompt."""
    return similarity.cosine_matrix(jnp.asarray(f))
