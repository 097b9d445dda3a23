"""Have two pictures the same structure, place by place?

    ssim = (2 m m' + c1) (2 v + c2) / ((m^2 + m'^2 + c1) (s^2 + s'^2 + c2))

with means m, variances s^2 and covariance v under a Gaussian window of 11 x 11 pixels, deviation
1.5; c1 = 0.01^2, c2 = 0.03^2 for pictures in [0, 1]. Source: Wang et al. 2004, "Image quality
assessment: from error visibility to structural similarity", IEEE TIP 13(4), eq. 13. Channels are
averaged.

Its first factor compares brightness and takes black for 0: over [-1, 1] a picture and its negative
would look alike, so pictures are brought to [0, 1] first.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float
from scipy.ndimage import correlate1d

RADIUS = 5
DEVIATION = 1.5


class Sums(NamedTuple):
    """State: sum of each picture's similarity and number of pictures."""

    similarity: float
    pictures: int


def init() -> Sums:
    """Nothing seen yet."""
    return Sums(0.0, 0)


def update(
    state: Sums,
    images: Float[Array, "B X Y C"] | Float[np.ndarray, "B X Y C"],
    others: Float[Array, "B X Y C"] | Float[np.ndarray, "B X Y C"],
    edges: bool = False,
) -> Sums:
    """Add B pairs of pictures in [-1, 1]; values outside are clipped to it.

    Args:
      state: so far.
      images: pictures.
      others: what they are compared with.
      edges: also average over places whose window leaves the picture, which is mirrored there, as
        torchmetrics does; Wang et al. and scikit-image leave them out.

    Raises:
      ValueError: pictures smaller than the window.
    """
    a, b = (0.5 + 0.5 * np.clip(np.asarray(x, np.float64), -1, 1) for x in (images, others))
    side = 2 * RADIUS + 1
    if min(a.shape[1:3]) < side:
        raise ValueError(
            f"ssim needs pictures of at least {side} x {side} pixels, got "
            f"{a.shape[1]} x {a.shape[2]}"
        )
    mean_a, mean_b = _blur(a), _blur(b)
    # Biased, as published: the weights of the window sum to 1.
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    cov = _blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    above = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    inside = slice(None) if edges else slice(RADIUS, -RADIUS)
    similarity = (above / below)[:, inside, inside].mean(axis=(1, 2, 3))
    return Sums(state.similarity + float(similarity.sum()), state.pictures + len(similarity))


def merge(a: Sums, b: Sums) -> Sums:
    """The state of both together."""
    return Sums(a.similarity + b.similarity, a.pictures + b.pictures)


def result(state: Sums) -> dict[str, float]:
    """``ssim``: the mean over pictures, 1 for equal ones; NaN of nothing."""
    return {"ssim": state.similarity / state.pictures if state.pictures else float("nan")}


def _blur(x: Float[np.ndarray, "B X Y C"]) -> Float[np.ndarray, "B X Y C"]:
    window = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / DEVIATION) ** 2)
    window /= window.sum()
    for axis in (1, 2):
        x = correlate1d(x, window, axis=axis, mode="mirror")
    return x
