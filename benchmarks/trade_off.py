"""The picture of the README: how different and how faithful each method's pictures are.

    python benchmarks/trade_off.py [--results=benchmarks/results/methods.json]
        [--trained=benchmarks/results/methods_trained.json] [--out=benchmarks/results]
        [--x=meaningful_diversity] [--y=all]

Reads what ``benchmarks/methods.py`` wrote of the base model and of the one that the main job made
of it, and draws a point for each method into ``trade_off.png``, ``.svg`` and ``.csv``. Triangles
cost more evaluations of the velocity than plain sampling. The line joins what no other point beats
in both.
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
    results = Path("benchmarks/results")
    parser.add_argument("--results", type=Path, default=results / "methods.json")
    parser.add_argument("--trained", type=Path, default=results / "methods_trained.json")
    parser.add_argument("--out", type=Path, default=results)
    parser.add_argument("--x", default="meaningful_diversity")
    parser.add_argument("--y", default="all")
    args = parser.parse_args()
    base, trained = (
        {row["method"]: row for row in json.loads(path.read_text())["rows"]}
        for path in (args.results, args.trained)
    )
    true = base.pop(TRUE)
    plain = base[GROUND]["evaluations"]
    after = {
        "trained" if name == GROUND else f"trained + {name}": row
        for name, row in trained.items()
        if name != TRUE
    }
    rows = base | after
    points = {name: (row[args.x], row[args.y]) for name, row in rows.items()}
    front = pareto.front(np.array(list(points.values())))
    best = sorted(at for at, there in zip(points.values(), front, strict=True) if there)

    def draw(axes: Axes) -> None:
        axes.plot(*zip(*best, strict=True), color=figures.GREY, linewidth=1, zorder=1)
        for name, at in points.items():
            dear = rows[name]["evaluations"] > plain
            colour = "black" if name == GROUND else figures.COLOURS[1 if name in base else 0]
            size = 60 if name in (GROUND, "trained") else 36
            axes.scatter(*at, zorder=2, color=colour, s=size, marker="^" if dear else "o")
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
        for mark, told in (("o", f"{plain:g} evaluations a prompt"), ("^", "more")):
            axes.scatter([], [], color=figures.GREY, marker=mark, s=36, label=told)
        for colour, told in ((1, "base model"), (0, "after the longer main job")):
            axes.scatter([], [], color=figures.COLOURS[colour], s=36, label=told)
        axes.legend(loc="lower left", fontsize=8)
        axes.margins(0.1, 0.16)
        axes.set_xlabel(figures.called(args.x))
        axes.set_ylabel(figures.called(args.y))
        figures.names(axes, points, bold=GROUND)

    table = [["method", args.x, args.y], *([name, *at] for name, at in points.items())]
    made = figures.save(args.out, "trade_off", "Different and faithful", draw, table, size=(8, 5.2))
    print(f"written to {made.file}")


if __name__ == "__main__":
    main()
