"""metrics.jsonl -> small multiples as inline SVG: raw values faint, smoothed ones strong."""

import dataclasses
import html
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from etils import epath
from jaxtyping import Float

Curve: TypeAlias = tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]
"""Steps and values of one quantity, steps rising; T is the number of points."""

WIDTH, HEIGHT = 320, 168
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One small multiple: a title, what it says, and the names of the quantities it draws.

    ``names`` are matched against a metric's last path part (``train/flow`` -> ``flow``); the first
    gets the strongest colour.
    """

    title: str
    names: tuple[str, ...]
    meaning: str = ""


PANELS = (
    Panel(title="Loss", names=("loss",), meaning="everything that is minimised"),
    Panel(title="Flow", names=("flow",), meaning="rectified-flow velocity error"),
    Panel(
        title="Cosine within a prompt",
        names=("mean_cosine", "top_cosine", "real_cosine"),
        meaning="predicted clean images; 1 = identical samples",
    ),
    Panel(title="Diversity term", names=("diversity",), meaning="before the weight lambda"),
    Panel(title="Alignment term", names=("alignment",), meaning="before the weight mu"),
    Panel(title="Anchor term", names=("anchor",), meaning="distance to the base model's velocity"),
    Panel(title="Weights", names=("lambda", "mu"), meaning="lambda: diversity, mu: alignment"),
    Panel(title="Gradient norm", names=("gradient_norm", "grad_norm"), meaning="before clipping"),
    Panel(title="Learning rate", names=("learning_rate",)),
    Panel(title="PSNR", names=("psnr",), meaning="decibels"),
    Panel(title="Accuracy", names=("accuracy",)),
    Panel(title="Speed", names=("images_per_second",), meaning="images per second"),
)


def read(path: str | os.PathLike) -> dict[str, Curve]:
    """Read ``metrics.jsonl``: one JSON object a line, with ``step`` and numbers by name.

    Survives what a killed run leaves behind: an unfinished last line is passed over, and of a
    step that was written twice (before the kill and after the resume) the later line counts.
    Nested objects become names with slashes; what is not a number is left out.

    Raises:
        ValueError: the file does not exist.
    """
    file = epath.Path(path)
    if not file.exists():
        raise ValueError(f"no metrics at {path}")
    table: dict[str, dict[float, float]] = {}
    for line in file.read_bytes().decode(errors="replace").splitlines():
        try:
            record = json.loads(line)
            step = float(record["step"])
        except (ValueError, TypeError, KeyError):
            continue
        for name, value in _flat(record).items():
            if name != "step":
                table.setdefault(name, {})[step] = value
    return {
        name: (np.array(sorted(values)), np.array([values[step] for step in sorted(values)]))
        for name, values in table.items()
    }


def smooth(values: Float[np.ndarray, " T"], window: float) -> Float[np.ndarray, " T"]:
    """Gaussian mean around each point, ``window`` points of standard deviation.

    The kernel is cut and renormalised at both ends, and NaN and infinity count for nothing, so a
    constant stays that constant everywhere.
    """
    if len(values) < 3 or window <= 0:
        return values
    reach = max(1, math.ceil(3 * window))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / window) ** 2)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), kernel)[reach:-reach]
    weight = np.convolve(finite.astype(float), kernel)[reach:-reach]
    return np.where(weight > 1e-9, total / np.maximum(weight, 1e-9), np.nan)


def small_multiples(curves: Mapping[str, Curve], panels: Sequence[Panel] = PANELS) -> str:
    """One HTML ``<figure>`` a panel that has data, then one for every quantity no panel names.

    Colours come from the page's CSS variables ``--c0 ... --c3``, ``--ink`` and ``--rule``, so the
    curves follow its light and dark dress.
    """
    return "".join(_figure(panel, drawn) for panel, drawn in paneled(curves, panels))


def paneled(
    curves: Mapping[str, Curve], panels: Sequence[Panel] = PANELS
) -> Iterator[tuple[Panel, dict[str, Curve]]]:
    """The panels that have data with what they draw, then one for every other quantity."""
    left = {name: curve for name, curve in curves.items() if np.isfinite(curve[1]).any()}
    for panel in panels:
        chosen = [
            name for wanted in panel.names for name in left if name.rsplit("/", 1)[-1] == wanted
        ]
        drawn = {name: left.pop(name) for name in dict.fromkeys(chosen)}
        if drawn:
            yield panel, drawn
    for name, curve in left.items():
        yield Panel(title=name.replace("_", " "), names=()), {name: curve}


def _flat(record: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    out: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            out.update(_flat(value, f"{prefix}{name}/"))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            out[prefix + name] = float(value)
    return out


def _figure(panel: Panel, curves: Mapping[str, Curve]) -> str:
    svg, last = svg_panel(curves)
    keys = "".join(
        f'<span><i style="background:var(--c{index % 4})"></i>'
        f"{html.escape(name.rsplit('/', 1)[-1].replace('_', ' '))} <b>{number(value)}</b></span>"
        for index, (name, value) in enumerate(last.items())
    )
    meaning = f"<small>{html.escape(panel.meaning)}</small>" if panel.meaning else ""
    return (
        f'<figure class="curve"><figcaption><b>{html.escape(panel.title)}</b>{meaning}'
        f'</figcaption>{svg}<div class="key">{keys}</div></figure>'
    )


def svg_panel(curves: Mapping[str, Curve]) -> tuple[str, dict[str, float]]:
    """Draw curves over one pair of axes.

    Returns:
        The ``<svg>`` element and the last smoothed value of each curve.
    """
    smoothed = {
        name: (steps, values, smooth(values, len(values) / 40))
        for name, (steps, values) in curves.items()
    }
    start = min(steps[0] for steps, _, _ in smoothed.values())
    end = max(steps[-1] for steps, _, _ in smoothed.values())
    low, high = _range([curve for _, *both in smoothed.values() for curve in both])

    def x(step: float) -> float:
        return LEFT + (step - start) / max(end - start, 1e-9) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks(low, high):
        parts.append(
            f'<path d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}" class="rule"/>'
            f'<text x="{LEFT - 6}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    for step, anchor in ((start, "start"), (end, "end")):
        parts.append(
            f'<text x="{x(step):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{step:,.0f}</text>'
        )
    last = {}
    for index, (name, (steps, values, mean)) in enumerate(smoothed.items()):
        stroke = f'style="stroke:var(--c{index % 4})"'
        if len(values) > 8:
            parts.append(f'<path d="{_path(steps, values, x, y)}" class="raw" {stroke}/>')
        parts.append(f'<path d="{_path(steps, mean, x, y)}" class="mean" {stroke}/>')
        finite = np.flatnonzero(np.isfinite(mean))
        last[name] = float(mean[finite[-1]])
        parts.append(
            f'<circle cx="{x(float(steps[finite[-1]])):.1f}" cy="{y(last[name]):.1f}" r="3" '
            f'style="fill:var(--c{index % 4})"/>'
        )
    label = html.escape(
        ", ".join(f"{name}: {number(value)} at the end" for name, value in last.items())
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>",
        last,
    )


def ticks(low: float, high: float, about: int = 3) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A number short enough for an axis: 0.034, 1.2, 340, 12k, 2e-05."""
    if not math.isfinite(value):
        return "n/a"
    size = abs(value)
    if size < 1e-12:
        return "0"
    if size >= 10_000:
        return f"{value / 1000:.3g}k" if size < 1e6 else f"{value:.2g}"
    return f"{value:.3g}" if size >= 1e-3 else f"{value:.1e}".replace("e-0", "e-")


def _range(curves: Sequence[Float[np.ndarray, " T"]]) -> tuple[float, float]:
    # The axis fits the bulk: one spike of the raw loss must not flatten the rest to a line.
    values = np.concatenate([curve[np.isfinite(curve)] for curve in curves])
    low, high = (
        np.percentile(values, (0.5, 99.0)) if len(values) > 40 else (values.min(), values.max())
    )
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = (0.0, 2 * high) if high > 0 else (low - 0.5, high + 0.5)
    elif 0 < low < 0.3 * high:
        low = 0.0
    pad = 0.06 * (high - low)
    return float(low if low == 0 else low - pad), float(high + pad)


def _path(steps, values, x, y, most: int = 400) -> str:
    """A polyline of at most about ``most`` points, lifted over NaN."""
    stride = max(1, len(values) // most)
    out, pen = [], "M"
    for index in sorted({*range(0, len(values), stride), len(values) - 1}):
        if np.isfinite(values[index]):
            out.append(f"{pen}{x(steps[index]):.1f} {y(values[index]):.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(out)
