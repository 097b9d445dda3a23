"""A study's rows -> its settings: what is one point of a figure and one line of a table.

Rows that differ in the seed alone are one setting, the mean over seeds; its interval is Student's
of 95 %. With one seed it is the interval over prompts that the measurement gave.
"""

import dataclasses
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

# What decides a drawing; a row may lack a name that its study leaves alone.
DRAWN = ("method", "sample", "guidance", "num", "candidates", "steps", "prompts", "ema")
# What tells one setting from another, in the order of the table.
SETTING = ("training", "weight", "samples", "layers", *DRAWN, "model", "recipe", "flags")
PARTS = {"": "mean", "_low": "low", "_high": "high"}

Row = Mapping[str, Any]
Cell = Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """All seeds of one setting.

    Attributes:
      said: its knobs by name.
      rows: one of each seed.
      also: what tells it from others of the same name.
    """

    said: Mapping[str, Any]
    rows: Sequence[Row]
    also: str = ""

    @property
    def name(self) -> str:
        """Short, for a legend."""
        said = self.said
        trained = said.get("weight") is not None and said["training"] != "base"
        weight = f" {said['weight']:g}" if trained else ""
        methods = [] if said.get("method") in (None, "independent") else [said["method"]]
        method = "".join(f" + {each}" for each in methods + _told(said.get("sample") or ""))
        guidance = "" if said.get("guidance") is None else f", s={said['guidance']:g}"
        num = "" if said.get("num") is None else f", K={said['num']}"
        return f"{said['training']}{weight}{method}{guidance}{num}{self.also}"

    @property
    def plain(self) -> bool:
        """Whether its pictures were drawn independently, as the recipe says."""
        return is_plain(self.said)

    @property
    def true(self) -> "Setting":
        """The true pictures of its prompts, as many."""
        return truths(self.rows)[0]

    @property
    def commands(self) -> list[str]:
        """What computed it, a line for each seed."""
        return [row["command"] for row in self.rows if row.get("command")]

    def cell(self, measure: str) -> dict[str, float] | None:
        """Mean over seeds, and its interval where there are two; None where nobody measured it.

        The interval of one seed is that over its prompts, where its row has one.
        """
        there = [row for row in self.rows if _known(row, measure)]
        if not there:
            return None
        values = np.array([row[measure] for row in there])
        mean = float(values.mean())
        if len(values) < 2:
            (row,) = there
            return {
                name: row[f"{measure}{part}"]
                for part, name in PARTS.items()
                if _known(row, f"{measure}{part}")
            }
        half = special.stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / math.sqrt(len(values))
        return {"mean": mean, "low": mean - float(half), "high": mean + float(half)}


def _known(row: Row, name: str) -> bool:
    return row.get(name) is not None and math.isfinite(row[name])


def is_plain(row: Row) -> bool:
    """Whether a row's pictures were drawn independently, as the recipe says."""
    return row.get("method") in (None, "independent") and not row.get("sample")


def settings(rows: Sequence[Row]) -> list[Setting]:
    """The rows by setting: the base model first, then by training, weight and way of drawing."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in SETTING), []).append(row)
    found = [
        Setting(said=dict(zip(SETTING, key, strict=True)), rows=own) for key, own in groups.items()
    ]
    return named(sorted(found, key=_place))


def _place(each: Setting) -> tuple[Any, ...]:
    said = each.said
    trained, drawn = (
        [said.get(name) or 0 for name in names]
        for names in (("weight", "samples", "layers"), ("guidance", "num", "candidates"))
    )
    method = said.get("method") or "independent"
    sampled = said.get("sample") or ""
    base = said["training"] == "base"
    return not base, said["training"], *trained, not each.plain, method, _natural(sampled), *drawn


def _told(sample: str) -> list[str]:
    """Changes of the recipe's ``sample`` in short: a choice goes unsaid if its knobs are said."""
    changes = [change.split("=", 1) for change in shlex.split(sample)]
    fields = [field for field, _ in changes]

    def unsaid(field: str, value: str) -> bool:
        chosen = f"{field.removesuffix('name')}{value}."
        return field.endswith(".name") and any(other.startswith(chosen) for other in fields)

    return [
        f"{'.'.join(field.split('.')[-2:])}={value}"
        for field, value in changes
        if not unsaid(field, value)
    ]


def _natural(text: str) -> list[Any]:
    """A key by which 100 comes after 30: words and numbers by turns."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [float(part) if number % 2 else part for number, part in enumerate(parts)]


def truths(rows: Sequence[Row]) -> list[Setting]:
    """The true pictures: a setting for each K and number of prompts, a row for each seed."""
    groups: dict[tuple, dict[int, dict[str, float]]] = {}
    for row in rows:
        own = {k: v for k, v in row.items() if k.startswith("true_") and v is not None}
        group = groups.setdefault((row["num"], row.get("prompts")), {})
        group.setdefault(row["seed"], {}).update((k[len("true_") :], v) for k, v in own.items())
    found = []
    for (num, prompts), own in groups.items():
        said = {"training": "true pictures", "num": num, "prompts": prompts}
        found.append(Setting(said=said, rows=list(own.values())))
    return named(found)


def named(found: Sequence[Setting]) -> list[Setting]:
    """The same, with those of one name told apart by the knobs that do."""
    alike: dict[str, list[Setting]] = {}
    for each in found:
        alike.setdefault(each.name, []).append(each)
    return [
        dataclasses.replace(each, also=_apart(each.said, [e.said for e in alike[each.name]]))
        for each in found
    ]


def _apart(said: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> str:
    """The knobs that tell one of several from the others; the first ones, if they will do."""
    names: list[str] = []
    for name in said:
        ways = [
            {tuple(each[n] for n in told) for each in among} for told in (names, [*names, name])
        ]
        if len(ways[1]) > len(ways[0]):
            names.append(name)
    return "".join(f", {name}={said[name]}" for name in names if said[name] not in (None, ""))
