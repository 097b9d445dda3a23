"""Which of several ways cannot be bettered in one respect without losing in the other?"""

import numpy as np
from jaxtyping import Bool, Float, Int


def front(points: Float[np.ndarray, "n M"]) -> Bool[np.ndarray, " n"]:
    """Marks the points that no other one dominates; more is better in every column.

    q dominates p where q is nowhere less and somewhere more. Equal points do not dominate each
    other. A point with a NaN is never on the front and dominates nothing.

    Args:
      points: n points in M respects.
    """
    whole: np.ndarray = np.all(np.isfinite(points), axis=1)
    x = np.where(whole[:, None], points, -np.inf)
    no_less = np.all(x[:, None] >= x[None], axis=2)
    more = np.any(x[:, None] > x[None], axis=2)
    return np.logical_and(whole, ~np.any(no_less & more, axis=0))


def ranks(points: Float[np.ndarray, "n M"]) -> Int[np.ndarray, " n"]:
    """Non-dominated sorting (Deb et al. 2002): 1 for the front, 2 for the next one, and so on.

    The next front is that of the points without those before it. Points with a NaN come last,
    together.

    Args:
      points: n points in M respects; more is better in every column.
    """
    found = np.zeros(len(points), int)
    left: np.ndarray = np.all(np.isfinite(points), axis=1)
    rank = 1
    while left.any():
        best = front(np.where(left[:, None], points, np.nan))
        found[best] = rank
        left &= ~best
        rank += 1
    return np.where(found, found, rank)


def hypervolume(points: Float[np.ndarray, "n 2"], reference: Float[np.ndarray, " 2"]) -> float:
    """The area between a reference point and the front; more is better in both columns.

    Zitzler and Thiele 1999: the measure of all that some point dominates and that dominates the
    reference. Points that do not better the reference in both count for nothing.

    Args:
      points: n points.
      reference: no better than what would be bought at no price.
    """
    x = points[np.isfinite(points).all(axis=1) & (points > reference).all(axis=1)]
    area, height = 0.0, float(reference[1])
    # From the right: each point adds what lies above the best height so far.
    for right, top in x[np.argsort(-x[:, 0], kind="stable")]:
        area += (right - reference[0]) * max(0.0, top - height)
        height = max(height, float(top))
    return float(area)
