import json
import re

import numpy as np
import pytest

from cosdiff_jax.report import curves


def test_reads_what_a_killed_and_resumed_run_leaves(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 1, "loss": 3.0, "note": "text", "ok": True},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 9.0},
        {"step": 2, "loss": 2.5, "eval": {"cosine": 0.5}},
        {"step": 3, "loss": float("nan")},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n[]\n{"step": 4, "lo')
    read = curves.read(path)
    assert set(read) == {"loss", "eval/cosine"}
    np.testing.assert_array_equal(read["loss"][0], [1, 2, 3])
    np.testing.assert_array_equal(read["loss"][1], [3.0, 2.5, np.nan])
    with pytest.raises(ValueError, match="no metrics at"):
        curves.read(tmp_path / "absent.jsonl")


def test_smoothing_keeps_constants_and_passes_over_nan():
    values = np.full(50, 2.0)
    values[[7, 8, 30]] = np.nan
    np.testing.assert_allclose(curves.smooth(values, 3.0), 2.0)
    noise = np.random.default_rng(0).normal(size=2000)
    middle = curves.smooth(noise, 10.0)[100:-100]
    # A Gaussian of std s averages about 2 sqrt(pi) s independent values.
    assert middle.std() == pytest.approx((2 * np.pi**0.5 * 10) ** -0.5, rel=0.2)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 0.7), (1e-7, 3e-7), (990.0, 1010.0)])
def test_ticks_are_round_and_inside(low, high):
    ticks = curves.ticks(low, high)
    assert 2 <= len(ticks) <= 5
    assert all(low <= tick <= high for tick in ticks)
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert float(f"{steps[0]:.1e}"[:3]) in (1.0, 2.0, 5.0)


def test_panels_share_axes_and_nothing_is_lost():
    steps = np.arange(20.0)
    page = curves.small_multiples(
        {
            "mean_cosine": (steps, steps / 20),
            "top_cosine": (steps, steps / 10),
            "something_new": (steps, steps),
            "never_measured": (steps, np.full(20, np.nan)),
        }
    )
    assert page.count("<figure") == 2
    assert "something new" in page
    assert "never" not in page
    assert page.count('class="mean"') == 3


def test_the_curve_is_drawn_to_scale_and_lifted_over_nan():
    values = np.array([0.0, 1.0, np.nan, 1.0, 0.0])
    svg, last = curves.svg_panel({"a": (np.arange(5.0), values)})
    assert last == {"a": pytest.approx(curves.smooth(values, 5 / 40)[-1])}
    (path,) = re.findall(r'd="(M[^"]*L[^"]*)" class="mean"', svg)
    points = np.array([[float(n) for n in p.split()] for p in re.findall(r"[ML]([\d. ]+)", path)])
    assert points[0, 0] == curves.LEFT
    assert points[-1, 0] == curves.WIDTH - curves.RIGHT
    assert points[0, 1] == points[-1, 1] > points[1, 1]
    raw, _ = curves.svg_panel({"a": (np.arange(20.0), np.where(np.arange(20) == 7, np.nan, 1.0))})
    (path,) = re.findall(r'd="([^"]*)" class="raw"', raw)
    assert path.count("M") == 2


def test_a_flat_line_and_a_single_point_have_axes():
    for values in ([0.0], [0.05], [-2.0, -2.0, -2.0]):
        svg, _ = curves.svg_panel({"a": (np.arange(float(len(values))), np.array(values))})
        assert "nan" not in svg
        assert "inf" not in svg
