"""A study's rows -> what was gained and what it cost: trade-offs, curves, one page.

A setting (``report/setting.py``) is one point. What is to come near the true distribution is held
to that of the same prompts and as many pictures: its diversity grows with K.
"""

import csv
import dataclasses
import html
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cosdiff_jax.metrics.bootstrap import Interval
from cosdiff_jax.report import figures, side_by_side, study_figures
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
# Trainings that tell how the caption is best read, as ``configs/study/diversity.py`` calls them.
FUSIONS = ("deep_self", "deep_cross", "shallow_self", "shallow_cross")
# Where rows were computed.
FACTS = ("features", "date", "processor", "accelerator", "devices", "memory", "system", "versions")


def write(out: Path, rows: Sequence[Row]) -> dict[str, float]:
    """``report.html``, ``table.csv`` and ``figures/`` of a study; ``fusions.csv`` if it has any.

    Args:
      out: the folder.
      rows: of ``study.gather``.

    Returns:
      The hypervolume of each trade-off, against the worst in each respect of the base model drawn
      independently (or, without that one, of all settings).
    """
    found = _seen(rows, settings)
    drawn: list[figures.Figure] = []
    volumes: dict[tuple[str, str], float] = {}
    out.mkdir(parents=True, exist_ok=True)
    size, alike = _comparable(found, ("num", "prompts", "features"))
    for x, y in TRADES:
        figure, volume = study_figures.trade(out / "figures", alike, x, y, size)
        if figure is not None:
            drawn.append(figure)
        if math.isfinite(volume):
            volumes[y, x] = volume
    for knob in KNOBS:
        names = [name for name in ("num", "prompts", "features") if name != knob]
        size, alike = _comparable(found, names)
        drawn += study_figures.curves(out / "figures", alike, knob, size)
    with open(out / "table.csv", "w", newline="") as file:
        lines = csv.writer(file)
        heads = [f"{measure}{part}" for measure in SHOWN for part in PARTS]
        lines.writerow([*SETTING, "features", "seeds", *heads, "commands"])
        for each in found:
            values = study_figures.values(*map(each.cell, SHOWN))
            told = [each.said[name] for name in SETTING]
            told += [study_figures.features(each.rows), len(each.rows)]
            lines.writerow([*told, *values, "\n".join(each.commands)])
    _page(out / "report.html", found, drawn, volumes, _fusions(out / "fusions.csv", found))
    return {f"{y} against {x}": volume for (y, x), volume in volumes.items()}


def _seen(rows: Sequence[Row], group: Callable[[Sequence[Row]], list[Setting]]) -> list[Setting]:
    """Settings of rows seen by one network each: in its features alone are numbers of one kind.

    Rows from before the name was kept go with the others, unless those have several names.
    """
    parts: dict[str | None, list[Row]] = {}
    for row in rows:
        parts.setdefault(row.get("features"), []).append(row)
    if len(parts.keys() - {None}) < 2:
        return group(rows)
    return named(
        [
            dataclasses.replace(each, said={**each.said, "features": name}, also="")
            for name, own in parts.items()
            for each in group(own)
        ]
    )


def _comparable(found: Sequence[Setting], names: Sequence[str]) -> tuple[str, list[Setting]]:
    """Those of the commonest size and features: what a set comes to depends on them."""
    sizes = [tuple(each.said.get(name) for name in names) for each in found]
    size = max(dict.fromkeys(sizes), key=sizes.count)
    said = {"num": "K = {}", "prompts": "{} prompts", "features": "{}"}
    told = [said[name].format(of) for name, of in zip(names, size, strict=True) if of is not None]
    alike = [each for each, own in zip(found, sizes, strict=True) if own == size]
    return f"; {', '.join(told)}" if told else "", alike


def _page(
    path: Path,
    found: Sequence[Setting],
    drawn: Sequence[figures.Figure],
    volumes: Mapping[tuple[str, str], float],
    fusions: str,
) -> None:
    rows = [row for each in found for row in each.rows]
    table = _table(found, _seen(rows, truths), _measured(found), {})
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
        f"<section><h2>In numbers</h2>{table}</section>",
        fusions,
        _against(found),
        facts_list({name: "; ".join(each) for name, each in said.items() if each}, None),
    ]
    write_page(path, "Study", body)


