"""The page of several columns: what is called best, and that everything is on it."""

import csv
import re

import numpy as np
import pytest
from PIL import Image

from cosdiff_jax.metrics.bootstrap import Interval
from cosdiff_jax.report import figures, grid, side_by_side


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


def test_the_page_shows_every_column_and_needs_nothing_else(tmp_path, checked):
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
    checked(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "with <b>" not in page and page.count("with &lt;b&gt; &amp; more") >= 3
    assert 'lang="ko">두 개의 &lt;원&gt;' in page
    # At most eight pictures of a column.
    assert page.count("<img") == 2 + 8 + 3
    assert page.count("<svg") == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert f"{found['base']['clip_score']['mean']:.3f}<small>±0.020" in page


def test_what_is_told_of_a_number_stands_in_its_row(tmp_path):
    found = {"a": {name: cell(0.5) for name in ("clip_score", "vendi_q2", "all", "own")}}
    told = {"clip_score": "my <clip>", "vendi_q2": "my <clip>", "all": "", "own": "n = 8"}
    side_by_side.write(tmp_path / "report.html", title="A", found=found, told=told, galleries={})
    page = (tmp_path / "report.html").read_text()
    rows = dict(re.findall(r'<tr><th scope="row">(.*?) <b.*?<small>(.*?)</small></th>', page))
    assert rows == {
        "CLIP-score": "do picture and caption agree? (my &lt;clip&gt;)",
        "Vendi score, q = 2": "my &lt;clip&gt;",
        "Oracle accuracy": "share of pictures in which all that the caption says is right",
        "own": "n = 8",
    }


def block(sheet, row, place, side=128, gap=0):
    """A picture of a sheet whose columns are two."""
    top = 2 + row * (side + 2) + gap
    left = sheet.shape[1] - (2 - place) * (side + 2)
    return sheet[top : top + side, left : left + side]


def test_pictures_are_files_with_a_table_of_what_they_are(tmp_path, monkeypatch):
    # As on a bare machine: nothing but what matplotlib brings along.
    monkeypatch.setattr(grid, "_faces", tuple)
    grid._covering.cache_clear()
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    flat = np.full((1, 64, 64, 1), 7, np.uint8)  # fewer, larger and grey
    tall = flat[:, :, :32]
    many = rng.integers(0, 256, (10, 32, 32, 3), np.uint8)
    heading = "Worst of Größe/1 by Oracle accuracy (3 of them)"
    asked = [
        side_by_side.Gallery(caption="a dog", groups={"base": base, "flat": flat}, key="k7"),
        side_by_side.Gallery(caption="개", groups={"base": base, "flat": tall}),
    ]
    other = [side_by_side.Gallery(caption="x", groups={"base": many})]
    try:
        side_by_side.sheets(tmp_path / "new", {heading: asked, "x" * 300: other})
        with open(tmp_path / "new" / "galleries.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        name = "worst_of_gr_e_1_by_oracle_accuracy_3_of_them.png"
        assert [list(row.values()) for row in rows] == [
            [heading, "k7", "a dog", "base", name, "1"],
            [heading, "k7", "a dog", "flat", name, "1"],
            [heading, "", "개", "base", name, "2"],
            [heading, "", "개", "flat", name, "2"],
            ["x" * 300, "", "x", "base", rows[-1]["file"], "1"],
        ]
        assert {place.name for place in (tmp_path / "new").iterdir()} == {
            "galleries.csv", name, rows[-1]["file"],
        }  # fmt: skip
        sheet = np.asarray(Image.open(tmp_path / "new" / name))
        whole = grid.grid(np.zeros((2, 2, 64, 64, 3), np.uint8), ["base: #2", "flat"])
        np.testing.assert_array_equal(sheet[-whole.height :, :256], np.asarray(whole)[:, :256])
        # The page shows no more of a prompt than eight.
        assert Image.open(tmp_path / "new" / rows[-1]["file"]).width < 260 + 8 * 130 + 10
    finally:
        grid._covering.cache_clear()
    height = (sheet.shape[0] - side_by_side._GAP) // 2
    for gap in (0, height + side_by_side._GAP):
        for place in range(2):
            np.testing.assert_array_equal(block(sheet, 0, place, gap=gap)[::4, ::4], base[place])
        assert (block(sheet, 1, 0, gap=gap)[:, 32:96] == 7).all()
        assert (block(sheet, 1, 0, gap=gap)[:, :32] == (grid.PAPER if gap else 7)).all()
        assert (block(sheet, 1, 1, gap=gap) == grid.PAPER).all()
    assert (sheet[height : height + side_by_side._GAP] == grid.PAPER).all()
    side_by_side.sheets(tmp_path / "none", {})
    assert not (tmp_path / "none").exists()


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
