"""Do pictures show what their captions say, as CLIP sees it?"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float


class Sums(NamedTuple):
    """State: sum of cosines and number of pictures."""

    cosine: float
    pictures: int


def init() -> Sums:
    """Nothing seen yet."""
    return Sums(0.0, 0)


def update(
    state: Sums,
    image: Float[Array, "P K F"] | Float[np.ndarray, "P K F"],
    text: Float[Array, "P F"] | Float[np.ndarray, "P F"],
) -> Sums:
    """Add P prompts with K pictures each, all as CLIP's unit vectors."""
    image, text = np.asarray(image, np.float64), np.asarray(text, np.float64)
    cosine = np.einsum("pkf,pf->", image, text)
    return Sums(state.cosine + float(cosine), state.pictures + image.shape[0] * image.shape[1])


def merge(a: Sums, b: Sums) -> Sums:
    """The state of both together."""
    return Sums(a.cosine + b.cosine, a.pictures + b.pictures)


def result(state: Sums) -> dict[str, float]:
    """``clip_score``: the mean cosine of picture and caption, in [-1, 1]; NaN of nothing.

    It is the cosine itself (Hessel et al. 2021 show 2.5 max(cosine, 0), some others 100 cosine).
    """
    return {"clip_score": state.cosine / state.pictures if state.pictures else float("nan")}
