import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from configs import fusion_base, fusion_div, scenes_clip, scenes_clip_latents
from cosdiff_jax import build, checks, job, modules, optimizer, sharding, tables
from cosdiff_jax.data.groups import to_float
from cosdiff_jax.shapes import Batch, TrainState


def test_a_prompt_is_measured_against_as_many_real_pictures_as_are_drawn_of_it(tmp_path):
    config = fusion_base.get_config("tiny")
    config.data.scenes.folder = str(tmp_path)
    config.data.samples, config.sample.num = 1, 2
    prepared = job.prepare(config)
    assert prepared.judge.groups.shape[:2] == (2, 2)
    # Sixteen prompts, two in a step.
    assert prepared.epoch == 8


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
    checks.recipe(config)
    term.clip.form.name = "contrastive"
    with pytest.raises(ValueError, match=r"at least 2.*alignment\.clip\.form\.name=cosine"):
        checks.recipe(config)


@pytest.mark.parametrize(
    ("target", "cosine", "said"),
    [
        ("real", -1.0, r"wanted = 0\.7.*target real.*diversity\.cosine\.target\.name=fixed"),
        ("fixed", 0.75, r"target\.fixed\.cosine = 0\.75 lies above .*wanted = 0\.7"),
        ("fixed", 0.7, None),
    ],
    ids=["real", "above", "as_high"],
)
def test_a_controller_must_be_able_to_push_down_to_the_cosine_wanted(target, cosine, said):
    config = fusion_base.get_config("tiny")
    config.objective.flow_matching.diversity.name = "cosine"
    term = config.objective.flow_matching.diversity.cosine
    term.target.name, term.target.fixed.cosine = target, cosine
    config.data.samples = 2
    checks.recipe(config)  # a ramp is free to ask for less
    term.schedule.name, term.schedule.controller.wanted = "controller", 0.7
    if said is None:
        return checks.recipe(config)
    with pytest.raises(ValueError, match=said):
        checks.recipe(config)


def test_a_folder_of_single_pictures_has_no_target(tmp_path):
    for number, caption in enumerate(("wall 0", "wall 1", "wall 2", "wall 3")):
        Image.new("RGB", (64, 64), (60 * number,) * 3).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(caption)
    config = pixels(tmp_path)
    config.data.name, config.data.folder.path = "folder", str(tmp_path)
    with pytest.raises(ValueError, match=r"no caption .* two pictures.*target\.name=fixed"):
        job.prepare(config)
    (tmp_path / "3.txt").write_text("wall 2")
    job.prepare(config)


def test_pairs_are_encoded_once_and_each_keeps_its_own_picture(tmp_path):
    config = scenes_clip_latents.get_config("tiny")
    config.data.scenes_pairs.folder = str(tmp_path)
    vae, params = modules.model("vae", config.vae), modules.frozen(config, ("vae",))["vae"]
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
    checks.same_run(config, before, "run")
    config.optimizer.rate *= 2
    with pytest.raises(ValueError, match=r"optimizer\.rate"):
        checks.same_run(config, before, "run")
    # A missing package is told before anything is prepared.
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install .cosdiff_jax\[wandb\]"):
        checks.recipe(config)


@pytest.mark.parametrize(
    ("field", "value", "least"),
    [
        *((f"sample.{name}", 0, "at least 1") for name in ("every", "prompts", "shown", "num")),
        *((f"sample.{name}", 0, "at least 1") for name in ("steps", "rows")),
        ("sample.measure", -2, "at least -1"),
        ("data.prompts", 0, "at least 1"),
        ("data.threads", -1, "at least 0"),
        ("steps", 0, "at least 1"),
        ("log_every", 0, "at least 1"),
        ("checkpoint.every", 0, "at least 1"),
        ("checkpoint.keep", 0, "at least 1"),
        ("optimizer.accumulate", 0, "at least 1"),
        ("optimizer.accumulate", 3, "data.prompts = 2 does not divide into"),
        ("optimizer.rate", -1e-4, "at least 0"),
        ("optimizer.rate", float("nan"), "at least 0"),
        ("optimizer.warmup", -1, "at least 0"),
        ("optimizer.floor", -0.1, "at least 0"),
        ("optimizer.clip", -1.0, "at least 0"),
        ("optimizer.ema.every", 0, "at least 1"),
        *(("optimizer.ema.decay", share, r"in \[0, 1\)") for share in (-0.1, 1.0, float("nan"))),
        *((f"mesh.{axis}", 0, "at least 1, or -1") for axis in ("data", "fsdp", "tensor")),
        ("mesh.fsdp", -2, "at least 1, or -1"),
    ],
)
def test_a_number_that_cannot_be_is_told_with_its_field(field, value, least):
    config = fusion_base.get_config("tiny")
    checks.recipe(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=least) as told:
        checks.recipe(config)
    assert field in str(told.value) and "\n" not in str(told.value)


