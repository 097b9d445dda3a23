"""Two processes that measure together find what one finds alone."""

import json

import pytest

from cosdiff_jax import evaluate

ASKED = {"num": 2, "steps": 2, "prompts": 5}

WORKER = """
from absl import app
from cosdiff_jax import evaluate

assert jax.process_count() == 2 and jax.local_device_count() == 2
evaluate.define()
app.run(evaluate.main, argv=["evaluate", *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def together(folder, two_processes, tmp_path_factory):
    """What two processes leave, and what each of them says."""
    out = tmp_path_factory.mktemp("together")
    options = [f"--{name}={value}" for name, value in ASKED.items()]
    options += [f"--model={folder}", f"--out={out}"]
    return out, [told for told, _ in two_processes(WORKER, *options, devices=2)]


def test_two_processes_are_one(folder, together, tmp_path):
    out, said = together
    asked = evaluate.Asked(models=(folder,), **{**ASKED, "prompts": str(ASKED["prompts"])})
    alone = evaluate.pictures(asked, tmp_path)["columns"]
    both = json.loads((out / "metrics.json").read_text())["columns"]
    assert both.keys() == alone.keys()
    for column, table in alone.items():
        assert both[column].keys() == table.keys()
        for name in table.keys() - {"seconds", "peak_mib"}:
            assert both[column][name] == pytest.approx(table[name], rel=1e-4, abs=1e-5), name
    # Each measured a part: the first three prompts and the other two.
    files = sorted(out.glob("measured/true/rows-*"))
    assert [len(file.read_text().splitlines()) for file in files] == [3, 2]
    # The first alone says what was found.
    assert ["mean_cosine" in told and "written to" in told for told in said] == [True, False]
    assert "written to" not in said[1]
    assert (out / "report.html").exists()
