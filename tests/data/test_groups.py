"""Batches from groups: order, place in the data, flattening, and pictures encoded beforehand."""

import numpy as np
import pytest

from cosdiff_jax.data import groups


class Words:
    """One token per letter; enough of a tokenizer for these tests."""

    def encode(self, texts, length, eos=False):
        tokens = np.zeros((len(texts), length), np.int32)
        mask = np.zeros((len(texts), length), bool)
        for row, text in enumerate(texts):
            ids = [2, *map(ord, text), *([1] if eos else [])]
            tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
        return tokens, mask


class Pictures:
    def __len__(self):
        return 12

    def __getitem__(self, index):
        images = np.full((3, 2, 2, 1), index * 10, np.uint8)
        images += np.arange(3, dtype=np.uint8)[:, None, None, None]
        return {"caption": chr(97 + index), "images": images}


ENCODE = groups.Encode.__new__(groups.Encode)
object.__setattr__(ENCODE, "tokenizer", Words())
object.__setattr__(ENCODE, "context", 4)
object.__setattr__(ENCODE, "eos", False)


def test_encoded_pictures_take_the_place_of_their_own():
    latents = np.arange(12 * 3, dtype=np.float16).reshape(12, 3, 1, 1, 1)
    source = groups.Replaced(Pictures(), latents)
    assert len(source) == 12
    assert source[4].keys() == {"caption", "latents"} and source[4]["caption"] == "e"
    np.testing.assert_array_equal(source[4]["latents"], latents[4])
    batch = next(iter(groups.batches(source, ENCODE, prompts=4, seed=0)))
    assert batch["latents"].shape == (12, 1, 1, 1) and "images" not in batch
    first = (batch["tokens"][:, 1] - 97) * 3
    np.testing.assert_array_equal(batch["latents"][::3, 0, 0, 0], first)


def test_drawn_pictures_bring_the_noise_they_came_from():
    pairs = np.random.default_rng(0).normal(size=(12, 3, 2, 2, 2, 1)).astype(np.float32)
    source = groups.Drawn(tuple(chr(97 + index) for index in range(12)), pairs)
    batch = next(iter(groups.batches(source, ENCODE, prompts=4, seed=0)))
    own = pairs[batch["tokens"][:, 1] - 97]
    np.testing.assert_array_equal(batch["noise"], own[:, :, 0].reshape(12, 2, 2, 1))
    np.testing.assert_array_equal(batch["latents"], own[:, :, 1].reshape(12, 2, 2, 1))


def stream(**options):
    return iter(groups.batches(Pictures(), ENCODE, **{"prompts": 4, "seed": 0, **options}))


def test_rows_are_prompt_major_and_belong_to_their_caption():
    batch = next(stream())
    assert batch["tokens"].shape == (4, 4) and batch["images"].shape == (12, 2, 2, 1)
    pixels = groups.to_uint8(batch["images"])[:, 0, 0, 0].reshape(4, 3)
    for tokens, row in zip(batch["tokens"], pixels, strict=True):
        start = (tokens[1] - 97) * 10
        assert row.tolist() == [start, start + 1, start + 2]


def test_a_restored_stream_goes_on_where_it_was():
    first = stream()
    for _ in range(4):
        next(first)
    place = first.get_state()
    wanted = [next(first)["tokens"].tolist() for _ in range(3)]
    second = stream()
    second.set_state(place)
    assert [next(second)["tokens"].tolist() for _ in range(3)] == wanted


def test_every_epoch_sees_every_group_in_a_new_order():
    letters = [
        row[1] for _, batch in zip(range(6), stream(), strict=False) for row in batch["tokens"]
    ]
    first, second = letters[:12], letters[12:]
    assert sorted(first) == sorted(second) == list(range(97, 109)) and first != second


def test_hosts_share_the_groups_without_overlap():
    seen = [
        {
            row[1]
            for _, b in zip(range(3), stream(shard=s, shards=2), strict=False)
            for row in b["tokens"]
        }
        for s in (0, 1)
    ]
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == 12


