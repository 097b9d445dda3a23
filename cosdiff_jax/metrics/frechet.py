"""How far apart are two sets of pictures as Gaussians over some network's features?

    d = |m - m'|^2 + tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2)

with means m, m' and covariances C, C' (Dowson and Landau 1982, "The Frechet distance between
multivariate normal distributions"; for pictures Heusel et al. 2017, https://arxiv.org/abs/1706.08500,
eq. 6). Over the 2,048 features of one Inception network it is known as FID; over any other feature
it is not, so a number from here is told with the name of its feature.

It depends on how many pictures there are: fewer read higher. Compare equal numbers, or
``extrapolate`` to infinitely many.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float


class Moments(NamedTuple):
    """State: number of vectors, their mean, and sum over them of (f - mean) (f - mean)^T."""

    number: int
    mean: Float[np.ndarray, " F"]
    scatter: Float[np.ndarray, "F F"]


class Line(NamedTuple):
    """d = value + slope / n: the distance of infinitely many pictures, and the bias of n."""

    value: float
    slope: float


def init(features: int) -> Moments:
    """Nothing seen yet of vectors of that length."""
    return Moments(0, np.zeros(features), np.zeros((features, features)))


def update(state: Moments, f: Float[Array, "n F"] | Float[np.ndarray, "n F"]) -> Moments:
    """Add n feature vectors, in float64."""
    f = np.asarray(f, np.float64)
    if not len(f):
        return state
    mean = f.mean(axis=0)
    apart = f - mean
    return merge(state, Moments(len(f), mean, apart.T @ apart))


def merge(a: Moments, b: Moments) -> Moments:
    """The state of both sets together, as if all had been seen in one place.

    Deviations from each set's own mean are added, never raw squares, which would cancel where the
    mean is large (Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance").
    """
    number = a.number + b.number
    if not number:
        return a
    share, apart = b.number / number, b.mean - a.mean
    between = a.number * share * np.outer(apart, apart)
    return Moments(number, a.mean + share * apart, a.scatter + b.scatter + between)


def covariance(state: Moments) -> Float[np.ndarray, "F F"]:
    """C = scatter / (n - 1).

    Raises:
      ValueError: fewer than 2 vectors.
    """
    if state.number < 2:
        raise ValueError(f"a covariance needs at least 2 feature vectors, got {state.number}")
    return state.scatter / (state.number - 1)


def distance(a: Moments, b: Moments) -> float:
    """The squared Frechet distance d; in the features' unit squared, 0 for equal moments.

    Raises:
      ValueError: fewer than 2 vectors on a side, or features of different lengths.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"feature vectors of {len(a.mean)} and of {len(b.mean)} numbers cannot be compared"
        )
    one, other = covariance(a), covariance(b)
    # Singular values of a product of roots, not square roots of eigenvalues of C C': where fewer
    # pictures than features leave zeros, the root would make 1e-8 of their rounding of 1e-16.
    cross = np.linalg.svd(_root(other) @ _root(one), compute_uv=False).sum()
    apart = a.mean - b.mean
    return float(apart @ apart + np.trace(one) + np.trace(other) - 2.0 * cross)


def result(state: Moments, reference: Moments) -> dict[str, float]:
    """``frechet``: the distance from the reference; NaN of fewer than 2 vectors."""
    if min(state.number, reference.number) < 2:
        return {"frechet": float("nan")}
    return {"frechet": distance(state, reference)}


def curve(
    f: Float[Array, "n F"] | Float[np.ndarray, "n F"],
    reference: Moments,
    sizes: Sequence[int],
    seed: int = 0,
) -> Float[np.ndarray, " S"]:
    """The distance of random subsets of each size, each drawn anew without replacement.

    Raises:
      ValueError: a size below 2 or above n.
    """
    f = np.asarray(f, np.float64)
    if not all(2 <= size <= len(f) for size in sizes):
        raise ValueError(f"sizes of subsets must lie in 2 .. {len(f)}: {tuple(sizes)}")
    rng = np.random.default_rng(seed)
    drawn = (f[rng.permutation(len(f))[:size]] for size in sizes)
    empty = init(f.shape[1])
    return np.array([distance(update(empty, subset), reference) for subset in drawn])


def extrapolate(sizes: Sequence[int], distances: Float[np.ndarray, " S"]) -> Line:
    """The least-squares line over 1 / n, whose value at 0 is free of the bias of n.

    Known as FID_infinity for Inception's features: Chong and Forsyth 2020,
    https://arxiv.org/abs/1911.07023, section 3.2 (15 sizes, evenly spaced from 5,000 up).

    Raises:
      ValueError: fewer than two different sizes.
    """
    if len(set(sizes)) < 2:
        raise ValueError("an extrapolation needs at least two different sizes of subsets")
    slope, value = np.polyfit(1.0 / np.asarray(sizes, np.float64), distances, 1)
    return Line(float(value), float(slope))


def infinity(
    f: Float[Array, "n F"] | Float[np.ndarray, "n F"],
    reference: Moments,
    lowest: int = 5000,
    points: int = 15,
    seed: int = 0,
) -> Line:
    """``curve`` and ``extrapolate`` over ``points`` sizes, evenly spaced from ``lowest`` to n."""
    sizes = [int(size) for size in np.linspace(lowest, len(f), points)]
    return extrapolate(sizes, curve(f, reference, sizes, seed))


def _root(c: Float[np.ndarray, "F F"]) -> Float[np.ndarray, "F F"]:
    """The symmetric square root; eigenvalues that rounding left below 0 are 0."""
    w, v = np.linalg.eigh(c)
    return (v * np.sqrt(np.maximum(w, 0.0))) @ v.T
