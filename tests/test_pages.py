"""What the pages say of the house is what stands there."""

import pathlib
import re
import tomllib

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
