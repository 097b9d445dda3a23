import io
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from cosdiff_jax.data.scenes import builder, grammar, renderer, source


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    builder.prepare(root, train=30, test=12, samples=4, progress=False)
    return root


def test_groups_hold_different_true_scenes_of_one_prompt(folder):
    groups = source.ScenesGroups(folder, "train", samples=3)
    assert len(groups) == 30
    languages = set()
    for index in range(len(groups)):
        group = groups[index]
        assert group["images"].shape == (3, 64, 64, 3)
        assert group["images"].dtype == np.uint8
        spec = grammar.spec_from_json(group["spec"])
        assert grammar.parse(group["caption"]) == spec
        assert grammar.split_of(spec) == "train"
        languages.add("en" if group["caption"].isascii() else "other")
        scenes = groups.true_scenes(index)
        assert len(set(scenes)) == 3
        assert scenes == grammar.scenes_from_json(group["scenes"])[:3]
        for scene, image in zip(scenes, group["images"], strict=True):
            np.testing.assert_array_equal(renderer.render(scene), image)
    assert languages == {"en", "other"}
    assert groups[4]["caption"] == groups[4]["caption"]


def test_languages_and_samples_can_be_chosen(folder):
    for language in grammar.LANGUAGES:
        groups = source.ScenesGroups(folder, "test", languages=(language,))
        assert groups.samples == 4
        captions = [groups[index]["caption"] for index in range(len(groups))]
        assert len(set(captions)) == 12
        assert all(text.isascii() == (language == "en") for text in captions)


def test_test_prompts_are_held_out_and_distinct(folder):
    train, test = (source.ScenesGroups(folder, split, 1) for split in ("train", "test"))
    held_out = {test[index]["spec"] for index in range(len(test))}
    assert len(held_out) == 12
    assert not held_out & {train[index]["spec"] for index in range(len(train))}


def test_a_source_travels_to_another_process(folder):
    groups = source.ScenesGroups(folder, "train", samples=2)
    copy = pickle.loads(pickle.dumps(groups))
    np.testing.assert_equal(copy[7], groups[7])


def test_bad_requests_have_one_line(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no Scenes dataset in .*nowhere"):
        source.ScenesGroups(tmp_path / "nowhere", "train")
    with pytest.raises(ValueError, match="5 samples per prompt asked for, 4 are stored"):
        source.ScenesGroups(folder, "train", samples=5)
    with pytest.raises(ValueError, match="languages"):
        source.ScenesGroups(folder, "train", languages=("fr",))
    with pytest.raises(ValueError, match="choose another folder"):
        builder.prepare(folder, train=31, test=12, samples=4)
    with pytest.raises(ValueError, match="at least one"):
        builder.prepare(tmp_path, train=0)


def test_it_is_built_once_and_the_same_every_time(folder, tmp_path):
    place = builder.prepare(folder, train=30, test=12, samples=4)
    before = {file.name: file.stat().st_mtime_ns for file in place.iterdir()}
    builder.prepare(folder, train=30, test=12, samples=4)
    assert before == {file.name: file.stat().st_mtime_ns for file in place.iterdir()}
    builder.prepare(tmp_path, train=3, test=2, samples=2, progress=False)
    again = source.ScenesGroups(tmp_path, "train")
    first = source.ScenesGroups(folder, "train", samples=2)
    assert again[2]["spec"] == first[2]["spec"]
    np.testing.assert_array_equal(again[2]["images"], first[2]["images"])


def test_focus_asks_for_different_things_in_training_alone(tmp_path):
    builder.prepare(tmp_path, train=60, test=20, samples=1, focus=1.0, progress=False)
    specs = {}
    for split, number in (("train", 60), ("test", 20)):
        groups = source.ScenesGroups(tmp_path, split, 1)
        specs[split] = [grammar.spec_from_json(groups[index]["spec"]) for index in range(number)]
    assert all(len(spec.groups) > 1 for spec in specs["train"])
    assert any(len(spec.groups) == 1 for spec in specs["test"])
    with pytest.raises(ValueError, match="choose another folder"):
        builder.prepare(tmp_path, train=60, test=20, samples=1)
    with pytest.raises(ValueError, match="no share"):
        builder.prepare(tmp_path / "other", focus=1.5)


def test_pictures_are_png(folder):
    spec = grammar.sample_spec(np.random.default_rng(0), "train")
    stored = builder.record((0, "train", 0, 2, spec))
    picture = Image.open(io.BytesIO(stored["images"][0]))
    assert picture.format == "PNG"
    assert picture.size == (64, 64)


def test_a_killed_build_leaves_nothing_that_looks_whole(tmp_path):
    build = (
        "from cosdiff_jax.data.scenes import builder; "
        f"builder.prepare({str(tmp_path)!r}, train=100000, test=2)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", build],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("scenes/incomplete.*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        assert child.poll() is None
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert list(tmp_path.glob("scenes/incomplete.*"))
    with pytest.raises(ValueError, match="no Scenes dataset"):
        source.ScenesGroups(tmp_path, "train")
    builder.prepare(tmp_path, train=3, test=2, samples=2, progress=False)
    assert len(source.ScenesGroups(tmp_path, "train")) == 3
    assert not list(tmp_path.glob("scenes/incomplete.*"))


def test_no_tensorflow_at_run_time(folder):
    code = (
        "import sys; from cosdiff_jax.data.scenes import source; "
        f"source.ScenesGroups({str(folder)!r}, 'train', 2)[0]; "
        "assert 'tensorflow' not in sys.modules; assert 'jax' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
