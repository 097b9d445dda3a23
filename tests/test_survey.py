"""A measurement can be stopped anywhere, split over hosts, and comes out the same."""

import dataclasses
import json
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax import survey
from cosdiff_jax.models.clip import CLIP

SIZE = 16


@pytest.fixture(scope="module")
def eye():
    clip = CLIP(
        vocab=32, context=8, size=SIZE, patch=8, width=16, depth=1, heads=2,
        text_width=16, text_depth=1, text_heads=2, features=12,
    )  # fmt: skip
    tokens = jnp.zeros((1, 8), jnp.int32)
    params = jax.jit(clip.init)(
        jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)), tokens, tokens == 0
    )["params"]  # fmt: skip

    def encode(caption):
        if len(caption) > 8:
            raise ValueError("too long")
        numbers = [ord(letter) % 32 for letter in caption]
        return np.array(numbers + [0] * (8 - len(numbers))), np.arange(8) < len(numbers)

    return survey.Eye(name="tiny", clip=clip, params=params, encode=encode, rows=8)


class Pictures:
    """Ragged groups; counts what it is asked for, and stops like a user where told to."""

    def __init__(self, number=7, stop=None):
        rng = np.random.default_rng(0)
        self.asked, self.stop = [], stop
        self.groups = [
            {
                "caption": "a" * (index + 1) if index < 5 else "far too long",
                "key": f"k{index}",
                "group": "many" if index % 2 else "",
                "images": rng.integers(0, 256, (1 + index % 4, SIZE, SIZE, 3), np.uint8),
            }
            for index in range(number)
        ]

    def __len__(self):
        return len(self.groups)

    def __getitem__(self, index):
        if index == self.stop:
            raise KeyboardInterrupt
        self.asked.append(index)
        return self.groups[index]


def mean_pixel(images, group):
    return {"mean_pixel": images.mean(), "never": np.nan}


def make(folder, eye, **more):
    return survey.Survey(folder=folder, eye=eye, measures=(mean_pixel,), **more)


def same(a, b):
    assert a.rows == b.rows
    np.testing.assert_array_equal(a.f, b.f)


@pytest.fixture(scope="module")
def whole(eye, tmp_path_factory):
    one = make(tmp_path_factory.mktemp("whole"), eye)
    one.run(Pictures())
    return one.result()


def test_every_prompt_is_measured_by_itself(whole, eye):
    source = Pictures()
    assert [row["num"] for row in whole.rows] == [1, 2, 3, 4, 1, 2, 3]
    assert whole.f.shape == (16, 12)
    images = source.groups[3]["images"]
    f = np.asarray(
        eye.clip.apply(
            {"params": eye.params}, jnp.asarray(images / 127.5 - 1, jnp.float32), method="image"
        )
    )
    np.testing.assert_allclose(whole.f[6:10], f, atol=2e-6)
    cosine = f @ f.T
    pairs = cosine[~np.eye(4, dtype=bool)]
    found = whole.rows[3]["measures"]
    assert found["mean_cosine"] == pytest.approx(pairs.mean(), abs=1e-5)
    # 20 % of six pairs is rounded up to two.
    top = np.sort(cosine[np.triu_indices(4, 1)])[::-1]
    assert found["top_cosine"] == pytest.approx(top[:2].mean(), abs=1e-5)
    assert found["mean_pixel"] == images.mean()
    said = eye.read("aaaa")
    assert found["clip_score"] == pytest.approx(np.mean(f @ said), abs=1e-5)


def test_what_cannot_be_said_is_absent(whole):
    assert "mean_cosine" not in whole.rows[0]["measures"]
    assert "clip_score" not in whole.rows[6]["measures"]
    assert [row["too_long"] for row in whole.rows] == [False] * 5 + [True] * 2
    assert "never" not in whole.names
    assert np.isnan(whole.column("mean_cosine")).tolist() == [
        True,
        *[False] * 3,
        True,
        *[False] * 2,
    ]


def test_pictures_never_sit_in_memory_all_at_once(eye, tmp_path):
    alive, most = [0], [0]

    def gone():
        alive[0] -= 1

    class Streamed:
        def __len__(self):
            return 60

        def __getitem__(self, index):
            images = np.full((4, SIZE, SIZE, 3), index, np.uint8)
            weakref.finalize(images, gone)
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            return {"caption": "a", "key": str(index), "images": images}

    make(tmp_path, eye).run(Streamed())
    # Two groups fill the eye; those before may wait for the next to be asked for.
    assert 2 <= most[0] <= 4
    assert alive[0] <= 2