def _measured(found: Sequence[Setting]) -> list[str]:
    return [m for m in SHOWN if any(each.cell(m) is not None for each in found)]


def _table(
    found: Sequence[Setting],
    true: Sequence[Setting],
    measures: Sequence[str],
    best: Mapping[str, set[str]],
) -> str:
    """Settings down, measures across; bold where a measure is best in a setting of that name."""
    names = {measure: html.escape(study_figures.called(measure, found)) for measure in measures}
    head = "".join(f'<th class="n">{name}</th>' for name in names.values())
    lines = "".join(_line(each, len(each.rows), names, best) for each in found)
    lines += "".join(_line(each, 0, names, {}) for each in true)
    return (
        f'<div class="wide"><table class="many"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _fusions(path: Path, found: Sequence[Setting]) -> str:
    """What reads the caption in another way, a table for each way to draw, and all of them as CSV.

    They are ``FUSIONS`` and what says how many layers it reads; "" and no file without any.
    """
    ways = (*DRAWN, "features")
    groups: dict[tuple, list[Setting]] = {}
    for each in found:
        if each.said["training"] in FUSIONS or each.said["layers"] is not None:
            groups.setdefault(tuple(each.said.get(name) for name in ways), []).append(each)
    measures = _measured(found)
    heads = [f"{measure}{part}" for measure in measures for part in PARTS]
    data: list[list[object]] = [["fusion", "layers", *ways, "seeds", *heads]]
    folded = ""
    drawn = [{"training": "drawn", **dict(zip(ways, key, strict=True))} for key in groups]
    told = named([Setting(said=said, rows=()) for said in drawn])
    for way, group in zip(told, groups.values(), strict=True):
        own = named([_fusion(each) for each in group])
        true = truths([row for each in own for row in each.rows])
        held = {"true": true[0], **{each.name: each for each in own}}
        cells = {
            name: {m: cell for m in measures if (cell := each.cell(m)) is not None}
            for name, each in held.items()
        }
        best = {measure: side_by_side.best(measure, cells) for measure in measures}
        folded += (
            f"<details{' open' * (not folded)}><summary>{html.escape(way.name)}</summary>"
            f"{_table(own, true, measures, best)}</details>"
        )
        for each in group:
            name = [each.said[n] for n in ("training", "layers", *DRAWN)]
            values = study_figures.values(*map(each.cell, measures))
            data.append([*name, study_figures.features(each.rows), len(each.rows), *values])
    if not folded:
        return ""
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(data)
    return (
        '<section><h2>Which layers to fuse</h2><p class="note">Bold: the best, and what cannot be '
        "told from it; nothing where no interval tells. Where true pictures have a value, nearest "
        f"to it is best.</p>{folded}</section>"
    )


def _fusion(each: Setting) -> Setting:
    """Called by the fusion and its layers; its commands stand with all settings."""
    said = {name: each.said[name] for name in SETTING if name not in DRAWN}
    if said["layers"] is not None:
        said["training"] += f", layers {said['layers']:g}"
    return Setting(said=said, rows=[{**row, "command": None} for row in each.rows])


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


def _line(each: Setting, seeds: int, names: Mapping[str, str], best: Mapping[str, set[str]]) -> str:
    cells = []
    for measure, label in names.items():
        value = each.cell(measure)
        if value is not None and not seeds:
            value = {"mean": value["mean"]}
        text = side_by_side.cell(ROWS[measure], value)
        chosen = " after" if each.name in best.get(measure, ()) else ""
        cells.append(f'<td class="n{chosen}" data-of="{label}">{text}</td>')
    told = f"<small>{seeds} seed{'s' * (seeds > 1)}</small>" if seeds else ""
    line = f'<tr><th scope="row">{html.escape(each.name)}{told}</th>{"".join(cells)}</tr>'
    if each.commands:
        typed = html.escape("\n".join(each.commands))
        line += (
            f'<tr><td colspan="{len(names) + 1}" style="grid-column:1/-1"><details><summary>'
            '<small style="display:inline">Commands</small></summary><pre style="white-space:'
            f'pre-wrap;overflow-wrap:anywhere">{typed}</pre></details></td></tr>'
        )
    return line
