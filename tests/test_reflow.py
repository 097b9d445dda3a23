"""Pairs of noise and picture: what is kept, what is drawn again, and what trains on it."""

import dataclasses
import fcntl
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import fusion_reflow
from cosdiff_jax import checks, job, reflow
from cosdiff_jax.flow.guidance import ClassifierFree
from cosdiff_jax.flow.parameterization import Clean
from cosdiff_jax.objectives.flow_matching import FlowMatching
from cosdiff_jax.sampler import Descent, Sampler
from cosdiff_jax.shapes import Batch, TextStream

ROOT = pathlib.Path(__file__).parent.parent
STARTED = []


class Reads(NamedTuple):
    rotate: bool = True
    layers: bool = False
    echo: int | None = None


class LanguageModel(nn.Module):
    @nn.compact
    def __call__(self, tokens, mask, *, rotate=True, layers=False):
        hidden = (tokens * mask).astype(jnp.float32)[..., None]
        kv = hidden[None, ..., None]
        return TextStream(keys=kv, values=kv, hidden=hidden, mask=mask)


def said(z, text):
    """What the captions of the rows say: a number each, as tall as the rows."""
    each = text.hidden.sum((1, 2)) / 10
    return jnp.repeat(each, z.shape[0] // each.shape[0])[:, None, None, None]


class Signs(nn.Module):
    """The exact field E[eps - x0 | z_t] of independent pairs: x0 is what is said, plus or minus 1.

    With m what is said and z' = z_t - (1 - t) m, v = (z' - tanh((1 - t) z' / t^2)) / t - m.
    """

    attention: Reads = Reads()

    @nn.compact
    def __call__(self, z, t, text):
        jax.debug.callback(lambda z: STARTED.append(len(z)), z)
        t, m = jnp.maximum(t, 1e-3)[:, None, None, None], said(z, text)
        z = z - (1 - t) * m
        return (z - jnp.tanh((1 - t) * z / t**2)) / t - m


class Straight(nn.Module):
    """The exact field of the pairs that ``Signs`` draws: x0 = m + sign(eps); no two paths cross."""

    attention: Reads = Reads()

    @nn.compact
    def __call__(self, z, t, text):
        t, m = jnp.maximum(t, 1e-3)[:, None, None, None], said(z, text)
        z = z - (1 - t) * m
        return (z - jnp.sign(z)) / t - m


TOKENS = np.array([[2, 5, 0], [2, 1, 0], [2, 0, 0], [2, 3, 3], [2, 4, 0]], np.int32)
MASK = TOKENS > 0
SAID = (TOKENS.sum(axis=1) / 10)[:, None, None, None, None]


def sampler(**fields):
    fields = {"backbone": Signs(), "steps": 200, "rows": 4, "shape": (2, 3, 1), **fields}
    return Sampler(language_model=LanguageModel(), vae=None, **fields)


def drawn(folder, samples=2, seed=0, **fields):
    return reflow.pairs(
        sampler(**fields), {}, {"llm": {}}, TOKENS, MASK, folder, samples=samples, seed=seed
    )


def test_a_picture_is_kept_with_the_noise_that_it_was_drawn_from(tmp_path):
    kept = drawn(tmp_path, samples=64, rows=128)
    assert kept.shape == (5, 64, 2, 2, 3, 1) and kept.dtype == np.float32
    noise, x0 = kept[:, :, 0], kept[:, :, 1]
    # The flow that is exact for independent pairs sends either half of the noise to its own sign.
    sure = np.abs(noise) > 0.05
    np.testing.assert_allclose(x0[sure], (SAID + np.sign(noise))[sure], atol=0.02)
    assert abs(noise.mean()) < 0.07 and abs(noise.std() - 1) < 0.05


def test_paths_of_such_pairs_are_straight_and_one_step_is_exact(tmp_path):
    noise, x0 = np.moveaxis(np.asarray(drawn(tmp_path, samples=8, rows=64)), 2, 0)
    sure = np.abs(noise) > 0.05

    def one_step(backbone):
        flow = sampler(backbone=backbone, steps=1)
        text, empty = flow.read({"llm": {}}, TOKENS, MASK)
        start, keys = flow.start(jax.random.key(0), jnp.arange(5), 8)
        np.testing.assert_array_equal(start, noise)
        return np.asarray(flow.latents({}, {"llm": {}}, text, empty, start, keys))

    np.testing.assert_allclose(one_step(Straight())[sure], x0[sure], atol=0.02)
    # Before, the first step could only point at the mean of all pictures.
    np.testing.assert_allclose(one_step(Signs()), np.broadcast_to(SAID, x0.shape), atol=1e-5)


def test_what_is_there_is_not_drawn_again_and_half_a_file_is_gone_on_with(tmp_path):
    whole = np.array(drawn(tmp_path, steps=3))
    (file,) = tmp_path.glob("pairs-*.npy")
    STARTED.clear()
    np.testing.assert_array_equal(drawn(tmp_path, steps=3), whole)
    jax.effects_barrier()
    assert not STARTED
    half = file.with_suffix(".0.part")
    file.rename(half)
    begun = np.lib.format.open_memmap(half, "r+")
    # A hole, as a power cut can leave one: what comes after it is drawn again.
    begun[2] = 0.0
    begun.flush()
    np.testing.assert_array_equal(drawn(tmp_path, steps=3), whole)
    jax.effects_barrier()
    # Two prompts of two samples at a time: the last three are two calls of three steps.
    assert STARTED == [4] * 6
    assert file.exists() and not half.exists()


@pytest.mark.parametrize(
    "fields",
    [
        *({"steps": 4}, {"seed": 1}, {"samples": 1}, {"shape": (3, 2, 1)}),
        *({"guidance": ClassifierFree(scale=2.0)}, {"parameterization": Clean()}),
        {"backbone": Straight()},
    ],
)
def test_what_decides_a_pair_decides_its_file(tmp_path, fields):
    first = drawn(tmp_path, steps=3)
    other = drawn(tmp_path, **{"steps": 3, **fields})
    assert len(list(tmp_path.glob("pairs-*.npy"))) == 2
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_how_many_are_drawn_at_once_decides_nothing(tmp_path):
    first = drawn(tmp_path, steps=3, rows=4)
    np.testing.assert_array_equal(drawn(tmp_path, steps=3, rows=64), first)
    assert len(list(tmp_path.glob("pairs-*.npy"))) == 1


def test_a_broken_file_another_run_and_a_descent_are_one_line(tmp_path):
    drawn(tmp_path, steps=3)
    (file,) = tmp_path.glob("pairs-*.npy")
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ValueError, match=rf"{file.name} is broken .*: delete it"):
        drawn(tmp_path, steps=3)
    file.unlink()
    with file.with_suffix(".0.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another run is drawing"):
            drawn(tmp_path, steps=3)
    with pytest.raises(ValueError, match="a descent moves it"):
        drawn(tmp_path, descent=Descent())


