"""How many different samples does a group hold, in effect? The Vendi score of any order.

    VS_q = (sum_i w_i^q)^(1 / (1 - q)),    w = eigenvalues of C / K, C_ij = cos(f_i, f_j)

1 for K identical samples, K for K orthogonal ones. q = 1 is its limit exp(-sum w log w) (Friedman
and Dieng 2023, https://arxiv.org/abs/2210.02410, definition 3.1), q = inf is 1 / max w; the lower
the order, the more a rare sample counts (Pasarkar and Dieng 2024,
https://arxiv.org/abs/2310.12952, eq. 3). ``diversity.measure.Vendi`` is q = 1 with a gradient.

C and f^T f have the same eigenvalues but for zeros, so a group of more samples than features is
judged by its F x F matrix: O(K F^2) instead of O(K^3).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

Groups = Float[Array, "P K F"] | Float[np.ndarray, "P K F"]
Mask = Bool[Array, "P K"] | Bool[np.ndarray, "P K"]

# In float64 rounding leaves eigenvalues of 1e-17 a sample; a true one this small counts for 1e-6
# of a sample at q = 1/2, and for nothing at higher orders.
SMALLEST = 1e-12


class Sums(NamedTuple):
    """State: for each order the sum of the prompts' scores; number of prompts."""

    total: Float[np.ndarray, " Q"]
    prompts: int


@dataclass(frozen=True, kw_only=True)
class Vendi:
    """Vendi scores of several orders, averaged over prompts.

    Attributes:
      orders: the q, each above 0; ``math.inf`` is one.
    """

    orders: tuple[float, ...] = (0.5, 1.0, 2.0, math.inf)

    def __post_init__(self):
        if not self.orders or not all(q > 0 for q in self.orders):
            raise ValueError(f"vendi.orders must be some numbers above 0, got {self.orders}")

    def init(self) -> Sums:
        """Nothing seen yet."""
        return Sums(np.zeros(len(self.orders)), 0)

    def update(self, state: Sums, f: Groups, mask: Mask | None = None) -> Sums:
        """Add P prompts with the feature vectors of their K samples.

        Args:
          state: so far.
          f: feature vectors; a zero vector is orthogonal to all others.
          mask: marks the samples that count. A prompt without any is left out.
        """
        counts = np.ones(f.shape[:2], bool) if mask is None else np.asarray(mask)
        w = spectrum(f, counts)[counts.any(axis=1)]
        total = np.array([score(w, q).sum() for q in self.orders])
        return Sums(state.total + total, state.prompts + len(w))

    def merge(self, a: Sums, b: Sums) -> Sums:
        """The state of both together."""
        return Sums(a.total + b.total, a.prompts + b.prompts)

    def result(self, state: Sums) -> dict[str, float]:
        """``vendi_q0.5``, ``vendi_q1``, ``vendi_q2``, ``vendi_qinf``: means; NaN of nothing."""
        number = state.prompts or math.nan
        return {
            f"vendi_q{q:g}": float(total) / number
            for q, total in zip(self.orders, state.total, strict=True)
        }


def spectrum(f: Groups, mask: Mask | None = None) -> Float[np.ndarray, "P S"]:
    """Eigenvalues of each group's C / K, summing to 1; zeros may be missing or too many.

    Args:
      f: feature vectors; a zero vector is orthogonal to all others.
      mask: marks the samples that count; K is their number, and without any all is 0.
    """
    f = np.asarray(f, np.float64)
    counts = np.ones(f.shape[:2], bool) if mask is None else np.asarray(mask)
    # By the largest entry first, so that squares of tiny and of huge vectors stay finite.
    largest = np.abs(f).max(axis=-1, keepdims=True)
    real = (largest > 0) & counts[..., None]
    u = np.where(real, f, 0.0) / np.where(real, largest, 1.0)
    u = u / np.where(real, np.linalg.norm(u, axis=-1, keepdims=True), 1.0)
    number = np.maximum(counts.sum(axis=1), 1)[:, None]
    inner = "pkf,pkg->pfg" if f.shape[1] > f.shape[2] else "pif,pjf->pij"
    w = np.linalg.eigvalsh(np.einsum(inner, u, u, optimize=True)) / number
    # A sample without a direction is one more eigenvector, of eigenvalue 1 / K.
    alone = (counts & ~real[..., 0]) / number
    return np.concatenate([w, alone], axis=1)


def score(w: Float[np.ndarray, "P S"], q: float) -> Float[np.ndarray, " P"]:
    """VS_q of spectra that sum to 1, of whatever kernel; 0 of a group without samples.

    Args:
      w: eigenvalues of a kernel's matrix over its trace.
      q: the order, above 0.
    """
    real = w > SMALLEST
    top = np.where(real, w, 0.0).max(axis=1)
    empty = top == 0
    top = np.where(empty, 1.0, top)
    if q == math.inf:
        value = 1.0 / top
    elif q == 1:
        value = np.exp(-np.where(real, w * np.log(np.where(real, w, 1.0)), 0.0).sum(axis=1))
    else:
        # Over the largest, which keeps a high power from vanishing; logarithms near q = 1.
        powers = np.where(real, (np.where(real, w, 0.0) / top[:, None]) ** q, 0.0).sum(axis=1)
        powers = np.where(empty, 1.0, powers)
        value = np.exp((q * np.log(top) + np.log(powers)) / (1.0 - q))
    return np.where(empty, 0.0, value)
