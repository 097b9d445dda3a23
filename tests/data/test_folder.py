import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosdiff_jax.data import folder


def picture(path, colour: str | tuple = "red", text=None, mode="RGB", size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)
    if text is not None:
        path.with_suffix(".txt").write_text(text, "utf-8")


def groups(path, **knobs):
    return folder.FolderGroups(**{"path": str(path), "size": 8, "samples": 2, **knobs})


def test_a_newcomers_folder(tmp_path):
    """Everything that lies about in real folders, at once."""
    picture(tmp_path / "red1.png", text="a red wall")
    picture(tmp_path / "red2.JPG", text=" a  red\nwall \n")
    picture(tmp_path / "grey.png", "gray", "a grey wall", mode="L")
    picture(tmp_path / "glass.png", "blue", "a blue wall", mode="RGBA")
    picture(tmp_path / "deep" / "er" / "빨강 é.webp", text="빨간 벽")
    picture(tmp_path / "silent.png", text=" \n")
    picture(tmp_path / "alone.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (tmp_path / "broken.txt").write_text("a broken wall")
    (tmp_path / "zero.gif").touch()
    (tmp_path / "zero.txt").write_text("nothing")
    (tmp_path / "latin.png").write_bytes((tmp_path / "red1.png").read_bytes())
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "phone.HEIC").write_bytes(b"?")
    (tmp_path / "notes.md").write_text("not a picture")
    (tmp_path / ".thumb.png").write_bytes(b"?")
    (tmp_path / "deep" / "back").symlink_to(tmp_path, target_is_directory=True)

    source = groups(tmp_path)
    assert source.captions == ("a blue wall", "a grey wall", "a red wall", "빨간 벽")
    assert source.summary == (
        "folder: used 5 of 11 images in 4 captions; skipped 6: alone.png (no caption), "
        "broken.png (broken image), latin.png (its caption is not UTF-8), "
        "phone.HEIC (HEIC is not a format that can be read), silent.png (empty caption), "
        "zero.gif (zero bytes). 3 of 4 captions have fewer than 2 pictures: their pictures repeat"
    )
    for index in range(len(source)):
        group = source[index]
        assert group["images"].shape == (2, 8, 8, 3)
        assert group["images"].dtype == np.uint8
        assert group["caption"] == source.caption(index)
    assert {source.caption(index) for index in range(4)} == set(source.captions)


def metadata(path, *records, name="metadata.jsonl"):
    path.mkdir(parents=True, exist_ok=True)
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
    (path / name).write_text("\n".join(lines), "utf-8")


def test_metadata_in_the_layout_of_imagefolder(tmp_path):
    for name in (
        "a",
        "train/b",
        "train/c",
        "train/d",
        unicodedata.normalize("NFD", "train/é"),
        "ü",
    ):
        picture(tmp_path / f"{name}.png")
    picture(tmp_path / "train" / "e.png", text="text beside")
    metadata(
        tmp_path,
        {"file_name": "a.png", "caption": "top"},
        {"file_name": unicodedata.normalize("NFD", "ü.png"), "caption": "dots"},
        "{not json",
        "",
        {"file_name": "gone.png", "text": "gone"},
        {"file_name": "../outside.png", "text": "outside"},
    )
    metadata(
        tmp_path / "train",
        {"file_name": "b.png", "text": "lower"},
        {"file_name": "./c.png", "text": ""},
        {"file_name": "d.png", "text": 7},
        {"file_name": unicodedata.normalize("NFC", "é.png"), "text": "accent"},
        ["a list"],
    )
    source = groups(tmp_path)
    assert source.captions == ("accent", "dots", "lower", "text beside", "top")
    assert dict(source.skipped) == {
        "metadata.jsonl line 3": "no file_name",
        "metadata.jsonl line 6": "points outside the folder",
        "gone.png": "named in the metadata, but no such file",
        "train/c.png": "empty caption",
        "train/d.png": "no caption",
        "train/metadata.jsonl line 3": "its caption is not text",
        "train/metadata.jsonl line 5": "no file_name",
    }


def test_metadata_as_a_table_and_captions_from_windows(tmp_path):
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    metadata(tmp_path, "file_name,text", 'a.png,"one, two"', "b.png,three", name="metadata.csv")
    (tmp_path / "c.txt").write_text("네 번째", "utf-16")
    assert groups(tmp_path).captions == ("one, two", "three", "네 번째")


