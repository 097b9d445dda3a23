"""How image tokens know where they are: a learned-free table added once, or rotary angles.

A family member answers two questions, either with None:

    embedding(h, w, width)               -> [N, D], added to the image tokens
    angles(h, w, start, head_size)       -> [P or 1, N, E/2], turned into queries and keys

``start`` is the position of the first image token: the number of real text tokens of each prompt
where image and text share one attention, else 0. Tokens run row by row.
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cosdiff_jax.models import rope


@runtime_checkable
class Position(Protocol):
    """What a positional encoding offers a backbone."""

    def embedding(self, h: int, w: int, width: int) -> Float[Array, "N D"] | None:
        """The table to add to h x w image tokens, or None."""
        ...

    def angles(
        self, h: int, w: int, start: Int[Array, " P"], head_size: int
    ) -> Float[Array, "P N half"] | None:
        """The angles (radians) to turn queries and keys by, or None."""
        ...


def _grid(h: int, w: int, start: Int[Array, " P"]) -> tuple[Int[Array, "P N"], Int[Array, "P N"]]:
    rows = jnp.repeat(jnp.arange(h), w)
    columns = jnp.tile(jnp.arange(w), h)
    return start[:, None] + rows[None, :], start[:, None] + columns[None, :]


def _waves(
    rows: Float[np.ndarray, " h"], columns: Float[np.ndarray, " w"], width: int
) -> Float[Array, "N D"]:
    """sin and cos of the column, then of the row, with frequencies 10000^(-2 k / (D / 2)).

    Raises:
      ValueError: the width is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"absolute position embedding needs a width divisible by 4, not {width}")
    f = 10000.0 ** (-np.arange(width // 4) / (width // 4))

    def waves(p: np.ndarray) -> np.ndarray:
        return np.concatenate([np.sin(p[:, None] * f), np.cos(p[:, None] * f)], axis=-1)

    table = [np.tile(waves(columns), (len(rows), 1)), np.repeat(waves(rows), len(columns), axis=0)]
    return jnp.asarray(np.concatenate(table, axis=-1), jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ape:
    """Absolute position embedding: fixed 2-D sine and cosine, cut from the middle of a large grid.

    Row or column p of the grid of ``max_size`` x ``max_size``, p = 0 .. max_size - 1, sits at

        (p - (max_size - side) / 2) base_size / side

    and the picture has the h x w of them in the middle (Stable Diffusion 3, arXiv 2403.03206,
    section 5.3.2, where base_size = 256 / 16, side = S / 16 and max_size = h_max). So a square of
    ``side`` tokens spans [0, base_size), as did the smaller squares of the training before, and
    the middle of every aspect ratio has the same place. That is so for lengths that are even (or
    odd) as ``max_size`` is. Others have no middle among the whole p: they are cut as in the
    published code, from the p = (max_size - length) // 2 on, half a token too early.

    Attributes:
      max_size: most tokens on a side of any picture.
      base_size: tokens per side of the square that the first training saw.
      side: tokens per side of the square of S x S pixels trained on now; None is ``max_size``, the
        form of the published code, p base_size / max_size.
    """

    max_size: int = 64
    base_size: int = 16
    side: int | None = None

    def embedding(self, h: int, w: int, width: int) -> Float[Array, "N D"]:
        """Cut h x w from the middle of the table.

        Raises:
          ValueError: if the picture is larger than the table, or the width is no multiple of 4.
        """
        if max(h, w) > self.max_size:
            raise ValueError(
                f"{h} x {w} image tokens do not fit the {self.max_size} x {self.max_size} table "
                "of the absolute position embedding"
            )
        side = self.max_size if self.side is None else self.side

        def cut(n: int) -> np.ndarray:
            p = (self.max_size - n) // 2 + np.arange(n)
            return (p - (self.max_size - side) / 2) * (self.base_size / side)

        return _waves(cut(h), cut(w), width)

    def angles(self, h: int, w: int, start: Int[Array, " P"], head_size: int) -> None:
        """Nothing is turned."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rotary:
    base: float = 10000.0

    def embedding(self, h: int, w: int, width: int) -> Float[Array, "N D"] | None:
        """Nothing is added."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope1D(_Rotary):
    """Image tokens go on counting where the text ends, row by row."""

    def angles(
        self, h: int, w: int, start: Int[Array, " P"], head_size: int
    ) -> Float[Array, "P N half"]:
        """Plane i of token n turns by (start + n) f_i."""
        return rope.angles_1d(start[:, None] + jnp.arange(h * w)[None, :], head_size, self.base)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope2D(_Rotary):
    """1-D RoPE on text, 2-D RoPE on the image: half the planes see the row, half the column.

    Rotary angles tell where tokens are from one another, hardly where the border is: what a model
    expects of pure noise is then the same everywhere. With ``absolute``, a table as ``Ape``'s, of
    one unit a token, is added to the tokens as well.

    Attributes:
      absolute: add the table.
    """

    absolute: bool = False

    def embedding(self, h: int, w: int, width: int) -> Float[Array, "N D"] | None:
        """The table, if it was asked for."""
        if not self.absolute:
            return None
        side = max(h, w)
        return Ape(max_size=side, base_size=side).embedding(h, w, width)

    def angles(
        self, h: int, w: int, start: Int[Array, " P"], head_size: int
    ) -> Float[Array, "P N half"]:
        """See ``rope.angles_2d``."""
        return rope.angles_2d(*_grid(h, w, start), head_size, self.base)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaledRope2D(Rope2D):
    """2-D RoPE whose positions are scaled about the middle of the picture.

    Row i of h takes the position that it covers in a picture of H = ``side`` rows:

        i' = (i - (h - 1) / 2) H / h + (H - 1) / 2 = (i + 1/2) H / h - 1/2

    and columns likewise; the first image position ``start`` is added to both. Text keeps its 1-D
    positions p < start as they are: it does not grow with the picture. The middle of every picture
    is at start + (H - 1) / 2 and its borders, half a token outside the first and last ones, at
    start - 1/2 and start + H - 1/2, so that a larger picture leaves no trained interval; at h = w =
    H this is ``Rope2D``. Between image tokens only the factor counts, for their attention sees
    differences; between image and text the centring does too.

    Source: Seedream 2.0, arXiv 2503.07703, its "Scaling RoPE": a factor that depends on the
    resolution lets patches at the image centre share similar position IDs across resolutions. The
    paper prints no formula; this one follows from the sentence.

    Attributes:
      side: H, tokens per side of the square pictures that ``Rope2D`` was, or would be, trained on.
      keep_aspect: one factor, H / sqrt(h w), for both axes instead of H / h and H / w: a circle
        stays one, and pictures of H x H's area are only centred; the longer side then goes beyond
        the interval of the square.
    """

    side: int
    keep_aspect: bool = False

    def embedding(self, h: int, w: int, width: int) -> Float[Array, "N D"] | None:
        """The table at the scaled positions, if it was asked for."""
        return _waves(*self._scaled(h, w), width) if self.absolute else None

    def angles(
        self, h: int, w: int, start: Int[Array, " P"], head_size: int
    ) -> Float[Array, "P N half"]:
        """See ``rope.angles_2d``; its positions are fractions."""
        rows, columns = (jnp.asarray(p, jnp.float32) for p in self._scaled(h, w))
        rows, columns = jnp.repeat(rows, w), jnp.tile(columns, h)
        first = start[:, None]
        return rope.angles_2d(first + rows[None], first + columns[None], head_size, self.base)

    def _scaled(self, h: int, w: int) -> tuple[Float[np.ndarray, " h"], Float[np.ndarray, " w"]]:
        def along(n: int) -> np.ndarray:
            factor = self.side / (math.sqrt(h * w) if self.keep_aspect else n)
            return (np.arange(n) - (n - 1) / 2) * factor + (self.side - 1) / 2

        return along(h), along(w)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MRope(_Rotary):
    """M-RoPE (Qwen2-VL, arXiv 2409.12191): one table for text (p, p) and image (row, column)."""

    def angles(
        self, h: int, w: int, start: Int[Array, " P"], head_size: int
    ) -> Float[Array, "P N half"]:
        """See ``rope.angles_m``."""
        return rope.angles_m(*_grid(h, w, start), head_size, self.base)