def test_too_few_groups_and_indivisible_hosts_are_said():
    with pytest.raises(ValueError, match=r"12 prompt groups.*data\.prompts = 13"):
        stream(prompts=13)
    with pytest.raises(ValueError, match="3 hosts"):
        stream(shards=3)


def test_pixels_survive_the_round_trip():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    there = groups.to_float(every)
    assert there.min() == -1.0 and there.max() == 1.0
    assert (groups.to_uint8(there) == every).all()


def test_latents_deal_out_every_stored_picture():
    latents = np.arange(2 * 4).reshape(2, 4, 1, 1, 1).astype(np.float32)
    source = groups.WithLatents(("a", "b"), latents, 2)
    assert len(source) == 4
    dealt = [(source[i]["caption"], source[i]["latents"].ravel().tolist()) for i in range(4)]
    assert dealt == [("a", [0, 1]), ("a", [2, 3]), ("b", [4, 5]), ("b", [6, 7])]
    # An odd one is seen too, beside one that another group has.
    source = groups.WithLatents(("a",), latents[:1, :3], 2)
    assert [source[i]["latents"].ravel().tolist() for i in range(len(source))] == [[0, 1], [1, 2]]


class Shapes:
    """Groups 0, 3, 6 ... are tall, the others wide; a prompt has one of either kind."""

    prompts = 6

    def __init__(self):
        self.buckets = [index % 3 // 2 for index in range(18)]

    def __len__(self):
        return 18

    def __getitem__(self, index):
        shape = ((4, 2), (2, 4))[self.buckets[index]]
        images = np.full((2, *shape, 3), index, np.uint8)
        return {"caption": chr(97 + index), "prompt": index // 3, "images": images}


def shapes(**options):
    return iter(groups.batches(Shapes(), ENCODE, **{"prompts": 2, "seed": 0, **options}))


def test_groups_of_several_shapes_come_in_batches_of_one():
    stream, seen = shapes(), set()
    for _ in range(9):
        batch = next(stream)
        assert batch["images"].shape in ((4, 4, 2, 3), (4, 2, 4, 3))
        items = groups.to_uint8(batch["images"])[::2, 0, 0, 0]
        assert batch["prompt"].tolist() == (items // 3).tolist()
        assert (batch["tokens"][:, 1] - 97).tolist() == items.tolist()
        seen |= set(items.tolist())
    assert seen == set(range(18))


def test_hosts_share_a_batch_of_one_shape():
    whole, parts = shapes(), [shapes(shard=shard, shards=2) for shard in range(2)]
    for _ in range(12):
        rows, halves = next(whole), [next(part) for part in parts]
        assert (
            halves[0]["images"].shape == halves[1]["images"].shape == (2, *rows["images"].shape[1:])
        )
        told = [half["tokens"][0].tolist() for half in halves]
        assert told == rows["tokens"].tolist()


class Filled(Pictures):
    """Even groups have two pictures that differ, odd ones three."""

    def __getitem__(self, index):
        return {**super().__getitem__(index), "distinct": np.arange(3) < 2 + index % 2}


def test_marks_of_repeated_pictures_come_with_their_prompt():
    batch = next(iter(groups.batches(Filled(), ENCODE, prompts=4, seed=0)))
    assert batch["distinct"].shape == (4, 3) and batch["distinct"].dtype == bool
    number = 2 + (batch["tokens"][:, 1] - 97) % 2
    np.testing.assert_array_equal(batch["distinct"].sum(1), number)
    assert "distinct" not in next(stream())


def test_a_restored_stream_of_several_shapes_goes_on_where_it_was():
    first = shapes()
    for _ in range(13):
        next(first)
    place = first.get_state()
    wanted = [next(first)["images"] for _ in range(5)]
    second = shapes()
    second.set_state(place)
    for images in wanted:
        np.testing.assert_array_equal(next(second)["images"], images)
