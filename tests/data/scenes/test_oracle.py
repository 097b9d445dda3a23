import math
import time

import numpy as np
import pytest
from scipy import ndimage

from cosdiff_jax.data.scenes import grammar, oracle, renderer
from cosdiff_jax.data.scenes.grammar import Group, Object, Scene, Spec


def accuracy(number, noise=0.0, blur=0.0):
    """Share of all attributes right over held-out renders; noise for pixels in [0, 1]."""
    rng = np.random.default_rng(0)
    right = asked = 0.0
    for _ in range(number):
        scene = grammar.sample_scene(grammar.sample_spec(rng, "test"), rng)
        image = ndimage.gaussian_filter(renderer.render(scene).astype(float), (blur, blur, 0))
        image = np.clip(np.round(image + 255 * noise * rng.normal(size=image.shape)), 0, 255)
        score = oracle.score(image.astype(np.uint8), grammar.describe(scene))
        for name in oracle.ATTRIBUTES:
            if score[name] is not None:
                times = len(scene.objects) if name in ("colour", "shape", "size") else 1
                right += times * score[name]
                asked += times
    return right / asked


def test_clean_renders_are_read_right():
    assert accuracy(120) >= 0.995


def test_noisy_renders_are_read_right():
    assert accuracy(120, noise=0.05) >= 0.97


def test_blurred_renders_are_read_right():
    assert accuracy(60, noise=0.02, blur=1.0) >= 0.97


def test_places_and_float_images():
    rng = np.random.default_rng(0)
    for _ in range(40):
        scene = grammar.sample_scene(grammar.sample_spec(rng), rng)
        image = renderer.render(scene)
        reading = oracle.read(image)
        assert reading == oracle.read(image.astype(np.float64) / 127.5 - 1)
        truth = sorted(scene.objects, key=lambda item: (round(item.x), item.y))
        found = sorted(reading.objects, key=lambda item: (round(item.x), item.y))
        for one, two in zip(truth, found, strict=True):
            assert math.hypot(one.x - two.x, one.y - two.y) < 1.0


def test_reading_is_fast():
    rng = np.random.default_rng(0)
    images = [
        renderer.render(grammar.sample_scene(grammar.sample_spec(rng), rng)) for _ in range(50)
    ]
    start = time.process_time()
    for image in images:
        oracle.read(image)
    assert (time.process_time() - start) / len(images) < 8e-3


def test_nothing_noise_and_a_strange_background():
    rng = np.random.default_rng(0)
    assert oracle.read(np.full((64, 64, 3), 255, np.uint8)) == Scene("white", ())
    noise = np.clip(128 + 13 * rng.normal(size=(64, 64, 3)), 0, 255).astype(np.uint8)
    assert oracle.read(noise) == Scene("grey", ())
    assert oracle.read(np.full((64, 64, 3), (0, 90, 90), np.uint8)).background is None
    oracle.read(rng.integers(256, size=(64, 64, 3)).astype(np.uint8))
    score = oracle.score_reading(Scene("white", ()), Spec((Group("circle", "red"),)))
    assert score["empty"] == 1
    assert score["colour"] == score["shape"] == score["single_object"] == score["all"] == 0
    assert score["position"] is None


def test_touching_objects_of_two_colours_are_two():
    image = np.full((64, 64, 3), 255, np.uint8)
    image[20:40, 12:32] = grammar.COLOURS["red"]
    image[20:40, 32:52] = grammar.COLOURS["blue"]
    reading = oracle.read(image)
    assert [(item.shape, item.colour) for item in reading.objects] == [
        ("square", "red"),
        ("square", "blue"),
    ]


def thing(shape, colour, x, y, size="medium"):
    return Object(shape, colour, size, float(x), float(y))


def test_tasks_by_hand():
    spec = Spec((Group("circle", "red"), Group("square", "blue")), relation="left of")
    good = Scene("white", (thing("circle", "red", 15, 30), thing("square", "blue", 45, 32)))
    score = oracle.score_reading(good, spec)
    asked = {"two_objects", "position", "colour_attribution"}
    assert {name for name in oracle.TASKS if score[name] is not None} == asked
    assert all(score[name] == 1 for name in (*asked, "all", "colour", "shape", "relation"))
    assert score["background"] is None

    swapped = Scene("white", (thing("square", "blue", 15, 30), thing("circle", "red", 45, 32)))
    score = oracle.score_reading(swapped, spec)
    assert (score["position"], score["two_objects"], score["colour_attribution"]) == (0, 1, 1)
    assert (score["all"], score["relation"]) == (0, 0)

    leaking = Scene("white", (thing("circle", "blue", 15, 30), thing("square", "red", 45, 32)))
    score = oracle.score_reading(leaking, spec)
    assert (score["position"], score["two_objects"], score["colour_attribution"]) == (1, 1, 0)
    assert score["colour"] == 0

    crowded = Scene("white", (*good.objects, thing("star", "green", 32, 56)))
    score = oracle.score_reading(crowded, spec)
    assert score["colour"] == score["shape"] == 1
    assert score["count"] == score["two_objects"] == score["all"] == 0

    alone = Scene("white", good.objects[:1])
    score = oracle.score_reading(alone, spec)
    assert score["colour"] == score["shape"] == 0.5
    assert score["relation"] == 0


