"""What the pages say of the house is what stands there."""

import pathlib
import re
import shlex
import sys
import tomllib

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import trade_off
from cosdiff_jax import diverse

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def test_the_floors_are_those_that_lint_holds():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    held = [floor.split(" | ") for floor in contracts["contracts"][0]["layers"]]
    (drawn,) = re.findall(r"^## Floors.*?```\n(.*?)\n```", PAGE, re.DOTALL | re.MULTILINE)
    floors = [re.split(r" {2,}", line)[0].split(" · ") for line in drawn.splitlines()]
    assert floors == held


def test_the_tree_names_every_room():
    (tree,) = re.findall(r"^## The tree.*?```\n(.*?)\n```", PAGE, re.DOTALL | re.MULTILINE)
    package = ROOT / "cosdiff_jax"
    rooms = [path.name for path in package.glob("[a-z]*.py")]
    rooms += [f"{path.parent.name}/" for path in package.glob("[a-z]*/__init__.py")]
    assert not [room for room in rooms if not re.search(rf"(?<![\w.]){re.escape(room)}", tree)]


def test_every_method_has_its_line_in_the_readme():
    page = (ROOT / "README.md").read_text()
    (table,) = re.findall(r"^\| `--method` .*?(?=\n\n)", page, re.DOTALL | re.MULTILINE)
    named = re.findall(r"^\| `(\w+)` \| (.*?)\|", table, re.MULTILINE)
    assert [name for name, _ in named] == list(diverse.METHODS)


def commands():
    """The README's commands below its picture: what each is of, and its flags."""
    page = (ROOT / "README.md").read_text()
    (block,) = re.findall(
        r"^Any point of it again.*?```sh\n(.*?)```", page, re.DOTALL | re.MULTILINE
    )
    known, found = {}, []
    for line in block.splitlines():
        said = re.sub(r"\$(\w+)", lambda name: known[name[1]], line)
        if variable := re.fullmatch(r'(\w+)="(.*)"', said):
            known[variable[1]] = variable[2]
            continue
        python, minus, module, *flags = shlex.split(said)
        assert (python, minus) == ("python", "-m") and all(f.startswith("--") for f in flags)
        found.append((module.split(".")[-1], dict(f[2:].split("=", 1) for f in flags)))
    return found


def test_every_point_that_the_readme_draws_again_is_a_row_of_the_comparison():
    place = ROOT / "benchmarks" / "results" / "comparison" / "rows.parquet"
    rows, trained, outs = pq.read_table(place).to_pylist(), {}, []
    asked = commands()
    assert [what for what, _ in asked].count("evaluate") >= 4
    for what, flags in asked:
        if what == "train":
            changes = [f"{k.removeprefix('config.')}={v}" for k, v in flags.items() if "." in k]
            (training,) = {
                row["training"]
                for row in rows
                if row["recipe"] == flags["config"] and row["flags"] == " ".join(changes)
            } - {"base"}
            trained[flags["workdir"]] = training
            continue
        outs.append(flags.get("out") or flags["workdir"])
        training = trained[flags["workdir"]] if "workdir" in flags else "base"
        same = [
            row
            for row in rows
            if row["training"] == training
            and row["model"] == flags.get("model", "")
            and row["method"] == flags.get("method", "independent")
            and row["candidates"] == int(flags.get("candidates", 0))
            and all(row[k] == float(flags[k]) for k in ("num", "prompts", "steps", "guidance"))
            and row["seed"] == int(flags["seed"])
        ]
        assert len(same) == 1, flags
    assert len(set(outs)) == len(outs)  # a second measurement in one folder is refused


def test_the_readmes_picture_is_drawn_from_the_committed_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["trade_off.py", f"--out={tmp_path}"])
    trade_off.main()
    kept = (ROOT / "benchmarks" / "results" / "trade_off.csv").read_text()
    (made,) = tmp_path.rglob("trade_off.csv")
    assert made.read_text() == kept


@pytest.mark.slow
def test_the_readmes_python_inverts_a_picture():
    page = (ROOT / "README.md").read_text()
    (code,) = re.findall(
        r"```python\n(import jax\n\nfrom cosdiff_jax import build.*?)```", page, re.DOTALL
    )
    found = {}
    exec(code, found)
    apart = np.abs(found["back"] - found["noise"][0]).mean()
    print(f"noise found again to {apart:.4f}, of {np.abs(found['noise']).mean():.4f}")
    assert apart < 0.01
    assert found["nats"].shape == (2,) and np.isfinite(found["nats"]).all()
