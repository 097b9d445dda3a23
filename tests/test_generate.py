import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from PIL import Image

from configs import base, fusion_base
from cosdiff_jax import build, checkpoint, diverse, evaluate, generate, trained, weights
from cosdiff_jax.shapes import Batch, TrainState


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a finished run leaves: an untrained tiny model in pixel space."""
    path = tmp_path_factory.mktemp("run")
    config = fusion_base.get_config("tiny")
    config.data.context = 48
    config.vae.name = "none"
    config.backbone.fuse_dit.update(depth=1, patch=16, channels=3)
    config.language_model.gemma.depth = 1
    config.clip.name = "clip"
    config.clip.clip.update(patch=16, width=16, depth=1, heads=2, text_width=16, text_depth=1)
    config.clip.clip.update(text_heads=2, features=8)
    objective, _ = build.objective(config)
    tokens = jnp.ones((1, 48), jnp.int32)
    images = jnp.zeros((objective.samples, 64, 64, 3))
    batch = Batch(tokens=tokens, mask=tokens > 0, images=images)
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    # Last layers begin at zero, which draws the noise whatever the caption says.
    params = jax.tree.map(
        lambda x: x + 0.05 * np.random.default_rng(0).normal(size=x.shape), params
    )
    entry = json.loads(config.backbone.to_json())
    weights.save(path / "model", entry, params, dtype="float32")
    build.tokenizer(config.tokenizer).fast.backend_tokenizer.save(
        str(path / "model" / "tokenizer.json")
    )
    (path / "model" / "recipe.json").write_text(config.to_json())
    return str(path)


def run(folder, out, *prompts, num=2, seed=0, method="independent", candidates=None):
    return generate.generate(
        folder,
        list(prompts),
        num=num,
        method=method,
        candidates=candidates,
        steps=2,
        guidance=2.0,
        seed=seed,
        out=out,
    )


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_a_grid_and_every_picture_beside_it(folder, tmp_path):
    out = tmp_path / "new" / "grid.png"
    written = run(folder, out, "a red star", "빨간 별", num=3)
    assert written[0] == out
    assert len(written) == 8
    assert pixels(out.with_name("grid_p1_k2.png")).shape == (64, 64, 3)
    first, other = pixels(out.with_name("grid_p0_k0.png")), pixels(out.with_name("grid_p0_k1.png"))
    assert np.abs(first - other).max() > 20

    # Fewer samples, other prompts around: the same pictures. Another seed: others.
    again = run(folder, tmp_path / "again.png", "빨간 별", num=1)
    same = np.abs(pixels(again[1]) - pixels(out.with_name("grid_p1_k0.png")))
    assert same.max() <= 1
    seeded = run(folder, tmp_path / "seeded.png", "빨간 별", num=1, seed=1)
    assert np.abs(pixels(seeded[1]) - pixels(again[1])).max() > 20


@pytest.mark.parametrize(
    ("method", "evaluations"),
    [("particle_clip+orthogonal+max_min", 8), ("cads+pruning", 6), ("descent", 68)],
)
def test_methods_act_together_and_say_what_came_of_it(folder, tmp_path, method, evaluations):
    out = tmp_path / "grid.png"
    chosen = 4 if "+" in method else None
    written = run(folder, out, "a red star", "two rings", method=method, candidates=chosen)
    record = json.loads(written[-1].read_text())
    assert record["method"] == method and record["evaluations"] == evaluations
    for row in record["prompts"]:
        assert len(set(row["kept"])) == len(row["score"]) == 2
        assert row["kept"] == sorted(row["kept"]) and max(row["kept"]) < (chosen or 2)
        assert row["clip_score"] == pytest.approx(np.mean(row["score"]), abs=1e-3)
        assert row["mean_cosine"] == pytest.approx(row["top_cosine"], abs=1e-5)
        c = row["mean_cosine"]  # of two samples the score is known from their cosine
        w = np.array([1 + c, 1 - c]) / 2
        assert row["vendi"] == pytest.approx(np.exp(-np.sum(w * np.log(w))), rel=1e-4)
    plain = run(folder, tmp_path / "plain.png", "a red star", "two rings")
    assert np.abs(pixels(written[1]) - pixels(plain[1])).max() > 5


def test_what_the_recipe_looks_through_is_loaded_with_it(folder, tmp_path):
    shutil.copytree(Path(folder) / "model", tmp_path / "model")
    recipe = json.loads((tmp_path / "model" / "recipe.json").read_text())
    recipe["sample"]["view"]["name"] = recipe["vgg"]["name"] = "vgg"
    (tmp_path / "model" / "recipe.json").write_text(json.dumps(recipe))
    assert trained.load(str(tmp_path), ()).frozen.keys() == {"vgg"}


@pytest.mark.parametrize("method", diverse.METHODS)
def test_every_method_can_be_built(folder, method):
    model = trained.load(folder, ())
    changes = diverse.overlay(method)
    plain = build.sampler(model.as_asked(None, None, {}), model.shape)
    made = build.sampler(model.as_asked(None, None, changes), model.shape)
    fields = [field.name for field in dataclasses.fields(made)]
    differs = {name for name in fields if getattr(made, name) != getattr(plain, name)}
    assert differs == set(changes) - {"selection", "pruning"}
    assert (changes.keys() - base.menu().sample.keys()) == set()


def test_methods_that_set_different_knobs_of_one_part_act_together():
    changes = diverse.overlay("interval+free_start+cads")
    guidance = {"classifier_free": {"interval": (0.1, 0.8), "start": False}}
    assert changes == {"guidance": guidance, "condition": {"name": "cads"}}
    assert diverse.overlay("interval")["guidance"] == {"classifier_free": {"interval": (0.1, 0.8)}}


def test_choosing_keeps_the_best_by_its_own_measure(folder, tmp_path):
    """What max_min keeps is less alike than what stands at the beginning."""
    model = trained.load(folder, ("llm", "clip"))
    few = diverse.diverse_samples(model, ["a red star"], num=3, steps=2)
    draw = diverse.DiverseSampler(model=model, num=3, steps=2)
    for _ in range(2):
        np.testing.assert_array_equal(draw(["a red star"]).images, few.images)
    many = diverse.diverse_samples(
        model, ["a red star"], num=3, steps=2, method="min_sum", candidates=12
    )
    assert many.table[0]["mean_cosine"] < few.table[0]["mean_cosine"]
    assert many.images.shape == few.images.shape == (1, 3, 64, 64, 3)


@pytest.mark.parametrize(
    ("method", "candidates", "message"),
    [
        ("particles", None, "'particles' is not one of independent, orthogonal"),
        ("particle+svgd", None, "two of these set the repulsion"),
        ("particle+svgd+max_min", None, "two of these set the repulsion"),
        ("max_min", 1, "--candidates=1 are fewer than the --num=2 to keep"),
    ],
)
def test_wrong_methods_are_one_line(folder, tmp_path, method, candidates, message):
    with pytest.raises(ValueError, match=message):
        run(folder, tmp_path / "x.png", "a", method=method, candidates=candidates)


def test_without_a_fitting_clip_nothing_is_chosen(folder, tmp_path):
    model = trained.load(folder, ("llm",))
    plain = diverse.diverse_samples(model, ["a red star"], num=1, steps=1)
    assert plain.score is None and plain.table == []
    with pytest.raises(ValueError, match="has no CLIP"):
        diverse.diverse_samples(model, ["a red star"], num=1, steps=1, method="max_min")


@pytest.fixture
def unchecked():
    """Orbax rebuilds states with placeholders for leaves, which no shape fits."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
