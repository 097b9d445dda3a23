"""Names beside points: all of them, each near its own, none over another; curves as files."""

import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure

from cosdiff_jax.report import figures


def boxes(points, **more):
    """Where names of points stand, in pixels, and the points."""
    canvas = Figure(figsize=(8, 5), dpi=100)
    axes = canvas.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    figures.names(axes, points, **more)
    canvas.draw_without_rendering()
    texts = {text.get_text(): text.get_window_extent() for text in axes.texts}
    return texts, {name: axes.transData.transform(at) for name, at in points.items()}


# The last crowd is one where names have to make way for others that come later.
@pytest.mark.parametrize(("seed", "number"), [(0, 18), (1, 18), (2, 18), (3, 30)])
def test_names_of_a_crowd_cover_neither_one_another_nor_a_point(seed, number):
    rng = np.random.default_rng(seed)
    crowd = {f"method_{i:02d}": tuple(rng.uniform(0.2, 0.8, 2)) for i in range(number)}
    texts, places = boxes(crowd)
    assert set(texts) == set(crowd)
    for name, box in texts.items():
        away = np.hypot(*(np.clip(places[name], box.min, box.max) - places[name]))
        assert away < 30, (name, away)
        for other in set(texts) - {name}:
            assert not box.overlaps(texts[other].padded(-1)), (name, other)
        for other, at in places.items():
            assert not box.padded(-1).contains(*at), (name, other)


def test_a_name_stays_within_the_axes():
    canvas = Figure(figsize=(4, 3), dpi=100)
    axes = canvas.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    figures.names(axes, {"a long name of a method": (0.97, 0.5), "another": (0.5, 0.99)})
    canvas.draw_without_rendering()
    inside = axes.get_window_extent()
    for text in axes.texts:
        box = text.get_window_extent()
        assert inside.containsx(box.x0) and inside.containsx(box.x1), text.get_text()
        assert inside.containsy(box.y0) and inside.containsy(box.y1), text.get_text()


def test_a_name_keeps_off_points_that_have_none():
    here, to_the_right = (0.5, 0.5), [(0.52 + x / 100, 0.52) for x in range(8)]
    (usual,) = boxes({"method": here})[0].values()
    (moved,) = boxes({"method": here}, others=to_the_right)[0].values()
    assert moved.x0 != usual.x0 or moved.y0 != usual.y0


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["base", "trained", "aligned", "true"], 4),
        ([f"runs/a_longer_name_{n} (step 150) relevance" for n in range(4)], 2),
        ([f"{n} that nobody would call a folder, " * 5 for n in range(2)], 1),
    ],
)
def test_a_legend_stays_inside_the_figure(names, columns):
    canvas = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = canvas.add_subplot()
    for name in names:
        axes.plot([0], [0], label=name)
    figures.legend(axes)
    (made,) = canvas.legends
    canvas.draw_without_rendering()
    box = made.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= canvas.bbox.width
    assert made._ncols == columns
    assert [" ".join(text.get_text().split()) for text in made.get_texts()] == [
        name.strip() for name in names
    ]


def test_a_runs_curves_are_files_too(tmp_path):
    steps = np.arange(1.0, 5.0)
    read = {
        "loss": (steps, 1 / steps),
        "gone": (steps, np.full(4, np.nan)),
        "images_per_second": (steps[1:], steps[1:]),
    }
    figures.curves(epath.Path(tmp_path / "figures"), read)
    lines = (tmp_path / "figures" / "curves.csv").read_text().splitlines()
    assert lines[:3] == ["step,loss,gone,images_per_second", "1,1.0,nan,", "2,0.5,nan,2.0"]
    assert (tmp_path / "figures" / "curves.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "figures" / "curves.svg").read_text()
    # What has no number at all has no panel.
    assert ">Loss<" in drawn and ">Speed<" in drawn and "gone" not in drawn
    figures.curves(epath.Path(tmp_path / "none"), {"gone": read["gone"]})
    assert not (tmp_path / "none").exists()
