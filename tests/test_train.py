"""The loop from the command line: to the end, killed and resumed, stopped, damaged, misused."""

import errno
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import fusion_div
from cosdiff_jax import checkpoint, train
from cosdiff_jax.report import measures, record

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 6
FLOW = "--config.objective.flow_matching"
# All that an objective can remember: vectors of each prompt, a weight that was found, a regression.
REMEMBERS = (
    *(f"{FLOW}.diversity.cosine.bank.name=fifo", f"{FLOW}.diversity.cosine.target.name=fixed"),
    f"{FLOW}.diversity.cosine.schedule.name=controller",
    f"{FLOW}.diversity.cosine.schedule.controller.wanted=-0.5",
    *(f"{FLOW}.alignment.name=llm", "--config.sample.every=100"),
)
# Sends itself a signal as a look of this number begins.
LOOKING = """
import os
from absl import app
from cosdiff_jax import judge, train
draw, looks = judge.Drawn.__call__, []
def looking(*args, **kwargs):
    looks.append(args)
    if len(looks) == {look}:
        os.kill(os.getpid(), {number})
    return draw(*args, **kwargs)
judge.Drawn.__call__ = looking
app.run(train.main, flags_parser=train.parse)
"""


def start(workdir, *options, recipe="configs/fusion_div.py:tiny", data=None, program=None):
    folder = data or workdir.parent / "data"
    command = [
        *(sys.executable, *(("-c", program) if program else ("-m", "cosdiff_jax.train"))),
        *(f"--config={recipe}", f"--workdir={workdir}"),
        f"--config.steps={STEPS}",
        *(f"{FLOW}.anchor=0.5", f"{FLOW}.anchor_to=average"),
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
        line.pop("images_per_second", None)
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
    terms |= {"top_cosine", "real_cosine", "mu", "anchor", "learning_rate"}
    assert all(terms <= line.keys() for line in lines)
    assert all(np.isfinite(line[term]) for line in lines for term in terms)
    # The first step compiles: how fast it is nobody can say.
    said = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    rates = [line.get("images_per_second") for line in said]
    assert rates[0] is None and min(rates[1:]) > 0
    ramp = fusion_div.get_config("tiny").objective.flow_matching.diversity.cosine.schedule.linear
    expected = [ramp.end * min((n - ramp.warmup) / ramp.ramp, 1) for n in range(STEPS)]
    assert [line["lambda"] for line in lines] == pytest.approx(expected)
    (events,) = whole.glob("events/*tfevents*")
    kept = events.read_bytes()
    # Scalars of the training, and of what was measured before, at step 4 and after, with the grids.
    for name in (b"mean_cosine", b"clip_score", b"frechet_"):
        assert kept.count(b"held_out/" + name) == 3, name
    assert kept.count(b"\x89PNG") == 4
    assert {p.name for p in whole.glob("samples/*.json")} == {
        f"step_{n:07d}.json" for n in (0, 4, STEPS)
    }
    assert {p.name for p in whole.glob("samples/*.png")} == {
        f"step_{n:07d}.png" for n in (0, 2, 4, STEPS)
    }
    assert {path.suffix for path in (whole / "figures").glob("curves.*")} == {
        ".png",
        ".svg",
        ".csv",
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
    rows = measures.table(result["before"], result["after"], result["true"])
    columns = {"before": "before", "after": "after", "true": "true distribution"}
    for side, label in columns.items():
        shown = re.findall(rf'data-of="{label}">([^<]*)</td>', page)
        wanted = [
            measures.show(row, getattr(row, side))
            for detail in (False, True)
            for row in rows
            if row.detail == detail
        ]
        assert shown == wanted and not {"n/a"} >= set(shown), label
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


def test_what_is_remembered_comes_back_bit_for_bit(whole):
    undisturbed, workdir = whole.parent / "remembers", whole.parent / "remembers_killed"
    finish(start(undisturbed, *REMEMBERS))
    bank = [name for name in stored(undisturbed) if name.startswith("['memory']")]
    assert len(bank) == 9, bank
    process = start(workdir, *REMEMBERS)
    wait_for_step(process, workdir, 3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < checkpoint.Checkpoints(workdir).steps()[0] < STEPS
    assert "resumed" in finish(start(workdir, *REMEMBERS))
    assert_same(undisturbed, workdir)


def files(folder):
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


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


def test_a_second_ctrl_c_leaves_at_once():
    program = """
import os, signal, time
from cosdiff_jax import signals
stop = signals.Stop()
stop.preparing = False
os.kill(os.getpid(), signal.SIGINT)
assert stop.heard()
try:
    os.kill(os.getpid(), signal.SIGINT)
finally:
    print("lingers")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT and not done.stdout
    assert done.stderr == "\nstopping, and saving (Ctrl-C again leaves at once)\n"


def test_a_first_signal_leaves_from_within_a_callback():
    """Where Python ignores what is raised: JAX has one that the garbage collector calls."""
    program = """
import gc, os, signal
from cosdiff_jax import signals
stop = signals.Stop()
gc.callbacks.append(lambda *_: os.kill(os.getpid(), signal.SIGTERM))
gc.collect()
print("goes on")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout
    assert done.stderr.endswith("data that is ready stays, the same command goes on\n")


def test_a_signal_while_all_is_prepared_leaves_at_once(tmp_path):
    # Drawing so many pictures would take hours.
    process = start(tmp_path / "run", "--config.data.scenes.train=10000000")
    end = time.monotonic() + 400
    while time.monotonic() < end and not list(tmp_path.glob("data/scenes/incomplete*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = finish(process)
    assert "before the first step" in said and "Traceback" not in said
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {".lock", "checkpoints"}
    assert not files(tmp_path / "run")


def test_a_signal_within_a_look_stops_it_and_it_is_made_again(whole):
    workdir, measured = whole.parent / "looking", "--config.sample.measure=4"

    def disturbed(number, look, code=0):
        program = LOOKING.format(number=int(number), look=look)
        return finish(start(workdir, measured, program=program), code)

    # Killed at step 2 before anything is saved: another recipe writes nothing over it.
    disturbed(signal.SIGKILL, 2, -signal.SIGKILL)
    assert not checkpoint.Checkpoints(workdir).steps() and len(metrics(workdir)) == 2
    before = files(workdir)
    assert workdir / "samples" / "step_0000000.png" in before
    said = finish(start(workdir, measured, "--config.optimizer.rate=0.5"), code=1)
    assert re.search(r"optimizer\.rate = 0\.\d+, not 0\.5", said) and "Traceback" not in said
    assert before == files(workdir)
    shutil.rmtree(workdir / "samples")
    # Within the first look, the one after two steps, and the last one.
    for look, step in ((1, 0), (2, 2), (3, STEPS)):
        said = disturbed(signal.SIGTERM, look)
        assert f"stopped and saved at step {step};" in said
        assert checkpoint.Checkpoints(workdir).steps()[0] == step
        assert not list(workdir.glob(f"samples/step_{step:07d}.*"))
        assert not (workdir / "report.html").exists()
    finish(start(workdir, measured))
    assert_same(whole, workdir)
    assert (workdir / "report.html").exists()
    kept = {path.name: path.read_bytes() for path in (whole / "samples").iterdir()}
    assert kept == {path.name: path.read_bytes() for path in (workdir / "samples").iterdir()}
    held = [(folder / "held_out.jsonl").read_text() for folder in (whole, workdir)]
    assert held[0] == held[1]


def test_half_written_checkpoints_are_passed_over(whole):
    workdir = whole.parent / "half"
    shutil.copytree(whole, workdir)
    newest, older = checkpoint.Checkpoints(whole).steps()[:2]
    (workdir / "checkpoints" / str(newest) / "seal.json").unlink()
    (workdir / "checkpoints" / f"{newest + 2}.orbax-checkpoint-tmp").mkdir()
    said = finish(start(workdir))
    never = f"checkpoint {newest} is damaged (it was never sealed: the save did not finish)"
    assert f"{never}; using step {older} instead" in said
    assert f"checkpoint {newest + 2} is unfinished" in said
    assert f"resumed {workdir} from step {older} of {STEPS}" in said
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
    before = files(whole)
    said = finish(start(whole, "--config.optimizer.rate=0.5"), code=1)
    assert re.search(r"optimizer\.rate = 0\.\d+, not 0\.5", said) and "Traceback" not in said
    assert before == files(whole)


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
        ("--config.data.scenes.folder=README.md/scenes", ["README.md"]),
    ],
)
def test_wrong_use_is_one_line(tmp_path, option, words):
    said = finish(start(tmp_path / "run", option), code=1)
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in said
    for word in words:
        assert word in last
    assert not list(tmp_path.rglob("checkpoints/*"))


@pytest.mark.parametrize("option", ["sample.every=0", "optimizer.accumulate=3", "mesh.fsdp=0"])
def test_a_number_that_cannot_be_is_one_line_before_anything_is_written(tmp_path, option):
    said = finish(start(tmp_path / "run", f"--config.{option}"), code=1)
    assert said.startswith("error: ") and option.partition("=")[0] in said
    assert said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_fewer_steps_than_were_made_are_one_line(whole):
    said = finish(start(whole, "--config.steps=2"), code=1)
    assert f"error: steps = 2, but {whole} is at step {STEPS} already" in said


@pytest.mark.parametrize("told", [OSError(errno.ENOSPC, "No space left on device", "x"), None])
def test_a_full_disk_is_one_line_and_a_bug_is_not(monkeypatch, told):
    def run(config, workdir):
        raise told or TypeError("a bug")

    monkeypatch.setattr(train, "train", run)
    for flag in ("CONFIG", "WORKDIR", "DISTRIBUTED"):
        monkeypatch.setattr(train, flag, types.SimpleNamespace(value=None))
    if told is None:
        with pytest.raises(TypeError, match="a bug"):
            train.main([])
        return
    with pytest.raises(SystemExit) as left:
        train.main([])
    assert left.value.code == "error: [Errno 28] No space left on device: 'x'"


def test_a_workdir_that_cannot_hold_pictures_is_one_line(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples").write_text("mine")
    said = finish(start(tmp_path / "run"), code=1)
    # On a line of its own, after the progress bar.
    assert re.search(r"\nerror: .*run/samples'\n$", said) and "Traceback" not in said


def test_the_speed_is_that_of_the_steps_alone(monkeypatch):
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(record.time, "monotonic", lambda: clock.now)

    def after(seconds):
        clock.now += seconds

    meter = record.Meter(8)
    after(50)  # compiles
    assert meter.rate(1) == {}
    meter.run(1)
    for step in (2, 3):
        after(2)
        meter.run(step)  # runs already
    assert meter.rate(3) == {"images_per_second": 4.0}
    after(4)
    meter.pause(4)
    after(60)  # looks
    meter.run(4)
    after(4)
    assert meter.rate(5) == {"images_per_second": 2.0}
    meter.pause(5)
    after(60)
    assert meter.rate(5) == {}


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