def test_of_a_run_the_newest_whole_checkpoints_averaged_weights_are_taken(folder, tmp_path):
    finished = trained.load(folder)
    config = json.loads(finished.config.to_json())
    config["backbone"] = json.loads((Path(folder) / "model" / "recipe.json").read_text())[
        "backbone"
    ]
    checkpoints = checkpoint.Checkpoints(tmp_path)
    for step in (1, 2):
        ema = jax.tree.map(lambda x, step=step: x + step, finished.params)
        state = TrainState(
            step=jnp.int32(step),
            params=finished.params,
            opt_state=(jnp.zeros(3),),
            ema=ema,
            memory={},
        )
        checkpoints.save(state, {}, config)
    checkpoints.close()

    def offset(model):
        difference = jax.tree.map(lambda a, b: a - b, model.params, finished.params)
        return float(jax.tree.leaves(difference)[0].mean())

    # A run that goes on may be in the middle of a save: a reader touches nothing, a writer tidies.
    saving = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    (saving / "state").mkdir(parents=True)
    run = trained.load(str(tmp_path))
    assert saving.exists()
    checkpoint.Checkpoints(tmp_path).close()
    assert not saving.exists()
    assert run.name.endswith("(step 2)")
    assert offset(run) == pytest.approx(2, abs=1e-5)
    (tmp_path / "checkpoints" / "2" / "seal.json").unlink()
    assert offset(trained.load(str(tmp_path))) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("prompts", "out", "message"),
    [
        ([], "x.png", "nothing to draw"),
        (["  "], "x.png", "nothing to draw"),
        (["a"], "x.jpg", r"must be a \.png file"),
        (["red star " * 40], "x.png", "tokens, more than the context of 48"),
    ],
)
def test_bad_input_is_one_line(folder, tmp_path, prompts, out, message):
    with pytest.raises(ValueError, match=message) as error:
        run(folder, tmp_path / out, *prompts)
    assert "\n" not in str(error.value)
    assert not (tmp_path / out).exists()


