"""The picture of the README: how different and how faithful each method's pictures are.

    python benchmarks/trade_off.py [--rows=benchmarks/results/comparison/rows.parquet]
        [--out=benchmarks/results] [--x=meaningful_diversity] [--y=all]

Reads the rows of ``configs/study/comparison.py``, every one of which costs a prompt as many calls
of the network, and draws a point for each way into ``trade_off.png``, ``.svg`` and ``.csv``, the
mean over seeds where there are several. What is far from all others stands as an arrow at the edge,
with its numbers. The CSV has each point's command. The line joins what no other point beats in
both. Also prints the lines of a table in Markdown, against the base model, and the commands.
"""

import argparse
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes

from cosdiff_jax import diverse
from cosdiff_jax.metrics import pareto
from cosdiff_jax.report import figures, labels

Row = Mapping[str, Any]
# Training -> its name in the legend.
TRAININGS = {
    "base": "base model",
    "trained": "trained with the diversity term",
    "aligned": "trained likewise, without it",
}
# Measure -> heading of its column, and how its mean and its change are written.
COLUMNS = {
    "mean_cosine": ("mean cosine", "{:.3f}", "{:+.3f}", 1),
    "clip_score": ("CLIP-score", "{:.3f}", "{:+.3f}", 1),
    "all": ("accuracy, %", "{:.1f}", "{:+.1f}", 100),
    "meaningful_diversity": ("meaningful diversity", "{:.3f}", "{:+.3f}", 1),
    "two_objects": ("two objects, %", "{:.0f}", "{:+.0f}", 100),
    "position": ("places, %", "{:.0f}", "{:+.0f}", 100),
}
PLAIN = {"frechet": ("Frechet", "{:.3f}", 1), "recall": ("recall, %", "{:.0f}", 100)}
PLAIN |= {"evaluations": ("evaluations", "{:.0f}", 1), "peak_mib": ("peak MiB", "{:.0f}", 1)}


def name(row: Row, usual: float) -> str:
    """Short: the training unless it is the base, the method, the guidance where it is another."""
    parts = [] if row["training"] == "base" else [row["training"]]
    parts += [] if row["method"] == "independent" else [row["method"]]
    parts += [] if row["guidance"] == usual else [f"guidance {row['guidance']:g}"]
    return " + ".join(parts) or "independent"


def place(row: Row) -> tuple[Any, ...]:
    """The base first, and each training's methods in the order of ``generate --method``."""
    first, *more = row["method"].split("+")
    known = list(diverse.METHODS)
    return list(TRAININGS).index(row["training"]), known.index(first), len(more), row["guidance"]


def mean(rows: Sequence[Row], measure: str) -> float:
    there = [row[measure] for row in rows if row.get(measure) is not None]
    return statistics.mean(there) if there else math.nan


def limits(values: Sequence[float], far: float = 5.0, margin: float = 0.12) -> tuple[float, float]:
    """Of an axis on which most points are told apart: without what is far from the middle."""
    middle = statistics.median(values)
    deviation = statistics.median(abs(value - middle) for value in values)
    near = [value for value in values if abs(value - middle) <= far * deviation]
    room = margin * (max(near) - min(near))
    return min(near) - room, max(near) + room


def along(line: Sequence[tuple[float, float]], number: int = 24) -> list[tuple[float, float]]:
    """Points on each piece of a line, for names to keep off it."""
    return [
        (float(x), float(y))
        for start, end in itertools.pairwise(line)
        for x, y in np.linspace(start, end, number)
    ]


