import itertools

import numpy as np
import pytest

from cosdiff_jax.data.scenes import grammar, renderer
from cosdiff_jax.data.scenes.grammar import Object, Scene


def draw(shape, size="large", x=32.0, y=32.0, word=None):
    return renderer.render(Scene("white", (Object(shape, "blue", size, x, y, word),)))


def test_the_same_scene_gives_the_same_bytes():
    rng = np.random.default_rng(0)
    scene = grammar.sample_scene(grammar.sample_spec(rng), rng)
    image = renderer.render(scene)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, renderer.render(scene))


@pytest.mark.parametrize("shape", grammar.SHAPES)
def test_coverage_is_what_supersampling_gives(shape):
    """The signed distance at pixel centres against counting 16 x 16 points in every pixel."""
    radius, fine = 10.0, 16
    centres = np.arange(-13, 14, dtype=np.float32)
    points = np.arange(-13.5 + 0.5 / fine, 13.5, 1 / fine, dtype=np.float32)
    # Far more than a pixel large, the same shape has edges as sharp as a point.
    inside = renderer.coverage(shape, 100 * points[None], 100 * points[:, None], 100 * radius) > 0.5
    exact = inside.reshape(27, fine, 27, fine).mean((1, 3))
    soft = renderer.coverage(shape, centres[None], centres[:, None], radius)
    # Only pixels nearer to a corner than to an edge may be far off: a cross has twelve.
    far = np.abs(soft - exact) > 0.15
    assert far.sum() <= 12
    assert np.abs(soft - exact).mean() < 0.01
    assert abs(soft.sum() / exact.sum() - 1) < 0.02


def test_shapes_are_far_from_one_another_and_inside_their_box():
    for size, radius in grammar.SIZES.items():
        images = {shape: draw(shape, size).astype(int) for shape in grammar.SHAPES}
        for one, two in itertools.combinations(images.values(), 2):
            assert (np.abs(one - two).max(-1) > 100).sum() > 0.4 * radius**2
        for image in images.values():
            rows, columns = np.nonzero((image != 255).any(-1))
            for places in (rows, columns):
                assert places.min() >= np.floor(32 - 1.11 * radius - 0.5)
                assert places.max() <= np.ceil(32 + 1.11 * radius)


def test_moving_by_whole_pixels_moves_the_picture():
    np.testing.assert_array_equal(
        np.roll(draw("star", x=30.3, y=31.6), (3, -4), (0, 1)), draw("star", x=26.3, y=34.6)
    )


def test_colours_are_the_table():
    image = draw("square")
    assert tuple(image[32, 32]) == grammar.COLOURS["blue"]
    assert tuple(image[0, 0]) == grammar.BACKGROUNDS["white"]


def test_words_are_written():
    assert (draw("square") != draw("square", word="cat")).any()
