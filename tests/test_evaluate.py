"""Pictures are measured and put side by side: a model's, a folder's, and the true ones."""

import csv
import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from cosdiff_jax import columns, comparison, evaluate, networks
from cosdiff_jax.data import prompts as prompt_sets
from cosdiff_jax.data.scenes.held_out import held_out
from cosdiff_jax.entry import scenes_of
from cosdiff_jax.survey import Survey


def asked(folder, **more):
    return evaluate.Asked(models=(folder,), **{"num": 2, "steps": 2, "prompts": "6", **more})


def test_a_model_stands_beside_the_true_distribution(folder, tmp_path):
    found = evaluate.pictures(asked(folder), tmp_path)
    model, true = found["columns"].values()
    assert list(found["columns"])[1] == "true"
    assert true["all"]["mean"] == true["count"]["mean"] == 1
    assert model["all"]["mean"] < 0.5
    assert model["evaluations"]["mean"] == 4
    # The true pictures are nearer to other true ones than an untrained model's are.
    assert true["frechet"]["mean"] < model["frechet"]["mean"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    assert "true" in (tmp_path / "report.html").read_text()
    lines = comparison.text(found).splitlines()
    assert len(lines) == 1 + len({*model, *true}) + len(["", "by language", "", "fake", "true"])
    with open(tmp_path / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["column"] == "true"]
    assert {row["measure"] for row in rows} == set(true)
    # What was measured is read, not drawn again: drawing would take other seconds.
    assert len(list((tmp_path / "measured").glob("*/rows-*"))) == 3
    assert evaluate.pictures(asked(folder), tmp_path)["columns"] == found["columns"]


def test_without_a_page_the_numbers_are_the_same_and_nothing_is_drawn_for_it(folder, tmp_path):
    found = evaluate.pictures(asked(folder), tmp_path / "numbers", page=False)
    names = {place.name for place in (tmp_path / "numbers").iterdir()}
    assert {"metrics.json", "metrics.csv"} <= names and not {"report.html", "figures"} & names
    whole = evaluate.pictures(asked(folder), tmp_path / "page")
    measured = {"seconds", "peak_mib"}
    for name, table in whole["columns"].items():
        own = found["columns"][name]
        assert {k: v for k, v in own.items() if k not in measured} == {
            k: v for k, v in table.items() if k not in measured
        }


@pytest.mark.parametrize(
    ("told", "metric", "said"),
    [
        (("study", "out"), "pictures", None),
        (("study", "num"), "pictures", "--num has no part in --study"),
        (("write_prompts", "prompts", "num", "seed"), "pictures", None),
        (("write_prompts", "model"), "pictures", "--model has no part in --write_prompts"),
        (("metric", "workdir", "num"), "vae", None),
        (("metric", "steps"), "vae", "--steps has no part in --metric=vae"),
        (("images", "prompts", "num", "clip"), "pictures", None),
        (("images", "ema"), "pictures", "--ema says how a model draws, and --images are measured"),
        (("images", "model", "steps"), "pictures", None),
        (("steps", "method"), "pictures", None),
    ],
)
def test_what_would_change_nothing_is_refused(told, metric, said):
    if said is None:
        evaluate.check_flags(told, metric)
        return
    with pytest.raises(ValueError, match=f"^{said}"):
        evaluate.check_flags(told, metric)


def test_methods_are_columns_of_their_own(folder, tmp_path):
    found = evaluate.pictures(
        asked(folder, methods=("independent", "max_min"), candidates=4), tmp_path
    )
    assert list(found["columns"]) == ["independent", "max_min", "true"]
    cost = [found["columns"][name]["evaluations"]["mean"] for name in ("independent", "max_min")]
    assert cost == [4, 8]


def test_another_question_does_not_get_an_old_answer(folder, tmp_path):
    evaluate.pictures(asked(folder), tmp_path)
    with pytest.raises(ValueError, match="holds another measurement"):
        evaluate.pictures(asked(folder, seed=1), tmp_path)


@pytest.fixture
def foreign(tmp_path):
    """Pictures of another system with their prompts, some broken, and real ones beside."""
    true = held_out(4, 3, seed=0)
    lines = []
    for index, group in enumerate(true):
        lines.append(json.dumps({"prompt": group["caption"], "key": f"p{index}"}))
        for name in ("made", "real"):
            place = tmp_path / name / f"p{index}"
            place.mkdir(parents=True)
            for number, image in enumerate(group["images"][: 3 if name == "real" else 2]):
                Image.fromarray(image).resize((96, 96)).save(place / f"{number}.png")
    (tmp_path / "made" / "p0" / "broken.png").write_bytes(b"nothing")
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_anyones_pictures(folder, foreign, caplog):
    prompts = str(foreign / "prompts.jsonl")
    found = evaluate.pictures(
        evaluate.Asked(
            models=(folder,), images=(str(foreign / "made"),), prompts=prompts,
            reference=str(foreign / "real"), num=2, steps=2,
        ),
        foreign / "out",
    )  # fmt: skip
    assert "1: p0/broken.png" in caplog.text
    model, made = found["columns"].values()
    # Pictures that are among the real ones are nearer to them than an untrained model's.
    assert made["frechet"]["mean"] < model["frechet"]["mean"]
    assert made["precision"]["mean"] == 1
    assert made["clip_score"]["low"] < made["clip_score"]["high"]
    assert "evaluations" not in made and "all" not in made


def test_a_folder_alone_needs_no_model(foreign):
    found = evaluate.pictures(
        evaluate.Asked(images=(str(foreign / "made"),), prompts=str(foreign / "prompts.jsonl")),
        foreign / "out",
    )
    (table,) = found["columns"].values()
    assert set(table) >= {"mean_cosine", "clip_score", "vendi"} and "frechet" not in table
    assert found["facts"]["features"] == "scenes_clip"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "nothing to measure"),
        ({"models": ("fusion_base",), "prompts": "1"}, "at least 2"),
        ({"images": ("x",), "training": 5}, "name the model"),
        ({"models": ("fusion_base",), "images": ("x",), "prompts": "4"}, "--prompts=FILE"),
        ({"images": ("x",), "paired": True}, "with --reference"),
        ({"models": ("fusion_base",), "read": "x.csv"}, "in --images"),
        ({"images": ("x",), "top_percent": 0.0}, "--top_percent=0 is not within"),
    ],
)
def test_what_cannot_be_asked_is_one_line(more, message):
    with pytest.raises(ValueError, match=message):
        evaluate.Asked(**more)


