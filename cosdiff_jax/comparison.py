"""Several surveys of the same prompts side by side: numbers with intervals, figures, a page."""

import csv
import dataclasses
import datetime
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cosdiff_jax import estimates, falling
from cosdiff_jax.metrics import manifold
from cosdiff_jax.neighbours import Neighbours
from cosdiff_jax.report import facts as facts_lib
from cosdiff_jax.report import figures, side_by_side
from cosdiff_jax.report.measures import ROWS
from cosdiff_jax.report.page import language
from cosdiff_jax.survey import Surveyed

# What tells a good picture from a bad one, the first that there is.
_RANKED = ("all", "classifier_accuracy", "clip_score")
# What is measured in the eye's features, of all pictures at once and prompt by prompt; the same
# names with a view's behind them are not.
_SETS = ("frechet", "frechet_infinity", "mmd", "mmd_unbiased", *manifold.NAMES)
_VENDI = ("vendi", "vendi_q0.5", "vendi_q2", "vendi_qinf")
_SEEN = (*_SETS, "mean_cosine", "top_cosine", *_VENDI, "clip_score", "nearest_training")
# Prompts whose pictures stand on the page, and how many of the worst and best.
SHOWN, EXTREMES = 8, 3
TRADES = (
    ("mean_cosine", "clip_score"),
    ("all", "meaningful_diversity"),
    ("mean_cosine", "frechet"),
)


