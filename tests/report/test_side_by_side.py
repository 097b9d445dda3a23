"""The page of several columns: what is called best, and that everything is on it."""

import csv
import re

import numpy as np
import pytest

from cosdiff_jax.metrics.bootstrap import Interval
from cosdiff_jax.report import figures, side_by_side


def cell(mean, spread=0.0):
    return {"mean": float(mean), "low": float(mean - spread), "high": float(mean + spread)}


def test_what_cannot_be_told_from_the_best_is_best_too():
    found = {"a": {"all": cell(0.5, 0.05)}, "b": {"all": cell(0.58, 0.04)}, "c": {"all": cell(0.3)}}
    assert side_by_side.best("all", found) == {"a", "b"}
    assert side_by_side.best("empty", {k: {"empty": v["all"]} for k, v in found.items()}) == {"c"}


def test_nearest_to_the_true_value_is_best():
    found = {n: {"mean_cosine": cell(v)} for n, v in {"a": 0.9, "b": 0.8, "c": 0.5}.items()}
    assert side_by_side.best("mean_cosine", found) == set()
    found["true"] = {"mean_cosine": cell(0.82)}
    assert side_by_side.best("mean_cosine", found) == {"b"}


def test_nothing_is_best_where_all_are_or_nobody_knows():
    found = {
        "a": {"all": cell(0.5, 0.1), "anchor": cell(1)},
        "b": {"all": cell(0.5, 0.1), "anchor": cell(2)},
    }
    assert side_by_side.best("all", found) == side_by_side.best("anchor", found) == set()
    assert side_by_side.best("all", {"a": found["a"]}) == set()


def test_nothing_is_best_where_no_interval_tells():
    found = {n: {"frechet": {"mean": v}, "all": cell(v)} for n, v in {"a": 1.0, "b": 2.0}.items()}
    assert side_by_side.best("frechet", found) == set()
    assert side_by_side.best("all", found) == {"b"}
    # One column without an interval is enough.
    del found["b"]["all"]["low"], found["b"]["all"]["high"]
    assert side_by_side.best("all", found) == set()


def test_where_differences_are_known_they_alone_tell():
    found = {n: {"all": cell(v)} for n, v in {"a": 0.1, "b": 0.9}.items()}
    assert side_by_side.best("all", found, lambda *_: None) == set()
    assert side_by_side.best("all", found, lambda *_: Interval(-0.8, -0.9, -0.7)) == {"b"}
    assert side_by_side.best("all", found, lambda *_: Interval(-0.8, -1.7, 0.1)) == set()


def found_of(columns):
    rng = np.random.default_rng(0)
    names = ("mean_cosine", "clip_score", "all", "meaningful_diversity", "variety_shape", "seconds")
    return {c: {n: cell(float(rng.uniform(0.2, 0.8)), 0.02) for n in names} for c in columns}


def test_the_page_shows_every_column_and_needs_nothing_else(tmp_path):
    found = found_of(["base", "with <b> & more", "true"])
    rng = np.random.default_rng(0)
    groups = {
        c: rng.integers(0, 256, (n, 8, 8, 3), np.uint8)
        for c, n in zip(found, (2, 10, 3), strict=True)
    }
    drawn = [
        figures.trade(tmp_path / "figures", found, "mean_cosine", "clip_score"),
        figures.bars(tmp_path / "figures", found),
    ]
    side_by_side.write(
        tmp_path / "report.html",
        title="A & B",
        found=found,
        galleries={"First": [side_by_side.Gallery(caption="두 개의 <원>", groups=groups)]},
        figures=drawn,
        facts={"seed": 0},
    )
    page = (tmp_path / "report.html").read_text()
    assert "with <b>" not in page and page.count("with &lt;b&gt; &amp; more") >= 3
    assert 'lang="ko">두 개의 &lt;원&gt;' in page
    # At most eight pictures of a column.
    assert page.count("<img") == 2 + 8 + 3
    assert page.count("<svg") == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert f"{found['base']['clip_score']['mean']:.3f}<small>±0.020" in page


@pytest.mark.parametrize("missing", [0, 1])
def test_figures_come_with_their_data(tmp_path, missing):
    found = found_of(["a", "b", "true"][: 3 - missing])
    figure = figures.trade(tmp_path, found, "mean_cosine", "all")
    assert figure is not None and figure.file.stat().st_size > 5000
    assert figure.svg.startswith("<svg") and figure.file.with_suffix(".svg").exists()
    with open(figure.file.with_suffix(".csv")) as file:
        rows = list(csv.DictReader(file))
    assert [row["column"] for row in rows] == list(found)
    assert float(rows[1]["all_low"]) == pytest.approx(found["b"]["all"]["low"])
    bars = figures.bars(tmp_path, found)
    with open(bars.file.with_suffix(".csv")) as file:
        (row,) = csv.DictReader(file)
    assert float(row["a"]) == pytest.approx(found["a"]["variety_shape"]["mean"])


def test_what_no_two_columns_have_is_not_drawn(tmp_path):
    found = found_of(["a", "b"])
    assert figures.trade(tmp_path, found, "mean_cosine", "frechet") is None
    assert figures.bars(tmp_path, {"a": {"all": cell(1)}}) is None
