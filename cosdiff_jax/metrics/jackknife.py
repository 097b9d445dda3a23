"""How sure is a measure of a whole set, such as a Frechet distance, had there been other prompts?

The prompts are dealt to G groups, and the measure is taken again without each of them: with theta_g
what is left without group g, and their mean theta,

    se^2 = (G - 1) / G  sum_g (theta_g - theta)^2

and an interval reaches t se to either side of the measure, t the quantile of Student's distribution
with G - 1 degrees (Kott 2001, "The delete-a-group jackknife", Journal of Official Statistics 17).

Not the bootstrap: of a prompt drawn twice the set has every picture twice, nearer to one another
than two pictures ever are, and so measures of neighbours read too low and distances too high on
every draw. Leaving out keeps pictures different, and the bias that their number brings is the same
each time to within a twentieth. In simulation (40 prompts of 8, 16 features, each a prompt's own
and a picture's) intervals of 95 % held the Frechet distance of as many other prompts in 97 % of
cases and MMDs in 98 %; those of the neighbours' measures are 1.2 to 1.5 times as wide as they need
be, and held it in 98 to 100 %.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float, Int
from scipy.special import stdtrit

from cosdiff_jax.metrics.bootstrap import Interval


@dataclass(frozen=True, kw_only=True)
class Jackknife:
    """Confidence intervals over prompts, by leaving groups of them out.

    Attributes:
      groups: G, or as many as there are prompts where those are fewer.
      fewest: prompts below which there is no interval.
      level: how sure, in (0, 1).

    Raises:
      ValueError: fewer than 2 groups or prompts, or a level outside (0, 1).
    """

    groups: int = 20
    fewest: int = 10
    level: float = 0.95

    def __post_init__(self):
        if min(self.groups, self.fewest) < 2 or not 0 < self.level < 1:
            raise ValueError(
                "jackknife.groups and jackknife.fewest must be at least 2 and jackknife.level "
                f"within (0, 1), got {self.groups}, {self.fewest} and {self.level}"
            )

    def deal(self, prompts: int) -> Int[np.ndarray, " P"] | None:
        """The group of each prompt, one after the other; None of too few prompts."""
        if prompts < self.fewest:
            return None
        return np.arange(prompts) % min(self.groups, prompts)

    def interval(
        self,
        value: float,
        left: Float[Array, " G"] | Float[np.ndarray, " G"],
        low: float = -math.inf,
        high: float = math.inf,
    ) -> Interval:
        """The measure of all, and between which values it is believed to lie.

        Args:
          value: of all prompts; the difference of two measures is one too.
          left: of all prompts but one group's, for each group.
          low: what it cannot be less than.
          high: nor more than.
        """
        left = np.asarray(left, np.float64)
        degrees = len(left) - 1
        spread = math.sqrt(degrees / len(left) * np.sum((left - left.mean()) ** 2))
        reach = float(stdtrit(degrees, 0.5 + 0.5 * self.level)) * spread
        # What rounding left outside the bounds stays where it is, within its own interval.
        ends = max(low, value - reach), min(high, value + reach)
        return Interval(value, min(value, ends[0]), max(value, ends[1]))
