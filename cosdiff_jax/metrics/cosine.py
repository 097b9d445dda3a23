"""How alike are the samples of one prompt?

Low is not good by itself: broken pictures are unlike one another too. Read it beside fidelity
and beside its own value for the true distribution.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cosdiff_jax.diversity import similarity


class Sums(NamedTuple):
    """State: sums over prompts of the mean and of the top cosine, and the number of prompts."""

    mean: float
    top: float
    prompts: int


def init() -> Sums:
    """Nothing seen yet."""
    return Sums(0.0, 0.0, 0)


def update(
    state: Sums,
    f: Float[Array, "P K F"] | Float[np.ndarray, "P K F"],
    percent: float = 10.0,
) -> Sums:
    """Add P prompts with the feature vectors of their K samples.

    Args:
      state: so far.
      f: feature vectors; K must be at least 2.
      percent: which share of a prompt's pairs, the most alike, counts as the top.

    Raises:
      ValueError: K = 1, where there are no pairs.
    """
    f = jnp.asarray(f)
    if f.shape[1] < 2:
        raise ValueError("the cosine between samples of a prompt needs at least 2 samples")
    mean = float(similarity.mean_cosine(f).sum())
    top = float(similarity.top_cosine(f, percent).sum())
    return Sums(state.mean + mean, state.top + top, state.prompts + f.shape[0])


def result(state: Sums) -> dict[str, float]:
    """``mean_cosine`` and ``top_cosine``, means over prompts; NaN of nothing."""
    if not state.prompts:
        return {"mean_cosine": float("nan"), "top_cosine": float("nan")}
    return {"mean_cosine": state.mean / state.prompts, "top_cosine": state.top / state.prompts}
