import json
import logging
import unicodedata
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cosdiff_jax.data import gallery, groups, preprocess, prompts
from cosdiff_jax.data.gallery import Gallery
from cosdiff_jax.data.prompts import Prompt

SET = [
    Prompt(text="a red wall", key="red"),
    Prompt(text="a blue wall", key="blue", group="walls", extra={"spec": "one"}),
    Prompt(text="a grey wall", key="grey_1"),
]


def picture(path, shade=0, mode="RGB", size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 255)).convert(mode).save(path)
    return path


def names(found):
    return {found[n]["key"]: found[n]["names"] for n in range(len(found))}


def test_one_sub_folder_a_prompt(tmp_path):
    for name in ("red/b10.png", "red/b2.png", "grey_1/deep/er.webp", "stray/a.png", "overview.png"):
        picture(tmp_path / name)
    found = Gallery(tmp_path, SET, size=8)
    assert found.layout == "folders"
    assert names(found) == {"red": ["red/b2.png", "red/b10.png"], "grey_1": ["grey_1/deep/er.webp"]}
    assert found.missing == ("blue",)
    assert found.summary == (
        "gallery: 3 pictures of 2 of 3 prompts, 1 to 2 each (folders); without pictures 1: blue; "
        "skipped 2: overview.png (no prompt), stray/a.png (no prompt)"
    )


def test_sub_folders_may_have_the_rows_number_or_the_prompt_itself(tmp_path):
    accent = unicodedata.normalize("NFD", "a café: who/where?")
    given = [Prompt(text=text) for text in ("one", "two", "a café: who/where?", "four")]
    for name in ("1", "003", accent.replace("/", "_").replace("?", "").replace("_", " ")):
        picture(tmp_path / name / "x.png")
    assert [item["prompt"] for item in Gallery(tmp_path, given)] == [1, 2, 3]
    # Where keys are numbers, a number is a key and never a row.
    given = [Prompt(text="one", key="3"), Prompt(text="two", key="x"), Prompt(text="three")]
    (tmp_path / "1").rename(tmp_path / "x")
    found = Gallery(tmp_path, given)
    assert {item["caption"]: item["names"] for item in found} == {
        "one": ["003/x.png"],
        "two": ["x/x.png"],
    }


def geneval(root, number, text, count=2, **more):
    for k in range(count):
        picture(root / f"{number:05}" / "samples" / f"{k:04}.png", shade=10 * number + k)
    picture(root / f"{number:05}" / "grid.png")
    record = json.dumps({"tag": "colors", "include": [], "prompt": text, **more})
    (root / f"{number:05}" / "metadata.jsonl").write_text(record)


def test_genevals_own_layout_says_its_prompts(tmp_path):
    geneval(tmp_path, 0, "a photo of a pail")
    geneval(tmp_path, 12, "a photo of a harp", 1, exclude=[])
    picture(tmp_path / "00003" / "samples" / "0000.png")
    found = Gallery(tmp_path, size=8)
    assert found.layout == "geneval"
    assert names(found) == {
        "00000": ["00000/samples/0000.png", "00000/samples/0001.png"],
        "00012": ["00012/samples/0000.png"],
    }
    item = found[1]
    assert (item["caption"], item["group"]) == ("a photo of a harp", "colors")
    assert (item["tag"], item["exclude"]) == ("colors", [])
    assert found.skipped == (("00003/samples/0000.png", "no metadata.jsonl"),)

    # Beside a prompt file the text decides where the number does not.
    given = [Prompt(text=t) for t in ("a photo of a pail", "a photo of a harp", "a photo of a fan")]
    found = Gallery(tmp_path, given)
    assert [(item["prompt"], len(item["names"])) for item in found] == [(0, 2), (1, 1)]
    assert found.missing == ("00002",)
    found = Gallery(tmp_path, given[1:])
    assert [item["key"] for item in found] == ["00000"]
    reasons = dict(found.skipped)
    assert reasons["00000/samples/0001.png"] == "its prompt is not in the prompt set"
    (tmp_path / "00000" / "metadata.jsonl").write_text("{broken")
    reason = dict(Gallery(tmp_path).skipped)["00000/samples/0000.png"]
    assert reason == "its metadata.jsonl is not one prompt"


