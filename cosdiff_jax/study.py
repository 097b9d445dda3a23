"""Run a grid of trainings and drawings, one row of a table each; stopped, it goes on.

    python -m cosdiff_jax.study --config=configs/study/diversity.py --workdir=studies/diversity
    python -m cosdiff_jax.study ... --only=diversity --shard=0 --shards=4
    python -m cosdiff_jax.study --config=configs/study/sd3.py:twelve --workdir=studies/sd3

Every point is two commands that a user could type, ``train`` and ``evaluate``, in processes of
their own; they are printed before they run. A training that several points share is made once. A
point's row is a file of its own under ``rows/``: what is there is never computed again, and several
machines can share the work on one file system. ``rows.parquet`` is all of them together, each with
its commands and the machine that ran them; ``python -m cosdiff_jax.evaluate --study=DIR`` draws
them. A ``rows.parquet`` from elsewhere, put into a new workdir, is gone on from: its points count
as computed, and only their trainings and drawings are not there.
"""

import functools
import hashlib
import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from absl import app, flags
from ml_collections import config_flags

from cosdiff_jax import commandline, diverse, survey, trained
from cosdiff_jax.report import measures, setting

_log = logging.getLogger("cosdiff_jax")
COSTS = ("evaluations", "seconds", "peak_mib")


def points(config: Any) -> Iterator[dict[str, Any]]:
    """Every point of the grid: which training, which drawing, which seed."""
    for training in config.trainings:
        for seed in config.seeds:
            for draw in training.get("draws", config.draws):
                # Only where it is asked for: rows are found again by all that is said of a point.
                also: dict[str, Any] = {"ema": bool(draw["ema"])} if "ema" in draw else {}
                also |= {"sample": shlex.join(draw["sample"])} if "sample" in draw else {}
                yield {
                    "training": training["name"],
                    **training["labels"],
                    "model": training.get("model", ""),
                    "flags": shlex.join(training["flags"]),
                    "seed": int(seed),
                    "method": draw["method"],
                    "guidance": float(draw["guidance"]),
                    "num": int(draw["num"]),
                    "candidates": int(draw.get("candidates", 0)),
                    "prompts": int(config.prompts),
                    "steps": int(draw.get("steps") or config.steps),
                    "recipe": training.get("recipe") or config.recipe,
                    **also,
                }


def train_command(point: Mapping[str, Any], workdir: Path) -> tuple[list[str], Path] | None:
    """The training of a point and where it goes; None where a model is drawn from as it is."""
    if point["model"]:
        return None
    changes = [*shlex.split(point["flags"]), f"seed={point['seed']}"]
    # Published names have slashes and brackets.
    called = re.sub(r"[^\w.+-]+", "_", point["training"]).strip("_")
    name = f"{called}-{_digest([point['recipe'], *changes])}"
    place = workdir / "trainings" / name
    command = [sys.executable, "-m", "cosdiff_jax.train", f"--config={point['recipe']}"]
    return [*command, *(f"--config.{c}" for c in changes), f"--workdir={place}"], place


def draw_command(point: Mapping[str, Any], workdir: Path, out: Path) -> list[str]:
    """The drawing and measuring of a point."""
    training = train_command(point, workdir)
    source = f"--model={point['model']}" if training is None else f"--workdir={training[1]}"
    fields = ("num", "prompts", "steps", "guidance", "seed", "method")
    options = [f"--{name}={point[name]}" for name in fields]
    if point["candidates"]:
        options.append(f"--candidates={point['candidates']}")
    if not point.get("ema", True):
        options.append("--noema")
    options += [f"--sample={change}" for change in shlex.split(point.get("sample", ""))]
    return [sys.executable, "-m", "cosdiff_jax.evaluate", source, *options, f"--out={out}"]


