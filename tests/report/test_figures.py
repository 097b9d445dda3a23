"""Legends that stay inside, curves as files."""

import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure

from cosdiff_jax.report import figures


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