def test_names_that_begin_with_a_prompts_key_number_or_text(tmp_path):
    stems = ("red_0", "red-0001", "red", "grey_1", "grey_1_7", "sub/blue-3", "a blue wall_000004")
    for stem in (*stems, "reds_0", "_0"):
        picture(tmp_path / f"{stem}.png")
    found = Gallery(tmp_path, SET)
    assert found.layout == "prefix"
    assert names(found) == {
        "red": ["red-0001.png", "red.png", "red_0.png"],
        "blue": ["a blue wall_000004.png", "sub/blue-3.png"],
        "grey_1": ["grey_1.png", "grey_1_7.png"],
    }
    assert {name for name, _ in found.skipped} == {"reds_0.png", "_0.png"}

    rows = tmp_path / "rows"
    for stem in ("00012_3", "00012_10", "7_0", "13_0"):
        picture(rows / f"{stem}.jpg")
    found = Gallery(rows, [Prompt(text=f"prompt {row}") for row in range(13)])
    assert names(found) == {"00007": ["7_0.jpg"], "00012": ["00012_3.jpg", "00012_10.jpg"]}


def test_the_grids_that_generate_writes(tmp_path):
    for grid, rows in (("one", ["a red wall", "a blue wall"]), ("two", ["a blue wall"])):
        for p in range(len(rows)):
            for k in range(2):
                picture(tmp_path / f"{grid}_p{p}_k{k}.png")
        picture(tmp_path / f"{grid}.png")
        record = {"seed": 0, "prompts": [{"prompt": text} for text in rows]}
        (tmp_path / f"{grid}.json").write_text(json.dumps(record))
    found = Gallery(tmp_path)
    assert found.layout == "generate"
    assert [(item["caption"], len(item["names"])) for item in found] == [
        ("a red wall", 2),
        ("a blue wall", 4),
    ]
    assert found.skipped == ()
    found = Gallery(tmp_path, SET[1:])
    assert names(found)["blue"][0] == "one_p1_k0.png"
    assert {reason for _, reason in found.skipped} == {"its prompt is not in the prompt set"}


def test_pictures_of_any_kind_and_size_become_one_group(tmp_path):
    picture(tmp_path / "blue_0.png", 100, size=(40, 30))
    picture(tmp_path / "blue_1.png", 100, mode="L")
    picture(tmp_path / "blue_2.png", 100, mode="RGBA", size=(8, 8))
    item = Gallery(tmp_path, SET, size=8)[0]
    assert item["images"].shape == (3, 8, 8, 3) and item["images"].dtype == np.uint8
    for image, name in zip(item["images"], item["names"], strict=True):
        np.testing.assert_array_equal(image, preprocess.read(tmp_path / name, 8))
    assert (item["caption"], item["key"], item["group"]) == ("a blue wall", "blue", "walls")
    assert (item["prompt"], item["spec"]) == (1, "one")
    assert isinstance(Gallery(tmp_path, SET), groups.Source)


def test_nothing_is_read_before_it_is_asked_for(tmp_path, monkeypatch):
    for key in ("red", "blue"):
        for k in range(3):
            picture(tmp_path / f"{key}_{k}.png")
    read = []
    true = preprocess.read
    monkeypatch.setattr(
        gallery.preprocess, "read", lambda path, size: read.append(path.name) or true(path, size)
    )
    found = Gallery(tmp_path, SET)
    assert len(found) == 2 and len(found.names(1)) == 3 and read == []
    assert found[1]["key"] == "blue"
    assert read == ["blue_0.png", "blue_1.png", "blue_2.png"]