def run(
    config: Any, workdir: Path, *, only: Sequence[str] = (), shard: int = 0, shards: int = 1
) -> tuple[int, int]:
    """Compute what is missing.

    Args:
      config: the grid.
      workdir: its folder.
      only: of the trainings, those of these names, or with one of these in their name where none
        is called so; by default all.
      shard: this machine's number.
      shards: machines; each takes every so-manieth training, so that none is made twice.

    Returns:
      How many points were computed, and how many were there.

    Raises:
      ValueError: a command failed; it is named, and its own words are in the log beside the row.
        Or a row is of other weights, or of other changes, that had a model's or a method's name
        before.
    """
    asked = _asked([training["name"] for training in config.trainings], only)
    chosen = [point for point in points(config) if point["training"] in asked]
    trainings = list(dict.fromkeys(_source(point) for point in chosen))
    mine = [point for point in chosen if trainings.index(_source(point)) % shards == shard]
    _unpack(workdir)
    done = 0
    for number, point in enumerate(mine):
        row = workdir / "rows" / f"{_digest(point)}.parquet"
        own = {"changes": json.dumps(diverse.overlay(point["method"]), sort_keys=True)}
        own |= {"weights": _weights(point["model"])} if point["model"] else {}
        if row.exists():
            _same(row, own)
            continue
        _log.warning("point %d of %d: %s", number + 1, len(mine), _say(point))
        log = row.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        training = train_command(point, workdir)
        if training is not None and not (training[1] / "model" / "config.json").exists():
            _call(training[0], log)
            if not (training[1] / "model" / "config.json").exists():
                raise ValueError(
                    f"{training[1]} was stopped before its end; the same command goes on"
                )
        out = workdir / "drawings" / row.stem
        draw = draw_command(point, workdir, out)
        _call([*draw, "--page=False"], log)  # the study has a page of its own
        said = " && ".join(_typed(each) for each in ([training[0]] if training else []) + [draw])
        _keep(
            row, {**point, **own, "command": said}, json.loads((out / "metrics.json").read_text())
        )
        done += 1
    gather(workdir)
    return done, len(mine) - done


@functools.cache
def _weights(model: str) -> str:
    """Which weights are drawn from, as ``generate`` and ``evaluate`` say it."""
    return trained.load(model, ()).digests["weights"]


def _same(row: Path, own: Mapping[str, str]) -> None:
    """That a row is of the weights and the changes which its names stand for now."""
    (known,) = pq.read_table(row).to_pylist()
    for what, called in {"weights": "model", "changes": "method"}.items():
        if what in own and known.get(what, own[what]) != own[what]:
            raise ValueError(
                f"{row} is of other {what} that were called {known[called]} "
                f"({known[what]}, not {own[what]}): choose another --workdir"
            )


def gather(workdir: Path) -> Path:
    """All rows in one file, ``rows.parquet``, each with what it has more than the base model.

    ``against`` names the row that another is held to, ``MEASURE_change`` is the difference,
    ``_low`` and ``_high`` its 95 % interval over the prompts, drawn of both together.
    """
    files = sorted((workdir / "rows").glob("*.parquet"))
    if not files:
        raise ValueError(f"{workdir} has no rows yet")
    rows = [pq.read_table(file).to_pylist()[0] for file in files]
    names = dict.fromkeys(name for row in rows for name in row)
    changes = _changes(rows, [workdir / "drawings" / file.stem for file in files])
    names |= dict.fromkeys(name for change in changes for name in change)
    rows = [{**row, **change} for row, change in zip(rows, changes, strict=True)]
    place = workdir / "rows.parquet"
    half = place.with_suffix(".part")
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), half)
    half.replace(place)
    return place


def _unpack(workdir: Path) -> None:
    """A table from elsewhere as files of its rows; where there are files, they alone count."""
    table, rows = workdir / "rows.parquet", workdir / "rows"
    if rows.exists() or not table.is_file():
        return
    half = workdir / f"rows.{uuid.uuid4().hex}.part"  # each machine's own
    for line in pq.read_table(table).to_pylist():
        # A row and its drawing have one name, and the command ends with the drawing's folder.
        name = Path(shlex.split(line["command"])[-1]).name
        _write(half / f"{name}.parquet", {k: v for k, v in line.items() if v is not None})
    try:
        half.rename(rows)
    except OSError:  # another machine on this folder was faster, with the same rows
        if not rows.exists():
            raise
        shutil.rmtree(half)


def _write(row: Path, line: Mapping[str, Any]) -> None:
    row.parent.mkdir(parents=True, exist_ok=True)
    half = row.with_suffix(".part")
    pq.write_table(pa.table({name: [value] for name, value in line.items()}), half)
    half.replace(row)


def _changes(rows: Sequence[Mapping[str, Any]], places: Sequence[Path]) -> list[dict[str, Any]]:
    """Of each row what it has more than the base model, prompt by prompt; {} of what has none.

    That is the base model drawn independently of the same prompts, from the same noise and with
    the same guidance; of the base model at other guidances, at the one that most rows have. Where
    nothing was drawn like that in as many steps, as in a comparison at one price, it is the one
    drawn in another number of them.
    """
    plain: dict[tuple, dict[int | None, int]] = {}  # of what is alike, by the number of steps
    for number, row in enumerate(rows):
        if row["training"] == "base" and setting.is_plain(row):
            plain.setdefault(_alike(row), {})[row.get("steps")] = number

    def ground(row: Mapping[str, Any]) -> int | None:
        there = plain.get(_alike(row), {})
        only = next(iter(there.values())) if len(there) == 1 else None
        return there.get(row.get("steps"), only)

    guidances = [row["guidance"] for row in rows]
    usual = max(dict.fromkeys(guidances), key=guidances.count)
    found: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        other = ground(row)
        if other == number:
            other = ground({**row, "guidance": usual})
        if other is None or other == number or _seen_otherwise(row, rows[other]):
            found.append({})
            continue
        change: dict[str, Any] = {"against": f"base, guidance {rows[other]['guidance']:g}"}
        for name, apart in measures.changes(
            *map(_prompts, (places[other], places[number]))
        ).items():
            if name in measures.ROWS and name not in COSTS:
                told = (f"{name}_change", f"{name}_change_low", f"{name}_change_high")
                change |= dict(zip(told, apart, strict=True))
        found.append(change)
    return found


