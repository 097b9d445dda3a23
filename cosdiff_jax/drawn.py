"""A model's pictures as a source of groups, drawn when they are asked for."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from cosdiff_jax.diverse import Samples
from cosdiff_jax.report import facts


@runtime_checkable
class Draw(Protocol):
    """Draws k pictures of each prompt: ``diverse.DiverseSampler``."""

    @property
    def total(self) -> int:
        """Pictures of a prompt that are drawn."""
        ...

    def __call__(self, prompts: Sequence[str], *, seed: int = 0) -> Samples:
        """Pictures of P prompts."""
        ...


@dataclasses.dataclass(kw_only=True)
class DrawnGroups:
    """Groups of pictures of given prompts.

    A group is its prompt's fields with "images" and what they cost: "cost" holds ``evaluations``
    of the velocity, ``seconds`` and ``peak_mib`` (``facts.peak``). Neighbouring prompts are drawn
    together; what a prompt gets does not depend on that.

    Attributes:
      draw: k pictures of each prompt.
      prompts: of each, "caption" and whatever else is known.
      seed: of the noise.
      rows: pictures drawn together.
    """

    draw: Draw
    prompts: Sequence[Mapping[str, Any]]
    seed: int = 0
    rows: int = 64

    def __post_init__(self):
        self._first = -1
        self._seconds = self._peak = 0.0
        self._samples: Samples | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        together = self._together
        first = index // together * together
        if first != self._first or self._samples is None:
            began = time.perf_counter()
            self._samples = self._drawn(range(first, first + together))
            self._first, self._seconds = first, (time.perf_counter() - began) / together
            self._peak, _ = facts.peak()
        samples, cost = self._samples, {"seconds": self._seconds, "peak_mib": self._peak}
        cost["evaluations"] = samples.evaluations
        return {**self.prompts[index], "images": samples.images[index - first], "cost": cost}

    def several(self, indices: Sequence[int]) -> list[UInt8[np.ndarray, "k X Y C"]]:
        """The pictures of prompts that need not be neighbours, drawn together."""
        found = []
        for first in range(0, len(indices), self._together):
            part = indices[first : first + self._together]
            found += list(self._drawn(part).images[: len(part)])
        return found

    @property
    def _together(self) -> int:
        return min(len(self), max(1, self.rows // self.draw.total))

    def _drawn(self, indices: Sequence[int]) -> Samples:
        # Filled up with the first prompts: one shape, one program.
        numbers = [*indices, *range(self._together - len(indices))]
        captions = [self.prompts[number % len(self)]["caption"] for number in numbers]
        return self.draw(captions, seed=self.seed)
