"""Does CLIP find the caption of a picture, and the picture of a caption, among all others?"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float


class Pairs(NamedTuple):
    """State: the unit vectors of all pairs so far, picture beside caption."""

    image: list[np.ndarray]
    text: list[np.ndarray]


def init() -> Pairs:
    """Nothing seen yet."""
    return Pairs([], [])


def update(
    state: Pairs,
    image: Float[Array, "P F"] | Float[np.ndarray, "P F"],
    text: Float[Array, "P F"] | Float[np.ndarray, "P F"],
) -> Pairs:
    """Add P pairs; captions should be distinct over all updates, or a right answer counts wrong."""
    return Pairs([*state.image, np.asarray(image)], [*state.text, np.asarray(text)])


def merge(a: Pairs, b: Pairs) -> Pairs:
    """The state of both together."""
    return Pairs(a.image + b.image, a.text + b.text)


def result(state: Pairs) -> dict[str, float]:
    """Shares of right first answers, chance being one over the number of pairs; NaN of nothing.

    ``image_to_text@1`` and ``text_to_image@1``, and their mean ``retrieval@1``.
    """
    if not state.image:
        return dict.fromkeys(("image_to_text@1", "text_to_image@1", "retrieval@1"), float("nan"))
    image, text = np.concatenate(state.image), np.concatenate(state.text)
    cosine = np.einsum("pf,qf->pq", image, text)
    right = np.diagonal(cosine)
    # An answer is right only if nothing else scores as high: identical vectors are no success.
    others = np.where(np.eye(len(cosine), dtype=bool), -np.inf, cosine)
    to_text = float(np.mean(right > others.max(axis=1)))
    to_image = float(np.mean(right > others.max(axis=0)))
    return {
        "image_to_text@1": to_text,
        "text_to_image@1": to_image,
        "retrieval@1": 0.5 * (to_text + to_image),
    }