def test_the_loss_is_of_the_noise_that_a_picture_came_from():
    objective = FlowMatching(
        backbone=Straight(), language_model=LanguageModel(), caption_dropout=0.0
    )
    noise = jax.random.normal(jax.random.key(1), (5, 2, 3, 1))
    batch = Batch(
        tokens=jnp.asarray(TOKENS),
        mask=jnp.asarray(MASK),
        latents=jnp.asarray(SAID[:, 0]) + jnp.sign(noise),
        noise=noise,
    )
    args = ({}, {"llm": {}}, batch, jax.random.key(0), jnp.int32(0), {})
    assert objective(*args)[0] < 1e-6
    independent = objective(*args[:2], dataclasses.replace(batch, noise=None), *args[3:])[0]
    assert independent > 0.1


def run(workdir, *options):
    command = (sys.executable, "-m", "cosdiff_jax.train", "--config=configs/fusion_reflow.py:tiny")
    scenes = f"--config.data.scenes.folder={workdir.parent / 'scenes'}"
    done = subprocess.run(
        [*command, f"--workdir={workdir}", scenes, *options],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where a small model was trained, and its data lies."""
    place = tmp_path_factory.mktemp("reflow")
    run(place / "first")
    return place


def straightening(place, pairs):
    config = fusion_reflow.get_config("tiny")
    config.data.scenes.folder = str(place / "scenes")
    config.data.reflow.update(steps=2, folder=str(pairs))
    config.backbone.name, config.backbone.asset.path = "asset", str(place / "first" / "model")
    return config


def test_a_small_model_straightens_itself_and_resumes(place):
    pairs, model = place / "pairs", place / "first" / "model"
    own = (
        *("--config.data.reflow.steps=2", f"--config.data.reflow.folder={pairs}"),
        *("--config.backbone.name=asset", f"--config.backbone.asset.path={model}"),
    )
    assert "Drawing pairs" in run(place / "second", "--config.steps=2", *own)
    (file,) = pairs.glob("*.npy")
    again = run(place / "second", *own)
    assert "Drawing pairs" not in again and "resumed" in again
    assert list(pairs.glob("*.npy")) == [file]
    card = (place / "second" / "model" / "MODEL_CARD.md").read_text()
    assert "drawn by the starting weights" in card

    # The same pairs whatever the grids are drawn with, and a batch has them.
    config = straightening(place, pairs)
    config.sample.update(steps=7, unguided=1)
    config.sample.solver.name, config.sample.grid.name = "heun", "shifted"
    config.sample.guidance.classifier_free.interval = (0.0, 0.5)
    config.sample.noise.name = "antithetic"
    config.sample.descent.name = "cosine"
    batch = next(job.prepare(config).stream(0, 1))
    assert list(pairs.glob("*.npy")) == [file]
    kept = np.load(file)
    np.testing.assert_array_equal(batch["noise"], kept[batch["prompt"], 0, 0])
    np.testing.assert_array_equal(batch["latents"], kept[batch["prompt"], 0, 1])


# Prepares a run as ``train`` does, under a mesh of all devices of both processes.
WORKER = """
import jax
from cosdiff_jax import job, sharding
from tests.test_reflow import straightening
import pathlib
config = straightening(pathlib.Path(sys.argv[1]), sys.argv[2])
with jax.set_mesh(sharding.make_mesh(data=4, fsdp=1, tensor=1)):
    batch = next(job.prepare(config).stream(jax.process_index(), 2))
print(batch["prompt"].tolist(), float(abs(batch["noise"]).sum() + abs(batch["latents"]).sum()))
"""


@pytest.mark.slow
def test_every_host_draws_the_same_pairs_on_its_own_devices(place, two_processes, tmp_path):
    said = two_processes(WORKER, place, tmp_path / "together", devices=2)
    (file,) = (tmp_path / "together").glob("*.npy")
    job.prepare(straightening(place, tmp_path / "alone"))
    (alone,) = (tmp_path / "alone").glob("*.npy")
    assert alone.name == file.name
    np.testing.assert_allclose(np.load(file), np.load(alone), atol=1e-5)
    (one, _), (other, _) = said
    assert one and other and one != other  # prompts of their own


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone.name": "fuse_dit"}, r"backbone\.name=asset"),
        ({"data.encoded": True}, r"data\.encoded=False"),
        ({"objective.flow_matching.trajectory.name": "edm"}, r"trajectory\.name=rectified_flow"),
        ({"objective.name": "contrastive"}, r"objective\.name=contrastive draws nothing"),
        (
            {"objective.flow_matching.diversity.name": "cosine", "data.samples": 2},
            r"target\.name=fixed",
        ),
        ({"data.name": "folder", "data.folder.longest": 2.0}, r"folder\.longest=1\.0"),
        ({"data.reflow.steps": -1}, r"data\.reflow\.steps must be at least 0"),
    ],
)
def test_what_cannot_be_straightened_is_one_line(changes, said):
    config = fusion_reflow.get_config()
    checks.recipe(config)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=said):
        checks.recipe(config)
