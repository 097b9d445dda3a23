"""How alike are the samples of one prompt?

Low is not good by itself: broken pictures are unlike one another too. Read it beside fidelity
and beside its own value for the true distribution.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cosdiff_jax.diversity import measure, similarity


class Sums(NamedTuple):
    """State: sums over prompts of mean and top cosine and of the Vendi score; their number."""

    mean: float
    top: float
    vendi: float
    prompts: int


def init() -> Sums:
    """Nothing seen yet."""
    return Sums(0.0, 0.0, 0.0, 0)


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
    mean, top, vendi = map(float, _sums(f, percent))
    return Sums(state.mean + mean, state.top + top, state.vendi + vendi, state.prompts + len(f))


# One program: op by op, the small ones compiled longer than a tiny run trains.
@functools.partial(jax.jit, static_argnames="percent")
def _sums(f: Float[Array, "P K F"], percent: float) -> tuple[Float[Array, ""], ...]:
    vendi = jnp.exp(measure.spectral_entropy(f))
    return (
        similarity.mean_cosine(f).sum(),
        similarity.top_cosine(f, percent).sum(),
        vendi.sum(),
    )


def merge(a: Sums, b: Sums) -> Sums:
    """The state of both together."""
    return Sums(a.mean + b.mean, a.top + b.top, a.vendi + b.vendi, a.prompts + b.prompts)


def result(state: Sums) -> dict[str, float]:
    """``mean_cosine``, ``top_cosine`` and ``vendi`` score, means over prompts; NaN of nothing.

    The Vendi score is the effective number of different samples, 1 to K
    (``diversity.measure.spectral_entropy``).
    """
    number = state.prompts or float("nan")
    return {
        "mean_cosine": state.mean / number,
        "top_cosine": state.top / number,
        "vendi": state.vendi / number,
    }
