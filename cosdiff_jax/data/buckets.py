"""Aspect-ratio buckets: pictures of many shapes, batches of one shape, no padding.

Every bucket is a size H x W near S x S in area. A picture goes to the bucket whose shape is nearest
to its own, is shrunk until it just covers it, and loses what stands over on two sides; a batch is
filled from one bucket, as SD3's fine-tuning at mixed aspect ratios does (Esser et al. 2024, section
5.3.2). As many programs are compiled as buckets occur.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image


@dataclasses.dataclass(frozen=True, order=True)
class Bucket:
    """A size in pixels."""

    height: int
    width: int

    @property
    def log_aspect(self) -> float:
        """ln(W / H): 0 for a square, and of opposite sign when lying on its side."""
        return math.log(self.width / self.height)


def sizes(side: int, step: int, *, longest: float = 2.0) -> tuple[Bucket, ...]:
    """The sizes near S^2 in area, from the tallest to the widest.

    One for every short side a = S, S - step, ..., upright and lying: its long side is the multiple
    of ``step`` nearest to S^2 / a, so the area is off by at most step / 2 in a long side. To round
    short sides to given long ones would miss by more, and find the same short side twice.

    Args:
      side: S, pixels per side of the square.
      step: pixels; what both sides are divisible by: the VAE's reduction times the patch (8 x 2).
      longest: the largest ratio of long side to short side; 1 leaves the square alone.

    Raises:
      ValueError: the square is no multiple of the step, or a knob is out of range.
    """
    if side < 1 or step < 1 or side % step:
        raise ValueError(f"a side of {side} pixels is no multiple of a step of {step}")
    if longest < 1:
        raise ValueError(f"the ratio of long side to short side is at least 1, not {longest}")
    found = set()
    for short in range(side, 0, -step):
        long = round(side * side / short / step) * step
        if long > longest * short:
            break
        found |= {Bucket(short, long), Bucket(long, short)}
    return tuple(sorted(found, key=lambda bucket: bucket.log_aspect))


def nearest(height: int, width: int, buckets: Sequence[Bucket]) -> int:
    """The number of the bucket whose ln(W / H) is nearest to a picture's: least is cut off."""
    wanted = math.log(width / height)
    return min(range(len(buckets)), key=lambda b: abs(buckets[b].log_aspect - wanted))


def cover(image: Image.Image, bucket: Bucket) -> UInt8[np.ndarray, "Y X 3"]:
    """The largest part of the bucket's shape from the middle of an RGB picture, resized.

    By a triangle filter, widened for shrinking. The same picture as resizing until it covers the
    bucket and cropping the centre, in one step, with no rounding in between and no panorama that
    has to be enlarged first.
    """
    width, height = image.size
    scale = min(width / bucket.width, height / bucket.height)
    w, h = bucket.width * scale, bucket.height * scale
    # A quotient may come out a hair beyond the border, which Pillow refuses.
    left, top = max((width - w) / 2, 0.0), max((height - h) / 2, 0.0)
    box = (left, top, min(left + w, width), min(top + h, height))
    size = (bucket.width, bucket.height)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))


class Plan:
    """Which items make up batch i, for i = 0, 1, 2 ... without end, every batch from one bucket.

    In one epoch each bucket's items are shuffled and cut into batches, and the batches of all
    buckets are shuffled. Batch i is a function of the items, ``seed`` and i, so a run goes on by
    its number alone. What fills no batch is left over until the next epoch, when others are.

    Items are whatever is numbered: single pictures, or groups of K pictures of one prompt and one
    bucket. Where several hosts share a batch, each takes its rows of the same one: all must run
    the program of the same shape.

    Attributes:
      rows: items per batch.
      counts: items of each bucket.
      left_over: of each bucket, how many of its items an epoch does not show.
      never: buckets with fewer items than a batch: none of theirs is ever shown.
    """

    def __init__(self, bucket_of: Sequence[int], *, rows: int, seed: int = 0) -> None:
        """Plan.

        Args:
          bucket_of: the number of the bucket of every item.
          rows: items per batch.
          seed: of the order.

        Raises:
          ValueError: no bucket has enough items for one batch.
        """
        if rows < 1:
            raise ValueError(f"a batch has at least one row, not {rows}")
        of = np.asarray(bucket_of, np.int64)
        self.rows, self.seed = rows, seed
        self._members = {int(b): np.flatnonzero(of == b) for b in np.unique(of)}
        self.counts = {b: len(items) for b, items in self._members.items()}
        self.left_over = {b: n % rows for b, n in self.counts.items()}
        self.never = tuple(b for b, n in self.counts.items() if n < rows)
        # The batches of an epoch before they are shuffled: (bucket, which of its batches).
        self._batches = [(b, cut) for b, n in self.counts.items() for cut in range(n // rows)]
        if not self._batches:
            raise ValueError(
                f"none of the {len(self.counts)} buckets has the {rows} items of one batch: allow "
                "fewer buckets, smaller batches or more pictures"
            )

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[int, Int[np.ndarray, " rows"]]:
        """The bucket of batch ``index``, counted from the first epoch's first, and its items."""
        if index < 0:
            raise IndexError(f"batch {index}")
        epoch, place = divmod(int(index), len(self))
        # Stream 0 is the order of the batches; those above it are of the buckets.
        order = _shuffled(self.seed, epoch, 0, len(self))
        bucket, cut = self._batches[order[place]]
        members = self._members[bucket]
        dealt = _shuffled(self.seed, epoch, bucket + 1, len(members))
        return bucket, members[dealt[cut * self.rows : (cut + 1) * self.rows]]

    @property
    def summary(self) -> str:
        """One line for the user: how many batches, and how many items no batch of an epoch has."""
        total, left = sum(self.counts.values()), sum(self.left_over.values())
        line = (
            f"buckets: {total} items in {len(self.counts)} buckets, {len(self)} batches of "
            f"{self.rows} an epoch; {left} items left over"
        )
        if self.never:
            lost = sum(self.counts[b] for b in self.never)
            line += (
                f", of which {lost} are never shown: their {len(self.never)} "
                f"bucket{'s have' if len(self.never) > 1 else ' has'} fewer than {self.rows}"
            )
        return line


@functools.lru_cache(maxsize=256)
def _shuffled(seed: int, epoch: int, stream: int, number: int) -> Int[np.ndarray, " number"]:
    # Kept, for every batch of an epoch asks for the same few.
    order = np.random.default_rng([seed, epoch, stream]).permutation(number)
    order.setflags(write=False)
    return order
