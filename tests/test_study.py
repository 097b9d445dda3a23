"""A grid is computed once, point by point, and drawn."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs.study import diversity
from cosdiff_jax import study
from cosdiff_jax.report import study as report


def test_every_point_is_there_once():
    config = diversity.get_config()
    found = list(study.points(config))
    assert len(found) == len(config.trainings) * len(config.seeds) * len(config.draws)
    assert len({study._digest(point) for point in found}) == len(found)


class Commands:
    """Instead of the commands themselves: leaves what they would, and fails where told to."""

    def __init__(self, fail=None):
        self.asked, self.fail = [], fail

    def __call__(self, command, stdout, **_):
        options = dict(o.removeprefix("--").split("=", 1) for o in command[3:])
        self.asked.append(command[2].removeprefix("cosdiff_jax."))
        if self.fail is not None and len(self.asked) == self.fail:
            stdout.write("error: no luck\n")
            stdout.flush()
            return subprocess.CompletedProcess(command, 1)
        if command[2].endswith("train"):
            place = Path(options["workdir"]) / "model"
            place.mkdir(parents=True)
            (place / "config.json").write_text("{}")
        else:
            place = Path(options["out"])
            place.mkdir(parents=True, exist_ok=True)
            own = {"all": {"mean": float(options["guidance"]), "low": 0.0, "high": 9.0}}
            found = {
                "facts": {"date": "today"},
                "columns": {"m": own, "true": {"all": {"mean": 1.0}}},
            }
            (place / "metrics.json").write_text(json.dumps(found))
        return subprocess.CompletedProcess(command, 0)


def test_a_stopped_study_goes_on_and_computes_nothing_twice(tmp_path, monkeypatch):
    config = diversity.get_config("tiny")
    fails = Commands(fail=5)
    monkeypatch.setattr(study.subprocess, "run", fails)
    with pytest.raises(ValueError, match="ended with 1: error: no luck"):
        study.run(config, tmp_path)
    # Two drawings of the first training and its training, the second one's training; then the end.
    assert fails.asked == ["train", "evaluate", "evaluate", "train", "evaluate"]
    goes = Commands()
    monkeypatch.setattr(study.subprocess, "run", goes)
    assert study.run(config, tmp_path) == (6, 2)
    assert goes.asked == ["evaluate"] * 2 + (["train"] + ["evaluate"] * 2) * 2
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert len(rows) == 8
    assert all(row["all"] == row["guidance"] and row["true_all"] == 1 for row in rows)
    assert study.run(config, tmp_path) == (0, 8)
    assert len(goes.asked) == 8


def test_machines_share_the_trainings(tmp_path, monkeypatch):
    monkeypatch.setattr(study.subprocess, "run", Commands())
    config = diversity.get_config("tiny")
    done = [study.run(config, tmp_path, shard=shard, shards=3)[0] for shard in range(3)]
    assert sum(done) == 8 and max(done) == 4
    with pytest.raises(ValueError, match="no training"):
        study.run(config, tmp_path, only=["nothing"])


def rows_of(weights, seeds=3, **more):
    """Accuracy falls and diversity grows with the weight, with a little noise of the seed."""
    rng = np.random.default_rng(0)
    return [
        {
            "training": "diversity" if weight else "base", "weight": weight, "seed": seed,
            "method": "independent", "guidance": 5.0, "num": 8, "candidates": 0,
            "all": 0.5 - 0.1 * weight + 0.01 * rng.normal(),
            "meaningful_diversity": 0.4 + 0.2 * weight + 0.01 * rng.normal(),
            "mean_cosine": 0.9 - 0.1 * weight, "clip_score": 0.7, "frechet": None,
            "true_all": 1.0, "true_meaningful_diversity": 0.7, "true_mean_cosine": 0.82, **more,
        }
        for weight in weights for seed in range(seeds)
    ]  # fmt: skip


def test_seeds_are_one_point_with_students_interval():
    (each,) = report.settings(rows_of([0.5]))
    values = [row["all"] for row in each.rows]
    cell = each.cell("all")
    assert cell["mean"] == pytest.approx(np.mean(values))
    # The 97.5 % point of Student's t with 2 degrees of freedom is 4.3027.
    assert cell["high"] - cell["mean"] == pytest.approx(
        4.3027 * np.std(values, ddof=1) / 3**0.5, rel=1e-4
    )
    assert each.cell("frechet") is None
    assert "low" not in report.settings(rows_of([0.5], seeds=1))[0].cell("all")


def test_the_report_draws_fronts_and_curves(tmp_path):
    worse = rows_of([2.0], training="other", all=0.1, meaningful_diversity=0.1)
    volumes = report.write(tmp_path, [*rows_of([0.0, 0.3, 1.0]), *worse])
    assert volumes["meaningful_diversity against all"] >= 0
    assert "mean_cosine against frechet" not in volumes
    with open(tmp_path / "figures" / "meaningful_diversity_against_all.csv") as file:
        front = {row["setting"]: row["front"] for row in csv.DictReader(file)}
    # Each weight trades one for the other; the last setting loses in both.
    assert list(front.values()) == ["True", "True", "True", "False"]
    with open(tmp_path / "figures" / "all_by_weight.csv") as file:
        assert [float(row["weight"]) for row in csv.DictReader(file)] == [0.0, 0.3, 1.0]
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == len(list((tmp_path / "figures").glob("*.svg"))) >= 5
    assert "true pictures" in page
    with open(tmp_path / "table.csv") as file:
        assert [row["seeds"] for row in csv.DictReader(file)] == ["3"] * 4


def test_the_commands_end_with_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "cosdiff_jax.evaluate", f"--study={tmp_path}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: no study in")
