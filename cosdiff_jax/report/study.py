"""A study's rows -> what was gained and what it cost: trade-offs, curves, one page.

A setting (``report/setting.py``) is one point. What is to come near the true distribution is held
to that of the same prompts and as many pictures: its diversity grows with K.
"""

import csv
import dataclasses
import html
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from cosdiff_jax.metrics import pareto
from cosdiff_jax.metrics.bootstrap import Interval
from cosdiff_jax.report import figures, side_by_side
from cosdiff_jax.report.measures import ROWS, inner
from cosdiff_jax.report.page import facts_list, write_page
from cosdiff_jax.report.setting import (
    DRAWN,
    PARTS,
    SETTING,
    Cell,
    Row,
    Setting,
    named,
    settings,
    truths,
)

# What measures are drawn over.
KNOBS = ("weight", "samples", "layers", "num", "guidance")
# (across, up); a measure that is better lower is turned round for the front.
TRADES = (
    ("all", "meaningful_diversity"),
    ("clip_score", "meaningful_diversity"),
    ("frechet", "meaningful_diversity"),
    ("clip_score", "mean_cosine"),
    ("frechet", "mean_cosine"),
)
SHOWN = (
    *("mean_cosine", "clip_score", "all", "meaningful_diversity", "frechet", "recall"),
    *("evaluations", "seconds"),
)
NAMED = 12  # points of a figure that are all named; of more, the base and what is on the front
# Where rows were computed.
FACTS = ("date", "processor", "accelerator", "devices", "memory", "system", "versions")


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
    drawn: list[figures.Figure] = []
    volumes: dict[tuple[str, str], float] = {}
    out.mkdir(parents=True, exist_ok=True)
    size, alike = _comparable(found, ("num", "prompts"))
    for x, y in TRADES:
        figure, volume = _trade(out / "figures", alike, x, y, size)
        if figure is not None:
            drawn.append(figure)
        if math.isfinite(volume):
            volumes[y, x] = volume
    for knob in KNOBS:
        size, alike = _comparable(found, [n for n in ("num", "prompts") if n != knob])
        drawn += _curves(out / "figures", alike, knob, size)
    with open(out / "table.csv", "w", newline="") as file:
        lines = csv.writer(file)
        heads = [f"{measure}{part}" for measure in SHOWN for part in PARTS]
        lines.writerow([*SETTING, "seeds", *heads, "commands"])
        for each in found:
            values = _values(*map(each.cell, SHOWN))
            told = [each.said[name] for name in SETTING]
            lines.writerow([*told, len(each.rows), *values, "\n".join(each.commands)])
    _page(out / "report.html", found, drawn, volumes)
    return {f"{y} against {x}": volume for (y, x), volume in volumes.items()}


def _values(*cells: Cell | None) -> list[float | None]:
    return [(cell or {}).get(part) for cell in cells for part in PARTS.values()]


def _comparable(found: Sequence[Setting], names: Sequence[str]) -> tuple[str, list[Setting]]:
    """The settings of the commonest size: on it depends what a set comes to, and the truth."""
    sizes = [tuple(each.said[name] for name in names) for each in found]
    size = max(dict.fromkeys(sizes), key=sizes.count)
    said = {"num": "K = {}", "prompts": "{} prompts"}
    told = [said[name].format(of) for name, of in zip(names, size, strict=True) if of is not None]
    alike = [each for each, own in zip(found, sizes, strict=True) if own == size]
    return f"; {', '.join(told)}" if told else "", alike


def _better(measure: str, each: Setting) -> float:
    """The mean, turned so that more is better; NaN where nobody knows what to aim at."""
    cell, wish = each.cell(measure), ROWS[measure].better
    aim = each.true.cell(measure) if wish == "true" else None
    if cell is None or (wish == "true" and aim is None):
        return math.nan
    if aim is not None:
        return -abs(cell["mean"] - aim["mean"])
    return cell["mean"] if wish == "higher" else -cell["mean"]


