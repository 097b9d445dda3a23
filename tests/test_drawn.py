"""A model's pictures as a source: drawn in chunks, the same whatever the chunks."""

import numpy as np
import pytest

from cosdiff_jax.data.scenes import grammar
from cosdiff_jax.data.scenes.held_out import held_out
from cosdiff_jax.diverse import Samples
from cosdiff_jax.drawn import DrawnGroups


class Draw:
    """Pictures that show the caption's length and the seed; counts its calls."""

    total = 2

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, *, seed=0):
        self.calls.append(list(prompts))
        images = np.array([[[[[len(p)]]], [[[seed]]]] for p in prompts], np.uint8)
        kept = np.tile(np.arange(2), (len(prompts), 1))
        return Samples(images=images, kept=kept, score=None, table=[], evaluations=50)


@pytest.mark.parametrize("rows", [1, 4, 6, 64])
def test_every_prompt_gets_its_own_pictures(rows):
    prompts = [{"caption": "x" * n, "key": f"k{n}"} for n in range(1, 8)]
    draw = Draw()
    source = DrawnGroups(draw=draw, prompts=prompts, seed=9, rows=rows)
    assert len(source) == 7
    for index, prompt in enumerate(prompts):
        group = source[index]
        assert group["images"].ravel().tolist() == [index + 1, 9]
        assert group["key"] == prompt["key"]
        assert group["cost"]["evaluations"] == 50 and group["cost"]["seconds"] >= 0
        assert group["cost"]["peak_mib"] > 1
    # One shape for the compiled program, and nothing drawn twice.
    together = min(7, max(1, rows // 2))
    assert {len(call) for call in draw.calls} == {together}
    assert len(draw.calls) == -(-7 // together)
    with pytest.raises(IndexError):
        source[7]
    again = source.several([6, 0, 3])
    assert [images.ravel().tolist() for images in again] == [[7, 9], [1, 9], [4, 9]]
    assert {len(call) for call in draw.calls} == {together}


def test_held_out_prompts_are_distinct_and_held_out():
    for described in (False, True):
        source = held_out(20, 1, seed=3, described=described)
        specs = [grammar.spec_from_json(item["spec"]) for item in source]
        assert len(set(specs)) == 20
        assert all(grammar.split_of(spec) == "test" for spec in specs)
        if described:
            assert not any(grammar.open_attributes(spec) for spec in specs)


def test_other_true_pictures_of_the_same_prompts():
    true = held_out(6, 3, seed=0)
    other = true.redrawn(2, seed=1)
    assert [g["caption"] for g in other] == [g["caption"] for g in true]
    assert other[0]["images"].shape == (2, 64, 64, 3)
    assert not np.array_equal(other[0]["images"], true[0]["images"][:2])
    without = [{k: v for k, v in group.items() if k != "images"} for group in true]
    assert true.asked() == without


def test_captions_without_pictures():
    assert held_out(3, 0, seed=0)[0]["images"].shape == (0, 64, 64, 3)
