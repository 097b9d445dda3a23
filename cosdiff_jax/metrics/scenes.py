"""What the oracle reads in pictures of Scenes captions: faithfulness, and variety that means it.

Every score is a mean over the pictures whose caption asks for it. Read it beside the same figure
for real pictures of the same captions (``update`` with those): the oracle is not perfect, and K
draws from the true distribution do not show every value once.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, UInt8

from cosdiff_jax.data.scenes import oracle
from cosdiff_jax.data.scenes.grammar import Spec

Groups: TypeAlias = UInt8[np.ndarray, "P K X Y C"] | Float[np.ndarray, "P K X Y C"]
"""Bytes, or floats in [-1, 1]."""

SCORES = (*oracle.ATTRIBUTES, *oracle.TASKS, "all", "empty")
"""Measures other than the diversity, in the order of a report."""


# An attribute's own diversity; "0.shape", "1.shape" ... of a caption's things count together. Where
# a single thing stands is no attribute, and not counted in the meaningful diversity.
VARIETY = tuple(
    f"variety_{name}" for name in ("shape", "colour", "size", "background", "relation", "place")
)


VERSION = 2
"""Of what is measured: a measurement that another one began has other columns."""


class Sums(NamedTuple):
    """State: sums by name, and how many pictures (scores) or prompts (diversities) they are of."""

    total: Mapping[str, float]
    number: Mapping[str, int]


def init() -> Sums:
    """Nothing seen yet."""
    names = (*SCORES, "meaningful_diversity", *VARIETY)
    return Sums(dict.fromkeys(names, 0.0), dict.fromkeys(names, 0))


def update(state: Sums, images: Groups, specs: Sequence[Spec]) -> Sums:
    """Add P prompts, what they mean, and K pictures of each.

    Raises:
      ValueError: the numbers of prompts and of groups differ.
    """
    if len(images) != len(specs):
        raise ValueError(f"{len(images)} groups of pictures for {len(specs)} captions")
    total, number = dict(state.total), dict(state.number)

    def add(name: str, value: float) -> None:
        total[name] += value
        number[name] += 1

    for group, spec in zip(images, specs, strict=True):
        readings = [oracle.read(image) for image in group]
        for reading in readings:
            for name, value in oracle.score_reading(reading, spec).items():
                if value is not None:
                    add(name, value)
        found = oracle.diversities(readings, spec)
        if found:
            add("meaningful_diversity", math.fsum(found.values()) / len(found))
        for name, value in found.items():
            add(f"variety_{name.split('.')[-1]}", value)
        place = oracle.place_variety(readings, spec)
        if not math.isnan(place):
            add("variety_place", place)
    return Sums(total, number)


def merge(a: Sums, b: Sums) -> Sums:
    """The state of both together."""
    return Sums(
        {name: total + b.total[name] for name, total in a.total.items()},
        {name: number + b.number[name] for name, number in a.number.items()},
    )


def result(state: Sums) -> dict[str, float]:
    """All of them in [0, 1]; what no caption asked for, or left open, is absent."""
    return {
        name: value / state.number[name]
        for name, value in state.total.items()
        if state.number[name]
    }
