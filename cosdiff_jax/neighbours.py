"""Has a model learnt its training pictures by heart? The nearest of them to what it draws."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from cosdiff_jax.data.groups import Source

# Products of vectors formed at once.
BLOCK = 4096


@runtime_checkable
class Sees(Protocol):
    """Looks at pictures: ``survey.Eye``."""

    @property
    def rows(self) -> int:
        """Pictures looked at in one call."""
        ...

    def see(self, images: UInt8[np.ndarray, "n X Y C"]) -> Float[np.ndarray, "n F"]:
        """Unit vectors."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Training pictures by their vectors.

    A picture near to one of them is not copied yet: real pictures that nobody trained on have
    near ones too. How near those are says what is chance.

    Attributes:
      source: groups with "images".
      f: unit vectors of the first pictures, group by group.
      place: of each, (group, picture of the group).
    """

    source: Source
    f: Float[np.ndarray, "m F"]
    place: Int[np.ndarray, "m 2"]

    def nearest(
        self, f: Float[np.ndarray, "n F"]
    ) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """The largest cosine of each vector with a training picture, and that picture's number."""
        cosine, number = np.full(len(f), -np.inf, np.float32), np.zeros(len(f), np.int64)
        for first in range(0, len(self.f), BLOCK):
            found = f @ self.f[first : first + BLOCK].T
            best = found.argmax(axis=1)
            value = found[np.arange(len(f)), best]
            better = value > cosine
            cosine, number = np.where(better, value, cosine), np.where(better, first + best, number)
        return cosine, number

    def pictures(self, numbers: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n X Y C"]:
        """The training pictures of these numbers."""
        found = [self.source[int(group)]["images"][k] for group, k in self.place[numbers]]
        return np.stack(found)


def of_training(source: Source, eye: Sees, number: int) -> Neighbours:
    """The first pictures of a training set, as many groups as hold ``number``, made ready.

    Raises:
      ValueError: no picture was asked for.
    """
    if number < 1:
        raise ValueError(f"--training={number}: nothing to compare with")
    f, place, waiting = [], [], []
    bar = tqdm(total=number, desc="Training pictures", unit=" pictures")

    def look() -> None:
        if waiting:
            f.append(eye.see(np.concatenate(waiting)))
            waiting.clear()

    with bar:
        for group in range(len(source)):
            images = source[group]["images"]
            waiting.append(images)
            place += [(group, k) for k in range(len(images))]
            bar.update(len(images))
            if sum(map(len, waiting)) >= eye.rows:
                look()
            if len(place) >= number:
                break
        look()
    return Neighbours(source=source, f=np.concatenate(f), place=np.array(place))
