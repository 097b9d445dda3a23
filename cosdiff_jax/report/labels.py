"""Names beside the points of a figure, so that each can be read and its point be found."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from cosdiff_jax.report.figures import GREY

# Where a name may stand beside its point, in typographical points, the best first.
_NEAR = (
    *((6, 4, "left"), (6, -10, "left"), (-6, 4, "right"), (-6, -10, "right")),
    *((0, 9, "center"), (0, -15, "center"), (8, -3, "left"), (-8, -3, "right")),
    *((4, 14, "left"), (4, -20, "left"), (-4, 14, "right"), (-4, -20, "right")),
)
# Further off, at the end of a thin line, where a crowd leaves no room beside it.
_OFF = tuple(
    (away * math.cos(angle), away * math.sin(angle) - 3, "left" if math.cos(angle) > 0 else "right")
    for away in (18, 26, 36, 48, 62, 78, 96)
    for angle in (math.pi * (n + 0.5) / 10 for n in range(20))  # none upright
)
_PLACES = (*_NEAR, *_OFF)
_LINE: dict[str, Any] = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkB": 4}
_ROUNDS = 6  # in which each name may move once
# What a square pixel over another name costs is 1.
_OUTSIDE = 4.0  # a square pixel beyond the axes
_AWAY = 2.0  # a typographical point of a line
_DOUBT = 60.0  # each other point that is no further from the name than its own
_CROSSED = 10.0  # a square pixel of a line, as wide as it is _BITS boxes, over a name or a point
_BITS = np.linspace(0.25, 0.95, 10)  # where along its line they are


def beside(
    axes: Axes,
    points: Mapping[str, tuple[float, float]],
    *,
    others: Sequence[tuple[float, float]] = (),
    bold: str = "",
) -> None:
    """Write each name where it covers least of other names and points, within the axes.

    Where a crowd leaves no room, a name stands off and a thin line leads to its point. To be
    called when everything else is drawn and the limits are set.

    Args:
      axes: where the points are.
      points: name -> (x, y).
      others: points without a name, not to be covered either.
      bold: the name that stands out.
    """
    if not points:
        return
    canvas = axes.get_figure(root=True)
    assert canvas is not None
    canvas.draw_without_rendering()  # settles where the data lie
    scale = canvas.dpi / 72
    at = axes.transData.transform(list(points.values()))
    taken = np.concatenate([at, axes.transData.transform(list(others))]) if others else at
    marks = np.hstack([taken - 6, taken + 6])
    weights = ["bold" if name == bold else "normal" for name in points]
    sizes = []
    for (name, here), weight in zip(points.items(), weights, strict=True):
        # Where it is: beyond the axes a note has no size.
        text = axes.annotate(name, here, fontsize=8, fontweight=weight)
        sizes.append(text.get_window_extent().size)
        text.remove()
    boxes, lines = _boxes(at, np.array(sizes), scale), _lines(at, scale)
    inside = np.ravel(axes.get_window_extent().get_points())
    alone = _overlaps(boxes, marks).sum(-1) - _OUTSIDE * _overlaps(boxes, inside[None])[..., 0]
    alone += [0.0] * len(_NEAR) + [_AWAY * math.hypot(x, y) for x, y, _ in _OFF]
    for number, point in enumerate(at):
        # A line begins at its own point, and at those that lie on it.
        apart = np.abs(taken - point).max(-1) > 6
        alone[number] += _CROSSED * _overlaps(lines[number], marks[apart]).sum((-1, -2))
        own = np.where(np.arange(alone.shape[1]) < len(_NEAR), _away(boxes[number], point), 0)
        rest = np.array([_away(boxes[number], it) for it in taken[apart]]).reshape(-1, len(own))
        alone[number] += _DOUBT * (rest < own + 4).sum(0)
    chosen = np.full(len(at), -1)
    for _ in range(_ROUNDS):
        for number in range(len(at)):
            placed = np.flatnonzero((chosen >= 0) & (np.arange(len(at)) != number))
            told = boxes[placed, chosen[placed]]
            drawn = lines[placed, chosen[placed]].reshape(-1, 4)
            cost = alone[number] + _overlaps(boxes[number], told).sum(-1)
            cost += _CROSSED * _overlaps(boxes[number], drawn).sum(-1)
            cost += _CROSSED * _overlaps(lines[number], told).sum((-1, -2))
            chosen[number] = np.argmin(cost)
    for (name, here), weight, place in zip(points.items(), weights, chosen, strict=True):
        right, up, side = _PLACES[place]
        line = {**_LINE, "relpos": (0 if side == "left" else 1, 0.5)}
        axes.annotate(
            *(name, here),
            xytext=(right, up),
            textcoords="offset points",
            ha=side,
            fontsize=8,
            fontweight=weight,
            arrowprops=line if place >= len(_NEAR) else None,
        )


def _boxes(at: np.ndarray, sizes: np.ndarray, scale: float) -> np.ndarray:
    """[N, P, 4], left, bottom, right and top of each name at each place, in pixels."""
    shift = np.array([(x, y) for x, y, _ in _PLACES]) * scale
    back = np.array([{"left": 0.0, "center": 0.5, "right": 1.0}[side] for *_, side in _PLACES])
    low = at[:, None] + shift
    low[..., 0] -= back * sizes[:, None, 0]
    return np.concatenate([low, low + sizes[:, None]], axis=-1)


def _lines(at: np.ndarray, scale: float) -> np.ndarray:
    """[N, P, B, 4], small boxes along the line to each place; of no size where there is none."""
    to = np.array([(x, y + 3) for x, y, _ in _PLACES]) * scale
    along = at[:, None, None] + to[:, None] * _BITS[:, None]
    half = np.array([0] * len(_NEAR) + [1] * len(_OFF))[:, None, None]
    return np.concatenate([along - half, along + half], axis=-1)


def _away(boxes: np.ndarray, point: np.ndarray) -> np.ndarray:
    """[P], how far a point is from each box [P, 4], in pixels."""
    nearest = np.clip(point, boxes[:, :2], boxes[:, 2:])
    return np.hypot(*(nearest - point).T)


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[..., K], the area of each box [..., 4] that each of others [K, 4] covers."""
    low = np.maximum(boxes[..., None, :2], others[:, :2])
    high = np.minimum(boxes[..., None, 2:], others[:, 2:])
    return np.prod(np.maximum(high - low, 0), axis=-1)
