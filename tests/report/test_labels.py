"""Names beside points: all of them, none over another, and each is found from its point."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from cosdiff_jax.report import labels


def drawn(points, size=(8, 5), **more):
    """Name -> its box and its point in pixels, and whether a line leads from one to the other."""
    canvas = Figure(figsize=size, dpi=100)
    axes = canvas.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    labels.beside(axes, points, **more)
    canvas.draw_without_rendering()
    found = {}
    for text in axes.texts:
        assert isinstance(text, Annotation)
        at = axes.transData.transform(points[text.get_text()])
        # An annotation's own box has its line inside.
        found[text.get_text()] = Text.get_window_extent(text), at, text.arrow_patch is not None
    assert set(found) == set(points)
    return found, axes.get_window_extent()


def away(box, at):
    return np.hypot(*(np.clip(at, box.min, box.max) - at))


# In the third names have to make way for others that come later; the last ones are crowds.
CROWDS = [(0, 18, 0.3), (1, 18, 0.3), (2, 18, 0.3), (3, 30, 0.3), (4, 12, 0.06), (5, 16, 0.1)]


@pytest.mark.parametrize(("seed", "number", "spread"), CROWDS)
def test_names_of_a_crowd_cover_neither_one_another_nor_a_point(seed, number, spread):
    rng = np.random.default_rng(seed)
    places = rng.uniform(0.5 - spread, 0.5 + spread, (number, 2))
    found, _ = drawn({f"method_{i:02d}": tuple(at) for i, at in enumerate(places)})
    for name, (box, own, led) in found.items():
        assert led or away(box, own) < 20, name
        for other, (there, at, _) in found.items():
            assert other == name or not box.overlaps(there.padded(-1)), (name, other)
            assert not box.padded(-1).contains(*at), (name, other)
            # Without a line a name belongs to the point that is nearest to it.
            assert other == name or led or away(box, own) < away(box, at), (name, other)
            end = np.clip(own, box.min, box.max)
            line = own + np.linspace(0, 1, 30)[:, None] * (end - own)
            crossed = [there.padded(-1).contains(*it) for it in line]
            assert other == name or not led or not any(crossed), (name, other)


def test_where_there_is_room_no_line_is_needed():
    found, _ = drawn({f"method {i}": (0.2 * i, 0.5) for i in range(1, 4)})
    assert not any(led for _, _, led in found.values())
    crowd, _ = drawn({f"method {i}": (0.5 + 0.01 * i, 0.5) for i in range(10)})
    assert any(led for _, _, led in crowd.values())


def test_a_name_stays_within_the_axes():
    points = {"a long name of a method": (0.97, 0.5), "another": (0.5, 0.99)}
    found, inside = drawn(points, size=(4, 3))
    for name, (box, *_) in found.items():
        assert inside.containsx(box.x0) and inside.containsx(box.x1), name
        assert inside.containsy(box.y0) and inside.containsy(box.y1), name


def test_a_name_keeps_off_points_that_have_none():
    here, to_the_right = (0.5, 0.5), [(0.52 + x / 100, 0.52) for x in range(8)]
    ((usual, *_),) = drawn({"method": here})[0].values()
    ((moved, *_),) = drawn({"method": here}, others=to_the_right)[0].values()
    assert moved.x0 != usual.x0 or moved.y0 != usual.y0


def test_points_that_coincide_and_no_points_at_all():
    found, _ = drawn({"one": (0.5, 0.5), "another": (0.5, 0.5)})
    (a, *_), (b, *_) = found.values()
    assert not a.overlaps(b)
    assert drawn({})[0] == {}
