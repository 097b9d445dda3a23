"""The loop on several devices: begun on one mesh, gone on with on another, equal to one device."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from cosdiff_jax import checkpoint

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 4
DIVERSITY = "--config.objective.flow_matching.diversity.cosine"
# P = 4 prompts of K = 2: on eight devices fewer prompts than devices, and the samples of each on
# two. The rate must not know how many steps are asked for, for the runs are not of one length.
# Small networks on pixels: what is tried here is the loop.
OPTIONS = (
    *("--config.data.prompts=4", "--config.optimizer.shape=constant"),
    *("--config.matmul_precision=float32", f"{DIVERSITY}.bank.name=fifo"),
    f"{DIVERSITY}.target.real.margin=-1.0",
    "--config.objective.flow_matching.prediction.name=one_step",
    *("--config.vae.name=none", "--config.language_model.gemma.depth=1"),
    *(f"--config.backbone.fuse_dit.{knob}" for knob in ("depth=1", "patch=16", "channels=3")),
    "--config.sample.steps=1",
)


def asked(workdir, *options, steps):
    data = f"--config.data.scenes.folder={workdir.parent / 'data'}"
    recipe = ("--config=configs/fusion_div.py:tiny", f"--config.steps={steps}")
    return (*recipe, f"--workdir={workdir}", data, *OPTIONS, *options)


def run(workdir, devices, *options, steps=STEPS):
    command = [sys.executable, "-m", "cosdiff_jax.train", *asked(workdir, *options, steps=steps)]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


WORKER = """
from absl import app
from cosdiff_jax import train
app.run(train.main, flags_parser=train.parse)
"""
# One of the two is asked to stop, when two steps are done.
DISTURBED = """
import os, signal
from cosdiff_jax.report import record

run = record.Meter.run
def disturbed(self, step):
    if step == 2 and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    run(self, step)
record.Meter.run = disturbed
"""


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def stored(workdir, step=STEPS):
    """Every array of a checkpoint by path: parameters, moments, averages, the bank."""
    tree = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(step) / "state")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run on one device that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("mesh") / "alone"
    run(workdir, 1)
    return workdir


def test_a_run_goes_on_on_another_mesh(alone):
    workdir = alone.parent / "moved"
    run(workdir, 8, "--config.mesh.data=4", "--config.mesh.fsdp=2", steps=2)
    said = run(workdir, 4, "--config.mesh.data=2", "--config.mesh.fsdp=2")
    assert f"resumed {workdir} from step 2" in said
    for one, other in zip(metrics(alone), metrics(workdir), strict=True):
        assert {"loss", "diversity", "alignment", "gradient_norm"} <= one.keys() & other.keys()
        for name in (one.keys() & other.keys()) - {"images_per_second"}:
            # Measured: 4e-7.
            assert other[name] == pytest.approx(one[name], rel=2e-6), (one["step"], name)
    for step in (2, STEPS):
        want, found = stored(alone, step), stored(workdir, step)
        assert want.keys() == found.keys()
        for name, a in want.items():
            # Where a gradient is next to nothing Adam divides its rounding by itself: of an update
            # of 1e-4 that is 6e-6, of moments 5e-4 of the largest.
            limit = 1e-5 if name.startswith(("['params']", "['ema']")) else 2e-3 * np.abs(a).max()
            np.testing.assert_allclose(found[name], a, rtol=0, atol=limit, err_msg=name)


@pytest.mark.slow
def test_two_processes_train_resume_on_another_mesh_and_report(alone, two_processes):
    """Each reads prompts of its own, so that what they learn is not what one process does."""
    workdir = alone.parent / "together"

    def together(*options, steps, program=WORKER):
        return two_processes(program, *asked(workdir, *options, steps=steps), devices=2)

    def newest():
        with checkpoint.Checkpoints(workdir, write=False) as kept:
            return kept.weights("params")

    together("--config.mesh.data=1", "--config.mesh.fsdp=4", steps=2)
    page, (step, before) = (workdir / "report.html").read_bytes(), newest()
    together("--config.mesh.data=4", steps=3)
    after = newest()
    assert (step, after[0]) == (2, 3)
    assert [line["step"] for line in metrics(workdir)] == [1, 2, 3]
    assert (workdir / "report.html").read_bytes() != page
    assert (workdir / "model" / "model.safetensors").is_file()
    # One more step of Adam, whose updates are about as large as the rate.
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after[1])
    assert 0 < max(jax.tree.leaves(moved)) < 2e-4


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_one_step(alone, two_processes):
    """Alone it would leave the other waiting for it in the next step."""
    workdir, asks = alone.parent / "disturbed", ("--config.mesh.data=4", "--config.log_every=3")
    every = asked(workdir, *asks, steps=6)
    for _, said in two_processes(DISTURBED + WORKER, *every, devices=2):
        assert "stopped and saved at step 3;" in said and "Traceback" not in said
    two_processes(WORKER, *every, devices=2)
    assert [line["step"] for line in metrics(workdir)] == [3, 6]