def test_broken_pictures_are_left_out_and_named(tmp_path, caplog):
    picture(tmp_path / "red_0.png")
    (tmp_path / "red_1.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (tmp_path / "blue_0.png").touch()
    (tmp_path / "red_2.HEIC").write_bytes(b"?")
    phone = ("red_2.HEIC", "HEIC is not a format that can be read")
    found = Gallery(tmp_path, SET)
    assert found.skipped == (phone,)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert found[0]["names"] == ["red_0.png"]
    assert found.skipped == (phone, ("red_1.png", "broken image"))
    assert "left out 1: red_1.png (broken image)" in caplog.text
    with pytest.raises(ValueError, match=r"prompt blue has no picture .* blue_0.png \(zero bytes"):
        found[1]

    checked = Gallery(tmp_path, SET, check=True)
    assert set(checked.skipped) == {
        phone,
        ("red_1.png", "broken image"),
        ("blue_0.png", "zero bytes"),
    }
    assert names(checked) == {"red": ["red_0.png"]}
    assert checked.missing == ("blue", "grey_1")


def test_a_prompt_file_is_read_and_long_lists_are_cut(tmp_path):
    lines = [f"prompt number {row}" for row in range(60)]
    (tmp_path / "set.txt").write_text("\n".join(lines))
    for row in range(2):
        picture(tmp_path / "drawn" / f"{row}_0.png")
    for row in range(70, 100):
        picture(tmp_path / "drawn" / f"{row}_0.png")
    found = Gallery(str(tmp_path / "drawn"), str(tmp_path / "set.txt"))
    assert [prompt.text for prompt in found.prompts] == lines
    assert len(found.missing) == 58 and len(found.skipped) == 30
    assert "without pictures 58: 00002, 00003" in found.summary
    assert "00021 ...; skipped 30: 70_0.png (no prompt)" in found.summary
    assert "in all 30 no prompt" in found.summary


def test_what_cannot_be_matched_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    picture(tmp_path / "other" / "x" / "y.png")
    knobs: Any
    for path, given, knobs, message in (
        (tmp_path / "gone", SET, {}, "gone does not exist"),
        (tmp_path / "file", SET, {}, "file is a file, not a folder"),
        (tmp_path / "empty", SET, {}, "empty has no pictures"),
        (tmp_path / "other", SET, {}, r"none of its 1 pictures \(x/y.png .*3 prompts \(keys red"),
        (tmp_path / "other", [], {}, r"none of its 1 pictures .* 0 prompts \(keys none"),
        (tmp_path / "other", None, {}, "what its pictures were drawn of: give the prompts"),
        (tmp_path / "other", SET, {"layout": "geneval"}, "as geneval, none of its 1 pictures"),
        (tmp_path / "other", SET, {"layout": "heap"}, "'heap' is not one of folders, geneval"),
        (tmp_path / "other", SET, {"size": 0}, "size must be at least 1, not 0"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            Gallery(path, given, **knobs)
        assert "\n" not in str(error.value)
    picture(tmp_path / "good" / "red.png")
    with pytest.raises(IndexError):
        Gallery(tmp_path / "good", SET)[1]


def test_what_prompts_reads_is_found_again_by_its_keys(tmp_path):
    """Any set's keys name folders and files that lead back to the same prompts."""
    texts = ["same", "same", "other", "7", "a/b", "b_1", "b"]
    given = prompts.keyed([Prompt(text=t, key=k) for t, k in zip(texts, "Aa ../B-", strict=False)])
    given = prompts.keyed([*given, Prompt(text="accented", key="é")])
    for layout, name in (("folders", "{}/0.png"), ("prefix", "{}_0.png")):
        for prompt in given:
            # As macOS writes the names of files.
            written = unicodedata.normalize("NFD", name.format(prompt.key))
            picture(tmp_path / layout / written)
        found = Gallery(tmp_path / layout, given, layout=layout)
        assert [item["key"] for item in found] == [prompt.key for prompt in given]
        assert [item["prompt"] for item in found] == list(range(len(given)))
