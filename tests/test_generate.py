import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import base
from cosdiff_jax import build, checkpoint, diverse, generate, sharding, trained
from cosdiff_jax.data import gallery
from cosdiff_jax.models.fuse_dit import FuseDiT
from cosdiff_jax.shapes import TrainState


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


def test_pictures_of_another_shape_than_it_was_trained_on(folder, tmp_path):
    options = {"num": 2, "method": "max_min", "candidates": 3, "steps": 2, "guidance": 2.0}
    options |= {"seed": 0, "out": tmp_path / "grid.png"}
    written = generate.generate(folder, ["a red star"], size="48x80", **options)
    assert pixels(written[1]).shape == (48, 80, 3)
    assert json.loads(written[-1].read_text())["prompts"][0]["mean_cosine"] < 1
    for size, said in (("48", "is not HEIGHTxWIDTH"), ("48x81", "divide")):
        with pytest.raises(ValueError, match=said):
            generate.generate(folder, ["a red star"], size=size, **options)


def folders(folder, out, prompts, **changes):
    options = {"num": 2, "method": "independent", "candidates": None, "steps": 2, "guidance": 2.0}
    options |= {"seed": 0, "rows": 4, **changes}
    return generate.generate_folders(folder, prompts, out=out, **options)


GENEVAL = Path(__file__).parent / "fixtures" / "prompts" / "evaluation_metadata.jsonl"


def test_what_is_kept_beside_a_grid_draws_it_again(folder, tmp_path):
    asked = {"num": 2, "method": "max_min", "candidates": None, "steps": None, "guidance": None}
    asked |= {"seed": 5, "sample": ["solver.name=heun", "steps=2"]}
    first = generate.generate(folder, ["a red star", "별"], **asked, out=tmp_path / "grid.png")
    kept = json.loads(first[-1].read_text())
    model = trained.load(folder)
    recipe = model.config.sample
    assert kept["model"] == model.name and kept["weights"] == model.digests["weights"]
    assert kept["guidance"] == recipe.guidance.classifier_free.scale
    assert (kept["num"], kept["candidates"], kept["steps"], kept["size"]) == (2, 8, 2, "64x64")
    assert kept["changes"] == {"selection": {"name": "max_min"}}
    assert {row["feature"] for row in kept["prompts"]} == {"clip"}
    # Every flag that draws is there by its own name.
    names = ("num", "method", "candidates", "steps", "guidance", "seed", "size", "sample")
    again = generate.generate(
        kept["model"],
        [row["prompt"] for row in kept["prompts"]],
        **{name: kept[name] for name in names},
        out=tmp_path / "again.png",
    )
    for one, other in zip(first[:-1], again[:-1], strict=True):
        assert one.read_bytes() == other.read_bytes()
    repeated = json.loads(again[-1].read_text())
    assert {**kept, "seconds": 0} == {**repeated, "seconds": 0}
    # Folders keep the same.
    drawn = generate.asked(["a red star", "별"], None, None)
    generate.generate_folders(folder, drawn, **asked, out=tmp_path / "folders")
    settings = json.loads((tmp_path / "folders" / "settings.json").read_text())
    rest = {"seconds", "evaluations", "prompts"}
    assert settings == {name: value for name, value in kept.items() if name not in rest}


def snapshot(out):
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return {str(path.relative_to(out)): (path.stat().st_ino, path.read_bytes()) for path in files}


def test_folders_as_genevals_scorer_reads_them(folder, tmp_path):
    prompts = generate.asked([], str(GENEVAL), None)
    out = tmp_path / "new" / "drawn"
    assert folders(folder, out, prompts) == 3
    assert sorted(path.name for path in out.iterdir()) == [
        "00000",
        "00001",
        "00002",
        "settings.json",
    ]
    for number, line in enumerate(GENEVAL.read_text().splitlines()):
        place = out / f"{number:05}"
        assert (place / "metadata.jsonl").read_text() == line + "\n"
        assert sorted(path.name for path in (place / "samples").iterdir()) == [
            "0000.png",
            "0001.png",
        ]
        assert pixels(place / "grid.png").shape[:2] == (68, 134)
        row = json.loads((place / "numbers.json").read_text())
        assert row["prompt"] == prompts[number].text and len(row["score"]) == 2
    # The pictures are those of the grid, however many are drawn together.
    grid = run(folder, tmp_path / "grid.png", *(prompt.text for prompt in prompts))
    for number in range(3):
        for k in range(2):
            one = pixels(out / f"{number:05}" / "samples" / f"{k:04}.png")
            other = pixels(grid[0].with_name(f"grid_p{number}_k{k}.png"))
            assert np.abs(one - other).max() <= 1

    found = gallery.Gallery(out, GENEVAL, size=64)
    assert [item["caption"] for item in found] == [prompt.text for prompt in prompts]
    assert found.skipped == ()
    np.testing.assert_array_equal(
        found[2]["images"][1], pixels(out / "00002" / "samples" / "0001.png")
    )


