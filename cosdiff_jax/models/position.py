"""How image tokens know where they are: a learned-free table added once, or rotary angles.

A family member answers two questions, either with None:

    embedding(h, w, width)               -> [N, D], added to the image tokens
    angles(h, w, start, head_size)       -> [P or 1, N, E/2], turned into queries and keys

``start`` is the position of the first image token: the number of real text tokens of each prompt
where image and text share one attention, else 0. Tokens run row by row.
"""

import dataclasses
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ape:
    """Absolute position embedding: fixed 2-D sine and cosine, cut from the middle of a large grid.

    Token (i, j) of the grid of ``max_size`` x ``max_size`` sits at (i, j) base_size / max_size; the
    first half of the width holds sin and cos of the column, the other half of the row, with
    frequencies 10000^(-2 k / (D / 2)) (Stable Diffusion 3, arXiv 2403.03206, section 5.3.2).
    """

    max_size: int = 64
    base_size: int = 16

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
        if width % 4:
            raise ValueError(
                f"absolute position embedding needs a width divisible by 4, not {width}"
            )
        unit = self.base_size / self.max_size
        rows = ((self.max_size - h) // 2 + np.arange(h)) * unit
        columns = ((self.max_size - w) // 2 + np.arange(w)) * unit
        f = 10000.0 ** (-np.arange(width // 4) / (width // 4))

        def waves(p: np.ndarray) -> np.ndarray:
            return np.concatenate([np.sin(p[:, None] * f), np.cos(p[:, None] * f)], axis=-1)

        table = [np.tile(waves(columns), (h, 1)), np.repeat(waves(rows), w, axis=0)]
        return jnp.asarray(np.concatenate(table, axis=-1), jnp.float32)

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
class MRope(_Rotary):
    """M-RoPE (Qwen2-VL, arXiv 2409.12191): one table for text (p, p) and image (row, column)."""

    def angles(
        self, h: int, w: int, start: Int[Array, " P"], head_size: int
    ) -> Float[Array, "P N half"]:
        """See ``rope.angles_m``."""
        return rope.angles_m(*_grid(h, w, start), head_size, self.base)