def test_where_nothing_is_drawn_other_numbers_are_read():
    config = scenes_clip.get_config("tiny")
    config.sample.num = 0
    checks.recipe(config)
    config.sample.batches = 0
    with pytest.raises(ValueError, match=r"sample\.batches must be at least 1"):
        checks.recipe(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("sample.prompts", 3), ("sample.shown", 1), ("sample.num", 3), ("sample.steps", 3)),
        *(("sample.solver.name", "heun"), ("sample.guidance.classifier_free.scale", 2.0)),
        *(("sample.grid.name", "karras"), ("sample.noise.name", "orthogonal")),
        *(("sample.unguided", 1), ("sample.batches", 3), ("sample.matmul_precision", "bfloat16")),
    ],
)
def test_a_first_and_a_last_look_are_drawn_alike(field, value):
    config = fusion_base.get_config("tiny")
    before = json.loads(config.to_json_best_effort())
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=rf"with {field} = .*, not {value}: choose another"):
        checks.same_run(config, before, "run")


def test_when_a_run_looks_and_how_long_it_goes_on_may_change():
    config = fusion_base.get_config("tiny")
    before = json.loads(config.to_json_best_effort())
    config.sample.update(every=7, measure=3, rows=1, pruning=0.2, pruned_from=0.5)
    config.sample.selection.name = "relevance"
    config.update(steps=99, log_every=2, export="float16")
    config.checkpoint.update(every=5, keep=3)
    config.mesh.fsdp = 8
    config.data.threads = 0
    checks.same_run(config, before, "run")


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


def test_captions_that_are_too_long_are_told_of_before_they_come(shapes):
    config = shapes(fusion_base)
    config.data.context = 3
    with pytest.raises(ValueError, match=r"data\.context = 3: 2 of 2 captions .* 'wall 0' with"):
        job.prepare(config)


def test_vectors_of_several_lengths_are_not_remembered(shapes):
    config = shapes(fusion_div)
    config.backbone.name = "fuse_dit"
    knobs = config.objective.flow_matching
    knobs.feature.name = "latent"
    knobs.diversity.cosine.bank.name = "fifo"
    with pytest.raises(ValueError, match="vectors are of another length than with others"):
        job.prepare(config)


def pixels(folder):
    """The smallest recipe with a diversity term: no autoencoder, 16 tokens a picture."""
    config = fusion_div.get_config("tiny")
    config.data.scenes.folder = str(folder)
    config.vae.name = "none"
    config.backbone.fuse_dit.update(depth=1, patch=16, channels=3)
    config.language_model.gemma.depth = 1
    config.latent_clip.clip.update(size=64, patch=16, channels=3)
    flow = config.objective.flow_matching
    flow.alignment.name = "none"
    flow.feature.name = "latent"
    flow.prediction.name = "one_step"
    return config


@pytest.mark.slow
def test_the_loop_holds_the_model_to_its_moving_average(tmp_path):
    flow = "--config.objective.flow_matching"
    options = ("steps=2", f"data.scenes.folder={tmp_path}/data", "optimizer.ema.every=1")
    command = [
        *(sys.executable, "-m", "cosdiff_jax.train", "--config=configs/fusion_div.py:tiny"),
        *(f"--workdir={tmp_path}/run", f"{flow}.anchor=0.5", f"{flow}.anchor_to=average"),
        *(f"--config.{option}" for option in options),
    ]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    root = pathlib.Path(__file__).parent.parent
    subprocess.run(command, cwd=root, env=environment, check=True, timeout=800)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, second = (json.loads(line)["anchor"] for line in lines)
    # The average begins at the weights, and stays behind from the first step on.
    assert first == 0 and second > 0