def test_folders_that_are_whole_are_not_drawn_again(folder, tmp_path, monkeypatch):
    prompts = generate.asked(["a red star", "two rings", "빨간 별"], None, None)
    out = tmp_path / "drawn"
    wrote, true = [], generate.write_folder

    def interrupted(place, *arguments):
        if len(wrote) == 1:
            raise KeyboardInterrupt
        wrote.append(place)
        true(place, *arguments)

    monkeypatch.setattr(generate, "write_folder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folders(folder, out, prompts)
    monkeypatch.setattr(generate, "write_folder", true)
    first = {name: file for name, file in snapshot(out).items() if name.startswith("00000")}
    assert len(first) == 5
    assert folders(folder, out, prompts) == 2
    whole = snapshot(out)
    assert first.items() <= whole.items()
    assert folders(folder, out, prompts) == 0
    assert {**snapshot(out), "settings.json": 0} == {**whole, "settings.json": 0}

    # A picture is lost: its folder is drawn again, to the byte. More prompts: only those.
    (out / "00001" / "samples" / "0001.png").unlink()
    more = generate.asked([prompt.text for prompt in prompts] + ["a cross"], None, None)
    assert folders(folder, out, more) == 2
    again = snapshot(out)
    assert {name: again[name][1] for name in whole} == {n: file[1] for n, file in whole.items()}
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("broken_at", ["samples", "grid", "rename"])
def test_a_folder_is_there_whole_or_not_at_all(tmp_path, monkeypatch, broken_at):
    place, prompt = tmp_path / "00000", generate.Prompt(text="a", key="a")
    images = np.zeros((2, 4, 4, 1), np.uint8)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if broken_at == "samples":
            patch.setattr(Image.Image, "save", stop)
        elif broken_at == "grid":
            patch.setattr(generate.grid, "write_png", stop)
        else:
            patch.setattr(Path, "rename", stop)
        with pytest.raises(KeyboardInterrupt):
            generate.write_folder(place, prompt, images, {})
    assert list(tmp_path.iterdir()) == []
    # What a process that was killed has left is no hindrance.
    (tmp_path / ".00000.partial" / "samples").mkdir(parents=True)
    (tmp_path / ".00000.partial" / "samples" / "0007.png").touch()
    generate.write_folder(place, prompt, images, {})
    assert [path.name for path in tmp_path.iterdir()] == ["00000"]
    assert len(list((place / "samples").iterdir())) == 2


def test_folders_of_other_prompts_or_settings_are_left_alone(folder, tmp_path):
    out = tmp_path / "drawn"
    prompts = generate.asked(["a red star", "two rings"], None, None)
    assert folders(folder, out, prompts, num=1) == 2
    before = snapshot(out)
    other = generate.asked(["a red star", "a cross"], None, None)
    foreign = tmp_path / "foreign"
    (foreign / "00000").mkdir(parents=True)
    file = tmp_path / "file"
    file.touch()
    for place, asked, changes, message in (
        (out, prompts, {"seed": 1}, "drawn was begun with seed = 0, not 1; give another --out"),
        (out, prompts, {"num": 2}, "begun with num = 1, not 2"),
        (out, other, {}, "00001 is of another prompt than 00001"),
        (out, prompts[:1], {}, "00001 is none of these 1 prompts"),
        (foreign, prompts, {}, "has folders that were not written from here"),
        (file, prompts, {}, "must be a folder"),
        (tmp_path / "grid.png", prompts, {}, "grid.png must be a folder"),
        (tmp_path / "x", [*prompts, generate.Prompt(text="star " * 99)], {}, "more than the conte"),
        (tmp_path / "x", prompts, {"method": "particles"}, "'particles' is not one of"),
        (tmp_path / "x", prompts, {"candidates": 1, "num": 2}, "are fewer than the --num=2"),
        (tmp_path / "x", [], {}, "nothing to draw"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            folders(folder, place, asked, **{"num": 1, **changes})
        assert "\n" not in str(error.value)
    assert snapshot(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn", "file", "foreign"]


def test_prompts_of_a_file_and_single_ones_are_drawn_together(tmp_path):
    prompts = generate.asked(["  a red star"], str(GENEVAL), "geneval")
    assert [prompt.key for prompt in prompts] == ["00000", "00001", "00002", "00003"]
    assert prompts[3].text == "  a red star"
    assert generate.metadata(prompts[0]) == GENEVAL.read_text().splitlines()[0]
    said = json.loads(generate.metadata(prompts[3]))
    # With an empty "include" GenEval would call every picture correct.
    assert said == {"prompt": "  a red star", "key": "00003", "group": ""}
    with pytest.raises(ValueError, match="--prompts_form=text says how to read a file"):
        generate.asked(["a"], None, "text")
    with pytest.raises(ValueError, match="257 prompts are more than the 256 rows of a grid"):
        run("nowhere", tmp_path / "x.png", *["a"] * 257)


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
    assert differs == set(changes) - {"selection", "pruning", "pruned_from"}
    assert (changes.keys() - base.menu().sample.keys()) == set()


def test_any_field_of_the_recipes_sample_can_be_changed(folder):
    words = ["solver.name=heun", "guidance.name=composed", "guidance.composed.interval=(0, 0.8)"]
    told = trained.load(folder, (), sample=words).config.sample
    assert told.solver.name == "heun" and tuple(told.guidance.composed.interval) == (0, 0.8)
    plain = trained.load(folder, ()).config.sample
    # Another form of guidance is as strong as the one before.
    assert told.guidance.composed.scale == plain.guidance.classifier_free.scale
    for word, said in {
        "solvr.name=heun": "do you mean solver",
        "solver=heun": "name one of them",
        "solver.ddim.eta=much": "a value like 0.0",
        "steps": "field=value",
        "=1": "there is ",
    }.items():
        with pytest.raises(ValueError, match=f"^--sample={re.escape(word)}: .*{said}"):
            trained.load(folder, (), sample=[word])


def test_a_model_draws_in_the_precision_it_was_trained_in(folder):
    def precision(model):
        return build.sampler(model.as_asked(None, None, None), model.shape).precision

    assert precision(trained.load(folder, ())) == "bfloat16"
    assert precision(trained.load(folder, (), sample=["matmul_precision=float32"])) == "float32"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("repulsion.svgd.drive", 0.1),
        ("guidance.composed.rescale", 0.5),
        ("grid.shifted.double", True),
        ("solver.ddim.eta", 0.5),
        ("descent.cosine.moves", 2),
    ],
)
def test_a_knob_that_is_newer_than_a_stored_recipe_can_be_set(folder, tmp_path, field, value):
    older = tmp_path / "older"
    shutil.copytree(Path(folder) / "model", older)
    stored = json.loads((older / "recipe.json").read_text())
    (*path, knob), known = field.split("."), stored["sample"]
    for part in path:
        known = known[part]
    del known[knob]
    (older / "recipe.json").write_text(json.dumps(stored))
    names = [f"{path[0]}.name={path[1]}"]
    config = trained.load(str(older), (), sample=[*names, f"{field}={value}"]).config
    now = config.sample
    for part in field.split("."):
        now = now[part]
    assert now == value
    # What is no knob is not offered as one.
    wrong = re.escape(f"the recipe has no {knob + 'z'!r} there; do you mean {knob}")
    with pytest.raises(ValueError, match=wrong):
        trained.load(str(older), (), sample=[f"{field}z=0"])


def test_what_is_no_knob_cannot_be_set(folder, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(Path(folder) / "model", older)
    stored = json.loads((older / "recipe.json").read_text())
    del stored["sample"]["guidance"]["composed"]["weaker"]  # a tuple of objects
    (older / "recipe.json").write_text(json.dumps(stored))
    for field in ("solver.euler.calls", "guidance.composed.weaker"):
        with pytest.raises(ValueError, match="the recipe has no"):
            trained.load(str(older), (), sample=[f"{field}=1"])


def test_what_is_told_goes_before_a_methods_own_numbers_and_not_before_its_choice(folder):
    def made(method, *words):
        model = trained.load(folder, ("llm", "clip"), sample=words)
        return diverse.DiverseSampler(model=model, method=method, steps=2).config.sample

    told = made("svgd", "repulsion.svgd.weight=2", "repulsion.svgd.largest=1")
    assert told.repulsion.name == "svgd"
    assert (told.repulsion.svgd.weight, told.repulsion.svgd.largest) == (2.0, 1.0)
    assert told.repulsion.svgd.drive == made("svgd").repulsion.svgd.drive == 3e-4
    assert made("svgd", "repulsion.name=svgd").repulsion.svgd.weight == 800.0
    # What is told of the plain form of guidance holds for the composed one that a method takes.
    free = "guidance.classifier_free.interval=(0.0, 0.8)"
    assert tuple(made("interval", free).guidance.classifier_free.interval) == (0.0, 0.8)
    assert tuple(made("skip_layer", free).guidance.composed.interval) == (0.0, 0.8)
    with pytest.raises(ValueError, match=r"^--sample=steps=4: --steps says 2$"):
        made("svgd", "steps=4")
    # What is told of the composed form holds too, where a method sets the plain one or both.
    composed = "guidance.name=composed", "guidance.composed.interval=(0.0, 0.7)"
    for method in ("interval", "interval+skip_layer", "skip_layer"):
        assert tuple(made(method, *composed).guidance.composed.interval) == (0.0, 0.7), method
    assert tuple(made("interval", composed[0]).guidance.composed.interval) == (0.1, 0.9)
    strong = made("independent", composed[0], "guidance.classifier_free.scale=7")
    assert strong.guidance.composed.scale == 7
    assert made("skip_layer", "guidance.classifier_free.scale=7").guidance.composed.scale == 7
    with pytest.raises(
        ValueError, match=r"^--sample=repulsion\.name=particle: the method takes svgd"
    ):
        made("svgd", "repulsion.name=particle")


@pytest.mark.parametrize(
    ("method", "word", "chosen"),
    [
        ("independent", "solver.ddim.eta=0.5", "solver.name is euler"),
        ("independent", "grid.shifted.alpha=2.0", "grid.name is uniform"),
        ("independent", "guidance.composed.scale=2.0", "guidance.name is classifier_free"),
        ("particle", "repulsion.svgd.weight=2.0", "repulsion.name is particle"),
        (
            "skip_layer",
            "guidance.composed.weaker.autoguidance.scale=3.0",
            "guidance.composed.weaker.name is skip_layer",
        ),
        ("independent", "view.vgg.pooled=True", "view.name is none"),
        ("descent", "view.vgg.pooled=True", "view.name is none"),
    ],
)
def test_what_takes_no_part_cannot_be_told(folder, method, word, chosen):
    model = trained.load(folder, ("llm", "clip"), sample=[word])
    choice, _, alternative = word.rpartition("=")[0].rpartition(".")[0].rpartition(".")
    advice = f"choose it by --sample={choice}.name={alternative}"
    with pytest.raises(ValueError, match=re.escape(f"--sample={word}: {chosen}; {advice}") + "$"):
        diverse.DiverseSampler(model=model, method=method, steps=2)


def test_what_a_descent_looks_through_takes_part(folder):
    words = ["descent.name=cosine", "descent.cosine.view=latent", "view.latent.centre=False"]
    model = trained.load(folder, ("llm", "clip"), sample=words)
    assert not build.sampler(model.as_asked(2, None, None), model.shape).descent.feature.centre


@pytest.mark.parametrize("method", ["independent", "skip_layer"])
def test_how_strong_guidance_is_can_be_told_once(folder, method):
    word = "guidance.classifier_free.scale=2"

    def strong(guidance):
        model = trained.load(folder, ("llm", "clip"), sample=[word])
        sampler = diverse.DiverseSampler(model=model, method=method, guidance=guidance)
        chosen = sampler.config.sample.guidance
        return chosen[chosen.name].scale

    assert strong(None) == strong(2.0) == 2.0
    with pytest.raises(ValueError, match=rf"^--sample={re.escape(word)}: --guidance says 5$"):
        strong(5.0)


# All that acts on the noise and on the way, with one choice among candidates: few programs.
TOGETHER = [
    "orthogonal+particle+cads+free_start+max_min",
    "repelled+svgd+max_min",
    "low_frequency+diverse_flow+interval+perturbed_attention+max_min",
    "slerp+skip_layer+max_min",
]
SLOWLY = ["antithetic+particle_clip+late_pruning", "descent+svgd+pruning"]


@pytest.mark.parametrize(
    "method", [*TOGETHER, *(pytest.param(method, marks=pytest.mark.slow) for method in SLOWLY)]
)
def test_every_method_acts_together_with_a_choice_among_candidates(folder, method):
    model = trained.load(folder, ("llm", "clip"))
    draw = diverse.DiverseSampler(model=model, num=3, method=method, steps=2)
    assert draw.total == 12
    found = draw(["a red star"])
    assert found.images.shape == (1, 3, 64, 64, 3)
    assert len(set(found.kept[0])) == 3 and found.kept.max() < 12
    assert all(np.isfinite(list(row.values())).all() for row in found.table)


def test_no_method_is_left_out_of_those_tried_together():
    tried = {name for method in TOGETHER + SLOWLY for name in method.split("+")}
    choosing = {name for name in diverse.METHODS if diverse.chooses(name)}
    assert tried - choosing == set(diverse.METHODS) - choosing - {"independent"}


def test_descent_and_repulsion_look_through_a_view_each(folder):
    model = trained.load(folder, ())

    def made(method):
        return build.sampler(model.as_asked(None, None, diverse.overlay(method)), model.shape)

    for method, sees in (("descent+particle", False), ("descent+particle_clip", True)):
        sampler = made(method)
        assert type(sampler.descent.feature).__name__ == "ClipFeature"
        assert (sampler.view is not None) == sees
    assert made("descent+svgd").view is None
    # A recipe stored before descent had a view of its own has one for both.
    older = model.as_asked(None, None, {"descent": {"name": "cosine"}, "view": {"name": "latent"}})
    del older.sample.descent.cosine["view"]
    sampler = build.sampler(older, model.shape)
    assert sampler.view is not None and sampler.descent.feature == sampler.view


def test_what_a_model_cannot_be_drawn_with_is_refused_before_anything_is_written(folder):
    model = trained.load(folder, ("llm", "clip"))
    config = model.as_asked(None, None, {})
    config.objective.flow_matching.trajectory.name = "cosine"
    curved = dataclasses.replace(model, config=config)
    with pytest.raises(ValueError, match=r"Svgd .* sample\.repulsion\.name=none") as error:
        diverse.DiverseSampler(model=curved, method="svgd")
    assert "\n" not in str(error.value)


def test_methods_that_set_different_knobs_of_one_part_act_together():
    changes = diverse.overlay("interval+free_start+cads")
    guidance = {"classifier_free": {"interval": (0.1, 0.9), "start": False}}
    cads = {"name": "cads", "cads": {"scale": 0.1}}
    assert changes == {"guidance": guidance, "condition": cads}
    assert diverse.overlay("interval")["guidance"] == {"classifier_free": {"interval": (0.1, 0.9)}}


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
    assert plain.score is None and plain.table == [{}]
    with pytest.raises(ValueError, match="has no CLIP"):
        diverse.diverse_samples(model, ["a red star"], num=1, steps=1, method="max_min")


def test_without_a_fitting_clip_groups_are_compared_by_their_pixels(folder, tmp_path, monkeypatch):
    load = trained.load
    draw = diverse.DiverseSampler(model=load(folder, ("llm",)), num=3)
    # Bright pictures: what all of them share does not make them alike.
    images = 150 + np.random.default_rng(0).integers(0, 99, (2, 3, 8, 8, 3)).astype(np.uint8)
    drawn = diverse.Candidates(
        images=images, number=np.tile(np.arange(3), (2, 1)), f=None, score=None, evaluations=1
    )
    for row, group in zip(draw.choose(drawn).table, images / 127.5 - 1, strict=True):
        f = (group - group.mean(axis=(1, 2), keepdims=True)).reshape(3, -1)
        f /= np.linalg.norm(f, axis=1, keepdims=True)
        cosines = np.einsum("nf,mf->nm", f, f)
        pairs = cosines[np.triu_indices(3, 1)]
        w = np.linalg.eigvalsh(cosines / 3)
        assert row == {
            "mean_cosine": pytest.approx(pairs.mean(), abs=1e-5),
            "top_cosine": pytest.approx(pairs.max(), abs=1e-5),
            "vendi": pytest.approx(np.exp(-np.sum(w * np.log(w))), rel=1e-4),
        }

    monkeypatch.setattr(trained, "load", lambda source, roles, **k: load(source, ("llm",), **k))
    written = run(folder, tmp_path / "grid.png", "a red star", num=2)
    (row,) = json.loads(written[-1].read_text())["prompts"]
    assert row["feature"] == "pixels" and row["score"] is None and "clip_score" not in row
    assert {"mean_cosine", "top_cosine", "vendi"} <= row.keys()


def a_run(folder, workdir):
    """Two checkpoints, whose averaged weights are the model's own plus their step."""
    finished = trained.load(folder)
    config = json.loads(finished.config.to_json())
    config["backbone"] = json.loads((Path(folder) / "model" / "recipe.json").read_text())[
        "backbone"
    ]
    checkpoints = checkpoint.Checkpoints(workdir)
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
    return finished


@pytest.mark.usefixtures("unchecked")
def test_of_a_run_the_newest_whole_checkpoints_averaged_weights_are_taken(folder, tmp_path):
    finished = a_run(folder, tmp_path)

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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--workdir=/nowhere"], "no model in '/nowhere'"),
        (["--workdir=/nowhere", "--model=fusion_base"], "--workdir and --model both say"),
        (["--rows=8"], "--rows is of --layout=geneval"),
    ],
)
def test_the_command_ends_with_one_line_and_no_traceback(options, said):
    done = command("--prompt=a", *options)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: {said}")
    assert "Traceback" not in done.stderr


def command(*options):
    return subprocess.run(
        [sys.executable, "-m", "cosdiff_jax.generate", *options],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_draws_a_grid(folder, tmp_path):
    out, prompts = tmp_path / "new" / "grid.png", ["a red star", "two blue rings"]
    done = command(
        f"--workdir={folder}",
        *(f"--prompt={prompt}" for prompt in prompts),
        *("--num=4", "--steps=25", "--guidance=5", "--seed=0", f"--out={out}"),
    )
    assert done.returncode == 0, done.stderr
    (said,) = done.stdout.splitlines()
    assert said.startswith(f"{out}, 8 single pictures and grid.json beside it, in ")
    singles = {f"grid_p{p}_k{k}.png": (p, k) for p in range(2) for k in range(4)}
    assert {path.name for path in out.parent.iterdir()} == {*singles, "grid.png", "grid.json"}
    whole = pixels(out)
    assert whole.shape[0] > 2 * 64 and whole.shape[1] > 4 * 64
    images = {place: pixels(out.with_name(name)) for name, place in singles.items()}
    assert {image.shape for image in images.values()} == {(64, 64, 3)}
    assert len({image.tobytes() for image in images.values()}) == 8
    record = json.loads(out.with_suffix(".json").read_text())
    assert (record["steps"], record["guidance"], record["seed"]) == (25, 5.0, 0)
    assert record["evaluations"] == 4 * 25
    assert [row["prompt"] for row in record["prompts"]] == prompts
    for row in record["prompts"]:
        assert row["kept"] == [0, 1, 2, 3] and len(row["score"]) == 4
        assert -1 <= row["mean_cosine"] <= row["top_cosine"] <= 1 and 1 <= row["vendi"] <= 4
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("unchecked")
def test_the_command_tells_of_a_damaged_checkpoint_that_was_passed_over(folder, tmp_path):
    a_run(folder, tmp_path / "run")
    largest = max(
        (path for path in (tmp_path / "run" / "checkpoints" / "2").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(data)
    options = (f"--workdir={tmp_path / 'run'}", "--prompt=a star", "--num=1", "--steps=1")
    done = command(*options, f"--out={tmp_path / 'grid.png'}")
    assert done.returncode == 0, done.stderr
    assert re.search("checkpoint 2 .*damaged", done.stderr)
    assert json.loads((tmp_path / "grid.json").read_text())["model"].endswith("(step 1)")


def test_the_command_refuses_a_prompt_that_is_too_long_and_writes_nothing(folder, tmp_path):
    done = command(
        f"--workdir={folder}", f"--prompt={'red star ' * 40}", f"--out={tmp_path / 'grid.png'}"
    )
    assert done.returncode == 1 and done.stdout == ""
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "more than the context of 48" in said[0]
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


def test_the_command_names_a_broken_prompt_file_and_writes_nothing(tmp_path):
    (tmp_path / "set.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cosdiff_jax.generate",
            "--layout=geneval",
            f"--prompts_file={tmp_path / 'set.jsonl'}",
            f"--out={tmp_path / 'out'}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "set.jsonl line 2 is not JSON" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["set.jsonl"]


def test_the_scale_asked_for_is_that_of_the_guidance_chosen(folder):
    model = trained.load(folder, ())
    knobs = dict(base.menu().sample.guidance.composed)
    asked = model.as_asked(None, 7.0, {"guidance": {"name": "composed", "composed": knobs}})
    assert build.sampler(asked, model.shape).guidance.scale == 7.0
    assert asked.sample.guidance.classifier_free.scale != 7.0


def test_a_weaker_network_is_a_method_of_the_recipes_strength_in_the_middle_layer(folder):
    model = trained.load(folder, ())
    plain = build.sampler(model.as_asked(None, None, {}), model.shape)

    def made(method):
        changes = diverse.overlay(method)
        return build.sampler(model.as_asked(None, None, changes), model.shape).guidance

    skipping = made("skip_layer")
    assert skipping.scale == plain.guidance.scale != 1
    assert [(each.layers, each.scale) for each in skipping.weaker] == [((), 2.0)]
    # Methods that change when guidance acts do so in its other form as well.
    both = made("interval+skip_layer")
    assert both.interval == made("interval").interval != skipping.interval
    assert both.weaker == skipping.weaker


@pytest.mark.parametrize("method", ["independent", "particle", "late_pruning"])
def test_pictures_are_shared_out_over_the_devices_of_a_host(folder, monkeypatch, method):
    model = trained.load(folder, ("llm", "vae", "clip"))
    settings = {"method": method, "num": 3, "steps": 3, "guidance": 2.0}
    settings |= {"candidates": 10} if method == "late_pruning" else {}
    places, network = [], FuseDiT.apply

    def apply(self, variables, z, *args, **kwargs):
        jax.debug.inspect_array_sharding(z, callback=places.append)
        return network(self, variables, z, *args, **kwargs)

    monkeypatch.setattr(FuseDiT, "apply", apply)

    def drawn(devices):
        captions = ["a red star", "빨간 별", "a blue ring"]
        return diverse.diverse_samples(model, captions, devices=devices, **settings)

    # Rows that the devices do not share evenly: nine, or ten and five.
    alone = drawn(tuple(jax.devices()[:1]))
    assert {len(place.device_set) for place in places} == {1}
    places.clear()
    shared = drawn(tuple(jax.devices()))
    assert {len(place.device_set) for place in places} == {8}
    assert not any(place.is_fully_replicated for place in places)
    apart = np.abs(alone.images.astype(int) - shared.images.astype(int))
    assert apart.max() <= 1
    np.testing.assert_array_equal(alone.kept, shared.kept)


@pytest.mark.parametrize("number", [1, 8])
def test_all_that_draw_with_a_model_share_its_weights(folder, monkeypatch, number):
    local = sharding.local
    monkeypatch.setattr(sharding, "local", lambda _=(): local(jax.devices()[:number]))
    model = trained.load(folder)
    samplers = [diverse.DiverseSampler(model=model, method=m) for m in ("independent", "cads")]

    def places(tree):
        leaves = jax.tree.leaves(tree)
        return [s.data.unsafe_buffer_pointer() for x in leaves for s in x.addressable_shards]

    own = places((model.params, model.frozen))
    assert len(own) == number * len(jax.tree.leaves((model.params, model.frozen)))
    assert [places(sampler._weights) for sampler in samplers] == [own, own]


@pytest.mark.parametrize(
    "method",
    [
        "cads+interval+relevance",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("particle_clip", "descent+min_sum")),
    ],
)
def test_another_scale_or_seed_compiles_nothing_whatever_acts_beside(folder, method):
    lowered = []  # whatever is compiled: the networks, what sees, decodes and chooses
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: lowered.append(name) if "mlir_module" in name else None
    )
    model = trained.load(folder, ("llm", "clip"))

    def at(guidance, seed):
        options = {"num": 2, "steps": 2, "method": method, "guidance": guidance}
        return diverse.DiverseSampler(model=model, **options)(["a red star"], seed=seed).images

    first = at(2.0, 0)
    programs = len(lowered)
    assert not np.array_equal(at(3.0, 1), first)
    assert len(lowered) == programs > 0
