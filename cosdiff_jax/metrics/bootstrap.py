"""How sure is a number that was measured on these prompts, had there been others?

Prompts are drawn anew with replacement, all samples of a prompt together, and the statistic is
taken of each draw; an interval holds the middle ``level`` of what it gives. Where samples of one
prompt are alike, as here, drawing single pictures would make intervals far too narrow.

Sources: Efron 1979, "Bootstrap methods: another look at the jackknife" (percentile); Efron 1987,
"Better bootstrap confidence intervals" (BCa), eq. 2.3 and 6.6 for its acceleration.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float
from scipy.special import ndtr, ndtri

Values = Float[Array, "P *x"] | Float[np.ndarray, "P *x"]
"""Whatever was measured of each prompt: a number, K numbers, feature vectors ..."""

Others = Float[Array, "Q *y"] | Float[np.ndarray, "Q *y"]

Statistic = Callable[[np.ndarray], float]
"""Values of some prompts "P *x" -> what is reported of them."""

# Numbers drawn at once: what the mean of all draws is taken of, 64 MB.
CHUNK = 8_000_000


class Interval(NamedTuple):
    """What was measured, and between which two values it is believed to lie."""

    value: float
    low: float
    high: float


def mean(values: np.ndarray) -> float:
    """The statistic unless another is given."""
    return float(values.mean())


def weighted(values: Float[np.ndarray, "P 2"]) -> float:
    """Sum of w x over sum of w, of pairs (x, w): with x = n / w it is the ratio of sums."""
    x, w = values.T
    return float(np.sum(w * x) / np.sum(w))


def change(
    before: Mapping[Any, Any], after: Mapping[Any, Any], statistic: Statistic = mean
) -> Interval | None:
    """after - before over the prompts that both have finite values of; None of fewer than 2.

    Args:
      before: prompt -> a number, or whatever else of it the statistic is of.
      after: the same.
      statistic: as for ``Bootstrap``.
    """
    both = [k for k in after if k in before and np.isfinite(np.add(before[k], after[k])).all()]
    if len(both) < 2:
        return None
    old, new = (np.array([side[key] for key in both]) for side in (before, after))
    return Bootstrap().difference(new, old, statistic)


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Confidence intervals over prompts.

    Of few prompts they are too narrow, the more so near a bound: of shares of 8 pictures with a
    mean of 0.65, intervals of 95 % hold the truth in 94 % of cases at 64 prompts and in 92 % at 16;
    with a mean of 0.92 in 92 % and 83 %.

    Attributes:
      draws: how many times the prompts are drawn.
      level: how sure, in (0, 1).
      accelerated: BCa, right to second order where the statistic is biased or skewed, such as a
        variance or a score near its bound, for P more evaluations; else the plain percentiles.
      seed: of the draws.

    Raises:
      ValueError: no draws, or a level outside (0, 1).
    """

    draws: int = 2000
    level: float = 0.95
    accelerated: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.draws < 1 or not 0 < self.level < 1:
            raise ValueError(
                "bootstrap.draws must be at least 1 and bootstrap.level within (0, 1), got "
                f"{self.draws} and {self.level}"
            )

    def __call__(self, values: Values, statistic: Statistic = mean) -> Interval:
        """The interval of a statistic of all prompts' values.

        Args:
          values: of each prompt, one row.
          statistic: values of some prompts, in any order and some of them twice -> a number.

        Raises:
          ValueError: fewer than 2 prompts.
        """
        values = np.asarray(values, np.float64)
        if len(values) < 2:
            raise ValueError(
                f"an interval over prompts needs at least 2 of them, got {len(values)}"
            )
        value = float(statistic(values))
        drawn = np.sort(self._draw(values, statistic))
        tail = 0.5 * (1.0 - self.level)
        ends = np.array([tail, 1.0 - tail])
        if self.accelerated:
            ends = _accelerate(ends, value, drawn, values, statistic)
        low, high = np.quantile(drawn, ends)
        return Interval(value, float(low), float(high))

    def difference(self, a: Values, b: Others, statistic: Statistic = mean) -> Interval:
        """The interval of statistic(a) - statistic(b), both of the same prompts in the same order.

        Each draw takes the same prompts of both, so that what makes a prompt hard for both cancels.

        Raises:
          ValueError: values of different shapes, or of fewer than 2 prompts.
        """
        if a.shape != b.shape:
            raise ValueError(
                f"a paired difference needs the same prompts on both sides: {a.shape}, {b.shape}"
            )
        both = np.stack([np.asarray(a, np.float64), np.asarray(b, np.float64)], axis=1)
        if statistic is mean:
            return self(both[:, 0] - both[:, 1])
        return self(both, lambda pair: statistic(pair[:, 0]) - statistic(pair[:, 1]))

    def _draw(self, values: np.ndarray, statistic: Statistic) -> np.ndarray:
        rng, prompts = np.random.default_rng(self.seed), len(values)
        if statistic is not mean:
            picks = (rng.integers(prompts, size=prompts) for _ in range(self.draws))
            return np.array([statistic(values[pick]) for pick in picks])
        # A mean of rows of equal length is the mean of the rows' own means.
        rows = values.reshape(prompts, -1).mean(axis=1)
        chunk = max(1, CHUNK // prompts)
        sizes = [min(chunk, self.draws - start) for start in range(0, self.draws, chunk)]
        return np.concatenate(
            [rows[rng.integers(prompts, size=(size, prompts))].mean(axis=1) for size in sizes]
        )


def _accelerate(
    ends: np.ndarray, value: float, drawn: np.ndarray, values: np.ndarray, statistic: Statistic
) -> np.ndarray:
    """Which quantiles of the draws stand for the ends of the interval.

    z0 is by how much the draws lie to one side of the value, a how much their spread changes with
    it; the quantile p moves to Phi(z0 + (z0 + z_p) / (1 - a (z0 + z_p))).
    """
    below = (np.sum(drawn < value) + 0.5 * np.sum(drawn == value)) / len(drawn)
    left = np.array([statistic(np.delete(values, p, axis=0)) for p in range(len(values))])
    apart = left.mean() - left
    spread = np.sum(apart**2)
    # All draws on one side, or prompts that are all the same: nothing to correct by.
    if not 0 < below < 1 or not spread:
        return ends
    z0, a = ndtri(below), np.sum(apart**3) / (6.0 * spread**1.5)
    z = z0 + ndtri(ends)
    return ndtr(z0 + z / (1.0 - a * z))
