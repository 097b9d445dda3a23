import dataclasses

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


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.3, -0.1, "worse"), (-0.3, 0.1, "unsure"), (-0.3, 0.0, "unsure"), (0.1, 0.3, "worse")],
)
def test_what_may_be_chance_is_no_verdict(low, high, verdict):
    change = measures.Interval(-0.1, low, high)
    changed = dataclasses.replace(row(0.9, 0.8, None, "higher"), change=change)
    assert changed.verdict() == verdict
    said = [f"{x:+.3f}".replace("-", "−") for x in change]
    assert measures.show_change(changed) == f"{said[0]} ({said[1]} to {said[2]})"
    percent = dataclasses.replace(changed, percent=True)
    assert measures.show_change(percent).startswith("−10.0 (")
    assert measures.show_change(row(0.9, 0.8, None, "higher")) == ""


def test_changes_are_told_prompt_by_prompt():
    # Prompts differ by far more than what a run changes of each.
    hard = np.random.default_rng(0).normal(size=40)
    before = {n: {"all": x, "colour": x} for n, x in enumerate(hard)}
    after = {n: {"all": x + 0.1, "colour": x + 0.1} for n, x in reversed([*enumerate(hard)])}
    del before[3]["colour"], after[5]["colour"]
    after[7]["colour"] = float("nan")
    found = measures.changes(before, after)
    assert found["all"] == pytest.approx((0.1, 0.1, 0.1))
    assert found["colour"] == pytest.approx((0.1, 0.1, 0.1))
    noise = np.random.default_rng(1).normal(size=40)
    other = {n: {"all": x + y} for n, (x, y) in enumerate(zip(hard, noise, strict=True))}
    wide = measures.changes(before, other)
    assert wide["all"].low < noise.mean() < wide["all"].high
    assert wide["all"].high - wide["all"].low == pytest.approx(4 * noise.std() / 40**0.5, rel=0.2)
    # Of other prompts, or of one alone, nothing can be said.
    assert measures.changes(before, {"another": after[0], "third": after[1]}) == {}
    assert measures.changes(before, {0: after[0], "another": after[1]}) == {}


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


def test_summary_claims_nothing_that_may_be_chance():
    change = {"all": measures.Interval(-0.1, -0.25, 0.05)}
    rows = measures.table({"all": 0.6}, {"all": 0.5}, {"all": 1.0}, change)
    said = measures.summarise(rows)
    assert "Too little to be told from chance: oracle accuracy 60.0 % → 50.0 %" in said
    assert "Worse" not in said


def test_nothing_is_shown_as_less_than_nothing():
    assert measures.show(row(-0.0001, None, None, "lower"), -0.0001) == "0.000"
    percent = dataclasses.replace(row(0.0, 0.0, None, "lower"), percent=True)
    assert measures.show(percent, -0.0004) == "0.0 %" and measures.show(percent, 0.5) == "50.0 %"
