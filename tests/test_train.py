"""The loop from the command line: to the end, killed and resumed, stopped, damaged, misused."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import fusion_div
from cosdiff_jax import checkpoint

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 6


def start(workdir, *options, recipe="configs/fusion_div.py:tiny", data=None):
    folder = data or workdir.parent / "data"
    command = [
        *(sys.executable, "-m", "cosdiff_jax.train", f"--config={recipe}", f"--workdir={workdir}"),
        f"--config.steps={STEPS}",
        f"--config.data.scenes.folder={folder}",
        *options,
    ]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process, code=0):
    _, err = process.communicate(timeout=500)
    assert process.returncode == code, err[-3000:]
    return err


def metrics(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second")
    return lines


def stored(workdir, step=STEPS):
    """Every array of a checkpoint by path: parameters, moments, averaged weights, step."""
    tree = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(step) / "state")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def wait_for_step(process, workdir, step):
    end = time.monotonic() + 400
    while time.monotonic() < end and process.poll() is None:
        path = workdir / "metrics.jsonl"
        if path.exists() and f'"step": {step}' in path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} never came: {process.communicate()[1][-2000:]}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(start(workdir, "--config.sample.measure=4"))
    return workdir


def test_leaves_everything_behind(whole):
    lines = metrics(whole)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    terms = {"loss", "flow", "diversity", "alignment", "lambda", "mean_cosine", "gradient_norm"}
    assert terms <= lines[-1].keys()
    assert all(np.isfinite(line["loss"]) for line in lines)
    ramp = fusion_div.get_config("tiny").objective.flow_matching.diversity.cosine.schedule.linear
    expected = [ramp.end * min((n - ramp.warmup) / ramp.ramp, 1) for n in range(STEPS)]
    assert [line["lambda"] for line in lines] == pytest.approx(expected)
    (events,) = whole.glob("events/*tfevents*")
    kept = events.read_bytes()
    # Scalars of the training, and of what was measured before, at step 4 and after, with the grids.
    assert b"held_out/mean_cosine" in kept and kept.count(b"held_out/clip_score") == 3
    assert kept.count(b"\x89PNG") == 4
    assert {p.name for p in whole.glob("samples/*.json")} == {
        f"step_{n:07d}.json" for n in (0, 4, STEPS)
    }
    assert {p.name for p in whole.glob("samples/*.png")} == {
        f"step_{n:07d}.png" for n in (0, 2, 4, STEPS)
    }
    page = (whole / "report.html").read_text()
    assert "Meaningful diversity" in page and "data:image/png;base64" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    result = json.loads((whole / "report.json").read_text())
    assert result["before"].keys() == result["after"].keys() > {"mean_cosine", "all"}
    # What two prompts or more tell has an interval; a distance between sets has none.
    sets = {name for name in result["before"] if name.startswith("frechet")}
    assert sets and {"mean_cosine", "clip_score", "all", "empty"} <= result["change"].keys()
    assert result["change"].keys() <= result["before"].keys() - sets
    for name, change in result["change"].items():
        apart = result["after"][name] - result["before"][name]
        assert change["value"] == pytest.approx(apart, abs=1e-6), name
        assert change["low"] <= change["value"] <= change["high"]
    cosine = result["change"]["mean_cosine"]
    assert f"({cosine['low']:+.3f} to {cosine['high']:+.3f})".replace("-", "−") in page
    assert result["true"]["all"] == 1 and result["process_peak_mib"] > 100
    assert result["steps"] == STEPS and result["seconds"] > 0
    assert {"model.safetensors", "config.json", "recipe.json", "MODEL_CARD.md"} <= {
        p.name for p in (whole / "model").iterdir()
    }


def test_a_relative_folder_is_read_too(whole, monkeypatch):
    monkeypatch.chdir(whole.parent)
    assert checkpoint.Checkpoints(whole.name).weights("ema")[0] == STEPS


def assert_same(one, other):
    assert metrics(one) == metrics(other)
    first, second = stored(one), stored(other)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), name


def test_kill_and_resume_is_bit_identical(whole):
    workdir = whole.parent / "killed"
    process = start(workdir)
    wait_for_step(process, workdir, 3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert checkpoint.Checkpoints(workdir).steps()[0] < STEPS
    assert "resumed" in finish(start(workdir))
    assert_same(whole, workdir)


def test_a_second_run_in_the_same_folder_is_refused(whole, tmp_path):
    with checkpoint.claim(tmp_path):
        said = finish(start(tmp_path, data=whole.parent), code=1)
    assert "error: another run is writing to" in said and "Traceback" not in said
    with checkpoint.claim(tmp_path):
        pass  # let go of
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_exits_0(whole, number):
    workdir = whole.parent / f"stopped{number}"
    process = start(workdir)
    wait_for_step(process, workdir, 1)
    process.send_signal(number)
    assert "stopped and saved" in finish(process)
    saved = checkpoint.Checkpoints(workdir).steps()[0]
    assert 1 <= saved < STEPS and metrics(workdir)[-1]["step"] == saved
    if number == signal.SIGTERM:  # both stop in the same way, so going on is tried once
        finish(start(workdir))
        assert_same(whole, workdir)


def test_damaged_checkpoint_is_passed_over(whole):
    newest, older = checkpoint.Checkpoints(whole).steps()[:2]
    largest = max(
        (p for p in (whole / "checkpoints" / str(newest)).rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(data)
    said = finish(start(whole))
    assert f"checkpoint {newest} is damaged" in said and f"step {older} instead" in said
    assert metrics(whole)[-1]["step"] == STEPS
    assert checkpoint.Checkpoints(whole).steps()[0] == STEPS


def test_another_recipe_is_refused(whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    said = finish(start(whole, "--config.optimizer.rate=0.5"), code=1)
    assert re.search(r"optimizer\.rate = 0\.\d+, not 0\.5", said) and "Traceback" not in said
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--config.stepz=3", ["stepz", "steps"]),
        ("--config.data.samples=1", ["data.samples = 1", "at least 2"]),
        ("--config.mesh.data=3", ["mesh", "device"]),
        ("--config.data.name=pictures", ["pictures", "scenes"]),
        ("--config=configs/nothing.py", ["nothing.py"]),
        ("--config=configs/fusion_div.py:huge", ["huge", "tiny"]),
        ("--config.data.context=3", ["tokens", "context of 3"]),
    ],
)
def test_wrong_use_is_one_line(tmp_path, option, words):
    said = finish(start(tmp_path / "run", option), code=1)
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in said
    for word in words:
        assert word in last
    assert not list(tmp_path.rglob("checkpoints/*"))


def test_a_workdir_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "run").write_text("mine")
    said = finish(start(tmp_path / "run"), code=1)
    assert "cannot be written to" in said and "Traceback" not in said
    assert (tmp_path / "run").read_text() == "mine"


def test_missing_folder_is_one_line(tmp_path):
    said = finish(
        start(
            tmp_path / "run", "--config.data.name=folder", f"--config.data.folder.path={tmp_path}/x"
        ),
        code=1,
    )
    assert said.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in said