def line(called: str, rows: Sequence[Row], prefix: str = "") -> str:
    """Of one way; of one seed a change has its interval over the prompts, bold where 0 is out."""
    cells = [f"`{called}`" if not prefix else called]
    for measure, (_, form, signed, factor) in COLUMNS.items():
        cell = form.format(factor * mean(rows, prefix + measure))
        change = [rows[0].get(f"{measure}_change{end}") for end in ("", "_low", "_high")]
        if len(rows) == 1 and not prefix and None not in change:
            said, low, high = (signed.format(factor * x) for x in change)
            sure = change[1] > 0 or change[2] < 0
            cell += f", {f'**{said}**' if sure else said} ({low} to {high})"
        cells.append(cell)
    for measure, (_, form, factor) in PLAIN.items():
        value = factor * mean(rows, prefix + measure)
        cells.append(form.format(value) if math.isfinite(value) else "")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    results = Path("benchmarks/results")
    parser.add_argument("--rows", type=Path, default=results / "comparison" / "rows.parquet")
    parser.add_argument("--out", type=Path, default=results)
    parser.add_argument("--x", default="meaningful_diversity")
    parser.add_argument("--y", default="all")
    args = parser.parse_args()
    rows = sorted(pq.read_table(args.rows).to_pylist(), key=place)
    guidances = [row["guidance"] for row in rows]
    usual = max(dict.fromkeys(guidances), key=guidances.count)
    ways: dict[str, list[Row]] = {}
    for row in rows:
        ways.setdefault(name(row, usual), []).append(row)
    points = {way: (mean(of, args.x), mean(of, args.y)) for way, of in ways.items()}
    front = pareto.front(np.array(list(points.values())))
    best = sorted(at for at, there in zip(points.values(), front, strict=True) if there)
    true = mean(rows, f"true_{args.x}"), mean(rows, f"true_{args.y}")
    colours = dict(
        zip(TRAININGS, (figures.COLOURS[1], figures.COLOURS[0], figures.COLOURS[4]), strict=True)
    )

    across, up = zip(*points.values(), strict=True)
    ends = limits([*across, true[0]]), limits(up)
    edges = np.array(ends).T
    inset = 0.02 * (edges[1] - edges[0])

    def draw(axes: Axes) -> None:
        axes.set_xlim(*ends[0])
        axes.set_ylim(*ends[1])
        axes.plot(*zip(*best, strict=True), color=figures.GREY, linewidth=1, zorder=1)
        named = {}
        for way, at in points.items():
            colour = figures.GREY if way == "independent" else colours[ways[way][0]["training"]]
            shown = np.clip(at, edges[0] + inset, edges[1] - inset)
            beyond = [int(i) for i in np.flatnonzero(shown != at)]
            marker = "o"
            for axis in beyond:  # an arrow out of the picture
                marker = ("<>", "v^")[axis][int(at[axis] > shown[axis])]
            named[f"{way} ({at[0]:.2f}, {at[1]:.2f})" if beyond else way] = tuple(shown)
            axes.scatter(
                *shown, zorder=2, color=colour, s=60 if way in plain else 36, marker=marker
            )
        axes.axvline(true[0], color=figures.GREY, linestyle=":")
        axes.annotate(
            f"true pictures\n(the other axis: {true[1]:.2f})",
            (true[0], 1),
            xycoords=("data", "axes fraction"),
            xytext=(-4, -4),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
        )
        for training, told in TRAININGS.items():
            if any(of[0]["training"] == training for of in ways.values()):
                axes.scatter([], [], color=colours[training], s=36, label=told)
        # In a frame: its dots are no points.
        frame = {"frameon": True, "facecolor": "none", "edgecolor": figures.GREY}
        axes.legend(loc="lower left", fontsize=8, **frame)
        axes.set_xlabel(figures.called(args.x))
        axes.set_ylabel(figures.called(args.y))
        upright = [(true[0], end) for end in ends[1]]
        labels.beside(axes, named, others=[*along(best), *along(upright)], bold="independent")

    plain = ("independent", *TRAININGS)
    table = [["method", args.x, args.y, "command"]]
    table += [[way, *at, ways[way][0]["command"]] for way, at in points.items()]
    title, size = "Different and faithful", (9.0, 6.4)
    made = figures.save(args.out, "trade_off", title, draw, table, size=size)
    headings = ["", *(c[0] for c in COLUMNS.values()), *(c[0] for c in PLAIN.values())]
    print(f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}")
    for way, of in ways.items():
        print(line(way, of))
    print(line("true pictures", rows[:1], "true_"))
    print("\n<details><summary>Every point's command</summary>\n\n```sh")
    for way, of in ways.items():
        print(f"# {way}", *(row["command"] for row in of), sep="\n")
    print("```\n\n</details>\n")
    print(f"written to {made.file}")


if __name__ == "__main__":
    main()
