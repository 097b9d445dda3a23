import numpy as np
import pytest

from cosdiff_jax.data.scenes import grammar, renderer
from cosdiff_jax.data.scenes.grammar import Group, Spec
from cosdiff_jax.metrics import scenes

STAR = Spec((Group(shape="star"),))
PAIR = Spec((Group("circle", "red"), Group("square", "blue")), relation="left of")


def draw(spec, number, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([renderer.render(grammar.sample_scene(spec, rng)) for _ in range(number)])


def measure(images, specs):
    return scenes.result(scenes.update(scenes.init(), images, specs))


def test_true_pictures_are_right_and_others_are_not():
    true = np.stack([draw(STAR, 6), draw(PAIR, 6)])
    found = measure(true, [STAR, PAIR])
    for name in ("shape", "colour", "single_object", "position", "colour_attribution", "all"):
        assert found[name] == 1, name
    assert found["empty"] == 0
    swapped = measure(true[::-1], [STAR, PAIR])
    assert swapped["all"] == 0
    assert swapped["position"] == 0


def test_only_pictures_whose_caption_asks_count():
    found = measure(np.stack([draw(STAR, 2), draw(PAIR, 2)]), [STAR, PAIR])
    assert "counting" not in found
    blank = np.full((1, 2, 64, 64, 3), 255, np.uint8)
    half = scenes.update(scenes.update(scenes.init(), draw(STAR, 2)[None], [STAR]), blank, [PAIR])
    assert scenes.result(half)["single_object"] == 1
    assert scenes.result(half)["position"] == 0
    assert scenes.result(half)["empty"] == 0.5


def test_copies_have_no_meaningful_diversity_and_true_groups_have():
    true = draw(STAR, 8)[None]
    copies = np.repeat(true[:, :1], 8, axis=1)
    assert measure(copies, [STAR])["meaningful_diversity"] == 0
    assert 0.5 < measure(true, [STAR])["meaningful_diversity"] <= 1


def test_floats_are_read_like_bytes():
    images = draw(PAIR, 3)[None]
    assert measure(images.astype(np.float32) / 127.5 - 1, [PAIR]) == measure(images, [PAIR])


def test_groups_and_captions_must_match():
    with pytest.raises(ValueError, match="1 groups of pictures for 2 captions"):
        measure(draw(STAR, 2)[None], [STAR, PAIR])
