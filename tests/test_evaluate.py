"""Pictures are measured and put side by side: a model's, a folder's, and the true ones."""

import csv
import dataclasses
import json
import subprocess
import sys

import jax
import pytest
from PIL import Image

from cosdiff_jax import columns, comparison, evaluate, networks
from cosdiff_jax.data.scenes.held_out import held_out


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
    assert len(lines) == 1 + len({*model, *true})
    with open(tmp_path / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["column"] == "true"]
    assert {row["measure"] for row in rows} == set(true)
    # What was measured is read, not drawn again: drawing would take other seconds.
    assert len(list((tmp_path / "measured").glob("*/rows-*"))) == 3
    assert evaluate.pictures(asked(folder), tmp_path)["columns"] == found["columns"]


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
    ("metric", "name", "least"),
    [("vae", "psnr", 25), ("llm", "accuracy", 0.3), ("latent_clip", "retrieval@1", 0.9)],
)
def test_frozen_networks_know_something(tmp_path, metric, name, least):
    networks.measured(metric, [], tmp_path, prompts="8", num=2, seed=0)
    kept = json.loads((tmp_path / "metrics.json").read_text())
    assert kept["source"] == networks.ASSETS[metric] and kept["value"][name] > least


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