def _alike(row: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("seed", "guidance", "num", "prompts", "ema")
    return tuple(row.get(name) for name in names)


def _seen_otherwise(*rows: Mapping[str, Any]) -> bool:
    """Whether the rows name several networks' features; old rows name none."""
    return len({row["features"] for row in rows if row.get("features")}) > 1


def _prompts(drawing: Path) -> dict[str, dict[str, float]]:
    """Prompt -> what was measured of its pictures; {} where they are somewhere else."""
    own = [p for p in (drawing / "measured").glob("*") if p.name not in ("true", "reference")]
    if len(own) != 1:
        return {}
    rows = survey.Survey(folder=own[0], eye=None).result().rows
    return {row["key"]: row["measures"] for row in rows}


def _keep(row: Path, point: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """A point, where it was computed, and its measures; ``true_`` begins those of true pictures."""
    columns, facts = found["columns"], dict(found["facts"])
    true = columns.pop("true", {})
    (own,) = columns.values()
    facts["versions"] = ", ".join(f"{name} {of}" for name, of in facts["versions"].items())
    line: dict[str, Any] = {**point, **{name: facts[name] for name in _FACTS if name in facts}}
    for prefix, table in (("", own), ("true_", true)):
        for name, cell in table.items():
            line |= {f"{prefix}{name}{_PARTS[part]}": float(cell[part]) for part in cell}
    _write(row, line)


_PARTS = {"mean": "", "low": "_low", "high": "_high"}
_FACTS = ("features", "date", "processor", "accelerator", "devices", "memory", "system", "versions")


def _typed(command: Sequence[str]) -> str:
    return shlex.join(["python", *command[1:]])


def _call(command: Sequence[str], log: Path) -> None:
    said = _typed(command)
    _log.warning("  %s", said)
    with open(log, "a") as file:
        file.write(f"$ {said}\n")
        file.flush()
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    if status:
        last = log.read_text().strip().splitlines()[-1]
        raise ValueError(f"{said} ended with {status}: {last} (all of it is in {log})")


def _asked(names: Sequence[str], only: Sequence[str]) -> set[str]:
    """The names that are meant; "rf" is one of them, although it is a part of many."""
    asked = set() if only else set(names)
    for part in only:
        found = {part} & set(names) or {name for name in names if part in name}
        if not found:
            raise ValueError(f"no training of the grid has {part!r} in its name")
        asked |= found
    return asked


def _source(point: Mapping[str, Any]) -> str:
    return json.dumps([point[name] for name in ("model", "recipe", "flags")]) + (
        "" if point["model"] else str(point["seed"])
    )


def _say(point: Mapping[str, Any]) -> str:
    told = ("training", "weight", "samples", "layers", "seed")
    told += ("method", "sample", "guidance", "num", "steps", "ema")
    return ", ".join(f"{name} {point[name]}" for name in told if name in point)


def _digest(of: Any) -> str:
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:12]


def main(argv: list[str]) -> None:
    """Run, and turn errors a user can mend into one line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    workdir = Path(FLAGS.workdir)
    try:
        done, there = run(
            FLAGS.config, workdir, only=FLAGS.only, shard=FLAGS.shard, shards=FLAGS.shards
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
    print(f"{done} points computed, {there} were there: {workdir / 'rows.parquet'}")


FLAGS = flags.FLAGS


def parse(argv: list[str]) -> list[str]:
    """Parse the command line; what is wrong with it becomes one line."""

    def look() -> None:
        if FLAGS.config is None or not FLAGS.workdir:
            sys.exit("error: both --config=configs/study/GRID.py and --workdir=FOLDER are needed")
        _ = FLAGS.config.trainings  # a recipe has none

    return commandline.parse(argv, look)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Grid, e.g. configs/study/diversity.py")
    flags.DEFINE_string("workdir", None, "Folder for trainings, drawings and rows")
    flags.DEFINE_multi_string("only", [], "Training of this name, or all with it inside; repeat")
    flags.DEFINE_integer("shard", 0, "This machine's number", lower_bound=0)
    flags.DEFINE_integer("shards", 1, "Machines that share the work", lower_bound=1)
    app.run(main, flags_parser=parse)
