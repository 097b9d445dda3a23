"""The picture of the README: how different and how faithful each method's pictures are.

    python benchmarks/trade_off.py [--results=benchmarks/results/methods.json]
        [--out=benchmarks/results] [--x=meaningful_diversity] [--y=all]

Reads what ``benchmarks/methods.py`` wrote and draws a point for each method into ``trade_off.png``,
``.svg`` and ``.csv``. The line joins the methods that no other one beats in both.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from cosdiff_jax.metrics import pareto
from cosdiff_jax.report import figures

GROUND, TRUE = "independent", "true pictures"
# Where a name may stand beside its point, in points, the best first.
PLACES = ((6, 4, "left"), (6, -10, "left"), (-6, 4, "right"), (-6, -10, "right"), (0, 10, "center"))


def label(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Names beside points, each where it covers least of what is there already."""
    canvas: list[np.ndarray] = []
    to_pixels = axes.transData.transform
    taken = [np.array([*(p - 6), *(p + 6)]) for p in map(to_pixels, points.values())]
    scale = axes.figure.dpi / 72
    for name, at in points.items():
        best = None
        for right, up, side in PLACES:
            x, y = to_pixels(at) + np.array([right, up]) * scale
            width, height = 4.6 * len(name) * scale, 9 * scale
            x -= {"left": 0, "right": width, "center": width / 2}[side]
            box = np.array([x, y, x + width, y + height])
            covered = sum(_overlap(box, other) for other in [*taken, *canvas])
            if best is None or covered < best[0]:
                best = covered, box, right, up, side
        assert best is not None
        _, box, right, up, side = best
        canvas.append(box)
        axes.annotate(
            name,
            at,
            xytext=(right, up),
            textcoords="offset points",
            ha=side,
            fontsize=8,
            fontweight="bold" if name == GROUND else "normal",
        )


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.prod(np.maximum(sides, 0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/methods.json"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--x", default="meaningful_diversity")
    parser.add_argument("--y", default="all")
    args = parser.parse_args()
    rows = json.loads(args.results.read_text())["rows"]
    points = {row["method"]: (row[args.x], row[args.y]) for row in rows if row["method"] != TRUE}
    true = next(row for row in rows if row["method"] == TRUE)
    front = pareto.front(np.array(list(points.values())))
    best = sorted(at for at, there in zip(points.values(), front, strict=True) if there)

    def draw(axes: Axes) -> None:
        axes.plot(*zip(*best, strict=True), color=figures.GREY, linewidth=1, zorder=1)
        for name, (x, y) in points.items():
            mark = {"color": "black", "s": 60} if name == GROUND else {"color": figures.COLOURS[1]}
            axes.scatter(x, y, zorder=2, **mark)
        axes.axvline(true[args.x], color=figures.GREY, linestyle=":")
        axes.annotate(
            f"{TRUE}\n(the other axis: {true[args.y]:.2f})",
            (true[args.x], 1),
            xycoords=("data", "axes fraction"),
            xytext=(-4, -4),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
        )
        axes.margins(0.1, 0.16)
        axes.set_xlabel(figures.called(args.x))
        axes.set_ylabel(figures.called(args.y))
        axes.figure.draw_without_rendering()
        label(axes, points)

    table = [["method", args.x, args.y], *([name, *at] for name, at in points.items())]
    made = figures.save(args.out, "trade_off", "Different and faithful", draw, table, size=(8, 5.2))
    print(f"written to {made.file}")


if __name__ == "__main__":
    main()
