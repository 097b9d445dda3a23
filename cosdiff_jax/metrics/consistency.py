"""How much of what pictures show stands in each layer of the language model that read the caption?

A ridge regression from a layer's pooled state to CLIP's vectors of the caption's pictures is fitted
on the first half of the prompts and judged on the second. All pictures have something in common, so
the cosine with other prompts' pictures is far from 0: what a layer knows is what stands above it.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cosdiff_jax.diversity.alignment import Projection


class Pairs(NamedTuple):
    """State: every layer's pooled states "S P D" beside the pictures' mean vectors "P F"."""

    hidden: list[np.ndarray]
    image: list[np.ndarray]


def init() -> Pairs:
    """Nothing seen yet."""
    return Pairs([], [])


def update(
    state: Pairs,
    hidden: Float[Array, "S P D"] | Float[np.ndarray, "S P D"],
    image: Float[Array, "P K F"] | Float[np.ndarray, "P K F"],
) -> Pairs:
    """Add P prompts: S pooled states of each, and the unit vectors of its K pictures."""
    mean = np.asarray(image, np.float32).mean(axis=1)
    return Pairs([*state.hidden, np.asarray(hidden)], [*state.image, mean])


def merge(a: Pairs, b: Pairs) -> Pairs:
    """The state of both together; the halves are those of all prompts, first a's, then b's."""
    return Pairs(a.hidden + b.hidden, a.image + b.image)


def result(
    state: Pairs, projection: Projection | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean cosines of projected captions with pictures, from ``layer 0``, the embeddings, on.

    Args:
      state: with at least 4 prompts.
      projection: how the regression is made.

    Returns:
      With the prompts' own pictures, and with those of all other prompts: what shuffled pairs give
      on average.

    Raises:
      ValueError: fewer than 4 prompts.
    """
    number = sum(len(image) for image in state.image)
    if number < 4:
        raise ValueError(f"a regression on half of the prompts needs at least 4, not {number}")
    projection = Projection() if projection is None else projection
    hidden, image = np.concatenate(state.hidden, axis=1), np.concatenate(state.image)
    half = number // 2
    own, shuffled = {}, {}
    for layer, h in enumerate(jnp.asarray(hidden)):
        fresh = projection.start(h.shape[-1], image.shape[-1])
        fitted = projection.after(fresh, h[:half], jnp.asarray(image[:half]))
        text = np.asarray(projection.text(fitted, h[half:]))
        cosine = np.einsum("pf,qf->pq", text, image[half:])
        right = np.eye(len(cosine), dtype=bool)
        own[f"layer {layer}"] = float(cosine[right].mean())
        shuffled[f"layer {layer}"] = float(cosine[~right].mean())
    return own, shuffled
