"""What the pages say of the house is what stands there."""

import pathlib
import re
import tomllib

import numpy as np
import pytest

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
