"""One self-contained ``report.html``: what a run changed, in pictures, numbers and curves.

No script, no network, no font file: it opens from a memory stick on a phone.
"""

import base64
import html
import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from etils import epath
from jaxtyping import Array, Float, UInt8
from PIL import Image

from cosdiff_jax.report import curves as curves_lib
from cosdiff_jax.report import grid as grid_lib
from cosdiff_jax.report.measures import Row, known, show, show_change, summarise, table
from cosdiff_jax.report.style import CSS

__all__ = ["Groups", "Row", "summarise", "table", "write"]

Groups: TypeAlias = (
    Float[Array, "P _K _X _Y _C"]
    | Float[np.ndarray, "P _K _X _Y _C"]
    | UInt8[np.ndarray, "P _K _X _Y _C"]
)
"""As ``grid.Pictures``, but columns of the page may differ in number and size of pictures."""


def write(
    path: str | os.PathLike,
    *,
    title: str,
    captions: Sequence[str],
    before: Groups,
    after: Groups,
    rows: Sequence[Row],
    true: Groups | None = None,
    curves: Mapping[str, curves_lib.Curve] | None = None,
    facts: Mapping[str, object] | None = None,
    config: Mapping[str, object] | None = None,
    summary: str | None = None,
    labels: tuple[str, str, str] = ("before", "after", "true distribution"),
) -> None:
    """Write the page.

    Args:
        path: the file to write; replaced only once the new one is complete.
        title: the run's name.
        captions: P prompts.
        before: their samples by the model that the run started from.
        after: the same prompts and noise by the trained model; K may differ.
        rows: the table, see ``table``.
        true: pictures drawn from the true distribution of the same captions.
        curves: what ``curves.read`` gives.
        facts: name -> value for the section "This run" (seed, machine, wall time, versions ...);
            a mapping as value becomes a list.
        config: the resolved configuration, shown folded.
        summary: the opening paragraph in plain text; by default composed from ``rows``.
        labels: what the three columns are called.

    Raises:
        ValueError: captions and groups of pictures differ in number.
    """
    sets = [
        grid_lib.to_bytes(images) for images in (before, after, *([] if true is None else [true]))
    ]
    for label, images in zip(labels, sets, strict=False):
        if len(images) != len(captions):
            raise ValueError(
                f"{len(captions)} captions but {len(images)} groups of pictures {label}"
            )
    body = [
        f"<header><h1>{html.escape(title)}</h1>",
        f'<p class="lead">{html.escape(summary or summarise(rows))}</p></header>',
        _table(rows, labels),
        _gallery(captions, sets, labels),
    ]
    if curves:
        drawn = curves_lib.small_multiples(curves)
        body.append(
            '<section><h2>Training</h2><p class="note">Faint: every logged value. Strong: its '
            f'running mean. Across: optimizer steps.</p><div class="curves">{drawn}</div></section>'
        )
    body.append(facts_list(facts or {}, config))
    write_page(path, title, body)


def write_page(path: str | os.PathLike, title: str, body: Sequence[str]) -> None:
    """The sections of a page -> a whole file; replaced only once the new one is complete."""
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(title)}</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
    file = epath.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(file.name + ".part")
    half.write_text(page, encoding="utf-8")
    half.replace(file)


def _table(rows: Sequence[Row], labels: tuple[str, str, str]) -> str:
    if not rows:
        return ""
    first = [row for row in rows if not row.detail]
    rest = [row for row in rows if row.detail]
    sure = any(row.change is not None for row in rows)
    note = '<p class="note">In brackets: 95 % intervals of the change, prompt by prompt.</p>'
    parts = [_lines(first, labels)] if first else []
    parts.append(
        f'<p class="note"><i class="dot hollow"></i> {html.escape(labels[0])} '
        f'<i class="dot"></i> {html.escape(labels[1])} '
        f'<i class="tick"></i> {html.escape(labels[2])}</p>{note if sure else ""}'
    )
    if rest:
        folded = "details" if first else "details open"
        parts.append(
            f"<{folded}><summary>In detail ({len(rest)} more)</summary>"
            f"{_lines(rest, labels)}</details>"
        )
    return f"<section><h2>In numbers</h2>{''.join(parts)}</section>"