# One choice of each a column: every alternative of the menu is trained with at least once.
CHOICES = {
    "feature": ("latent", "clip", "mix", "hidden", "latent_clip", "vgg"),
    "prediction": ("one_step", "rollout", "one_step", "rollout", "one_step", "rollout"),
    "diversity.cosine.measure": ("log_determinant", "sampled", "vendi", "top", "mean", "vendi"),
    "diversity.cosine.schedule": (
        *("controller", "linear", "constant", "cosine", "linear", "constant"),
    ),
    "diversity.cosine.bank": ("fifo", "none", "none", "fifo", "fifo", "none"),
    "diversity.cosine.target": ("fixed", "real", "real", "real", "real", "fixed"),
    "alignment": ("llm", "none", "clip", "latent_clip", "llm", "clip"),
    "alignment.clip.form": ("cosine", "cosine", "contrastive", "cosine", "cosine", "cosine"),
    "alignment.latent_clip.form": ("cosine", "cosine", "cosine", "contrastive", "cosine", "cosine"),
    "alignment.llm.form": ("cosine", "cosine", "cosine", "cosine", "contrastive", "cosine"),
}
TABLES = {
    "prediction": tables.PREDICTIONS,
    "diversity.cosine.measure": tables.MEASURES,
    "diversity.cosine.schedule": tables.SCHEDULES,
    "diversity.cosine.bank": tables.BANKS,
    "diversity.cosine.target": tables.TARGETS,
    "alignment": tables.ALIGNMENTS,
    "alignment.clip.form": tables.FORMS,
    "alignment.latent_clip.form": tables.FORMS,
    "alignment.llm.form": tables.FORMS,
}


def test_no_choice_of_the_menu_is_left_out():
    menu = fusion_div.get_config().objective.flow_matching
    for path, row in CHOICES.items():
        known = TABLES.get(path) or {name for name in menu[path] if name != "name"}
        assert set(row) == set(known), path


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, marks=[pytest.mark.slow] * (number > 0), id=name)
        for number, name in enumerate(CHOICES["feature"])
    ],
)
def test_every_choice_of_a_term_trains(number, tmp_path, request):
    """From the recipe through two optimizer steps, as the loop takes them."""
    config = pixels(tmp_path)
    flow = config.objective.flow_matching
    for path, row in CHOICES.items():
        entry = flow
        for part in path.split("."):
            entry = entry[part]
        entry.name = row[number]
    flow.diversity.cosine.schedule.controller.wanted = -0.5
    flow.diversity.cosine.target.real.margin = -1.0
    flow.feature.mix.update(clip=0.5, latent=0.5)
    flow.alignment.clip.schedule.constant.value = 0.1
    flow.alignment.latent_clip.schedule.constant.value = 0.1
    flow.anchor, flow.anchor_to = 0.5, "average"
    config.clip.name = config.latent_clip.name = "clip"
    config.vgg.name = "vgg"
    if flow.feature.name == "hidden":
        path = f"{request.getfixturevalue('folder')}/model"
        config.backbone = {"name": "asset", "asset": {"path": path}}
        flow.anchor_to = "start"
    # The first one in parts, whose memory goes from part to part.
    config.optimizer.accumulate = 1 + (number == 0)
    made = job.prepare(config)
    stream = made.stream(0, 1)
    batch = Batch(**jax.tree.map(jnp.asarray, next(stream)))
    key, chain = jax.random.key(0), optimizer.chain(made.rule, made.rate, clip=1.0)
    value_and_grad = optimizer.accumulated(
        jax.value_and_grad(made.objective, has_aux=True), config.optimizer.accumulate
    )

    @jax.jit
    def step(state, frozen, batch):
        frozen = {**frozen, "average": state.ema}
        (_, (logs, memory)), grads = value_and_grad(
            state.params, frozen, batch, key, state.step, state.memory
        )
        updates, moments = chain.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = made.ema(state.ema, params, state.step + 1)
        return TrainState(state.step + 1, params, moments, ema, memory), logs

    if made.params is None:
        params = jax.jit(made.objective.init)(key, batch)
    else:
        params = jax.tree.map(jnp.asarray, made.params)
    memory = made.objective.start(made.frozen, batch, made.prompts)
    first = TrainState(jnp.zeros((), jnp.int32), params, chain.init(params), params, memory)
    sharding.place({"memory": memory}, sharding.make_mesh())  # knows where all of it lies
    second, logs = step(first, made.frozen, batch)
    assert float(logs["anchor"]) == 0
    batch = Batch(**jax.tree.map(jnp.asarray, next(stream)))
    third, logs = step(second, made.frozen, batch)
    assert step._cache_size() == 1
    assert all(np.isfinite(float(value)) for value in logs.values()), logs
    assert float(logs["diversity"]) > 0 and float(logs["lambda"]) > 0
    assert float(logs["anchor"]) > 0
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), third.params, first.params)
    assert max(jax.tree.leaves(moved)) > 0
