import numpy as np
import pytest

from cosdiff_jax.report import measures


def row(before, after, true, better):
    return measures.Row(name="x", before=before, after=after, true=true, better=better)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.9, 0.8, 0.7, "true"), "better"),
        ((0.9, 0.2, 0.7, "true"), "worse"),  # far below the real pictures' own cosine
        ((0.6, 0.8, 0.7, "true"), "unchanged"),
        ((0.9, 0.8, None, "true"), ""),
        ((0.9, 0.8, None, "higher"), "worse"),
        ((0.9, 0.8, None, "lower"), "better"),
        ((0.9, float("nan"), 0.5, "lower"), ""),
        ((0.9, 0.8, 0.5, ""), ""),
        ((0.9, 0.9003, 0.5, "higher"), "unchanged"),
    ],
)
def test_verdicts(values, verdict):
    assert row(*values).verdict() == verdict


def test_table_keeps_order_and_takes_unknown_measures():
    rows = measures.table(
        {"all": 0.9, "new_thing": 1.0, "mean_cosine": 0.9},
        {"all": 1, "mean_cosine": np.float32(0.8)},
        {"mean_cosine": 0.7},
    )
    assert [r.name for r in rows] == ["Intra-prompt mean cosine", "Oracle accuracy", "new thing"]
    assert rows[1].true is None
    assert rows[2].after is None
    assert [r.detail for r in rows] == [False, False, True]
    assert rows[2].verdict() == ""


def test_a_frechet_distance_is_known_whatever_its_features():
    name = "frechet_scenes_clip_n1024"
    (row,) = measures.table({name: 0.5}, {name: 0.25}, {name: 0.0})
    assert row.name == "Frechet distance of 1,024 pictures, scenes_clip features"
    assert row.verdict() == "better" and not row.detail
    (unknown,) = measures.table({"frechet_n": 0.5}, {}, {})
    assert unknown.name == "frechet n" and unknown.detail


def test_summary_warns_when_variety_was_bought_with_broken_pictures():
    before = {"mean_cosine": 0.9, "all": 0.9}
    true = {"mean_cosine": 0.8, "all": 1.0}
    good = measures.summarise(measures.table(before, {"mean_cosine": 0.85, "all": 0.92}, true))
    assert "0.900 → 0.850 (true 0.800)" in good
    assert "damage" not in good
    bad = measures.summarise(measures.table(before, {"mean_cosine": 0.85, "all": 0.5}, true))
    assert "Since oracle accuracy got worse" in bad
    assert measures.summarise([])
