"""A study's rows -> what was gained and what it cost: trade-offs, curves, one page.

Settings that differ in the seed alone are one point, the mean over seeds; its interval is
Student's of 95 %, and with one seed there is none.
"""

import csv
import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from cosdiff_jax.metrics import pareto
from cosdiff_jax.report import figures
from cosdiff_jax.report.measures import ROWS
from cosdiff_jax.report.page import write_page

# What tells one setting from another, in the order of the table.
SETTING = ("training", "weight", "method", "guidance", "num", "candidates")
# (across, up); a measure that is better lower is turned round for the front.
TRADES = (
    ("all", "meaningful_diversity"),
    ("clip_score", "mean_cosine"),
    ("frechet", "mean_cosine"),
)
SHOWN = ("mean_cosine", "clip_score", "all", "meaningful_diversity", "frechet", "recall", "seconds")

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """All seeds of one setting.

    Attributes:
      said: its knobs by name.
      rows: one of each seed.
    """

    said: Mapping[str, Any]
    rows: Sequence[Row]

    @property
    def name(self) -> str:
        """Short, for a legend."""
        said = self.said
        weight = f" {said['weight']:g}" if said.get("weight") else ""
        method = "" if said["method"] == "independent" else f" + {said['method']}"
        return f"{said['training']}{weight}{method}, s={said['guidance']:g}, K={said['num']}"

    def cell(self, measure: str) -> dict[str, float] | None:
        """Mean over seeds, and its interval where there are two; None where nobody measured it."""
        values = np.array([row[measure] for row in self.rows if row.get(measure) is not None])
        values = values[np.isfinite(values)]
        if not len(values):
            return None
        mean = float(values.mean())
        if len(values) < 2:
            return {"mean": mean}
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
        return {"mean": mean, "low": mean - float(half), "high": mean + float(half)}