def test_the_category_of_a_prompt_is_kept(whole):
    assert [row["group"] for row in whole.rows] == ["", "many", "", "many", "", "many", ""]


def test_a_stopped_one_goes_on_where_it_was(whole, eye, tmp_path):
    one = make(tmp_path, eye)
    with pytest.raises(KeyboardInterrupt):
        one.run(Pictures(stop=4))
    with pytest.raises(ValueError, match="4 of 7 prompts are measured"):
        one.result()
    # A stop in the middle of writing: vectors without their line, and half a line.
    with open(next(tmp_path.glob("features-*")), "ab") as file:
        file.write(b"\0" * 12 * 4)
    with open(next(tmp_path.glob("rows-*")), "ab") as file:
        file.write(b'{"index": 4, "key": "k4", "capt')
    again = Pictures()
    one.run(again)
    assert again.asked == [4, 5, 6]
    same(one.result(), whole)
    again.asked.clear()
    one.run(again)
    assert again.asked == []


def test_lines_whose_vectors_are_lost_are_measured_again(whole, eye, tmp_path):
    one = make(tmp_path, eye)
    one.run(Pictures())
    with open(next(tmp_path.glob("features-*")), "r+b") as file:
        file.truncate(5 * 12 * 4)
    again = Pictures()
    one.run(again)
    assert again.asked == [2, 3, 4, 5, 6]
    same(one.result(), whole)


@pytest.mark.parametrize("shards", [2, 3])
def test_hosts_together_give_what_one_gives(whole, eye, tmp_path, shards):
    asked = []
    for shard in range(shards):
        source = Pictures()
        make(tmp_path, eye).run(source, shard=shard, shards=shards)
        asked += source.asked
    assert sorted(asked) == list(range(7))
    same(make(tmp_path, eye).result(), whole)


def test_another_measurement_is_not_mixed_in(eye, tmp_path):
    make(tmp_path, eye, facts={"seed": 0}).run(Pictures())
    with pytest.raises(ValueError, match=r"another measurement .seed differ"):
        make(tmp_path, eye, facts={"seed": 1}).run(Pictures())
    with pytest.raises(ValueError, match="prompts differ"):
        make(tmp_path, eye, facts={"seed": 0}).run(Pictures(number=5))


def test_the_share_of_pairs_is_a_knob_and_a_fact(eye, tmp_path):
    one = make(tmp_path, eye, top_percent=50.0)
    one.run(Pictures())
    f = one.result().f[6:10]
    top = np.sort((f @ f.T)[np.triu_indices(4, 1)])[::-1]
    found = one.result().rows[3]["measures"]["top_cosine"]
    assert found == pytest.approx(top[:3].mean(), abs=1e-5)
    with pytest.raises(ValueError, match=r"another measurement .top_percent differ"):
        make(tmp_path, eye).run(Pictures())


def test_without_an_eye_the_other_measures_stand(tmp_path):
    one = make(tmp_path, None)
    one.run(Pictures())
    found = one.result()
    assert found.f is None and found.names == ["mean_pixel"]


def test_pictures_are_looked_at_in_equal_chunks(eye):
    seen = []
    watched = dataclasses.replace(eye, rows=8)
    look = watched._image
    object.__setattr__(
        watched,
        "__dict__",
        {**watched.__dict__, "_image": lambda x: (seen.append(x.shape), look(x))[1]},
    )
    images = np.random.default_rng(1).integers(0, 256, (19, SIZE, SIZE, 3), np.uint8)
    together = watched.see(images)
    assert seen == [(8, SIZE, SIZE, 3)] * 3
    np.testing.assert_allclose(together[17], eye.see(images[17:18])[0], atol=1e-6)


def test_rows_are_plain_json_lines(whole, eye, tmp_path):
    one = make(tmp_path, eye)
    one.run(Pictures())
    lines = next(tmp_path.glob("rows-*")).read_text().splitlines()
    assert [json.loads(line) for line in lines] == whole.rows
