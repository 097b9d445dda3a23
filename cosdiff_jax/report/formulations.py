"""A study's rows of formulations -> which one is best, over all settings: ranks, plots, one page.

The ranking is that of Esser et al. 2024, section 5.1. A setting is a data set, a sampler and the
weights, averaged or not. In each setting the formulations are sorted by fronts that no other one
betters in both respects (``pareto.ranks``, 1 is best), and a formulation's rank is the mean over
settings. The two respects of a data set are

    scenes  CLIP-score, high, and Frechet distance in CLIP's features to other real pictures, low
    digits  share of pictures that a classifier of real digits reads as what was asked for, high,
            and how far the entropy of their ways of writing is from real digits', low

No CLIP sees digits, hence the substitutes; they tell whether the right digits are drawn in as many
hands as real ones, and not whether they are blurred or ragged in ways that the classifier forgives.

Only formulations that have all settings of a data set are ranked on it. Seeds are ranked apart and
averaged: the main ranking is over those seeds that every formulation has. Where some formulations
have more of them, these are ranked once more among themselves, with Student's interval of 95 %.
How far two of these are apart is told of each pair, seed by seed: all formulations draw a seed's
prompts, so what a seed adds to both leaves their difference alone.
"""

import csv
import dataclasses
import html
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from cosdiff_jax.metrics import pareto
from cosdiff_jax.report import figures
from cosdiff_jax.report.page import write_page
from cosdiff_jax.report.setting import Row, Setting

# What makes a setting.
SETTING = ("data", "steps", "guidance", "ema")
# Data set -> what is wished high and what low.
RESPECTS = {
    "scenes": ("clip_score", "frechet"),
    "digits": ("classifier_accuracy", "diversity_gap"),
}
TITLES = {"diversity_gap": "Meaningful diversity, distance to real"}
# Heading -> which settings the rank is averaged over.
PARTS: Mapping[str, Callable[[Row], bool]] = {
    "rank": lambda row: True,
    "rank_5_steps": lambda row: row["steps"] == 5,
    "rank_50_steps": lambda row: row["steps"] == 50,
    "rank_ema": lambda row: row["ema"],
    "rank_no_ema": lambda row: not row["ema"],
}
# Lines of one plot that can still be told apart.
LINES = 8
# Formulations that a page tells apart pair by pair; pairs.csv has all.
PAIRED = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranked:
    """A formulation's place among others.

    Attributes:
      name: of the formulation.
      rows: one of each setting and seed, with its ``rank`` there, ``high`` and ``low``.
    """

    name: str
    rows: Sequence[Row]

    @property
    def seeds(self) -> int:
        """How many trainings there are."""
        return len({row["seed"] for row in self.rows})

    def means(self, name: str, part: str = "rank") -> dict[int, float | None]:
        """Of each seed a column's mean over the settings of a part; None where it has none."""
        found: dict[int, float | None] = {}
        for seed in sorted({row["seed"] for row in self.rows}):
            values = [r[name] for r in self.rows if r["seed"] == seed and PARTS[part](r)]
            found[seed] = float(np.mean(values)) if values else None
        return found

    def cell(self, name: str, part: str = "rank") -> dict[str, float] | None:
        """A column's mean over the settings of a part, with its interval over seeds."""
        return _over_seeds(self.means(name, part).values())

    def apart(self, other: "Ranked", name: str) -> dict[str, float] | None:
        """How much more of a column this one has, seed by seed, with its interval over seeds."""
        mine, theirs = self.means(name), other.means(name)
        pairs = [(a, theirs.get(seed)) for seed, a in mine.items()]
        return _over_seeds([a - b for a, b in pairs if a is not None and b is not None])

    @property
    def rank(self) -> float:
        """The mean over all settings and seeds."""
        return float(np.mean([row["rank"] for row in self.rows]))


def _over_seeds(values: Iterable[float | None]) -> dict[str, float] | None:
    return Setting(said={}, rows=[{"": value} for value in values]).cell("")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking:
    """A table of formulations, the best first.

    Attributes:
      title: what it is over.
      name: the same in file names.
      ranked: its lines.
    """

    title: str
    name: str
    ranked: Sequence[Ranked]

    @property
    def pairs(self) -> list[tuple[Ranked, Ranked]]:
        """Each with every one that is behind it, where there are seeds to tell them apart by."""
        pairs = itertools.combinations(self.ranked, 2)
        return [(one, other) for one, other in pairs if min(one.seeds, other.seeds) > 1]


