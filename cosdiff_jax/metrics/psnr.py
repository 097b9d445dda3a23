"""How close are reconstructed pictures to the originals?"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float


class Sums(NamedTuple):
    """State: sum of each picture's decibels and number of pictures."""

    decibel: float
    pictures: int


def init() -> Sums:
    """Nothing seen yet."""
    return Sums(0.0, 0)


def update(
    state: Sums,
    images: Float[Array, "B X Y C"] | Float[np.ndarray, "B X Y C"],
    others: Float[Array, "B X Y C"] | Float[np.ndarray, "B X Y C"],
) -> Sums:
    """Add B pairs of pictures in [-1, 1]; values outside are clipped to it.

    psnr = 10 log10(4 / mean (a - b)^2)      the peak-to-peak range is 2
    """
    images, others = (np.clip(np.asarray(a, np.float64), -1, 1) for a in (images, others))
    error = np.mean((images - others) ** 2, axis=(1, 2, 3))
    # A perfect picture reads 100 dB, not infinity, so that the mean stays finite.
    decibel = 10.0 * np.log10(4.0 / np.maximum(error, 4e-10))
    return Sums(state.decibel + float(decibel.sum()), state.pictures + len(decibel))


def merge(a: Sums, b: Sums) -> Sums:
    """The state of both together."""
    return Sums(a.decibel + b.decibel, a.pictures + b.pictures)


def result(state: Sums) -> dict[str, float]:
    """``psnr``: the mean over pictures in dB; NaN of nothing."""
    return {"psnr": state.decibel / state.pictures if state.pictures else float("nan")}