def test_pictures_are_dealt_without_repeating_until_all_were_seen(tmp_path):
    for shade in range(5):
        picture(tmp_path / f"{shade}.png", (shade * 40,) * 3, "a shade of grey")
    source = groups(tmp_path)
    assert len(source) >= folder.SHORTEST_EPOCH
    assert "in 1 caption" in source.summary
    assert "repeat" not in source.summary
    for first in range(0, 30, 3):
        shades = [source[first + deal]["images"][:, 0, 0, 0].tolist() for deal in range(3)]
        assert {shade for pair in shades for shade in pair} == {0, 40, 80, 120, 160}
        assert all(len(set(pair)) == 2 for pair in shades)
    rounds = {tuple(source[index]["images"][:, 0, 0, 0]) for index in range(0, 60, 3)}
    assert len(rounds) > 5
    np.testing.assert_array_equal(source[4]["images"], groups(tmp_path)[4]["images"])
    assert any(
        (source[i]["images"] != groups(tmp_path, seed=1)[i]["images"]).any() for i in range(9)
    )


def test_what_fills_a_short_group_up_is_marked(tmp_path):
    for shade in range(4):
        picture(tmp_path / f"{shade}.png", (shade * 40,) * 3, "a shade of grey")
    picture(tmp_path / "a.png", text="alone")
    for name, colour in (("b", "red"), ("c", "blue")):
        picture(tmp_path / f"{name}.png", colour, "two")
    source, seen = groups(tmp_path, samples=3), {}
    assert source.varied == 2
    for index in range(len(source)):
        group = source[index]
        different = {image.tobytes() for image in group["images"][group["distinct"]]}
        assert len(different) == group["distinct"].sum()
        assert different == {image.tobytes() for image in group["images"]}
        seen[group["caption"]] = group["distinct"].tolist()
    assert seen["alone"] == [True, False, False] and seen["two"] == [True, True, False]
    # Four pictures are dealt in two hands, the second filled with others: none comes twice.
    assert seen["a shade of grey"] == [True, True, True]


def test_a_large_folder_is_read_again_when_drawn(tmp_path, monkeypatch):
    picture(tmp_path / "a.png", text="a")
    picture(tmp_path / "b.png", "blue", "a")
    kept = groups(tmp_path)
    monkeypatch.setattr(folder, "KEEP", 100)
    again = groups(tmp_path)
    assert {kept.image for kept in again._kept.values()} == {None}
    np.testing.assert_array_equal(kept[3]["images"], again[3]["images"])


def test_captions_are_held_out_by_their_hash(tmp_path):
    for number in range(40):
        picture(tmp_path / f"{number}.png", text=f"picture number {number}")
    train, test = (groups(tmp_path, split=split, test=0.3) for split in ("train", "test"))
    assert not set(train.captions) & set(test.captions)
    assert len(train.captions) + len(test.captions) == 40
    assert 5 <= len(test.captions) <= 20
    said = (
        f"used 40 of 40 images, {len(test.captions)} of them in the {len(test.captions)} captions"
    )
    assert said in test.summary
    # More pictures do not move the old ones, and the hash is the same on every machine.
    picture(tmp_path / "more.png", text="one more")
    assert set(groups(tmp_path, split="test", test=0.3).captions) >= set(test.captions)
    assert folder._share("a red circle") == pytest.approx(0.6323949398524629)
    assert groups(tmp_path, split="test").captions == groups(tmp_path).captions


def test_a_long_list_of_losses_is_cut_and_counted(tmp_path):
    picture(tmp_path / "good.png", text="good")
    for number in range(30):
        picture(tmp_path / f"{number:02}.png")
    summary = groups(tmp_path).summary
    assert "19.png (no caption) and 10 more; in all 30 no caption" in summary
    assert "20.png" not in summary


