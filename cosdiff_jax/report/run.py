"""What a run leaves to look at: samples/ on its way, report.html and report.json at its end."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from cosdiff_jax.report import curves, facts, figures, grid, measures, page


def keep_pictures(
    workdir: str,
    step: int,
    images: UInt8[np.ndarray, "P K X Y C"] | None,
    captions: Sequence[str],
) -> None:
    """The pictures of a look, as a grid and as they are."""
    if images is None:
        return
    stem = _stem(workdir, step)
    grid.write_png(stem.with_suffix(".png"), images, captions)
    with stem.with_suffix(".npy").open("wb") as file:
        np.save(file, images)


def keep_measures(
    workdir: str, step: int, table: Mapping[str, float], each: Sequence[Mapping[str, float]]
) -> None:
    """The measures of a look: of all prompts together, and of every prompt, a line each."""
    stem = _stem(workdir, step)
    stem.with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")
    stem.with_suffix(".jsonl").write_text("".join(json.dumps(one) + "\n" for one in each))


def write(
    workdir: str,
    recipe: Mapping[str, Any],
    *,
    captions: Sequence[str],
    truth: Mapping[str, float],
    real: UInt8[np.ndarray, "P K X Y C"] | None,
    seconds: float,
) -> None:
    """The first and the last look beside the true distribution.

    Args:
      workdir: the run's folder, with both looks in it.
      recipe: its resolved recipe.
      captions: of the prompts shown.
      truth: measures of the true distribution.
      real: real pictures of the prompts shown; None where there is nothing to see.
      seconds: wall time of the run.
    """
    first, last = (_stem(workdir, step) for step in (0, recipe["steps"]))
    tables = [json.loads(stem.with_suffix(".json").read_text()) for stem in (first, last)]
    changes = measures.changes(_each(first), _each(last))
    peak, whose = facts.peak()
    result = {
        "seconds": round(seconds),
        "steps": recipe["steps"],
        "seed": recipe["seed"],
        f"{whose}_peak_mib": round(peak),
        "machine": facts.machine(),
        "versions": facts.versions(),
        "before": tables[0],
        "after": tables[1],
        "true": truth,
        "change": {name: interval._asdict() for name, interval in changes.items()},
    }
    (epath.Path(workdir) / "report.json").write_text(json.dumps(result, indent=1) + "\n")
    drawn = curves.read(epath.Path(workdir) / "metrics.jsonl")
    figures.curves(epath.Path(workdir) / "figures", drawn)
    objective: str = recipe["objective"]["name"]
    before = after = np.zeros((0, 1, 1, 1, 1), np.uint8)
    if real is not None:
        before, after = (_pictures(stem) for stem in (first, last))
    page.write(
        epath.Path(workdir) / "report.html",
        title=f"{objective.replace('_', ' ').capitalize()} on {recipe['data']['name']}",
        captions=captions,
        before=before,
        after=after,
        true=real,
        rows=page.table(tables[0], tables[1], truth, changes),
        curves=drawn,
        facts={
            "wall time": facts.duration(seconds),
            "peak memory": f"{peak / 1024:.1f} GiB of the {whose}",
            "steps": recipe["steps"],
            "seed": recipe["seed"],
            "machine": result["machine"],
            "versions": result["versions"],
        },
        config=recipe,
    )


def _stem(workdir: str, step: int) -> epath.Path:
    folder = epath.Path(workdir) / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"step_{step:07d}"


def _each(stem: epath.Path) -> dict[int, dict[str, float]]:
    """Number of each prompt -> its measures; {} of a run begun before they were kept."""
    place = stem.with_suffix(".jsonl")
    lines = place.read_text().splitlines() if place.exists() else []
    return {number: json.loads(line) for number, line in enumerate(lines)}


def _pictures(stem: epath.Path) -> UInt8[np.ndarray, "P K X Y C"]:
    with stem.with_suffix(".npy").open("rb") as file:
        return np.load(file)