def settings(rows: Sequence[Row]) -> list[Setting]:
    """The rows by setting, in the order in which they first appear."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in SETTING), []).append(row)
    return [
        Setting(said=dict(zip(SETTING, key, strict=True)), rows=found)
        for key, found in groups.items()
    ]


def write(out: Path, rows: Sequence[Row]) -> dict[str, float]:
    """``report.html``, ``table.csv`` and ``figures/`` of a study.

    Args:
      out: the folder.
      rows: of ``study.gather``.

    Returns:
      The hypervolume of each trade-off, against the worst in each respect of the base model drawn
      independently (or, without that one, of all settings).
    """
    found = settings(rows)
    true = Setting(said={"training": "true"}, rows=[_true(row) for row in rows])
    drawn, volumes = [], {}
    for x, y in TRADES:
        figure, volume = _trade(out / "figures", found, true, x, y)
        if figure is not None:
            drawn.append(figure)
            volumes[f"{y} against {x}"] = volume
    for knob in ("weight", "num", "guidance"):
        drawn += _curves(out / "figures", found, true, knob)
    with open(out / "table.csv", "w", newline="") as file:
        lines = csv.writer(file)
        parts = [f"{m}{p}" for m in SHOWN for p in ("", "_low", "_high")]
        lines.writerow([*SETTING, "seeds", *parts])
        for each in found:
            cells = [each.cell(measure) or {} for measure in SHOWN]
            values = [cell.get(p) for cell in cells for p in ("mean", "low", "high")]
            lines.writerow([*(each.said[n] for n in SETTING), len(each.rows), *values])
    _page(out / "report.html", found, true, drawn, volumes)
    return volumes


def _true(row: Row) -> Row:
    return {k.removeprefix("true_"): v for k, v in row.items() if k.startswith("true_")}


def _better(measure: str, cell: Mapping[str, float], true: Setting) -> float:
    """The mean, turned so that more is better."""
    wish = ROWS[measure].better
    aim = true.cell(measure)
    if wish == "true" and aim is not None:
        return -abs(cell["mean"] - aim["mean"])
    return cell["mean"] if wish == "higher" else -cell["mean"]


def _trade(
    folder: Path, found: Sequence[Setting], true: Setting, x: str, y: str
) -> tuple[figures.Figure | None, float]:
    there = [(each, each.cell(x), each.cell(y)) for each in found]
    points = [(each, a, b) for each, a, b in there if a is not None and b is not None]
    if len(points) < 2:
        return None, math.nan
    goals = np.array([[_better(x, a, true), _better(y, b, true)] for _, a, b in points])
    best = pareto.front(goals)
    base = [
        goal
        for goal, (each, _, _) in zip(goals, points, strict=True)
        if each.said["training"] == "base" and each.said["method"] == "independent"
    ]
    reference = np.min(base, axis=0) if base else goals.min(axis=0)

    def draw(axes: Axes) -> None:
        kinds = list(dict.fromkeys(each.said["training"] for each, _, _ in points))
        for (each, a, b), front in zip(points, best, strict=True):
            index = kinds.index(each.said["training"])
            figures.point(axes, a, b, index=index, filled=bool(front))
        for index, kind in enumerate(kinds):
            colour = figures.COLOURS[index % len(figures.COLOURS)]
            axes.plot([], [], figures.MARKS[index % len(figures.MARKS)], color=colour, label=kind)
        aim = (true.cell(x), true.cell(y))
        if aim[0] is not None and aim[1] is not None:
            axes.plot(
                aim[0]["mean"], aim[1]["mean"], "*", color=figures.GREY, markersize=13, label="true"
            )
        axes.set_xlabel(figures.called(x))
        axes.set_ylabel(figures.called(y))
        figures.legend(axes)

    heads = ["setting", *(f"{m}{p}" for m in (x, y) for p in ("", "_low", "_high")), "front"]
    rows = [
        [each.name, *(c.get(p) for c in (a, b) for p in ("mean", "low", "high")), bool(f)]
        for (each, a, b), f in zip(points, best, strict=True)
    ]
    said = f"{figures.called(y)} against {figures.called(x)}; filled: nothing is better in both"
    figure = figures.save(folder, f"{y}_against_{x}", said, draw, [heads, *rows])
    return figure, pareto.hypervolume(goals, reference)


def _curves(
    folder: Path, found: Sequence[Setting], true: Setting, knob: str
) -> list[figures.Figure]:
    """Each measure over a knob, where settings differ in nothing else."""
    lines: dict[tuple, list[Setting]] = {}
    for each in found:
        rest = tuple((name, each.said[name]) for name in SETTING if name != knob)
        # The base model is the term's weight 0.
        if knob == "weight" and each.said["training"] == "base":
            rest = (("training", "diversity"), *rest[1:])
        lines.setdefault(rest, []).append(each)
    several = {key: group for key, group in lines.items() if len(group) > 2}
    drawn = []
    for measure in ("mean_cosine", "all", "meaningful_diversity"):
        data: list[Sequence[object]] = [["line", knob, measure, "low", "high"]]
        curves = []
        for key, group in several.items():
            name = ", ".join(f"{k} {v}" for k, v in key if v and k != "candidates")
            cells = [(e.said[knob], e.cell(measure)) for e in group]
            points = sorted(((k, c) for k, c in cells if c is not None), key=lambda p: p[0])
            if len(points) > 2:
                curves.append((name, points))
                data += [[name, k, *(c.get(p) for p in ("mean", "low", "high"))] for k, c in points]
        if not curves:
            continue

        def draw(axes: Axes, curves=curves, measure=measure) -> None:
            for index, (name, points) in enumerate(curves):
                colour = figures.COLOURS[index % len(figures.COLOURS)]
                at = [k for k, _ in points]
                low, high = (
                    [c.get(part, c["mean"]) for _, c in points] for part in ("low", "high")
                )
                axes.plot(at, [c["mean"] for _, c in points], "o-", color=colour, label=name)
                axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
            aim = true.cell(measure)
            if aim is not None:
                axes.axhline(aim["mean"], color=figures.GREY, linestyle="--", label="true")
            axes.set_xlabel(knob)
            axes.set_ylabel(figures.called(measure))
            figures.legend(axes)

        said = f"{figures.called(measure)} by {knob}"
        drawn.append(figures.save(folder, f"{measure}_by_{knob}", said, draw, data))
    return drawn


def _page(
    path: Path,
    found: Sequence[Setting],
    true: Setting,
    drawn: Sequence[figures.Figure],
    volumes: Mapping[str, float],
) -> None:
    measures = [m for m in SHOWN if any(each.cell(m) is not None for each in found)]
    head = "".join(f'<th class="n">{html.escape(figures.called(m))}</th>' for m in measures)
    lines = "".join(_line(each.name, len(each.rows), each, measures) for each in found)
    lines += _line("true pictures", 0, true, measures)
    shown = "".join(
        f"<figure><figcaption>{html.escape(figure.title)}</figcaption>{figure.svg}</figure>"
        for figure in drawn
    )
    areas = "; ".join(f"{html.escape(name)}: {value:.4g}" for name, value in volumes.items())
    body = [
        f"<header><h1>Study</h1><p class='lead'>{len(found)} settings, "
        f"{sum(len(each.rows) for each in found)} rows. Intervals hold 95 %, over seeds.</p>"
        "</header>",
        f'<section><h2>In figures</h2><p class="note">Hypervolumes: {areas}.</p>'
        f'<div class="drawn">{shown}</div></section>',
        '<section><h2>In numbers</h2><div class="wide"><table class="many"><thead><tr><th></th>'
        f"{head}</tr></thead><tbody>{lines}</tbody></table></div></section>",
    ]
    write_page(path, "Study", body)


def _line(name: str, seeds: int, each: Setting, measures: Sequence[str]) -> str:
    cells = []
    for measure in measures:
        cell = each.cell(measure)
        text = "–" if cell is None else f"{cell['mean']:.3f}"
        if cell is not None and cell.get("low", 0.0) < cell.get("high", 0.0) and seeds:
            text += f"<small>±{(cell['high'] - cell['low']) / 2:.3f}</small>"
        label = html.escape(figures.called(measure))
        cells.append(f'<td class="n" data-of="{label}">{text}</td>')
    told = f"<small>{seeds} seeds</small>" if seeds else ""
    return f'<tr><th scope="row">{html.escape(name)}{told}</th>{"".join(cells)}</tr>'