def test_consistency_is_told_for_every_layer_beside_chance(folder, tmp_path):
    own, shuffled = networks.consistency(folder, prompts=8, num=2, seed=0)
    assert list(own) == list(shuffled) == ["layer 0", "layer 1"]
    assert all(-1 <= value <= 1 for value in [*own.values(), *shuffled.values()])
    text = networks.measured("consistency", [folder], tmp_path, prompts="8", num=2, seed=0)
    assert text.splitlines()[0].split() == ["own", "shuffled"] and len(text.splitlines()) == 3
    kept = json.loads((tmp_path / "metrics.json").read_text())
    assert (kept["own"], kept["shuffled"]) == (own, shuffled)


@pytest.mark.parametrize(
    ("metric", "least"),
    [
        ("vae", {"psnr": 25, "ssim": 0.9}),
        ("llm", {"accuracy": 0.3}),
        ("latent_clip", {"retrieval@1": 0.9}),
    ],
)
def test_frozen_networks_know_something(tmp_path, metric, least):
    networks.measured(metric, [], tmp_path, prompts="8", num=2, seed=0)
    kept = json.loads((tmp_path / "metrics.json").read_text())
    assert kept["source"] == networks.ASSETS[metric]
    assert all(kept["value"][name] > value for name, value in least.items())


