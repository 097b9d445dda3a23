"""Fields that fail as the stronger one does, only more: what guidance can move away from.

    v + (s - 1) (v_text - v_weak)

A ``Weaker`` asks for its field at the backbone that is guided: by a keyword where the same call
can be weakened, or at a network of its own.
"""

import functools
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Array, Float

from cosdiff_jax.shapes import TextStream

Backbone = Callable[..., Array]
"""(z "B ...", t "B", text of P rows) -> v "B ...".

A keyword asks for the answer of a weaker network instead: ``skip`` or ``perturb`` with numbers of
layers, or ``weaker=True``, as the classes here say.
"""


@runtime_checkable
class Weaker(Protocol):
    """A weaker field and how far to go from it.

    Attributes:
      scale: s; 1 is none, and asks nothing of the weaker field.
      interval: acts while lo <= t <= hi.
    """

    @property
    def scale(self) -> float | Float[Array, ""]:
        """See above."""
        ...

    @property
    def interval(self) -> tuple[float, float]:
        """See above."""
        ...

    def field(self, backbone: Backbone) -> Callable[[Array, Array, TextStream], Array]:
        """The weaker field beside ``backbone``, called without keywords."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Acting:
    scale: float | Float[Array, ""] = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    name: ClassVar[str]

    def __post_init__(self):
        owner = f"guidance.composed.weaker.{self.name}"
        check_interval(owner, self.interval)
        check_scale(owner, self.scale)


@dataclass(frozen=True, kw_only=True)
class Given(_Acting):
    """Any field that is at hand.

    Attributes:
      backbone: called as the stronger one is.
      scale, interval: as above.
    """

    backbone: Backbone
    name: ClassVar[str] = "given"

    def field(self, backbone: Backbone) -> Backbone:
        """The field given."""
        return self.backbone


@dataclass(frozen=True, kw_only=True)
class Autoguidance(_Acting):
    """A smaller network, or one trained for less time, reading the same caption.

    Karras et al. 2024, arXiv 2406.02507, whose w is s. Unlike the empty caption's, its
    errors say nothing of what was asked for, so that moving away from them does not draw the
    samples of a prompt together.

    Attributes:
      scale, interval: as above.
    """

    name: ClassVar[str] = "autoguidance"

    def field(self, backbone: Backbone) -> Backbone:
        """The backbone with ``weaker=True``."""
        return functools.partial(backbone, weaker=True)


@dataclass(frozen=True, kw_only=True)
class SkipLayer(_Acting):
    """The network without some of its layers, as published with SD3.5.

    With the medium one, whose blocks 7, 8 and 9 of 24 are left out with s - 1 = 2.5 in the steps
    from 1 % to 20 % of the way.

    Attributes:
      layers: numbers from 0; () is the middle one.
      scale, interval: as above.
    """

    layers: tuple[int, ...] = ()
    name: ClassVar[str] = "skip_layer"

    def field(self, backbone: Backbone) -> Backbone:
        """The backbone with ``skip``."""
        return functools.partial(backbone, skip=tuple(self.layers))


@dataclass(frozen=True, kw_only=True)
class PerturbedAttention(_Acting):
    """The network with the identity for the image's attention to itself in some layers.

    Ahn et al. 2024, arXiv 2403.17377, whose scale is s - 1. What a token reads of the caption
    stays: where one softmax runs over both, it runs there over the caption and the token itself.

    Attributes:
      layers: numbers from 0; () is the middle one.
      scale, interval: as above.
    """

    layers: tuple[int, ...] = ()
    name: ClassVar[str] = "perturbed_attention"

    def field(self, backbone: Backbone) -> Backbone:
        """The backbone with ``perturb``."""
        return functools.partial(backbone, perturb=tuple(self.layers))


def check_interval(owner: str, interval: tuple[float, float]) -> None:
    """Refuse an interval of t that no time lies in, or that is none.

    Args:
      owner: the choice of the menu that it belongs to.
      interval: (lo, hi).

    Raises:
      ValueError: not two numbers with 0 <= lo <= hi <= 1.
    """
    pair = tuple(interval)
    known = len(pair) == 2 and all(isinstance(end, numbers.Real) for end in pair)
    if not known or not 0 <= pair[0] <= pair[1] <= 1:
        raise ValueError(f"{owner}.interval must satisfy 0 <= lo <= hi <= 1, not {pair}")


def check_scale(owner: str, scale: float | Array) -> None:
    """Refuse a scale that is known and is no number.

    Args:
      owner: as above.
      scale: what only the compiled program knows passes.

    Raises:
      ValueError: it is infinite or NaN.
    """
    if isinstance(scale, numbers.Real) and not math.isfinite(scale):
        raise ValueError(f"{owner}.scale must be a finite number, not {scale}")
