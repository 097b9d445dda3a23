import json
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from configs import fusion_base, fusion_div, scenes_clip, scenes_clip_latents
from cosdiff_jax import build, job
from cosdiff_jax.data.groups import to_float


def test_a_prompt_is_measured_against_as_many_real_pictures_as_are_drawn_of_it(tmp_path):
    config = fusion_base.get_config("tiny")
    config.data.scenes.folder = str(tmp_path)
    config.data.samples, config.sample.num = 1, 2
    judge = job.prepare(config).judge
    assert judge.groups.shape[:2] == (2, 2)


def test_more_pictures_than_are_stored_are_refused(tmp_path):
    config = fusion_base.get_config("tiny")
    config.data.scenes.folder = str(tmp_path)
    config.sample.num = 3
    with pytest.raises(ValueError, match="3 samples per prompt asked for, 2 are stored"):
        job.prepare(config)


@pytest.mark.parametrize(("prompts", "accumulate"), [(1, 1), (2, 2)])
def test_contrastive_alignment_of_one_prompt_is_refused(prompts, accumulate):
    config = fusion_base.get_config("tiny")
    config.data.prompts, config.optimizer.accumulate = prompts, accumulate
    term = config.objective.flow_matching.alignment
    term.name = "clip"
    job.check(config)
    term.clip.form.name = "contrastive"
    with pytest.raises(ValueError, match=r"at least 2.*alignment\.clip\.form\.name=cosine"):
        job.check(config)


def test_pairs_are_encoded_once_and_each_keeps_its_own_picture(tmp_path):
    config = scenes_clip_latents.get_config("tiny")
    config.data.scenes_pairs.folder = str(tmp_path)
    vae, params = build.model("vae", config.vae), build.frozen(config, ("vae",))["vae"]
    encoded, pairs = job._encoded(config, params), build.source(config.data, "train")
    assert len(encoded) == len(pairs) == 32
    encode = jax.jit(lambda x: vae.apply({"params": params}, x, method="to_latents"))
    for index in (0, 1, 17, 31):
        assert encoded[index]["caption"] == pairs[index]["caption"]
        want = encode(to_float(pairs[index]["images"]))
        np.testing.assert_allclose(encoded[index]["latents"], want, atol=2e-3)


@pytest.mark.parametrize(
    ("recipe", "data", "said"),
    [(scenes_clip_latents, "digits", "data.name"), (scenes_clip, "scenes_pairs", "objective.name")],
)
def test_what_cannot_be_encoded_is_one_line(tmp_path, recipe, data, said):
    config = recipe.get_config("tiny")
    config.data.scenes_pairs.folder = str(tmp_path)
    config.data.name, config.data.encoded = data, True
    with pytest.raises(ValueError, match=rf"data\.encoded.*{said}"):
        job.prepare(config)


def test_a_run_may_begin_or_leave_weights_and_biases_when_it_goes_on(monkeypatch):
    config = fusion_base.get_config("tiny")
    before = json.loads(config.to_json_best_effort())
    config.wandb.update(project="other", mode="online", run="second")
    job.check_same_run(config, before, "run")
    config.optimizer.rate *= 2
    with pytest.raises(ValueError, match=r"optimizer\.rate"):
        job.check_same_run(config, before, "run")
    # A missing package is told before anything is prepared.
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install .cosdiff_jax\[wandb\]"):
        job.prepare(config)


@pytest.fixture
def shapes(tmp_path):
    """A folder of wide and square pictures, and how recipes ask for both."""
    for number, size in enumerate(((64, 64), (80, 48), (64, 64), (80, 48))):
        Image.new("RGB", size, "red").save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"wall {number // 2}")

    def ask(recipe, **knobs):
        config = recipe.get_config("tiny")
        config.data.update(name="folder", encoded=False, prompts=2)
        config.data.folder.update(path=str(tmp_path), longest=2.0, **knobs)
        return config

    return ask


def test_pictures_of_several_shapes_are_prepared(shapes):
    made = job.prepare(shapes(fusion_base))
    stream = made.stream(0, 1)
    assert {next(stream)["images"].shape[1:] for _ in range(12)} == {(64, 64, 3), (48, 80, 3)}
    assert made.prompts == 2 and made.judge.groups.shape[2:] == (64, 64, 3)


def test_clip_is_not_trained_on_pictures_of_several_shapes(shapes):
    with pytest.raises(ValueError, match=r"longest: with pictures of .* x .*, this CLIP reads"):
        job.prepare(shapes(scenes_clip))


def test_a_shape_that_patches_do_not_divide_is_told_before_it_comes(shapes):
    config = shapes(fusion_base, step=8)
    job.prepare(config)
    config.backbone.fuse_dit.patch = 2
    with pytest.raises(ValueError, match=r"longest: with pictures of .* x .*, latents of"):
        job.prepare(config)


def test_vectors_of_several_lengths_are_not_remembered(shapes):
    config = shapes(fusion_div)
    config.backbone.name = "fuse_dit"
    knobs = config.objective.flow_matching
    knobs.feature.name = "latent"
    knobs.diversity.cosine.bank.name = "fifo"
    with pytest.raises(ValueError, match="vectors are of another length than with others"):
        job.prepare(config)