Pictures = Callable[[Sequence[int]], Sequence[UInt8[np.ndarray, "_K _X _Y _C"]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """One way to make pictures.

    Attributes:
      name: its heading; "true" is the true distribution.
      surveyed: its measures.
      pictures: numbers of prompts -> the pictures of each again, for the page.
    """

    name: str
    surveyed: Surveyed
    pictures: Pictures


def write(
    out: Path,
    columns: Sequence[Column],
    *,
    reference: Surveyed | None = None,
    eye: str | None = None,
    training: Neighbours | None = None,
    facts: Mapping[str, Any] | None = None,
    page: bool = True,
) -> dict[str, Any]:
    """``metrics.json``, ``report.html``, tables (CSV) and ``figures/`` (PNG, SVG, CSV) in a folder.

    The page's pictures are in ``figures/`` too, a PNG a heading, listed in ``galleries.csv``.

    Args:
      out: the folder.
      columns: what is compared.
      reference: real pictures of the same prompts, which sets are held to.
      eye: the name of the features.
      training: what the first column's pictures may have been learnt from.
      facts: what was asked.
      page: whether to write more than the numbers.

    Returns:
      What ``metrics.json`` holds.
    """
    nearest: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    if training is not None:
        nearest = {column.name: _nearest(column.surveyed, training) for column in columns}
        columns = [_with_nearest(column, nearest[column.name]) for column in columns]
    surveyed = {column.name: column.surveyed for column in columns}
    sets = {name: estimates.compared(of, reference) for name, of in surveyed.items()}
    found = {
        name: estimates.numbers(of) | ({} if (own := sets[name]) is None else own.table())
        for name, of in surveyed.items()
    }
    curves = {name: falling.curve(of, reference) for name, of in surveyed.items()}
    for name, curve in curves.items():
        if curve is not None and curve.line is not None:
            found[name]["frechet_infinity"] = {"mean": curve.line.value}
    measured = {**surveyed, **({} if reference is None else {"reference": reference})}
    about = {
        **(facts or {}),
        "features": eye,
        "pictures": {name: sum(row["num"] for row in s.rows) for name, s in measured.items()},
        "date": datetime.date.today().isoformat(),
        **facts_lib.machine(),
        "versions": facts_lib.versions(),
    }
    apart = estimates.Apart(surveyed, sets)
    shared = len(estimates.shared(list(surveyed.values())))
    same = all(len(of.rows) == shared for of in surveyed.values())
    result = {
        "facts": about,
        "columns": found,
        "differences": apart.from_first(),
        "languages": estimates.parts(surveyed, lambda row: language(row["caption"])),
        "categories": estimates.parts(surveyed, lambda row: row.get("group", "")),
        "shared": shared,
        "notes": [*([] if same else [_unlike(surveyed, shared)]), *_unread(surveyed, eye)],
    }
    kept = json.dumps(result, indent=1, ensure_ascii=False)
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(kept + "\n")
    with open(out / "metrics.csv", "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["measure", "column", "mean", "low", "high", "features", "n"])
        for name in _names(found):
            for column, table in found.items():
                if name in table:
                    cell = map(table[name].get, ("mean", "low", "high"))
                    lines.writerow([name, column, *cell, *_seen_by(name, column, about)])
    with open(out / "differences.csv", "w", newline="") as file:
        lines = csv.writer(file)
        heads = ["measure", "column", "against", "difference", "low", "high", "features", "n"]
        lines.writerow(heads)
        for name, table in result["differences"].items():
            for measure, cell in table.items():
                said = _seen_by(measure, name, about)
                lines.writerow([measure, name, apart.first, *cell.values(), *said])
    _write_parts(out / "languages.csv", "language", result["languages"], eye)
    if result["categories"]:
        _write_parts(out / "categories.csv", "category", result["categories"], eye)
    if not page:
        return json.loads(kept)
    galleries = _galleries(columns)
    if training is not None:
        galleries |= _copies(columns[0], training, nearest[columns[0].name])
    side_by_side.sheets(out / "figures", galleries)
    drawn = [figures.trade(out / "figures", found, x, y) for x, y in TRADES]
    drawn.append(falling.draw(out / "figures", curves, eye))
    drawn.append(figures.bars(out / "figures", found))
    side_by_side.write(
        out / "report.html",
        title=", ".join(name for name in found if name != "true"),
        found=found,
        apart=apart,
        languages=result["languages"],
        categories=result["categories"],
        same=same,
        notes=result["notes"],
        told={name: _told(name, result) for name in _names(found)},
        galleries=galleries,
        figures=[figure for figure in drawn if figure is not None],
        facts=about,
    )
    return json.loads(kept)


def _seen_by(measure: str, column: str, about: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """The features that a number is of, and of a measure of a set how many pictures."""
    eye = about["features"]
    n = about["pictures"][column] if eye and measure in _SETS else None
    return eye if measure in _SEEN else None, n


def _write_parts(
    path: Path,
    heading: str,
    parts: Mapping[str, Mapping[str, Mapping[str, Any]]],
    eye: str | None,
) -> None:
    """The numbers of each part of the prompts as a table."""
    with open(path, "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow([heading, "measure", "column", "mean", "low", "high", "features"])
        for part, said in parts.items():
            for column, table in said.items():
                for name, cell in table.items():
                    numbers = map(cell.get, ("mean", "low", "high"))
                    lines.writerow([part, name, column, *numbers, eye if name in _SEEN else None])


def _unlike(surveyed: Mapping[str, Surveyed], shared: int) -> str:
    """What is compared where the columns are not of the same prompts."""
    each = ", ".join(f"{name} {len(of.rows)}" for name, of in surveyed.items())
    if not shared:
        return f"No prompt is in all columns ({each}): their numbers are of different prompts."
    some = "1 prompt is" if shared == 1 else f"{shared} prompts are"
    return (
        f"{some} in all columns ({each}): a column's own numbers are of all its prompts, "
        "differences of those that both have."
    )


def _unread(surveyed: Mapping[str, Surveyed], eye: str | None) -> list[str]:
    """How many captions have no CLIP-score, once for all columns."""
    rows = [row for of in surveyed.values() for row in of.rows]
    long = {row["caption"] for row in rows if row.get("too_long")}
    if not long:
        return []
    captions = len({row["caption"] for row in rows})
    verb = "is" if len(long) == 1 else "are"
    return [
        f"{len(long)} of {captions} captions {verb} too long for {eye} and left out of clip_score."
    ]


def _nearest(surveyed: Surveyed, training: Neighbours) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each prompt's pictures the nearest training pictures: cosines, and which they are."""
    assert surveyed.f is not None  # whoever looked at training pictures has looked at these
    ends = np.cumsum([row["num"] for row in surveyed.rows])[:-1]
    cosines, which = training.nearest(surveyed.f)
    return list(zip(np.split(cosines, ends), np.split(which, ends), strict=True))


def _with_nearest(column: Column, nearest: Sequence[tuple[np.ndarray, np.ndarray]]) -> Column:
    """The column with the mean cosine of each prompt's pictures with training pictures."""
    rows = [
        {**row, "measures": {**row["measures"], "nearest_training": float(near.mean())}}
        for row, (near, _) in zip(column.surveyed.rows, nearest, strict=True)
    ]
    surveyed = dataclasses.replace(column.surveyed, rows=rows)
    return dataclasses.replace(column, surveyed=surveyed)


def _copies(
    column: Column, training: Neighbours, nearest: Sequence[tuple[np.ndarray, np.ndarray]]
) -> dict[str, list[side_by_side.Gallery]]:
    """The prompts whose pictures are nearest to training pictures, and those."""
    order = np.argsort([-near.mean() for near, _ in nearest], kind="stable")[:EXTREMES]
    galleries = []
    for index, images in zip(order, column.pictures([int(i) for i in order]), strict=True):
        near = training.pictures(nearest[index][1])
        groups = {column.name: images, "nearest training picture of each": near}
        row = column.surveyed.rows[index]
        galleries.append(
            side_by_side.Gallery(key=row["key"], caption=row["caption"], groups=groups)
        )
    return {f"Nearest to training pictures ({len(training.f):,} of them)": galleries}


def text(result: Mapping[str, Any]) -> str:
    """The numbers in columns, for a terminal."""
    found = result["columns"]
    told = {name: _told(name, result, brief=True) for name in _names(found)}
    labels = {name: f"{name} ({said})" if said else name for name, said in told.items()}
    width = max(map(len, labels.values()), default=0)
    each = max(16, *(len(name) for name in found)) if found else 16
    lines = [" " * width + "".join(f"  {name:>{each}}" for name in found)]
    for name, label in labels.items():
        cells = [_cell(table.get(name)) for table in found.values()]
        lines.append(f"{label:{width}}" + "".join(f"  {cell:>{each}}" for cell in cells))
    notes = ["", *result["notes"]] if result["notes"] else []
    return "\n".join([*lines, *notes, *_spoken(result), *_clear(result)])


def _spoken(result: Mapping[str, Any]) -> list[str]:
    """The measure that columns are ranked by in each language, a line a column."""
    languages = result["languages"]
    tables = [table for said in languages.values() for table in said.values()]
    by = next((name for name in _RANKED if any(name in table for table in tables)), None)
    if by is None:
        return []
    names = [name for name in result["columns"] if any(name in said for said in languages.values())]
    width = max(map(len, [by, *names]))
    lines = [f"{by:{width}}" + "".join(f"  {name:>16}" for name in languages)]
    for name in names:
        cells = [_cell(said.get(name, {}).get(by)) for said in languages.values()]
        lines.append(f"{name:{width}}" + "".join(f"  {cell:>16}" for cell in cells))
    return ["", "by the language of the prompt:", *lines]


def _clear(result: Mapping[str, Any]) -> list[str]:
    """What surely differs from the first column: paired intervals without 0, a line a column."""
    names = [name for name in ROWS if not ROWS[name].detail]
    lines = []
    for column, table in result["differences"].items():
        cells = [(name, table[name]) for name in names if name in table]
        clear = [
            f"{name} {cell['mean']:+.4f} ({cell['low']:+.4f} to {cell['high']:+.4f})"
            for name, cell in cells
            if cell["low"] > 0 or cell["high"] < 0
        ]
        none = "nothing that is sure" if table else "nothing measured of 2 prompts that both have"
        lines.append(f"{column}: {', '.join(clear) or none}")
    head = "differences from the first, prompt by prompt, that 95 % intervals tell from 0:"
    return ["", head, *lines] if lines else []


def _told(name: str, result: Mapping[str, Any], *, brief: bool = False) -> str:
    """What a number is nothing without: the features and how many pictures, the share of pairs.

    Args:
      name: the measure.
      result: what ``write`` returns.
      brief: to name the features of sets and of ``clip_score`` alone, for a narrow row.
    """
    facts, said = result["facts"], []
    eye = facts["features"] if name in _SEEN else None
    if eye and (not brief or name in (*_SETS, "clip_score")):
        said.append(eye)
    if eye and name in _SETS:
        there = [column for column, table in result["columns"].items() if name in table]
        each = [facts["pictures"][column] for column in there]
        several = "" if min(each) == max(each) else f" to {max(each):,}"
        start = "from " if name == "frechet_infinity" else ""
        said.append(f"{start}n = {min(each):,}{several}")
    if name == "top_cosine" and "top_percent" in facts:
        said.append(f"{facts['top_percent']:g} %")
    if name == "peak_mib" and "peak_memory" in facts:
        said.append(facts["peak_memory"])
    return ", ".join(said)


def _cell(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    if "low" not in value:
        return f"{value['mean']:.4f}       "
    return f"{value['mean']:.4f} ±{(value['high'] - value['low']) / 2:.4f}"


def _names(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """All measures, known ones first and in the order of the report."""
    there = list(dict.fromkeys(name for table in found.values() for name in table))
    return [name for name in ROWS if name in there] + [name for name in there if name not in ROWS]


def _galleries(columns: Sequence[Column]) -> dict[str, list[side_by_side.Gallery]]:
    """Pictures for the page: the first prompts, and where the first column did worst and best."""
    places = [estimates.places(column.surveyed) for column in columns]
    shared = estimates.shared([column.surveyed for column in columns])
    if not shared:
        return {}
    first = columns[0].surveyed
    by = next((name for name in _RANKED if name in first.names), None)
    parts = {"The first prompts": shared[:SHOWN]}
    if by is not None and len(shared) > SHOWN + 2 * EXTREMES:
        score = first.column(by)
        # Ties are broken by CLIP, then by the order of the prompts.
        second = first.column("clip_score" if "clip_score" in first.names else by)

        def rank(key: estimates.Key) -> tuple[float, float]:
            index = places[0][key]
            values = np.nan_to_num([score[index], second[index]], nan=-math.inf)
            return float(values[0]), float(values[1])

        ranked = sorted(shared, key=rank)
        title = ROWS[by].title if by in ROWS else by
        parts[f"Worst of {columns[0].name} by {title}"] = ranked[:EXTREMES]
        parts[f"Best of {columns[0].name} by {title}"] = ranked[: -EXTREMES - 1 : -1]
    wanted = list(dict.fromkeys(key for keys in parts.values() for key in keys))
    images = [
        dict(zip(wanted, column.pictures([place[key] for key in wanted]), strict=True))
        for column, place in zip(columns, places, strict=True)
    ]
    return {
        heading: [
            side_by_side.Gallery(
                key=key[0],
                caption=first.rows[places[0][key]]["caption"],
                groups={column.name: of[key] for column, of in zip(columns, images, strict=True)},
            )
            for key in keys
        ]
        for heading, keys in parts.items()
    }