def test_counting_by_hand():
    spec = Spec((Group("star", "green", count=3),))
    stars = [thing("star", "green", x, 30) for x in (10, 30, 50)]
    assert oracle.score_reading(Scene("white", tuple(stars)), spec)["counting"] == 1
    assert oracle.score_reading(Scene("white", tuple(stars[:2])), spec)["counting"] == 0
    wrong = (*stars[:2], thing("ring", "green", 50, 30))
    score = oracle.score_reading(Scene("white", wrong), spec)
    assert (score["counting"], score["colour"], score["count"]) == (0, 1, 1)
    assert score["shape"] == pytest.approx(2 / 3)
    mean = oracle.mean_score([score, oracle.score_reading(Scene("white", tuple(stars)), spec)])
    assert mean["counting"] == 0.5
    assert "position" not in mean


def test_matching_uses_the_relation_where_nothing_else_tells():
    spec = Spec((Group("circle"), Group("circle", size="small")), relation="left of")
    left, right = thing("circle", "red", 10, 40, "small"), thing("circle", "red", 50, 30, "small")
    # In reading order the right one, being higher, comes first.
    (first,), (second,) = oracle.match(Scene("white", (left, right)), spec)
    assert (first, second) == (left, right)


def test_entropy_by_hand():
    spec = Spec((Group("circle", size="small"),), background="white")

    def scenes(*colours):
        return [
            Scene("white", (thing("circle", colour, 30, 30, "small"),) if colour else ())
            for colour in colours
        ]

    def diversity(*colours):
        return oracle.meaningful_diversity(scenes(*colours), spec)

    assert diversity("red", "red", "red", "red") == 0
    assert diversity("red", "blue", "green", "pink") == pytest.approx(1)
    # Two and two: log 2 out of log 4.
    assert diversity("red", "red", "blue", "blue") == pytest.approx(0.5)
    # Sixteen over eight colours can be even; nine cannot, and one doubled colour is the most.
    assert diversity(*grammar.COLOURS, *grammar.COLOURS) == pytest.approx(1)
    assert diversity(*grammar.COLOURS, "red") == pytest.approx(1)
    # An empty picture is no variety: three of four read, log 3 out of log 4.
    assert diversity("red", "blue", "green", None) == pytest.approx(
        0.75 * math.log(3) / math.log(4)
    )
    assert diversity(None, None) == 0
    assert math.isnan(diversity("red"))
    closed = Spec((Group("circle", "red", "small"),), "white")
    assert math.isnan(oracle.meaningful_diversity(scenes("red", "red"), closed))


def test_places_are_told_apart_in_thirds_and_of_single_things_alone():
    spec = Spec((Group("circle"),))

    def variety(*places, of=spec):
        scenes = [
            Scene("white", (thing("circle", "red", *place, "small"),) if place else ())
            for place in places
        ]
        return oracle.place_variety(scenes, of)

    assert variety((10, 10), (20, 20), (12, 18)) == 0
    # 64 / 3 lies between 21 and 22.
    assert variety((21, 10), (22, 10)) == pytest.approx(1)
    assert variety((10, 10), (10, 54), (54, 10), None) == pytest.approx(
        0.75 * math.log(3) / math.log(4)
    )
    assert math.isnan(variety((10, 10)))
    two = Spec((Group("circle"), Group("square")))
    assert math.isnan(variety((10, 10), (54, 54), of=two))
    assert math.isnan(variety((10, 10), (54, 54), of=Spec((Group("circle", count=2),))))


def test_diversity_is_the_mean_over_open_attributes():
    spec = Spec((Group("circle", "red"),))
    truth = [
        Scene(ground, (thing("circle", "red", 30, 30, "small"),)) for ground in grammar.BACKGROUNDS
    ]
    # Four backgrounds of four: 1. One size of three: 0.
    assert oracle.meaningful_diversity(truth, spec) == pytest.approx(0.5)


def test_true_scenes_and_their_renders_have_the_same_diversity():
    rng = np.random.default_rng(0)
    for _ in range(15):
        spec = grammar.sample_spec(rng)
        truth = [grammar.sample_scene(spec, rng) for _ in range(8)]
        readings = [oracle.read(renderer.render(scene)) for scene in truth]
        np.testing.assert_equal(
            oracle.meaningful_diversity(truth, spec), oracle.meaningful_diversity(readings, spec)
        )