def _trade(
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
        if aim[0] is not None and aim[1] is not None:
            axes.plot(
                aim[0]["mean"], aim[1]["mean"], "*", color=figures.GREY, markersize=13, label="true"
            )
        axes.set_xlabel(figures.called(x))
        axes.set_ylabel(figures.called(y))
        axes.margins(0.1)
        figures.legend(axes)
        figures.names(axes, told, others=[at for at in places if at not in told.values()])

    places = [(a["mean"], b["mean"]) for _, a, b in points]
    short = _short([each for each, _, _ in points])
    told = {
        name: at
        for name, at, front, base in zip(short, places, best, plain, strict=True)
        if front or base or len(points) <= NAMED
    }
    heads = ["setting", *(f"{m}{part}" for m in (x, y) for part in PARTS), "front"]
    rows = [
        [each.name, *_values(a, b), bool(front) if judged else None]
        for (each, a, b), front, judged in zip(points, best, known, strict=True)
    ]
    said = f"{figures.called(y)} against {figures.called(x)}{size}; "
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


def _curves(
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
    for measure in ("mean_cosine", "all", "meaningful_diversity"):
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
            axes.set_ylabel(figures.called(measure))
            figures.legend(axes, columns=2)

        data: list[Sequence[object]] = [["line", knob, measure, "low", "high"]]
        data += [[name, k, *_values(cell)] for name, points in curves for k, cell in points]
        said, high = f"{figures.called(measure)} by {knob}{size}", 4.0 + 0.1 * len(curves)
        name = f"{measure}_by_{knob}"
        drawn.append(figures.save(folder, name, said, draw, data, size=(6.4, high)))
    return drawn


def _page(
    path: Path,
    found: Sequence[Setting],
    drawn: Sequence[figures.Figure],
    volumes: Mapping[tuple[str, str], float],
) -> None:
    rows = [row for each in found for row in each.rows]
    measures = [m for m in SHOWN if any(each.cell(m) is not None for each in found)]
    head = "".join(f'<th class="n">{html.escape(figures.called(m))}</th>' for m in measures)
    lines = "".join(_line(each, len(each.rows), measures) for each in found)
    lines += "".join(_line(true, 0, measures) for true in truths(rows))
    shown = "".join(
        f"<figure><figcaption>{html.escape(figure.title)}</figcaption>{figure.svg}</figure>"
        for figure in drawn
    )
    areas = "; ".join(
        html.escape(f"{figures.called(y)} against {inner(figures.called(x))} {volume:.4g}")
        for (y, x), volume in volumes.items()
    )
    said = {name: sorted({str(row[name]) for row in rows if row.get(name)}) for name in FACTS}
    body = [
        f"<header><h1>Study</h1><p class='lead'>{len(found)} settings, {len(rows)} rows. "
        "Intervals hold 95 %, over seeds; with one seed, over its prompts.</p></header>",
        f'<section><h2>In figures</h2><p class="note">Hypervolumes: {areas or "none"}.</p>'
        f'<div class="drawn">{shown}</div></section>',
        '<section><h2>In numbers</h2><div class="wide"><table class="many"><thead><tr><th></th>'
        f"{head}</tr></thead><tbody>{lines}</tbody></table></div></section>",
        _against(found),
        facts_list({name: "; ".join(each) for name, each in said.items() if each}, None),
    ]
    write_page(path, "Study", body)


def _against(found: Sequence[Setting]) -> str:
    """What each setting has more than the base model; "" where nobody measured it."""
    names = [m for m in SHOWN if any(each.cell(f"{m}_change") is not None for each in found)]
    lines = []
    for each in found:
        cells = [each.cell(f"{name}_change") for name in names]
        if any(cells):
            ground = next(row["against"] for row in each.rows if row.get("against"))
            shown = "".join(
                side_by_side.apart_cell(ROWS[name], figures.called(name), _interval(cell))
                for name, cell in zip(names, cells, strict=True)
            )
            told = f"{html.escape(each.name)}<small>{html.escape(ground)}</small>"
            lines.append(f'<tr><th scope="row">{told}</th>{shown}</tr>')
    if not lines:
        return ""
    head = "".join(f'<th class="n">{html.escape(figures.called(name))}</th>' for name in names)
    return (
        '<section><h2>Against the base</h2><p class="note">Drawn of the same prompts from the same '
        "noise, prompt by prompt; below each setting stands what it is held to. Intervals as "
        'above. Bold: it leaves 0 out.</p><div class="wide"><table class="many"><thead><tr>'
        f"<th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _interval(cell: Cell | None) -> Interval | None:
    if cell is None or "low" not in cell:
        return None
    return Interval(cell["mean"], cell["low"], cell["high"])


def _line(each: Setting, seeds: int, measures: Sequence[str]) -> str:
    cells = []
    for measure in measures:
        value = each.cell(measure)
        if value is not None and not seeds:
            value = {"mean": value["mean"]}
        text = side_by_side.cell(ROWS[measure], value)
        label = html.escape(figures.called(measure))
        cells.append(f'<td class="n" data-of="{label}">{text}</td>')
    told = f"<small>{seeds} seed{'s' * (seeds > 1)}</small>" if seeds else ""
    line = f'<tr><th scope="row">{html.escape(each.name)}{told}</th>{"".join(cells)}</tr>'
    if each.commands:
        typed = html.escape("\n".join(each.commands))
        line += (
            f'<tr><td colspan="{len(measures) + 1}" style="grid-column:1/-1"><details><summary>'
            '<small style="display:inline">Commands</small></summary><pre style="white-space:'
            f'pre-wrap;overflow-wrap:anywhere">{typed}</pre></details></td></tr>'
        )
    return line
