import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from cosdiff_jax import convert, modules, weights

FIXTURES = Path(__file__).parent / "fixtures" / "fuse_dit"
CASES = sorted(path.parent.name for path in FIXTURES.glob("*/config.json"))


@pytest.mark.parametrize("name", CASES)
def test_ours_and_back(tmp_path, name):
    written = convert.import_folder("fuse_dit", FIXTURES / name, tmp_path / "ours")
    assert [path.name for path in written] == ["backbone", "language_model"]
    model = convert.load("fuse_dit", FIXTURES / name)
    for path in written:
        # What a recipe would do with --config.backbone.asset.path=...
        entry = {"name": "asset", "asset": {"path": str(path)}}
        assert modules.model(path.name, entry) == getattr(model, path.name)
        params = modules.parameters(entry)
        jax.tree.map(np.testing.assert_array_equal, params, model.params[path.name])

    convert.export_folder("fuse_dit", tmp_path / "ours", tmp_path / "back")
    a, b = (load_file(f / "model.safetensors") for f in (FIXTURES / name, tmp_path / "back"))
    assert set(a) == set(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_the_layout_cannot_say_is_refused(tmp_path):
    convert.import_folder("fuse_dit", FIXTURES / CASES[0], tmp_path / "ours")
    file = tmp_path / "ours" / "backbone" / "config.json"
    entry = json.loads(file.read_text())
    attention = entry["fuse_dit"]["attention"]
    read_twice = {**attention[attention["name"]], "echo": 3}
    for change in (
        {"mlp": entry["fuse_dit"]["mlp"] + 1},
        {"attention": {**attention, attention["name"]: read_twice}},
    ):
        file.write_text(json.dumps({**entry, "fuse_dit": {**entry["fuse_dit"], **change}}))
        with pytest.raises(ValueError, match="cannot describe this pair"):
            convert.export_folder("fuse_dit", tmp_path / "ours", tmp_path / "back")
    with pytest.raises(ValueError, match="no model in"):
        convert.export_folder("fuse_dit", tmp_path / "nothing", tmp_path / "back")


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "precious").write_text("")
    with pytest.raises(ValueError, match="nothing was written over it"):
        convert.import_folder("fuse_dit", FIXTURES / CASES[0], tmp_path)
    assert weights.EMBEDDED.is_dir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say either --from=LAYOUT or --to=LAYOUT"),
        (["--from=fuse_dit"], "--input=FOLDER and --output=FOLDER are needed"),
        (["--from=fuse_dit", "--input=/nowhere", "--output=x"], "no such folder: /nowhere"),
    ],
)
def test_user_errors_are_one_line(options, message):
    done = subprocess.run(
        [sys.executable, "-m", "cosdiff_jax.convert", *options], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
