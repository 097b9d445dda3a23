"""What surveys say of their prompts: means and measures of sets, with intervals and differences."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from cosdiff_jax.data import files
from cosdiff_jax.metrics import bootstrap, frechet, jackknife, manifold, mmd
from cosdiff_jax.metrics.text_rendering import WEIGHTS
from cosdiff_jax.survey import Surveyed

# Neighbours that span a manifold (Naeem et al. 2020 use 5).
NEIGHBOURS = 5
# Pictures of a set up to which measures that look at every pair are taken again without each group.
PAIRED = 4096
# Where measures of sets end.
BOUNDS = {
    **dict.fromkeys(("frechet", "mmd", "density"), (0.0, math.inf)),
    **dict.fromkeys(("precision", "recall", "coverage"), (0.0, 1.0)),
}
# What is no mean over prompts: the first pay for the compilation, and a peak is one of all.
SINGLE = {"seconds": np.median, "peak_mib": np.max}

Key: TypeAlias = tuple[str, str]
"""A prompt: its key and its caption."""

Table: TypeAlias = dict[str, dict[str, float]]
"""Measure -> "mean", and "low" and "high" where there is an interval."""


def key(row: Mapping[str, Any]) -> Key:
    """Which prompt a row is of.

    Not by its key alone: folders that tell their own prompts number different ones alike. Nor by
    its place: a folder without pictures of some prompt numbers the others differently.
    """
    return row["key"], files.normal(row["caption"])


def places(surveyed: Surveyed) -> dict[Key, int]:
    """Prompt -> its row."""
    return {key(row): place for place, row in enumerate(surveyed.rows)}


def shared(surveyed: Sequence[Surveyed]) -> list[Key]:
    """The prompts that all have, in the order of the first; [] of nothing."""
    if not surveyed:
        return []
    first, *others = map(places, surveyed)
    return [prompt for prompt in first if all(prompt in other for other in others)]


def measured(surveyed: Surveyed) -> list[str]:
    """Names of its measures, without those that only say how much others weigh."""
    return [name for name in surveyed.names if name not in WEIGHTS.values()]


def _values(surveyed: Surveyed, name: str) -> Float[np.ndarray, "P *weighed"]:
    """A measure of every prompt, and its weight where it is a share of unequally much."""
    found, weight = surveyed.column(name), WEIGHTS.get(name)
    return found if weight is None else np.stack([found, surveyed.column(weight)], axis=1)


def _statistic(name: str) -> bootstrap.Statistic:
    return bootstrap.weighted if name in WEIGHTS else bootstrap.mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sets:
    """What one set of pictures measures against real ones, with all prompts and without some.

    Attributes:
      prompts: the prompts, in order.
      whole: measure -> its value.
      left: measure -> its value without each group of prompts; without an entry where the prompts
        are too few to leave some out, or the pairs of pictures too many to look at them so often.
    """

    prompts: list[Key]
    whole: dict[str, float]
    left: dict[str, Float[np.ndarray, " G"]]

    def table(self) -> Table:
        """Measure -> "mean", and "low" and "high" where there is an interval."""
        around = jackknife.Jackknife()
        found: Table = {name: {"mean": value} for name, value in self.whole.items()}
        for name, left in self.left.items():
            by = around.interval(self.whole[name], left, *BOUNDS.get(name, ()))
            found[name] |= {"low": by.low, "high": by.high}
        return found

    def change(self, measure: str, before: "Sets") -> bootstrap.Interval | None:
        """By how much a measure lies above that of another set of the same prompts.

        None of other prompts, or of a measure without its values without some.
        """
        known = measure in self.left and measure in before.left
        if not known or self.prompts != before.prompts:
            return None
        value = self.whole[measure] - before.whole[measure]
        return jackknife.Jackknife().interval(value, self.left[measure] - before.left[measure])


def compared(surveyed: Surveyed, reference: Surveyed | None) -> Sets | None:
    """The measures of a set of pictures against that of real ones; None of nothing to compare.

    Prompts that are left out are left out on both sides.
    """
    f, g = surveyed.f, None if reference is None else reference.f
    if f is None or g is None or reference is None:
        return None
    prompts = list(map(key, surveyed.rows))
    group = jackknife.Jackknife().deal(len(prompts))
    left: dict[str, Float[np.ndarray, " G"]] = {}
    if group is not None:
        own = dict(zip(prompts, map(int, group), strict=True))
        made, real = (
            np.repeat([own.get(key(row), -1) for row in s.rows], [row["num"] for row in s.rows])
            for s in (surveyed, reference)
        )
        groups = range(int(group.max()) + 1)
        left = {"frechet": _frechet_without(f, made, g, real, groups)}
        if max(len(f), len(g)) <= PAIRED:
            tables = [_of_pairs(f[made != number], g[real != number]) for number in groups]
            # Without some of very few real pictures there may be too few to have neighbours.
            names = [name for name in tables[0] if all(name in table for table in tables)]
            left |= {name: np.array([table[name] for table in tables]) for name in names}
        left = {name: values for name, values in left.items() if np.isfinite(values).all()}
    return Sets(prompts=prompts, whole=sets(f, g), left=left)


def _frechet_without(
    f: Float[np.ndarray, "n F"],
    made: np.ndarray,
    g: Float[np.ndarray, "m F"],
    real: np.ndarray,
    groups: range,
) -> Float[np.ndarray, " G"]:
    """The Frechet distance without each group, from the groups' moments: each looked at once."""

    def without(x: np.ndarray, group: np.ndarray) -> list[frechet.Moments]:
        nothing = frechet.init(x.shape[1])
        parts = {n: frechet.update(nothing, x[group == n]) for n in (-1, *groups)}
        return [
            functools.reduce(frechet.merge, (part for n, part in parts.items() if n != number))
            for number in groups
        ]

    both = zip(without(f, made), without(g, real), strict=True)
    return np.array([frechet.result(one, other)["frechet"] for one, other in both])


