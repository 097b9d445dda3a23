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


class Sums(NamedTuple):
    """State: per score its sum and its pictures; sum and number of prompts of the diversity."""

    total: Mapping[str, float]
    pictures: Mapping[str, int]
    diversity: float
    prompts: int


def init() -> Sums:
    """Nothing seen yet."""
    return Sums(dict.fromkeys(SCORES, 0.0), dict.fromkeys(SCORES, 0), 0.0, 0)


def update(state: Sums, images: Groups, specs: Sequence[Spec]) -> Sums:
    """Add P prompts, what they mean, and K pictures of each.

    Raises:
      ValueError: the numbers of prompts and of groups differ.
    """
    if len(images) != len(specs):
        raise ValueError(f"{len(images)} groups of pictures for {len(specs)} captions")
    total, pictures = dict(state.total), dict(state.pictures)
    diversity, prompts = state.diversity, state.prompts
    for group, spec in zip(images, specs, strict=True):
        readings = [oracle.read(image) for image in group]
        for reading in readings:
            for name, value in oracle.score_reading(reading, spec).items():
                if value is not None:
                    total[name] += value
                    pictures[name] += 1
        varied = oracle.meaningful_diversity(readings, spec)
        if not math.isnan(varied):
            diversity, prompts = diversity + varied, prompts + 1
    return Sums(total, pictures, diversity, prompts)


def result(state: Sums) -> dict[str, float]:
    """SCORES and ``meaningful_diversity``, all in [0, 1]; what no caption asked for is absent."""
    found = {
        name: state.total[name] / state.pictures[name] for name in SCORES if state.pictures[name]
    }
    if state.prompts:
        found["meaningful_diversity"] = state.diversity / state.prompts
    return found
