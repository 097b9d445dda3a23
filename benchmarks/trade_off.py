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
        figures.names(axes, points, bold=GROUND)

    table = [["method", args.x, args.y], *([name, *at] for name, at in points.items())]
    made = figures.save(args.out, "trade_off", "Different and faithful", draw, table, size=(8, 5.2))
    print(f"written to {made.file}")


if __name__ == "__main__":
    main()