def test_nothing_to_work_with_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "mute" / "a.png")
    picture(tmp_path / "one" / "a.png", text="one")
    for path, message, knobs in (
        ("", "data.folder.path is empty", {}),
        (tmp_path / "absent", "absent does not exist", {}),
        (tmp_path / "file", "file is a file, not a folder", {}),
        (tmp_path / "empty", "empty has no pictures", {}),
        (tmp_path / "mute", r"none of its 1 images can be used; 1: a.png \(no caption\)", {}),
        (
            tmp_path / "one",
            "no caption is left for the test split",
            {"split": "test", "test": 1e-9},
        ),
        (tmp_path / "one", "neither train nor test", {"split": "val"}),
        (tmp_path / "one", "samples and size must be at least 1", {"samples": 0}),
    ):
        with pytest.raises(ValueError, match=message) as error:
            groups(path, **knobs)
        assert "\n" not in str(error.value)
    with pytest.raises(IndexError):
        groups(tmp_path / "one")[10_000]


def test_pictures_keep_their_shape_in_training_alone(tmp_path):
    picture(tmp_path / "a.png", text="a wall", size=(24, 12))
    picture(tmp_path / "b.png", text="a wall", size=(48, 24), colour="blue")
    picture(tmp_path / "c.png", text="a wall", size=(10, 12), colour="green")
    picture(tmp_path / "d.png", text="a door", size=(12, 30))
    source = groups(tmp_path, size=16, step=4, longest=2.0)
    height, width = (shape.height for shape in source.shapes), (s.width for s in source.shapes)
    assert sorted(zip(height, width, strict=True)) == [(12, 20), (16, 16), (20, 12)]
    assert source.captions == ("a door", "a wall") and source.prompts == 2
    assert "2 of 3 captions and shapes have fewer than 2 pictures" in source.summary
    seen = {}
    for index, bucket in enumerate(source.buckets):
        group, shape = source[index], source.shapes[bucket]
        assert group["images"].shape == (2, shape.height, shape.width, 3)
        assert group["caption"] == source.captions[group["prompt"]] == source.caption(index)
        seen.setdefault((group["caption"], shape.height), set()).update(
            tuple(image[0, 0].tolist()) for image in group["images"]
        )
    red, green, blue = (255, 0, 0), (0, 128, 0), (0, 0, 255)
    assert seen == {("a door", 20): {red}, ("a wall", 16): {green}, ("a wall", 12): {red, blue}}
    held_out = groups(tmp_path, size=16, step=4, longest=2.0, split="test")
    assert held_out.buckets is None and held_out[0]["images"].shape == (2, 16, 16, 3)


def test_pictures_that_are_read_again_keep_their_shape(tmp_path, monkeypatch):
    picture(tmp_path / "a.png", text="a wall", size=(24, 12))
    picture(tmp_path / "b.png", text="a door", size=(12, 12))
    kept = groups(tmp_path, size=16, step=4, longest=2.0)
    monkeypatch.setattr(folder, "KEEP", 0)
    again = groups(tmp_path, size=16, step=4, longest=2.0)
    assert again.buckets == kept.buckets and set(kept.buckets) == {1, 2}
    for index in range(4):
        np.testing.assert_array_equal(again[index]["images"], kept[index]["images"])


def test_a_size_that_the_step_does_not_divide_is_told(tmp_path):
    picture(tmp_path / "a.png", text="a wall")
    with pytest.raises(ValueError, match="a side of 20 pixels is no multiple of a step of 16"):
        groups(tmp_path, size=20, longest=2.0)


def test_the_command_tells_what_it_uses_of_a_newcomers_folder(tmp_path):
    place = tmp_path / "pictures"
    picture(place / "red.png", text="a red wall")
    picture(place / "brick.png", (150, 40, 40), "a red wall")
    picture(place / "grey.png", "gray", "a grey wall", mode="L")
    picture(place / "glass.png", "blue", "a blue wall", mode="RGBA")
    picture(place / "silent.png", text="")
    (place / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (place / "broken.txt").write_text("a broken wall")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "cosdiff_jax.train", "--config=configs/fusion_base.py:tiny"),
            *(f"--workdir={tmp_path / 'run'}", "--config.steps=1", "--config.sample.prompts=1"),
            *("--config.data.name=folder", f"--config.data.folder.path={place}"),
            *("--config.data.folder.size=16", "--config.data.folder.test=0.0"),
        ],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = {line for line in done.stderr.splitlines() if line.startswith("folder: ")}
    assert said == {
        "folder: used 4 of 6 images in 3 captions; skipped 2: broken.png (broken image), "
        "silent.png (empty caption). 2 of 3 captions have fewer than 2 pictures: their pictures "
        "repeat"
    }
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert np.isfinite(json.loads(line)["loss"])
