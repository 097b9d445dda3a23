"""What a study draws: one measure against another with its front, and each over a knob."""

import dataclasses
import math
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from cosdiff_jax.metrics import pareto
from cosdiff_jax.report import figures, labels
from cosdiff_jax.report.measures import ROWS
from cosdiff_jax.report.setting import DRAWN, PARTS, Cell, Row, Setting, named, truths

CURVES = ("mean_cosine", "all", "meaningful_diversity", "clip_score", "frechet")
NAMED = 12  # points of a figure that are all named; of more, the base and what is on the front


def values(*cells: Cell | None) -> list[float | None]:
    """Mean, low and high of each, as a CSV has them."""
    return [(cell or {}).get(part) for cell in cells for part in PARTS.values()]


def features(rows: Sequence[Row]) -> str | None:
    """The name that all rows have; None where some have none or another one."""
    names = {row.get("features") for row in rows}
    return names.pop() if len(names) == 1 else None


def called(measure: str, found: Sequence[Setting]) -> str:
    """What a measure is called, a distance with the features it is over."""
    name = features([row for each in found for row in each.rows])
    return figures.called(measure) + (f" ({name})" if measure == "frechet" and name else "")


def _better(measure: str, each: Setting) -> float:
    """The mean, turned so that more is better; NaN where nobody knows what to aim at."""
    cell, wish = each.cell(measure), ROWS[measure].better
    aim = each.true.cell(measure) if wish == "true" else None
    if cell is None or (wish == "true" and aim is None):
        return math.nan
    if aim is not None:
        return -abs(cell["mean"] - aim["mean"])
    return cell["mean"] if wish == "higher" else -cell["mean"]


def trade(
    folder: Path, found: Sequence[Setting], x: str, y: str, size: str = ""
) -> tuple[figures.Figure | None, float]:
    """One measure against another, of settings of one size; what lacks an aim is on no front."""
    there = [(each, each.cell(x), each.cell(y)) for each in found]
    points = [(each, a, b) for each, a, b in there if a is not None and b is not None]
    if len(points) < 2:
        return None, math.nan
    goals = np.array([[_better(x, each), _better(y, each)] for each, _, _ in points])
    best, known = pareto.front(goals), np.asarray(np.isfinite(goals).all(axis=1))
    plain = [each.said["training"] == "base" and each.plain for each, _, _ in points]
    base = goals[known & np.array(plain)]
    reference = (base if len(base) else goals[known]).min(axis=0, initial=math.inf)
    volume = pareto.hypervolume(goals, reference) if known.any() else math.nan
    (true, *_) = truths([row for each, _, _ in points for row in each.rows])

    def draw(axes: Axes) -> None:
        kinds = list(dict.fromkeys(each.said["training"] for each, _, _ in points))
        for (each, a, b), front in zip(points, best, strict=True):
            index = kinds.index(each.said["training"])
            if len(each.rows) < 2:  # many wide bars across one another
                a, b = {"mean": a["mean"]}, {"mean": b["mean"]}
            figures.point(axes, a, b, index=index, filled=bool(front))
        for index, kind in enumerate(kinds):
            colour = figures.COLOURS[index % len(figures.COLOURS)]
            axes.plot([], [], figures.MARKS[index % len(figures.MARKS)], color=colour, label=kind)
        aim = (true.cell(x), true.cell(y))
        star = []
        if aim[0] is not None and aim[1] is not None:
            star = [(aim[0]["mean"], aim[1]["mean"])]
            axes.plot(*star[0], "*", color=figures.GREY, markersize=13, label="true")
        axes.set_xlabel(called(x, found))
        axes.set_ylabel(called(y, found))
        axes.margins(0.1)
        figures.legend(axes)
        unnamed = [at for at in places if at not in told.values()]
        labels.beside(axes, told, others=[*unnamed, *star])

    places = [(a["mean"], b["mean"]) for _, a, b in points]
    short = _short([each for each, _, _ in points])
    told = {
        name: at
        for name, at, front, base in zip(short, places, best, plain, strict=True)
        if front or base or len(points) <= NAMED
    }
    heads = ["setting", *(f"{m}{part}" for m in (x, y) for part in PARTS), "front"]
    rows = [
        [each.name, *values(a, b), bool(front) if judged else None]
        for (each, a, b), front, judged in zip(points, best, known, strict=True)
    ]
    said = f"{called(y, found)} against {called(x, found)}{size}; "
    said += "filled: nothing is better in both"
    figure = figures.save(folder, f"{y}_against_{x}", said, draw, [heads, *rows])
    return figure, volume