def rank(rows: Sequence[Row]) -> list[Ranked]:
    """The formulations that have every setting of these rows, by mean rank.

    Args:
      rows: of ``study.gather``. In each setting, formulations of the same seed are sorted; seeds
        that not all of them have are left out.
    """
    whole = _whole(rows)
    shared = set.intersection(*whole.values()) if whole else set()
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row["formulation"] in whole and row["seed"] in shared:
            groups.setdefault((row["seed"], _setting(row)), []).append(row)
    found: dict[str, list[Row]] = {name: [] for name in whole}
    for group in groups.values():
        goals = np.array([respects(row) for row in group], float)
        places = pareto.ranks(goals * [1, -1])
        for row, (high, low), place in zip(group, goals, places, strict=True):
            found[row["formulation"]].append(
                {**row, "rank": int(place), "high": float(high), "low": float(low)}
            )
    ranked = [Ranked(name=name, rows=found[name]) for name in whole if found[name]]
    return sorted(ranked, key=lambda each: each.rank)


def respects(row: Row) -> tuple[float, float]:
    """What is wished high and what is wished low of a row; NaN where it is not known."""

    def value(name: str) -> float:
        return float("nan") if row.get(name) is None else float(row[name])

    high, low = RESPECTS[row["data"]]
    if low == "diversity_gap":
        gap = value("meaningful_diversity") - value("true_meaningful_diversity")
        return value(high), abs(gap)
    return value(high), value(low)


def rankings(rows: Sequence[Row]) -> list[Ranking]:
    """One of all data sets where there are several, one of each, and those with more seeds."""
    names = list(dict.fromkeys(row["data"] for row in rows))
    found = []
    if len(names) > 1:
        found.append(Ranking(title="All data sets", name="all", ranked=rank(rows)))
    for data in names:
        own = [row for row in rows if row["data"] == data]
        found.append(Ranking(title=data.capitalize(), name=data, ranked=rank(own)))
        seeds = _whole(own)
        most = max((len(each) for each in seeds.values()), default=0)
        several = {name for name, each in seeds.items() if len(each) == most}
        if most > 1 and 1 < len(several) < len(seeds):
            among = rank([row for row in own if row["formulation"] in several])
            title = f"{data.capitalize()}, those of {most} seeds among themselves"
            found.append(Ranking(title=title, name=f"{data}_seeds", ranked=among))
    return [ranking for ranking in found if ranking.ranked]


def write(out: Path, rows: Sequence[Row]) -> str:
    """``report.html``, ``table.csv``, ``ranks.csv``, ``pairs.csv`` and ``figures/`` of a study.

    Args:
      out: the folder.
      rows: of ``study.gather``.

    Returns:
      The first ranking, for a terminal.

    Raises:
      ValueError: no formulation has all settings of its data set yet.
    """
    found = rankings(rows)
    if not found:
        raise ValueError("no formulation has every setting yet: let the study go on")
    out.mkdir(parents=True, exist_ok=True)
    _tables(out, found)
    drawn: dict[str, list[figures.Figure]] = {}
    for ranking in found:
        drawn[ranking.name] = [_bars(out / "figures", ranking)]
        if len({row["data"] for each in ranking.ranked for row in each.rows}) == 1:
            drawn[ranking.name].append(_trade(out / "figures", ranking))
            drawn[ranking.name] += _by_steps(out / "figures", ranking)
    _page(out / "report.html", rows, found, drawn)
    width = max(len(each.name) for each in found[0].ranked)
    lines = [f"{each.name:{width}}  {each.rank:6.2f}" for each in found[0].ranked]
    return "\n".join([f"mean rank, {found[0].title}:", *lines])


def _whole(rows: Sequence[Row]) -> dict[str, set[int]]:
    """Formulations with those of their seeds that have every setting of these rows."""
    every = {_setting(row) for row in rows}
    there: dict[tuple[str, int], set[tuple]] = {}
    for row in rows:
        there.setdefault((row["formulation"], row["seed"]), set()).add(_setting(row))
    found: dict[str, set[int]] = {}
    for (name, seed), settings in there.items():
        if settings == every:
            found.setdefault(name, set()).add(seed)
    return found


def _setting(row: Row) -> tuple:
    return tuple(row[name] for name in SETTING)


def _named(ranking: Ranking) -> list[tuple[str, str]]:
    """The two measures of a ranking on one data set, each with the column that holds it."""
    data = {row["data"] for each in ranking.ranked for row in each.rows}
    return [] if len(data) > 1 else list(zip(RESPECTS[data.pop()], ("high", "low"), strict=True))


def _called(measure: str) -> str:
    return TITLES.get(measure) or figures.called(measure)