def test_the_command_ends_with_one_line_and_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "cosdiff_jax.evaluate", "--model=nowhere", f"--out={tmp_path}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: no model in 'nowhere'")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_worst_and_the_best_are_shown(folder, tmp_path):
    evaluate.pictures(asked(folder, prompts="15"), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Worst of" in page and "Best of" in page
    # Two headings, three prompts each, beside the eight first ones; two columns of two pictures.
    assert page.count("<article>") == 8 + 3 + 3
    assert page.count("<img") == (8 + 3 + 3) * 2 * 2


def test_copies_of_training_pictures_are_shown(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the training pictures are drawn
    found = evaluate.pictures(asked(folder, training=16), tmp_path / "out")
    model, true = found["columns"].values()
    assert model["nearest_training"]["mean"] <= 1
    # Pictures of the same kind are nearer to training pictures than an untrained model's noise.
    assert true["nearest_training"]["mean"] > model["nearest_training"]["mean"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("nearest training picture of each</h4>") == 3


def test_columns_are_told_apart(foreign, monkeypatch):
    monkeypatch.chdir(foreign)
    (foreign / "made").rename(foreign / "true")
    (foreign / "real").rename(foreign / "a_b")
    asked = {"prompts": "prompts.jsonl", "reference": "a_b"}
    found = evaluate.pictures(evaluate.Asked(images=("true", "a_b"), **asked), foreign / "out")
    # A folder called so is not taken for the true distribution.
    assert list(found["columns"]) == ["./true", "a_b"]
    with pytest.raises(ValueError, match="two columns would be called 'a/b'"):
        (foreign / "a").mkdir()
        (foreign / "a_b").rename(foreign / "a" / "b")
        (foreign / "true").rename(foreign / "a_b")
        evaluate.pictures(
            evaluate.Asked(images=("a_b", "a/b"), prompts="prompts.jsonl"), foreign / "other"
        )


def test_another_eye_of_the_same_name_is_another_measurement(foreign, monkeypatch):
    asked = evaluate.Asked(images=(str(foreign / "made"),), prompts=str(foreign / "prompts.jsonl"))
    evaluate.pictures(asked, foreign / "out")
    made = columns.clip_eye

    def changed(name):
        eye = made(name)
        return dataclasses.replace(eye, params=jax.tree.map(lambda x: x * 1.01, eye.params))

    monkeypatch.setattr(columns, "clip_eye", changed)
    with pytest.raises(ValueError, match=r"another measurement .eye differ"):
        evaluate.pictures(asked, foreign / "out")


def said_of(asked):
    """Of each column and prompt what only that column is measured by: no network looks."""
    found = {}
    for entry in columns.gather(asked, {}, None):
        groups = [entry.source[index] for index in range(len(entry.source))]
        found[entry.name] = [
            {k: v for m in entry.measures for k, v in m(g["images"], g).items() if v == v}
            for g in groups
        ]
    return found


def test_pictures_are_held_to_the_real_ones_in_their_place(foreign):
    place = foreign / "made" / "p1"
    Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(place / "9.png")
    real = str(foreign / "real")
    asked = {"prompts": str(foreign / "prompts.jsonl"), "reference": real}
    found = said_of(evaluate.Asked(images=(str(foreign / "made"), real), paired=True, **asked))
    # Of the four prompts one has three pictures like the real ones: two are equal, one is black.
    one, *rest = [row for row in found[str(foreign / "made")] if row]
    assert not rest and 60 < one["psnr"] < 80 and 0.6 < one["ssim"] < 1
    assert found[real] == [{"psnr": pytest.approx(100), "ssim": pytest.approx(1)}] * 4
    assert not any(said_of(evaluate.Asked(images=(real,), **asked))[real])


def add(foreign, **more):
    """The prompts with something more said of the first."""
    place = foreign / "prompts.jsonl"
    first, *rest = place.read_text().splitlines()
    place.write_text("\n".join([json.dumps({**json.loads(first), **more}), *rest]))
    return str(place)


def test_texts_that_somebody_read_in_pictures(foreign, monkeypatch):
    asked = {"images": (str(foreign / "made"),), "prompts": add(foreign, text="SALE")}
    told = foreign / "read.csv"
    told.write_text("picture,text\np0/0.png,SALE\np0/1.png,SAL\np2/0.png,not asked for\n")
    (rows,) = said_of(evaluate.Asked(read=str(told), **asked)).values()
    counts = {"text_characters": 8, "text_pictures": 2}
    first = {"text_accuracy": 7 / 8, "text_hit_rate": 7 / 8, "text_availability": 0.5}
    assert rows == [{**first, **counts}, {}, {}, {}]
    # Lines of JSON, paths from where the command is given, nothing read in one.
    monkeypatch.chdir(foreign)
    lines = [
        {"file_name": f"made/p0/{n}.png", "text": said} for n, said in ((0, "SALE"), (1, None))
    ]
    told = foreign / "read.jsonl"
    told.write_text("\n".join(map(json.dumps, lines)))
    (rows,) = said_of(evaluate.Asked(read=str(told), **asked)).values()
    half = {"text_accuracy": 0.5, "text_hit_rate": 0.5, "text_availability": 0.5}
    assert rows[0] == {**half, **counts}
    # Names inside a folder do not say which of two folders.
    told.write_text(json.dumps({"picture": "p0/0.png", "text": "SALE"}))
    for images, message in (
        (("made",), "nothing of p0/1.png in made"),
        (("made", "real"), "nothing of p0/0.png in made"),
    ):
        with pytest.raises(ValueError, match=message):
            said_of(evaluate.Asked(**{**asked, "images": images}, read=str(told)))
    add(foreign, text="")
    with pytest.raises(ValueError, match=r'no prompt of the pictures in .* has a "text"'):
        said_of(evaluate.Asked(read=str(told), **asked))


def test_text_accuracy_is_of_all_characters_not_of_prompts(foreign):
    place = foreign / "prompts.jsonl"
    lines = [json.loads(line) for line in place.read_text().splitlines()]
    wanted = ["A", "ABCDEFGHIJ"]
    for line, text in zip(lines, wanted, strict=False):
        line["text"] = text
    place.write_text("\n".join(map(json.dumps, lines)))
    told = foreign / "read.csv"
    read = [f"p{p}/{n}.png,{text}\n" for p, text in enumerate(["B", wanted[1]]) for n in (0, 1)]
    told.write_text("picture,text\n" + "".join(read))
    found = evaluate.pictures(
        evaluate.Asked(images=(str(foreign / "made"),), prompts=str(place), read=str(told)),
        foreign / "out",
        page=False,
    )
    (table,) = found["columns"].values()
    assert table["text_accuracy"]["mean"] == pytest.approx(20 / 22)
    assert table["text_hit_rate"]["mean"] == pytest.approx(20 / 22)
    assert table["text_availability"]["mean"] == 0.5
    assert not {"text_characters", "text_pictures"} & set(table)


def geneval(folder, *prompts):
    """Two pictures of each prompt, laid out as GenEval wants them."""
    for number, prompt in enumerate(prompts):
        place = folder / f"{number:05d}"
        (place / "samples").mkdir(parents=True)
        (place / "metadata.jsonl").write_text(json.dumps({"tag": "counting", "prompt": prompt}))
        for k in range(2):
            image = np.full((64, 64, 3), 40 * number + 20 * k, np.uint8)
            Image.fromarray(image).save(place / "samples" / f"{k:04d}.png")
    return str(folder)


def test_folders_that_number_other_prompts_alike_are_not_paired(tmp_path):
    a = geneval(tmp_path / "a", "a photo of a cat", "two dogs")
    b = geneval(tmp_path / "b", "a red star", "two dogs")
    asked = evaluate.Asked(images=(a, b), reference=b, paired=True)
    rows = said_of(asked)
    assert rows[a][0] == {} and rows[a][1]["psnr"] == pytest.approx(100)
    found = evaluate.pictures(evaluate.Asked(images=(a, b)), tmp_path / "out")
    assert found["shared"] == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<article>") == 1 and "two dogs" in page and "a photo of a cat" not in page


def test_categories_of_prompts_are_kept_for_models_and_folders(folder, foreign):
    place = foreign / "prompts.jsonl"
    lines = [json.loads(line) for line in place.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["category"] = ("Animals", "Food")[number % 2]
    place.write_text("\n".join(map(json.dumps, lines)))
    found = evaluate.pictures(
        evaluate.Asked(
            models=(folder,), images=(str(foreign / "made"),), prompts=str(place), num=2, steps=2
        ),
        foreign / "out",
        page=False,
    )
    assert list(found["categories"]) == ["Animals", "Food"]
    assert all(len(said) == 2 for said in found["categories"].values())
    assert (foreign / "out" / "categories.csv").exists()


def test_a_caption_that_clip_cannot_read_is_told_once(foreign):
    prompts = add(foreign, prompt="a red circle " * 200)
    images = (str(foreign / "made"), str(foreign / "real"))
    found = evaluate.pictures(
        evaluate.Asked(images=images, prompts=prompts), foreign / "out", page=False
    )
    said = comparison.text(found)
    assert said.count("1 of 4 captions is too long for scenes_clip") == 1


EYES = """
import numpy as np

def look(images, questions):
    return np.outer(np.arange(len(images)) % 2, ["1" in said for said in questions])

def blind(images, questions):
    return [0.5]
"""


def test_a_users_own_answers(foreign, monkeypatch):
    (foreign / "some_eyes.py").write_text(EYES)
    monkeypatch.syspath_prepend(foreign)
    asked = {"images": (str(foreign / "made"),), "prompts": add(foreign, questions=["1?", "2?"])}
    (rows,) = said_of(evaluate.Asked(answers="some_eyes:look", **asked)).values()
    assert rows == [{"questions_yes": 0.25}, {}, {}, {}]
    with pytest.raises(ValueError, match=r"^--answers=some_eyes:blind returned shape \(1,\)"):
        said_of(evaluate.Asked(answers="some_eyes:blind", **asked))
    with pytest.raises(ValueError, match="--answers=some_ears:hear: no such MODULE:FUNCTION"):
        said_of(evaluate.Asked(answers="some_ears:hear", **asked))
    add(foreign, questions=[])
    with pytest.raises(ValueError, match=r"--answers=.*no prompt of .*made has questions"):
        said_of(evaluate.Asked(answers="some_eyes:look", **asked))


def test_other_prompts_of_the_same_number_are_another_measurement(foreign):
    def measure():
        asked = {"images": (str(foreign / "made"),), "prompts": str(foreign / "prompts.jsonl")}
        (entry,) = columns.gather(evaluate.Asked(**asked), {}, None)
        Survey(folder=foreign / "out", eye=None, facts=entry.facts).run(entry.source)

    measure()
    measure()
    add(foreign, prompt="something else")
    with pytest.raises(ValueError, match=r"another measurement .asked differ"):
        measure()


def test_everything_asked_of_a_folder_stands_in_its_table(foreign, monkeypatch):
    (foreign / "more_eyes.py").write_text(EYES)
    monkeypatch.syspath_prepend(foreign)
    prompts = add(foreign, questions=["1?"], text="A")
    told = foreign / "read.csv"
    told.write_text("picture,text\n" + "".join(f"p0/{n}.png,A\n" for n in range(3)))
    real = str(foreign / "real")
    asked = evaluate.Asked(
        images=(real,), prompts=prompts, reference=real, paired=True, answers="more_eyes:look",
        read=str(told), top_percent=60.0,
    )  # fmt: skip
    found = evaluate.pictures(asked, foreign / "out")
    (table,) = found["columns"].values()
    assert table["psnr"]["mean"] == pytest.approx(100)
    assert table["questions_yes"]["mean"] == pytest.approx(1 / 3)
    assert table["text_accuracy"]["mean"] == 1
    text = comparison.text(found)
    assert "top_cosine (60 %) " in text and "frechet (scenes_clip, n = 12) " in text
    with pytest.raises(ValueError, match=r"another measurement .*top_percent"):
        evaluate.pictures(dataclasses.replace(asked, top_percent=20.0), foreign / "out")


def test_held_out_prompts_are_written_for_others_to_draw(tmp_path):
    place = tmp_path / "held_out.jsonl"
    evaluate.write_prompts(str(place), "6", 2, 3)
    true = held_out(6, 2, seed=3)
    said = [{"caption": p.text, "key": p.key, **p.extra} for p in prompt_sets.read(place)]
    assert said == true.asked()
    # Somebody else's pictures, twice as large: right ones of all prompts but the first.
    for index, group in enumerate(true):
        folder = tmp_path / "drawn" / group["key"]
        folder.mkdir(parents=True)
        for number, image in enumerate(group["images"] if index else true[1]["images"]):
            Image.fromarray(image).resize((128, 128)).save(folder / f"{number}.png")
    asked = evaluate.Asked(images=(str(tmp_path / "drawn"),), prompts=str(place))
    for eye in (None, columns.Eye(name="", clip=Large(), params={}, encode=str)):
        (entry,) = columns.gather(asked, {}, eye)
        groups = [entry.source[index] for index in range(6)]
        right = [scenes_of(group["images"], group)["all"] for group in groups]
        assert groups[0]["images"].shape[1] == (64 if eye is None else 128)
        assert right == [0, 1, 1, 1, 1, 1]
    for number, message in (("x.jsonl", "not 'x.jsonl'"), ("0", "not '0'"), ("6", "is there")):
        with pytest.raises(ValueError, match=message):
            evaluate.write_prompts(str(place), number, 2, 3)


class Large:
    """Only the size of a CLIP that sees larger pictures."""

    size = 128


def test_what_another_benchmark_calls_spec_is_not_for_the_oracle():
    images = np.zeros((1, 64, 64, 3), np.uint8)
    for spec in ({"count": 1}, "not JSON", '{"groups": []}', "[]"):
        assert scenes_of(images, {"spec": spec}) == {}


def test_steps_are_the_usual_number_unless_something_tells_another():
    assert evaluate._steps(None, ["solver.name=heun"]) == 25
    assert evaluate._steps(None, ["steps=50"]) is None  # what was told acts by itself
    assert evaluate._steps(10, ["steps=10"]) == 10
