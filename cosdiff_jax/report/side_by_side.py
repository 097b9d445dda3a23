"""``report.html`` of several ways to make pictures of the same prompts: numbers, figures, pictures.

No script, no network: it opens from a memory stick on a phone.
"""

import csv
import dataclasses
import html
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from cosdiff_jax.metrics.bootstrap import Interval
from cosdiff_jax.report import grid
from cosdiff_jax.report.figures import Figure, Found
from cosdiff_jax.report.measures import ROWS, Measure, signed
from cosdiff_jax.report.page import facts_list, img, language, write_page

# Pictures of a prompt that stand on the page.
MOST = 8
# Pixels between the prompts of a sheet.
_GAP = 16
# Letters of a file's name, for a heading may hold the name of a folder.
_LONGEST = 100
_LANGUAGES = {"en": "English", "zh": "Chinese", "ko": "Korean"}
_LETTERS = (
    "Told by the letters of the prompt: Korean where there is Hangul, Chinese where there are Han "
    "characters, else English."
)
_AUTHORS = "What the authors of the prompts count them among; prompts without a word are left out."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gallery:
    """One prompt's pictures in every column.

    Attributes:
      caption: the prompt.
      groups: column -> its pictures.
      key: of the prompt, where it has one.
    """

    caption: str
    groups: Mapping[str, UInt8[np.ndarray, "_K _X _Y _C"]]
    key: str = ""


Apart = Callable[[str, str, str], Interval | None]
"""(measure, column a, column b) -> what a has more than b; None where nobody can say."""