class Apart:
    """Paired differences: of the same prompts, so that what makes one hard for both cancels.

    Args:
      surveyed: column -> what was measured of its prompts.
      sets: column -> what its pictures measure as a set.
    """

    def __init__(
        self, surveyed: Mapping[str, Surveyed], sets: Mapping[str, Sets | None] | None = None
    ):
        self._surveyed = surveyed
        self._sets = {name: of for name, of in (sets or {}).items() if of is not None}
        self._found: dict[tuple[str, str, str], bootstrap.Interval | None] = {}
        self.first = next((name for name in surveyed if name != "true"), "")

    def __call__(self, measure: str, a: str, b: str) -> bootstrap.Interval | None:
        """What column a has more than b, and its 95 % interval; None of fewer than 2 prompts."""
        asked = measure, a, b
        of, before = self._sets.get(a), self._sets.get(b)
        if of is not None and before is not None and measure in of.whole:
            return of.change(measure, before)
        if asked not in self._found:
            sides = self._of(measure, b), self._of(measure, a)
            single = measure in SINGLE
            by = None if single else bootstrap.change(*sides, _statistic(measure))
            self._found[asked] = by
        return self._found[asked]

    def _of(self, measure: str, name: str) -> dict[Key, Any]:
        found = self._surveyed[name]
        return dict(zip(map(key, found.rows), _values(found, measure), strict=True))

    def from_first(self) -> dict[str, Table]:
        """Column -> measure -> "mean", "low" and "high" of the difference from the first."""
        found: dict[str, Table] = {}
        for name, surveyed in self._surveyed.items():
            if name in ("true", self.first):
                continue
            of = self._sets.get(name)
            asked = [*measured(surveyed), *(() if of is None else of.whole)]
            there = {measure: self(measure, name, self.first) for measure in asked}
            found[name] = {
                measure: {"mean": by.value, "low": by.low, "high": by.high}
                for measure, by in there.items()
                if by is not None
            }
        return found


def numbers(surveyed: Surveyed) -> Table:
    """Every measure's mean over the prompts with its 95 % interval, of resampled prompts.

    Of a share of characters or pictures it is the share of all of them, so that a prompt weighs as
    much as it has.
    """
    table, interval = {}, bootstrap.Bootstrap()
    for name in measured(surveyed):
        values, statistic = _values(surveyed, name), _statistic(name)
        values = values[np.isfinite(values).reshape(len(values), -1).all(axis=1)]
        single = SINGLE.get(name)
        if single is not None:
            table[name] = {"mean": float(single(values))}
            continue
        if len(values) < 2:
            table[name] = {"mean": statistic(values)}
            continue
        around = interval(values, statistic)
        table[name] = {"mean": around.value, "low": around.low, "high": around.high}
    return table


def parts(
    surveyed: Mapping[str, Surveyed], part: Callable[[Mapping[str, Any]], str]
) -> dict[str, dict[str, Table]]:
    """Part -> column -> measure -> mean and interval, over the prompts of that part.

    The measures are those of ``numbers`` that are means over prompts.

    Args:
      surveyed: column -> what was measured.
      part: a row -> what it is counted among, such as its language; "" is nothing.

    Returns:
      {} of fewer than two parts.
    """
    found: dict[str, dict[str, Table]] = {}
    for column, of in surveyed.items():
        split: dict[str, list[dict[str, Any]]] = {}
        for row in of.rows:
            split.setdefault(part(row), []).append(row)
        split.pop("", None)
        for name, rows in split.items():
            table = numbers(dataclasses.replace(of, rows=rows, f=None))
            means = {measure: cell for measure, cell in table.items() if measure not in SINGLE}
            found.setdefault(name, {})[column] = means
    return found if len(found) > 1 else {}


def sets(f: Float[np.ndarray, "n F"], g: Float[np.ndarray, "m F"]) -> dict[str, float]:
    """Measures of one set of feature vectors against that of real pictures."""
    nothing = frechet.init(f.shape[1])
    found = frechet.result(frechet.update(nothing, f), frechet.update(nothing, g))
    return found | _of_pairs(f, g)


def _of_pairs(f: Float[np.ndarray, "n F"], g: Float[np.ndarray, "m F"]) -> dict[str, float]:
    """Those of them that look at every pair."""
    table, manifolds = {}, manifold.Manifold(neighbours=NEIGHBOURS)
    if min(len(f), len(g)) > NEIGHBOURS:
        table = manifolds.result(manifolds.update(manifolds.init(), f, g))
    discrepancy = mmd.Discrepancy()
    return table | discrepancy.result(discrepancy.update(discrepancy.init(), f, g))