def _lines(rows: Sequence[Row], labels: tuple[str, str, str]) -> str:
    head = "".join(f'<th class="n">{html.escape(label)}</th>' for label in labels)
    lines = []
    for row in rows:
        arrow, wish = {
            "higher": ("↑", "higher is better"),
            "lower": ("↓", "lower is better"),
            "true": ("→|", "closest to the true value is best"),
            "": ("", ""),
        }[row.better]
        verdict = row.verdict()
        mark = {"better": "▲", "worse": "▼", "unchanged": "=", "unsure": "~"}.get(verdict, "")
        lines.append(
            f'<tr><th scope="row">{html.escape(row.name)}'
            f"<small>{html.escape(row.meaning)}</small>"
            f'<small class="wish"><b aria-hidden="true">{arrow}</b> {wish}</small></th>'
            f'<td class="n" data-of="{html.escape(labels[0])}">{show(row, row.before)}</td>'
            f'<td class="n after" data-of="{html.escape(labels[1])}">{show(row, row.after)}</td>'
            f'<td class="n" data-of="{html.escape(labels[2])}">{show(row, row.true)}</td>'
            f'<td class="strip">{_strip(row)}<span class="{verdict or "none"}">{mark} {verdict}'
            f"</span><small>{show_change(row)}</small></td></tr>"
        )
    return (
        f"<table><thead><tr><th></th>{head}<th>change</th></tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _strip(row: Row) -> str:
    """The row's three values on a line: hollow dot before, full dot after, tick for the truth."""
    before, after, true = known(row.before), known(row.after), known(row.true)
    values = [value for value in (before, after, true) if value is not None]
    if before is None or after is None:
        return ""
    low, high = min(values), max(values)
    # At least a tenth of the unit wide, so that a tiny difference looks tiny.
    room = max(high - low, 0.1)
    middle = (low + high) / 2

    def x(value: float) -> float:
        return 75 + (value - middle) / room * 126

    parts = ['<path d="M4 11H146" class="rule"/>']
    if true is not None:
        parts.append(f'<path d="M{x(true):.1f} 2V20" class="truth"/>')
    parts.append(f'<path d="M{x(before):.1f} 11H{x(after):.1f}" class="move"/>')
    parts.append(f'<circle cx="{x(before):.1f}" cy="11" r="4.5" class="was"/>')
    parts.append(f'<circle cx="{x(after):.1f}" cy="11" r="4.5" class="is"/>')
    return f'<svg viewBox="0 0 150 22" aria-hidden="true">{"".join(parts)}</svg>'


def _gallery(
    captions: Sequence[str],
    sets: Sequence[Groups],
    labels: tuple[str, str, str],
) -> str:
    if not captions:
        return ""
    prompts = []
    for row, caption in enumerate(captions):
        groups = []
        for label, images in zip(labels, sets, strict=False):
            pictures = "".join(
                img(image, f"{label}, sample {column + 1} of: {caption}")
                for column, image in enumerate(images[row])
            )
            groups.append(
                f'<div class="group"><h4>{html.escape(label)}</h4>'
                f'<div class="sheet">{pictures}</div></div>'
            )
        prompts.append(
            f'<article><h3 lang="{language(caption)}"><i>{row + 1}</i>{html.escape(caption)}</h3>'
            f'<div class="groups n{len(sets)}">{"".join(groups)}</div></article>'
        )
    return (
        '<section><h2>In pictures</h2><p class="note">The same prompts and the same noise, '
        f"{html.escape(labels[0])} and {html.escape(labels[1])}.</p>{''.join(prompts)}</section>"
    )


def img(image: UInt8[np.ndarray, "X Y C"], text: str) -> str:
    """A picture inside the page, with ``text`` for those who do not see it."""
    height, width, channels = image.shape
    picture = Image.fromarray(image[:, :, 0] if channels == 1 else image)
    small = max(height, width) <= 128
    buffer = io.BytesIO()
    if small:
        picture.save(buffer, format="PNG", optimize=True)
    else:
        picture.save(buffer, format="JPEG", quality=92)
    data = base64.b64encode(buffer.getvalue()).decode()
    # Tiny pictures keep their pixels; from 48 on, uneven whole pixels look worse than a soft scale.
    style = ' class="pixels"' if max(height, width) < 48 else ""
    return (
        f'<img{style} width="{width}" height="{height}" alt="{html.escape(text)}" '
        f'src="data:image/{"png" if small else "jpeg"};base64,{data}">'
    )


def facts_list(facts: Mapping[str, object], config: Mapping[str, object] | None) -> str:
    """The section "This run": facts by name, and the configuration folded."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {part}" for key, part in value.items())
        lines.append(f"<dt>{html.escape(str(name))}</dt><dd>{html.escape(str(value))}</dd>")
    folded = ""
    if config is not None:
        text = json.dumps(config, indent=2, ensure_ascii=False, default=str)
        folded = (
            f"<details><summary>Configuration</summary><pre>{html.escape(text)}</pre></details>"
        )
    if not lines and not folded:
        return ""
    return f"<section><h2>This run</h2><dl>{''.join(lines)}</dl>{folded}</section>"


def language(text: str) -> str:
    """For the browser's choice of glyphs: Han characters look different in Chinese and Korean."""
    if any("가" <= letter <= "힣" for letter in text):
        return "ko"
    return "zh" if any("一" <= letter <= "鿿" for letter in text) else "en"