def write(
    path: str | os.PathLike,
    *,
    title: str,
    found: Found,
    apart: Apart | None = None,
    languages: Mapping[str, Found] | None = None,
    categories: Mapping[str, Found] | None = None,
    same: bool = True,
    notes: Sequence[str] = (),
    told: Mapping[str, str] | None = None,
    galleries: Mapping[str, Sequence[Gallery]],
    figures: Sequence[Figure] = (),
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the page.

    Args:
      path: the file.
      title: its heading.
      found: column -> measure -> mean and interval; the column "true" is the true distribution.
      apart: paired differences between columns; without, intervals that overlap are not told apart.
      languages: the same as ``found`` over the prompts of each language.
      categories: the same over what the prompts' author counts them among.
      same: whether the columns are of the same prompts.
      notes: sentences to know before reading the numbers.
      told: measure -> what its numbers are nothing without, such as "scenes_clip, n = 512".
      galleries: heading -> prompts with their pictures, in files as ``sheets`` names them.
      figures: drawn already.
      facts: what was asked.
    """
    spoken = {_LANGUAGES[name]: tables for name, tables in (languages or {}).items()}
    body = [
        f"<header><h1>{html.escape(title)}</h1>",
        f'<p class="lead">{html.escape(_lead(found, same))}</p>',
        *(f'<p class="note">{html.escape(note)}</p>' for note in notes),
        "</header>",
        _tables(found, apart, told or {}),
        _parts("By language", _LETTERS, spoken, found, told or {}),
        _parts("By category", _AUTHORS, categories or {}, found, told or {}),
    ]
    if figures:
        drawn = "".join(
            f"<figure><figcaption>{html.escape(figure.title)}</figcaption>{figure.svg}</figure>"
            for figure in figures
        )
        body.append(
            '<section><h2>In figures</h2><p class="note">Each is in <code>figures/</code> as PNG '
            f'and SVG, with its data as CSV.</p><div class="drawn">{drawn}</div></section>'
        )
    for heading, prompts in galleries.items():
        note = f'<p class="note">Also as <code>figures/{_file(heading)}</code>.</p>'
        body.append(f"<section><h2>{html.escape(heading)}</h2>{note}{_prompts(prompts)}</section>")
    body.append(facts_list(facts or {}, None))
    write_page(path, title, body)


def sheets(folder: Path, galleries: Mapping[str, Sequence[Gallery]]) -> None:
    """Each heading's pictures as a PNG, and ``galleries.csv`` that says which is which.

    A row of a sheet is what one column has of one prompt. A caption that no font on this machine
    can draw is written as the prompt's number, which the table tells.

    Args:
      folder: made if it is not there.
      galleries: as for ``write``; of none nothing is written.
    """
    if not galleries:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "galleries.csv", "w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["heading", "key", "caption", "column", "file", "number"])
        for heading, prompts in galleries.items():
            name, blocks = _file(heading), []
            every = _alike([group[:MOST] for of in prompts for group in of.groups.values()])
            for number, of in enumerate(prompts, 1):
                first, *others = of.groups
                told = f"{first}: {of.caption}"
                told = f"{first}: #{number}" if grid.undrawable([told]) else told
                block, every = every[: len(of.groups)], every[len(of.groups) :]
                blocks.append(np.asarray(grid.grid(block, [told, *others])))
                blocks.append(np.full_like(blocks[-1][:_GAP], grid.PAPER))
                for column in of.groups:
                    lines.writerow([heading, of.key, of.caption, column, name, number])
            sheet = Image.fromarray(np.concatenate(blocks[:-1]))
            sheet.save(folder / name, optimize=True)


def _file(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", heading.lower())[:_LONGEST].strip("_") + ".png"


def _alike(
    groups: Sequence[UInt8[np.ndarray, "_K _X _Y _C"]],
) -> UInt8[np.ndarray, "P K X Y 3"]:
    """Groups of unlike number and size as one array: enlarged to the largest, paper around them."""
    shapes = np.array([images.shape[:3] for images in groups])
    number, height, width = (int(most) for most in shapes.max(axis=0))
    filled = np.empty((len(groups), number, height, width, 3), np.uint8)
    filled[:] = grid.PAPER
    for row, images in enumerate(groups):
        # As on the page: tiny pictures keep their pixels.
        way = Image.Resampling.NEAREST if max(images.shape[1:3]) < 48 else Image.Resampling.BICUBIC
        for place, image in enumerate(images):
            picture = Image.fromarray(image.repeat(3 // image.shape[-1], axis=-1))
            fitted = ImageOps.pad(picture, (width, height), way, color=grid.PAPER)
            filled[row, place] = np.asarray(fitted)
    return filled


def best(name: str, found: Found, apart: Apart | None = None) -> set[str]:
    """The columns whose value of a measure is best, or cannot be told from the best.

    Two values cannot be told apart if the 95 % interval of their paired difference holds 0, or,
    without ``apart``, if their own intervals overlap. Nothing is best where nobody knows what to
    wish for, where some column has no interval to tell by, or where every column is.
    """
    wish = ROWS[name].better if name in ROWS else ""
    true = found.get("true", {}).get(name)
    there = {c: t[name] for c, t in found.items() if c != "true" and name in t}
    if not wish or len(there) < 2 or (wish == "true" and true is None):
        return set()

    def cost(cell: Mapping[str, float]) -> float:
        if wish == "true" and true is not None:
            return abs(cell["mean"] - true["mean"])
        return cell["mean"] if wish == "lower" else -cell["mean"]

    first = min(there, key=lambda column: cost(there[column]))
    top, chosen = there[first], {first}
    for column, cell in there.items():
        if column == first:
            continue
        if apart is not None:
            by = apart(name, column, first)
            if by is None:
                return set()
            alike = by.low <= 0 <= by.high
        elif "low" in cell and "low" in top:
            alike = cell["low"] <= top["high"] and cell["high"] >= top["low"]
        else:
            return set()
        if alike:
            chosen.add(column)
    return chosen if len(chosen) < len(there) else set()


def _lead(found: Found, same: bool) -> str:
    others = [name for name in found if name != "true"]
    some = next(iter(found.values()), {})
    pictures = "measured on the same prompts" if same else "each measured on its own prompts"
    beside = ", beside the true distribution" if "true" in found else ""
    spread = any("low" in cell for cell in some.values())
    intervals = " Intervals hold 95 %, over prompts." if spread else ""
    return f"{_count(len(others))} {pictures}{beside}.{intervals}"


def _count(number: int) -> str:
    return "One set of pictures" if number == 1 else f"{number} sets of pictures"


def _tables(found: Found, apart: Apart | None, told: Mapping[str, str]) -> str:
    names = [name for name in ROWS if any(name in table for table in found.values())]
    names += sorted({name for table in found.values() for name in table} - set(names))
    first = [name for name in names if name in ROWS and not ROWS[name].detail]
    rest = [name for name in names if name not in first]
    parts = [_table(first, found, apart, told)] if first else []
    if rest:
        parts.append(
            f"<details><summary>In detail ({len(rest)} more)</summary>"
            f"{_table(rest, found, apart, told)}</details>"
        )
    note = (
        '<p class="note">Bold: the best, and what cannot be told from it; nothing where no '
        "interval tells. Where the true distribution has a value, nearest to it is best.</p>"
    )
    own = f"<section><h2>In numbers</h2>{note}{''.join(parts)}</section>"
    return own + (_against(first, found, apart, told) if apart is not None else "")


def _against(names: Sequence[str], found: Found, apart: Apart, told: Mapping[str, str]) -> str:
    """Paired differences from the first column."""
    ground, *others = [column for column in found if column != "true"] or [""]
    rows = {name: {column: apart(name, column, ground) for column in others} for name in names}
    rows = {name: row for name, row in rows.items() if any(by is not None for by in row.values())}
    if not rows:
        return ""
    head = "".join(f'<th class="n">{html.escape(column)}</th>' for column in others)
    lines = []
    for name, row in rows.items():
        cells = "".join(apart_cell(ROWS[name], column, by) for column, by in row.items())
        lines.append(f"<tr>{_titled(ROWS[name], told.get(name, ''))}{cells}</tr>")
    note = (
        '<p class="note">Prompt by prompt, so that what makes a prompt hard for both cancels; the '
        "interval is the middle 95 % of resampled prompts, and of a measure of all pictures at "
        "once what leaving prompts out tells. Bold: it leaves 0 out.</p>"
    )
    return (
        f"<section><h2>Against {html.escape(ground)}</h2>{note}"
        f'<div class="wide"><table class="many"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _parts(
    heading: str, note: str, parts: Mapping[str, Found], found: Found, told: Mapping[str, str]
) -> str:
    """A table for each column, measures down and parts across; the first one stands open."""
    head = "".join(f'<th class="n">{html.escape(part)}</th>' for part in parts)
    folded = []
    for column in found:
        tables = {part: said.get(column, {}) for part, said in parts.items()}
        names = {name for table in tables.values() for name in table}
        lines = []
        for name in ROWS:
            if name in names and name != "evaluations":
                cells = "".join(
                    f'<td class="n" data-of="{html.escape(part)}">'
                    f"{cell(ROWS[name], table.get(name))}</td>"
                    for part, table in tables.items()
                )
                lines.append(f"<tr>{_titled(ROWS[name], told.get(name, ''))}{cells}</tr>")
        if lines:
            folded.append(
                f"<details{' open' * (not folded)}><summary>{html.escape(column)}</summary>"
                f'<div class="wide"><table class="many"><thead><tr><th></th>{head}</tr></thead>'
                f"<tbody>{''.join(lines)}</tbody></table></div></details>"
            )
    if not folded:
        return ""
    about = f'<p class="note">{html.escape(note)}</p>'
    return f"<section><h2>{heading}</h2>{about}{''.join(folded)}</section>"


def _titled(measure: Measure, said: str) -> str:
    """The heading of a row, and below it what its numbers are nothing without."""
    small = f"<small>{html.escape(said)}</small>" if said else ""
    return f'<th scope="row">{html.escape(measure.title)}{small}</th>'


def apart_cell(measure: Measure, column: str, by: Interval | None) -> str:
    """A difference and its interval as a table shows them, bold where it leaves 0 out."""
    text, sure = "–", False
    if by is not None:
        value, low, high = signed(by, percent=measure.percent)
        text = f"{value}{' %' * measure.percent}<small>{low} … {high}</small>"
        sure = by.low > 0 or by.high < 0
    chosen = " after" if sure else ""
    return f'<td class="n{chosen}" data-of="{html.escape(column)}">{text}</td>'


def _table(names: Sequence[str], found: Found, apart: Apart | None, told: Mapping[str, str]) -> str:
    head = "".join(f'<th class="n">{html.escape(column)}</th>' for column in found)
    lines = []
    for name in names:
        measure = ROWS.get(name, Measure(title=name, better=""))
        chosen = best(name, found, apart)
        cells = "".join(
            f'<td class="n{" after" if column in chosen else ""}" data-of="{html.escape(column)}">'
            f"{cell(measure, table.get(name))}</td>"
            for column, table in found.items()
        )
        small, said = measure.meaning, told.get(name, "")
        if said:
            small = f"{small} ({said})" if small else said
        arrow = {"higher": "↑", "lower": "↓", "true": "→|", "": ""}[measure.better]
        lines.append(
            f'<tr><th scope="row">{html.escape(measure.title)} <b class="arrow">{arrow}</b>'
            f"<small>{html.escape(small)}</small></th>{cells}</tr>"
        )
    return (
        f'<div class="wide"><table class="many"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def cell(measure: Measure, value: Mapping[str, float] | None) -> str:
    """A mean as a table shows it, with half the width of its interval if it has one."""
    if value is None:
        return "–"
    factor, digits, unit = (100, 1, " %") if measure.percent else (1, 3, "")
    if not measure.percent and (abs(value["mean"]) >= 100 or value["mean"] == round(value["mean"])):
        digits = 0
    text = f"{factor * value['mean']:.{digits}f}{unit}"
    if value.get("low", 0.0) < value.get("high", 0.0):
        half = factor * (value["high"] - value["low"]) / 2
        text += f"<small>±{half:.{digits}f}</small>"
    return text


def _prompts(prompts: Sequence[Gallery]) -> str:
    parts = []
    for gallery in prompts:
        groups = []
        for column, images in gallery.groups.items():
            pictures = "".join(
                img(image, f"{column}, picture {number + 1} of: {gallery.caption}")
                for number, image in enumerate(images[:MOST])
            )
            groups.append(
                f'<div class="group"><h4>{html.escape(column)}</h4>'
                f'<div class="sheet">{pictures}</div></div>'
            )
        parts.append(
            f'<article><h3 lang="{language(gallery.caption)}">{html.escape(gallery.caption)}</h3>'
            f'<div class="groups many">{"".join(groups)}</div></article>'
        )
    return "".join(parts)