def _short(found: Sequence[Setting]) -> list[str]:
    """Names without what most of them share, for a figure whose colours say the training."""
    usual = {
        knob: statistics.mode(each.said[knob] for each in found) for knob in ("guidance", "num")
    }
    names = []
    for each in found:
        unsaid = {knob: None for knob, value in usual.items() if each.said[knob] == value}
        name = dataclasses.replace(each, said={**each.said, **unsaid}).name
        names.append(name.removeprefix("base + "))
    return names


def _lines(found: Sequence[Setting], knob: str) -> dict[str, list[Setting]]:
    """Settings that differ in nothing but a knob, three at least, by what tells the lines apart."""
    groups: dict[tuple, list[Setting]] = {}
    for each in found:
        rest = {name: value for name, value in each.said.items() if name != knob}
        if knob not in DRAWN:
            # Another value is another change of the same fields of the recipe.
            changes = shlex.split(rest["flags"] or "")
            rest["flags"] = " ".join(change.split("=")[0] for change in changes)
        if each.said[knob] is not None:
            groups.setdefault(tuple(rest.items()), []).append(each)
    if knob == "weight":
        # Where nobody has trained without the term, the base model is its weight 0.
        for rest, group in groups.items():
            lacks = dict(rest)["training"] == "diversity" and all(e.said[knob] for e in group)
            drawn = [group[0].said[name] for name in DRAWN]
            group += [
                each
                for each in found
                if lacks and each.said["training"] == "base"
                if [each.said[name] for name in DRAWN] == drawn
            ]
    several = {
        rest: group
        for rest, group in groups.items()
        if len({each.said[knob] for each in group}) == len(group) > 2
    }
    told = named([Setting(said=dict(rest), rows=()) for rest in several])
    return {line.name: group for line, group in zip(told, several.values(), strict=True)}


def curves(
    folder: Path, found: Sequence[Setting], knob: str, size: str = ""
) -> list[figures.Figure]:
    """Each measure over a knob, where settings differ in nothing else; beside them the truth."""
    lines = _lines(found, knob)
    beside: dict[float, list[Row]] = {}
    for each in (each for group in lines.values() for each in group):
        beside.setdefault(each.said[knob], []).extend(each.rows)
    truth = [
        dataclasses.replace(truths(rows)[0], said={knob: value}) for value, rows in beside.items()
    ]
    drawn = []
    for measure in CURVES:
        if (measure, knob) == ("frechet", "num"):
            continue  # it falls with the number of pictures whatever they are
        curves = []
        for name, group in {**lines, "true": truth}.items():
            cells = [(each.said[knob], each.cell(measure)) for each in group]
            points = sorted(((k, c) for k, c in cells if c is not None), key=lambda p: p[0])
            if len(points) > 2:
                curves.append((name, points))
        if not any(name in lines for name, _ in curves):
            continue

        def draw(axes: Axes, curves=curves, measure=measure) -> None:
            for index, (name, points) in enumerate(curves):
                real = name == "true"
                colour = figures.GREY if real else figures.COLOURS[index % len(figures.COLOURS)]
                at, means = [k for k, _ in points], [c["mean"] for _, c in points]
                look = "--" if real else f"{figures.MARKS[index % len(figures.MARKS)]}-"
                axes.plot(at, means, look, color=colour, markersize=5, label=name)
                if not real:
                    low, high = (
                        [c.get(side, c["mean"]) for _, c in points] for side in ("low", "high")
                    )
                    axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
            at = sorted({k for _, points in curves for k, _ in points})
            if knob == "weight":
                axes.set_xscale("symlog", linthresh=min((k for k in at if k > 0), default=1.0))
            axes.set_xticks(at, [f"{k:g}" for k in at])
            axes.minorticks_off()
            axes.set_xlabel(knob)
            axes.set_ylabel(called(measure, found))
            figures.legend(axes, columns=2)

        data: list[Sequence[object]] = [["line", knob, measure, "low", "high"]]
        data += [[name, k, *values(cell)] for name, points in curves for k, cell in points]
        said, high = f"{called(measure, found)} by {knob}{size}", 4.0 + 0.1 * len(curves)
        name = f"{measure}_by_{knob}"
        drawn.append(figures.save(folder, name, said, draw, data, size=(6.4, high)))
    return drawn
