"""One self-contained ``report.html``: what a run changed, in pictures, numbers and curves.

No script, no network, no font file: it opens from a memory stick on a phone.
"""

import base64
import dataclasses
import html
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Literal, SupportsFloat, TypeAlias

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from cosdiff_jax.report import curves as curves_lib
from cosdiff_jax.report import grid as grid_lib
from cosdiff_jax.report.style import CSS

Groups: TypeAlias = (
    Float[Array, "P _K _X _Y _C"]
    | Float[np.ndarray, "P _K _X _Y _C"]
    | UInt8[np.ndarray, "P _K _X _Y _C"]
)
"""As ``grid.Pictures``, but columns of the page may differ in number and size of pictures."""

Better: TypeAlias = Literal["higher", "lower", "true"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the before/after table.

    ``better`` says what to wish for: a ``higher`` value, a ``lower`` one, or one nearer to the
    ``true`` distribution's own (a cosine far below that of real pictures is no success).
    ``None`` and NaN show as "n/a".
    """

    name: str
    before: float | None
    after: float | None
    true: float | None
    better: Better
    meaning: str = ""
    percent: bool = False

    def verdict(self) -> Literal["better", "worse", "unchanged", ""]:
        """Compare after with before, at the precision shown; "" where a value is missing."""
        before, after, true = _known(self.before), _known(self.after), _known(self.true)
        if before is None or after is None:
            return ""
        if self.better != "true":
            gain = (after - before) * (1 if self.better == "higher" else -1)
        elif true is None:
            return ""
        else:
            gain = abs(before - true) - abs(after - true)
        if abs(gain) < 0.0005:
            return "unchanged"
        return "better" if gain > 0 else "worse"


ROWS: dict[str, tuple[str, Better, str, bool]] = {
    "mean_cosine": (
        "Intra-prompt mean cosine",
        "true",
        "how alike the samples of one prompt are; 1 = identical",
        False,
    ),
    "top_cosine": (
        "Intra-prompt top-k cosine",
        "true",
        "the same, over the most similar pairs only",
        False,
    ),
    "clip_score": ("CLIP-score", "higher", "do picture and caption agree?", False),
    "oracle_accuracy": (
        "Oracle accuracy",
        "higher",
        "share of the caption's claims found in the picture",
        True,
    ),
    "meaningful_diversity": (
        "Meaningful diversity",
        "true",
        "variety in what the caption left open; 1 = every choice equally often",
        False,
    ),
    "classifier_accuracy": (
        "Recognised as asked",
        "higher",
        "share read by a classifier that was fitted on real pictures",
        True,
    ),
    "empty": ("Empty pictures", "lower", "share in which nothing is found", True),
}
"""Known measures by name: (title, what is better, meaning, shown in per cent)."""


def table(
    before: Mapping[str, SupportsFloat],
    after: Mapping[str, SupportsFloat],
    true: Mapping[str, SupportsFloat],
) -> list[Row]:
    """Rows for every measure that ``before`` or ``after`` has, known ones first and in order.

    An unknown name is shown as it is, as "higher is better".
    """
    names = [name for name in ROWS if name in before or name in after]
    names += [name for name in {**before, **after} if name not in ROWS]
    rows = []
    for name in names:
        title, better, meaning, percent = ROWS.get(
            name, (name.replace("_", " "), "higher", "", False)
        )
        rows.append(
            Row(
                name=title,
                before=_float(before.get(name)),
                after=_float(after.get(name)),
                true=_float(true.get(name)),
                better=better,
                meaning=meaning,
                percent=percent,
            )
        )
    return rows


def write(
    path: str | pathlib.Path,
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
    body.append(_facts(facts or {}, config))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(title)}</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".part")
    half.write_text(page, encoding="utf-8")
    half.replace(path)


def summarise(rows: Sequence[Row]) -> str:
    """The table in a paragraph, with a warning where variety was bought with broken pictures."""
    if not rows:
        return "No measurements were made."
    sentences = []
    for verdict, opening in (
        ("better", "Better after training"),
        ("worse", "Worse"),
        ("unchanged", "Unchanged"),
        ("", "Not comparable"),
    ):
        parts = []
        for row in rows:
            if row.verdict() == verdict:
                true = "" if _known(row.true) is None else f" (true {_show(row, row.true)})"
                change = f"{_show(row, row.before)} → {_show(row, row.after)}"
                if verdict == "unchanged":
                    change = _show(row, row.after)
                parts.append(f"{_inner(row.name)} {change}{true}")
        if parts:
            sentences.append(f"{opening}: {', '.join(parts)}.")
    lost = [_inner(row.name) for row in rows if row.better != "true" and row.verdict() == "worse"]
    gained = [
        _inner(row.name) for row in rows if row.better == "true" and row.verdict() == "better"
    ]
    if lost and gained:
        sentences.append(
            f"Since {_and(lost)} got worse, part of the gain in {_and(gained)} may be damage "
            "rather than variety: look at the pictures."
        )
    return " ".join(sentences)


def _table(rows: Sequence[Row], labels: tuple[str, str, str]) -> str:
    if not rows:
        return ""
    head = "".join(f'<th class="n">{html.escape(label)}</th>' for label in labels)
    lines = []
    for row in rows:
        arrow, wish = {
            "higher": ("↑", "higher is better"),
            "lower": ("↓", "lower is better"),
            "true": ("→|", "closest to the true value is best"),
        }[row.better]
        verdict = row.verdict()
        mark = {"better": "▲", "worse": "▼", "unchanged": "="}.get(verdict, "")
        lines.append(
            f'<tr><th scope="row">{html.escape(row.name)}'
            f"<small>{html.escape(row.meaning)}</small>"
            f'<small class="wish"><b aria-hidden="true">{arrow}</b> {wish}</small></th>'
            f'<td class="n" data-of="{html.escape(labels[0])}">{_show(row, row.before)}</td>'
            f'<td class="n after" data-of="{html.escape(labels[1])}">{_show(row, row.after)}</td>'
            f'<td class="n" data-of="{html.escape(labels[2])}">{_show(row, row.true)}</td>'
            f'<td class="strip">{_strip(row)}<span class="{verdict or "none"}">{mark} {verdict}'
            "</span></td></tr>"
        )
    return (
        "<section><h2>In numbers</h2><table><thead><tr><th></th>"
        f"{head}<th>change</th></tr></thead><tbody>{''.join(lines)}</tbody></table>"
        f'<p class="note"><i class="dot hollow"></i> {html.escape(labels[0])} '
        f'<i class="dot"></i> {html.escape(labels[1])} '
        f'<i class="tick"></i> {html.escape(labels[2])}</p></section>'
    )


def _strip(row: Row) -> str:
    """The row's three values on a line: hollow dot before, full dot after, tick for the truth."""
    before, after, true = _known(row.before), _known(row.after), _known(row.true)
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
    prompts = []
    for row, caption in enumerate(captions):
        groups = []
        for label, images in zip(labels, sets, strict=False):
            pictures = "".join(
                _img(image, f"{label}, sample {column + 1} of: {caption}")
                for column, image in enumerate(images[row])
            )
            groups.append(
                f'<div class="group"><h4>{html.escape(label)}</h4>'
                f'<div class="sheet">{pictures}</div></div>'
            )
        prompts.append(
            f'<article><h3 lang="{_language(caption)}"><i>{row + 1}</i>{html.escape(caption)}</h3>'
            f'<div class="groups n{len(sets)}">{"".join(groups)}</div></article>'
        )
    return (
        '<section><h2>In pictures</h2><p class="note">The same prompts and the same noise, '
        f"{html.escape(labels[0])} and {html.escape(labels[1])}.</p>{''.join(prompts)}</section>"
    )


def _img(image: UInt8[np.ndarray, "X Y C"], text: str) -> str:
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


def _facts(facts: Mapping[str, object], config: Mapping[str, object] | None) -> str:
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


def _float(value: SupportsFloat | None) -> float | None:
    return None if value is None else float(value)


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _show(row: Row, value: float | None) -> str:
    value = _known(value)
    if value is None:
        return "n/a"
    return f"{100 * value:.1f} %" if row.percent else f"{value:.3f}"


def _inner(name: str) -> str:
    """A row's name inside a sentence: "CLIP-score" keeps its capitals."""
    return name if name[1:2].isupper() else name[:1].lower() + name[1:]


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _language(text: str) -> str:
    """For the browser's choice of glyphs: Han characters look different in Chinese and Korean."""
    if any("가" <= letter <= "힣" for letter in text):
        return "ko"
    return "zh" if any("一" <= letter <= "鿿" for letter in text) else "en"
