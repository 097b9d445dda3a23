"""Figures as files: a picture to print (PNG), one that scales (SVG), and its data (CSV)."""

import csv
import dataclasses
import io
import itertools
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from cosdiff_jax.report import curves as curves_lib
from cosdiff_jax.report.measures import ROWS, inner

Found = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Column -> measure -> "mean", and "low" and "high" where there is an interval."""

# Colours that differ in lightness as well, on paper and on black.
COLOURS = ("#c2571a", "#2b7bb5", "#5d9135", "#8a5bb0", "#b0903a", "#3a9c8f", "#b5485f", "#7c7c7c")
MARKS = "osD^vPX*<>hp"
# Lines and letters that can be read on white and on black, for the SVG has no ground of its own.
GREY = "#7d776d"
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cosdiff_jax",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.18,
    "legend.frameon": False,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure that has been written.

    Attributes:
      title: what it shows.
      svg: the ``<svg>`` element.
      file: path of the PNG; the SVG and the CSV have the same name.
    """

    title: str
    svg: str
    file: Path


def save(
    folder: Path,
    name: str,
    title: str,
    draw: Callable[[Axes], None],
    rows: Sequence[Sequence[object]],
    *,
    size: tuple[float, float] = (6.4, 4.4),
) -> Figure:
    """Draw into new axes and write ``name.png``, ``name.svg`` and ``name.csv``.

    Args:
      folder: made if it is not there.
      name: of the files.
      title: what the figure shows.
      draw: draws into the axes.
      rows: the data, headings first.
      size: in inches.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE):
        canvas = Canvas(figsize=size, layout="constrained")
        draw(canvas.add_subplot())
        _write(canvas, folder, name)
    with open(folder / f"{name}.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    text = (folder / f"{name}.svg").read_text()
    return Figure(title=title, svg=text[text.index("<svg") :], file=folder / f"{name}.png")


def _write(canvas: Canvas, folder: Path | epath.Path, name: str) -> None:
    looks: dict[str, dict[str, Any]] = {
        "png": {"dpi": 160, "facecolor": "white"},
        "svg": {"transparent": True, "metadata": {"Date": None, "Creator": None}},
    }
    for kind, look in looks.items():
        with (folder / f"{name}.{kind}").open("wb") as file:
            canvas.savefig(file, format=kind, **look)


def curves(folder: epath.Path, read: Mapping[str, curves_lib.Curve]) -> None:
    """The curves of a run as ``curves.png``, ``.svg`` and ``.csv``: raw values faint, means strong.

    Args:
      folder: made if it is not there; it may lie in a bucket.
      read: what ``curves.read`` gives; of nothing nothing is written.
    """
    panels = list(curves_lib.paneled(read))
    if not panels:
        return
    folder.mkdir(parents=True, exist_ok=True)
    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)
    with rc_context(STYLE):
        canvas = Canvas(figsize=(4 * across, 2.7 * down), layout="constrained")
        for place, (panel, drawn) in enumerate(panels):
            axes = canvas.add_subplot(down, across, place + 1)
            axes.set_title(panel.title, fontsize=10)
            for colour, (name, (steps, values)) in zip(itertools.cycle(COLOURS), drawn.items()):
                mean = curves_lib.smooth(values, len(values) / 40)
                axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
                axes.plot(steps, mean, color=colour, label=name.rsplit("/", 1)[-1])
            if len(drawn) > 1:
                axes.legend(fontsize=7)
        _write(canvas, folder, "curves")
    rows: dict[float, dict[str, float]] = {}
    for name, (steps, values) in read.items():
        for step, value in zip(steps, values, strict=True):
            rows.setdefault(float(step), {})[name] = float(value)
    table = io.StringIO()
    lines = csv.DictWriter(table, ["step", *read])
    lines.writeheader()
    lines.writerows({"step": f"{step:g}", **rows[step]} for step in sorted(rows))
    (folder / "curves.csv").write_text(table.getvalue())


def trade(folder: Path, found: Found, x: str, y: str) -> Figure | None:
    """One measure against another, a point for each column, with intervals where there are any.

    Returns:
      None where no two columns have both.
    """
    there = {name: table for name, table in found.items() if x in table and y in table}
    if len(there) < 2:
        return None

    def draw(axes: Axes) -> None:
        others = [name for name in there if name != "true"]
        for name, table in there.items():
            true = name == "true"
            index = 0 if true else others.index(name)
            colour = GREY if true else COLOURS[index % len(COLOURS)]
            axes.errorbar(
                table[x]["mean"],
                table[y]["mean"],
                xerr=bar(table[x]),
                yerr=bar(table[y]),
                color=colour,
                marker="*" if true else MARKS[index % len(MARKS)],
                markersize=12 if true else 7,
                elinewidth=1,
                linestyle="none",
                label=name,
            )
        axes.set_xlabel(called(x))
        axes.set_ylabel(called(y))
        legend(axes)

    heads = ["column", *(f"{m}{part}" for m in (x, y) for part in ("", "_low", "_high"))]
    rows = [
        [name, *(table[m].get(part) for m in (x, y) for part in ("mean", "low", "high"))]
        for name, table in there.items()
    ]
    title = f"{called(y)} against {inner(called(x))}"
    return save(folder, f"{y}_against_{x}", title, draw, [heads, *rows])


def point(
    axes: Axes,
    x: Mapping[str, float],
    y: Mapping[str, float],
    *,
    index: int,
    filled: bool = True,
    label: str | None = None,
) -> None:
    """One point with its intervals, in the ``index``-th colour and mark; hollow unless filled."""
    colour = COLOURS[index % len(COLOURS)]
    axes.errorbar(
        x["mean"],
        y["mean"],
        xerr=bar(x),
        yerr=bar(y),
        color=colour,
        marker=MARKS[index % len(MARKS)],
        markerfacecolor=colour if filled else "none",
        elinewidth=0.8,
        linestyle="none",
        label=label,
    )


def bars(folder: Path, found: Found) -> Figure | None:
    """Variety of each attribute that captions left open, a bar for each column."""
    names = [name for name in ROWS if name.startswith("variety_")]
    names = [name for name in names if any(name in table for table in found.values())]
    if not names:
        return None

    def draw(axes: Axes) -> None:
        width = 0.8 / len(found)
        for place, (column, table) in enumerate(found.items()):
            here = [i for i, name in enumerate(names) if name in table]
            cells = [table[names[i]] for i in here]
            axes.bar(
                [i + (place - (len(found) - 1) / 2) * width for i in here],
                [cell["mean"] for cell in cells],
                width * 0.92,
                yerr=[list(side) for side in zip(*map(_sides, cells), strict=True)],
                color=GREY if column == "true" else COLOURS[place % len(COLOURS)],
                ecolor=GREY,
                label=column,
            )
        axes.set_xticks(range(len(names)), [name.removeprefix("variety_") for name in names])
        axes.set_ylabel("Normalised entropy of what was left open")
        axes.grid(False, axis="x")
        legend(axes)

    heads = ["attribute", *(f"{c}{part}" for c in found for part in ("", "_low", "_high"))]
    rows = [
        [name, *(t.get(name, {}).get(p) for t in found.values() for p in ("mean", "low", "high"))]
        for name in names
    ]
    return save(
        folder, "variety", "Variety of each attribute", draw, [heads, *rows], size=(8.0, 4.0)
    )


def legend(axes: Axes, columns: int = 4) -> None:
    """What is what, below the axes: in at most so many columns, in fewer where names are long."""
    figure = axes.figure
    for number in range(columns, 0, -1):
        # Below the axes: inside, it would cover a point sooner or later.
        made = figure.legend(fontsize=8, loc="outside lower center", ncols=number)
        for text in made.get_texts():
            text.set_text(textwrap.fill(text.get_text(), 72))
        if number == 1 or made.get_window_extent().width <= figure.bbox.width:
            return
        made.remove()


def bar(cell: Mapping[str, float]) -> list[list[float]] | None:
    """An interval as an error bar; None where there is none."""
    return [[side] for side in _sides(cell)] if "low" in cell else None


def _sides(cell: Mapping[str, float]) -> tuple[float, float]:
    mean = cell["mean"]
    return max(0.0, mean - cell.get("low", mean)), max(0.0, cell.get("high", mean) - mean)


def called(name: str) -> str:
    """What a measure is called."""
    return ROWS[name].title if name in ROWS else name
