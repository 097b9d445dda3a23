"""What surveys say of their prompts: means with intervals, measures of sets, paired differences."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from cosdiff_jax.data import files
from cosdiff_jax.metrics import bootstrap, frechet, manifold, mmd
from cosdiff_jax.metrics.text_rendering import WEIGHTS
from cosdiff_jax.survey import Surveyed

# Neighbours that span a manifold (Naeem et al. 2020 use 5).
NEIGHBOURS = 5
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


class Apart:
    """Paired differences: of the same prompts, so that what makes one hard for both cancels."""

    def __init__(self, surveyed: Mapping[str, Surveyed]):
        self._surveyed = surveyed
        self._found: dict[tuple[str, str, str], bootstrap.Interval | None] = {}
        self.first = next((name for name in surveyed if name != "true"), "")

    def __call__(self, measure: str, a: str, b: str) -> bootstrap.Interval | None:
        """What column a has more than b, and its 95 % interval; None of fewer than 2 prompts."""
        asked = measure, a, b
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
            there = {measure: self(measure, name, self.first) for measure in measured(surveyed)}
            found[name] = {
                measure: {"mean": by.value, "low": by.low, "high": by.high}
                for measure, by in there.items()
                if by is not None
            }
        return found


def numbers(surveyed: Surveyed, reference: Surveyed | None) -> Table:
    """Every measure's mean over the prompts with its 95 % interval, and the sets' measures.

    Of a share of characters or pictures it is the share of all of them, so that a prompt weighs as
    much as it has. Intervals are of resampled prompts. Of a set's measures there is none: half of
    them are biased in the number of pictures, which resampling changes.
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
    if reference is not None and surveyed.f is not None and reference.f is not None:
        for name, value in sets(surveyed.f, reference.f).items():
            table[name] = {"mean": value}
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
            table = numbers(dataclasses.replace(of, rows=rows, f=None), None)
            means = {measure: cell for measure, cell in table.items() if measure not in SINGLE}
            found.setdefault(name, {})[column] = means
    return found if len(found) > 1 else {}


def sets(f: Float[np.ndarray, "n F"], g: Float[np.ndarray, "m F"]) -> dict[str, float]:
    """Measures of one set of feature vectors against that of real pictures."""
    nothing, manifolds = frechet.init(f.shape[1]), manifold.Manifold(neighbours=NEIGHBOURS)
    table = frechet.result(frechet.update(nothing, f), frechet.update(nothing, g))
    if min(len(f), len(g)) > NEIGHBOURS:
        table |= manifolds.result(manifolds.update(manifolds.init(), f, g))
    discrepancy = mmd.Discrepancy()
    return table | discrepancy.result(discrepancy.update(discrepancy.init(), f, g))