def _tables(out: Path, found: Sequence[Ranking]) -> None:
    """A line of every formulation in every ranking, and one of each of its settings."""
    measures = list(dict.fromkeys(name for pair in RESPECTS.values() for name in pair))
    intervals = [f"{name}{end}" for name in ("rank", *measures) for end in ("_low", "_high")]
    with open(out / "table.csv", "w", newline="") as file:
        lines = csv.DictWriter(
            file, ["ranking", "formulation", "seeds", *PARTS, *measures, *intervals]
        )
        lines.writeheader()
        for ranking in found:
            for each in ranking.ranked:
                cells = {part: each.cell("rank", part) for part in PARTS}
                cells |= {name: each.cell(column) for name, column in _named(ranking)}
                line: dict[str, Any] = {n: c["mean"] for n, c in cells.items() if c is not None}
                for name in ("rank", *measures):
                    cell = cells.get(name) or {}
                    line |= {f"{name}_{end}": cell[end] for end in ("low", "high") if end in cell}
                about = dict(ranking=ranking.name, formulation=each.name, seeds=each.seeds)
                lines.writerow({**about, **line})
    heads = ["formulation", "seed", *SETTING, "rank", "high", "low"]
    with open(out / "ranks.csv", "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["ranking", *heads])
        for ranking in found:
            for each in ranking.ranked:
                lines.writerows([ranking.name, *(r[h] for h in heads)] for r in each.rows)
    with open(out / "pairs.csv", "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["ranking", "formulation", "against", "measure", "mean", "low", "high"])
        for ranking in found:
            for one, other in ranking.pairs:
                for measure, column in (("rank", "rank"), *_named(ranking)):
                    cell = one.apart(other, column) or {}
                    told = [cell.get(part) for part in ("mean", "low", "high")]
                    lines.writerow([ranking.name, one.name, other.name, measure, *told])


def _bars(folder: Path, ranking: Ranking) -> figures.Figure:
    """Mean rank of each formulation."""
    best = ranking.ranked[::-1]
    cells = [each.cell("rank") or {} for each in best]

    def draw(axes: Axes) -> None:
        for place, cell in enumerate(cells):
            axes.barh(place, cell["mean"], 0.7, color=figures.COLOURS[1])
            bar = figures.bar(cell)
            if bar is not None:
                axes.errorbar(cell["mean"], place, xerr=bar, color=figures.GREY)
        axes.set_yticks(range(len(best)), [each.name for each in best], fontsize=8)
        axes.set_xlabel("Mean rank; 1: nothing is better in both respects in any setting")
        axes.grid(False, axis="y")

    heads = ["formulation", "mean", "low", "high"]
    data = [
        [each.name, *(cell.get(p) for p in heads[1:])]
        for each, cell in zip(best, cells, strict=True)
    ]
    size = (6.4, max(2.4, 0.8 + 0.2 * len(best)))
    title = f"Mean rank: {ranking.title}"
    return figures.save(folder, f"rank_{ranking.name}", title, draw, [heads, *data], size=size)


def _trade(folder: Path, ranking: Ranking) -> figures.Figure:
    """The two respects, each averaged over settings; filled where nothing is better in both."""
    (x, _), (y, _) = _named(ranking)
    cells = [(each.name, each.cell("high"), each.cell("low")) for each in ranking.ranked]
    points = [(name, a, b) for name, a, b in cells if a is not None and b is not None]
    goals = np.array([[a["mean"], -b["mean"]] for _, a, b in points]).reshape(-1, 2)
    front = pareto.front(goals)

    def draw(axes: Axes) -> None:
        for index, ((name, a, b), best) in enumerate(zip(points, front, strict=True)):
            label = name if index < 2 * LINES else None
            figures.point(axes, a, b, index=index, filled=bool(best), label=label)
        axes.set_xlabel(_called(x))
        axes.set_ylabel(_called(y))
        figures.legend(axes)

    heads = ["formulation", *(f"{m}{p}" for m in (x, y) for p in ("", "_low", "_high")), "front"]
    data = [
        [name, *(c.get(p) for c in (a, b) for p in ("mean", "low", "high")), bool(best)]
        for (name, a, b), best in zip(points, front, strict=True)
    ]
    title = f"{_called(y)} against {_called(x)}, means over settings: {ranking.title}"
    return figures.save(folder, f"trade_{ranking.name}", title, draw, [heads, *data])


def _by_steps(folder: Path, ranking: Ranking) -> list[figures.Figure]:
    """Each respect over the number of steps, averaged weights, at the most common guidance."""
    rows = [row for each in ranking.ranked for row in each.rows]
    scales = [row["guidance"] for row in rows]
    scale = max(set(scales), key=lambda scale: (scales.count(scale), scale))
    shown = list(ranking.ranked[:LINES])
    # The usual way of old stays in sight.
    shown += [each for each in ranking.ranked[LINES:] if each.name == "eps/linear"]
    drawn = []
    for measure, column in _named(ranking):
        curves = {}
        for each in shown:
            at: dict[int, list[float]] = {}
            for row in each.rows:
                if row["ema"] and row["guidance"] == scale:
                    at.setdefault(row["steps"], []).append(row[column])
            curves[each.name] = [(steps, float(np.mean(at[steps]))) for steps in sorted(at)]
        if all(len(curve) < 2 for curve in curves.values()):
            continue

        def draw(axes: Axes, curves=curves, measure=measure) -> None:
            for index, (name, curve) in enumerate(curves.items()):
                steps, values = zip(*curve, strict=True)
                mark = figures.MARKS[index % len(figures.MARKS)]
                # The one beyond the colours is told apart by its dashes.
                look, colour = "--", figures.GREY
                if index < LINES:
                    look, colour = "-", figures.COLOURS[index]
                axes.plot(steps, values, f"{mark}{look}", color=colour, markersize=5, label=name)
            axes.set_xlabel("Steps")
            axes.set_ylabel(_called(measure))
            figures.legend(axes)

        data = [[name, *point] for name, curve in curves.items() for point in curve]
        title = f"{_called(measure)} by steps, guidance {scale:g}, EMA: {ranking.title}"
        name = f"{measure}_by_steps_{ranking.name}"
        heads = ["formulation", "steps", measure]
        drawn.append(figures.save(folder, name, title, draw, [heads, *data]))
    return drawn


def _page(
    path: Path,
    rows: Sequence[Row],
    found: Sequence[Ranking],
    drawn: Mapping[str, Sequence[figures.Figure]],
) -> None:
    names = {row["formulation"] for row in rows}
    settings = {_setting(row) for row in rows}
    body = [
        f"<header><h1>Formulations</h1><p class='lead'>{len(names)} formulations, "
        f"{len(settings)} settings, {len(rows)} rows. Ranks by non-dominated sorting in each "
        "setting, averaged over settings; 1 is best. Intervals hold 95 %, over seeds.</p></header>"
    ]
    for ranking in found:
        measures = _named(ranking)
        heads = [*(part.replace("_", " ") for part in PARTS), *(_called(m) for m, _ in measures)]
        head = "".join(f'<th class="n">{html.escape(text)}</th>' for text in heads)
        lines = ""
        for each in ranking.ranked:
            cells = [each.cell("rank", part) for part in PARTS]
            cells += [each.cell(column) for _, column in measures]
            told = "".join(_cell(h, cell) for h, cell in zip(heads, cells, strict=True))
            seeds = f"<small>{each.seeds} seeds</small>" if each.seeds > 1 else ""
            lines += f'<tr><th scope="row">{html.escape(each.name)}{seeds}</th>{told}</tr>'
        left = _unranked(rows, ranking)
        note = f'<p class="note">Not ranked, settings missing: {left}.</p>' if left else ""
        shown = "".join(
            f"<figure><figcaption>{html.escape(figure.title)}</figcaption>{figure.svg}</figure>"
            for figure in drawn[ranking.name]
        )
        body.append(
            f"<section><h2>{html.escape(ranking.title)}</h2>{note}"
            f'<div class="wide"><table class="many"><thead><tr><th></th>{head}</tr></thead>'
            f"<tbody>{lines}</tbody></table></div>{_pairs(ranking)}"
            f'<div class="drawn">{shown}</div></section>'
        )
    write_page(path, "Formulations", body)


def _pairs(ranking: Ranking) -> str:
    """How far the first are apart, as a table; nothing where there is one seed."""
    first = ranking.ranked[:PAIRED]
    pairs = [pair for pair in ranking.pairs if pair[1] in first]
    if not pairs:
        return ""
    columns = [("rank", "rank"), *((_called(m), column) for m, column in _named(ranking))]
    head = "".join(f'<th class="n">{html.escape(text)}</th>' for text, _ in columns)
    lines = ""
    for one, other in pairs:
        told = "".join(_cell(text, one.apart(other, c), "+.3f") for text, c in columns)
        name = f"{html.escape(one.name)}<small>against {html.escape(other.name)}</small>"
        lines += f'<tr><th scope="row">{name}</th>{told}</tr>'
    return (
        '<h3>How far apart, seed by seed</h3><div class="wide"><table class="many"><thead><tr>'
        f"<th></th>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _unranked(rows: Sequence[Row], ranking: Ranking) -> str:
    """Formulations with rows of a ranking's data sets that are not in it."""
    if ranking.name.endswith("_seeds"):
        return ""
    there = {row["formulation"] for row in rows if ranking.name in ("all", row["data"])}
    return html.escape(", ".join(sorted(there - {each.name for each in ranking.ranked})))


def _cell(head: str, cell: Mapping[str, float] | None, form: str = ".3f") -> str:
    text = "–" if cell is None else f"{cell['mean']:{form}}"
    if cell is not None and "low" in cell:
        text += f"<small>±{(cell['high'] - cell['low']) / 2:.3f}</small>"
    return f'<td class="n" data-of="{html.escape(head)}">{text}</td>'