def test_a_folder_without_a_model_is_named_and_left_alone(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        trained.load(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(ValueError, match="no model in"):
        trained.load(str(tmp_path))


def test_the_command_ends_with_one_line_and_no_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "cosdiff_jax.generate", "--workdir=/nowhere", "--prompt=a"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: no model in '/nowhere'")
    assert "Traceback" not in done.stderr


def test_evaluation_puts_the_true_distribution_beside_the_model(folder, tmp_path):
    found, true = evaluate.pictures(
        folder, "scenes", prompts=4, num=2, steps=2, guidance=None, seed=0,
        sheet=tmp_path / "sheet.png",
    )  # fmt: skip
    assert true["shape"] == true["count"] == 1
    assert set(found) == set(true)
    assert found["all"] < 0.5
    assert (tmp_path / "sheet.png").exists()
    lines = evaluate.table(found, true).splitlines()
    assert lines[0].split() == ["model", "true"]
    assert len(lines) == len(found) + 1


def test_consistency_is_told_for_every_layer_beside_chance(folder):
    own, shuffled = evaluate.consistency(folder, prompts=8, num=2, seed=0)
    assert list(own) == list(shuffled) == ["layer 0", "layer 1"]
    assert all(-1 <= value <= 1 for value in [*own.values(), *shuffled.values()])
    lines = evaluate.table(own, shuffled, ("own", "shuffled")).splitlines()
    assert lines[0].split() == ["own", "shuffled"] and len(lines) == 3
    assert evaluate.consistency(folder, prompts=8, num=2, seed=0) == (own, shuffled)


def test_held_out_prompts_are_distinct_and_held_out():
    from cosdiff_jax.data.scenes import grammar

    for described in (False, True):
        items = evaluate.held_out(20, 1, seed=3, described=described)
        specs = [grammar.spec_from_json(item["spec"]) for item in items]
        assert len(set(specs)) == 20
        assert all(grammar.split_of(spec) == "test" for spec in specs)
        if described:
            assert not any(grammar.open_attributes(spec) for spec in specs)


def test_a_model_of_other_pictures_is_refused(folder):
    with pytest.raises(ValueError, match="was trained on scenes, not on digits"):
        evaluate.pictures(folder, "digits", prompts=2, num=2, steps=1, guidance=None, seed=0)
