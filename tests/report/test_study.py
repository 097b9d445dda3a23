"""A study's page of made rows: its tables, curves and the network that has seen the pictures."""

import csv

import numpy as np
import pytest

from cosdiff_jax.report import study, study_figures

MEASURES = ("mean_cosine", "all", "meaningful_diversity", "clip_score", "frechet")


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def drawn(training, *, seeds=3, by=0.0, **of):
    """A row of each seed; ``by`` moves all of its measures by more than seeds do."""
    rng = np.random.default_rng(0)
    row = {"training": training, "method": "independent", "guidance": 5.0, "num": 8, "prompts": 64}
    row |= {"true_mean_cosine": 0.85, "true_all": 1.0, "true_meaningful_diversity": 0.7}
    return [
        {**row, "seed": seed, **{m: 0.5 + by + 0.002 * rng.normal() for m in MEASURES}, **of}
        for seed in range(seeds)
    ]


def fusions(**of):
    """All told apart but the last two; the second is as different as true pictures are."""
    return [
        *drawn("deep_self", by=0.1, layers=6, flags="layers=6", **of),
        *drawn("deep_self", by=0.2, layers=4, flags="layers=4", **of),
        *drawn("deep_cross", by=0.3, flags="cross", **of),
        *drawn("shallow_cross", by=0.3, flags="shallow", **of),
    ]


def test_the_page_is_one_file_that_needs_nothing(tmp_path, checked):
    rows = [*drawn("base", weight=0.0), *fusions(), *fusions(guidance=1.0)]
    rows += [
        row for w in (0, 0.5, 1) for row in drawn("a <b> & c", weight=w, by=w / 9, flags=f"w={w}")
    ]
    rows = [{**row, "command": "draw <x> && more", "features": 'a "<clip>"'} for row in rows]
    rows = [{**row, "against": "base, <b>", "all_change": 0.1} for row in rows]
    study.write(tmp_path, rows)
    found = checked(tmp_path / "report.html")
    number = len(study.TRADES) + len(study_figures.CURVES)
    assert found.count["svg"] == found.count["figure"] == number
    # All settings, those of fusions in two ways of drawing, against the base.
    assert found.count["table"] == 1 + 2 + 1


def test_fusions_have_a_table_of_their_own(tmp_path):
    rows = [*drawn("base", weight=0.0, by=0.4), *drawn("other", by=0.4), *fusions()]
    rows += drawn("mine", seeds=1, layers=2, guidance=1.0)
    study.write(tmp_path, [{**row, "command": "typed", "features": "clip"} for row in rows])
    table = read(tmp_path / "fusions.csv")
    assert [(row["guidance"], row["fusion"], row["layers"], row["seeds"]) for row in table] == [
        ("5.0", "deep_cross", "", "3"),
        ("5.0", "deep_self", "4", "3"),
        ("5.0", "deep_self", "6", "3"),
        ("5.0", "shallow_cross", "", "3"),
        ("1.0", "mine", "2", "1"),
    ]
    assert {row["features"] for row in table} == {"clip"}
    for row in table[:-1]:
        assert all(
            float(row[f"{m}_low"]) < float(row[m]) < float(row[f"{m}_high"]) for m in MEASURES
        )
    assert table[-1]["all"] and not table[-1]["all_low"]
    assert float(table[1]["all"]) == pytest.approx(
        np.mean([row["all"] for row in rows if row.get("layers") == 4])
    )
    page = (tmp_path / "report.html").read_text("utf-8")
    part = page[page.index("Which layers to fuse") :]
    part = part[: part.index("</section>")]
    assert part.count("<summary>") == 2 and part.count("<details open>") == 1
    assert "<summary>drawn, s=5, K=8</summary>" in part and "typed" not in part
    assert "deep_self, layers 4<small>3 seeds" in part and ">other" not in part
    best = {
        line.split("<")[0]: [cell.split('data-of="')[1].split('"')[0] for cell in cells[1:]]
        for line in part.split('<th scope="row">')[1:]
        for cells in [line.split('class="n after"')]
    }
    # Of overlapping intervals both are best, of what has a true value the nearest to it.
    most = ["Intra-prompt mean cosine", "CLIP-score", "Oracle accuracy"]
    assert best == {
        "deep_cross": most, "shallow_cross": most,
        "deep_self, layers 4": ["Meaningful diversity"],
        "deep_self, layers 6": ["Frechet distance (clip)"],
        "true pictures, K=8": [], "mine, layers 2": [],
    }  # fmt: skip


def test_what_has_no_interval_is_not_called_best(tmp_path):
    study.write(tmp_path, [row for row in fusions() if row["seed"] == 0])
    assert len(read(tmp_path / "fusions.csv")) == 4
    assert 'class="n after"' not in (tmp_path / "report.html").read_text("utf-8")


def test_without_fusions_nothing_is_said_of_them(tmp_path):
    study.write(tmp_path, [*drawn("base", weight=0.0), *drawn("diversity", weight=1.0)])
    assert not (tmp_path / "fusions.csv").exists()
    assert "Which layers to fuse" not in (tmp_path / "report.html").read_text("utf-8")


def test_curves_have_a_band_and_tell_the_costs(tmp_path):
    of = {"weight": 1.0, "recipe": "a.py"}
    rows = [
        row
        for k in (2, 8, 16)
        for row in drawn("diversity", by=k / 50, samples=k, flags=f"k={k}", **of)
    ]
    for num in (2, 4):
        rows += drawn("diversity", num=num, samples=8, flags="k=8", **of)
    study.write(tmp_path, rows)
    for measure in MEASURES:
        curve = [
            row
            for row in read(tmp_path / "figures" / f"{measure}_by_samples.csv")
            if row["line"] != "true"
        ]
        assert [float(row["samples"]) for row in curve] == [2, 8, 16]
        assert all(float(row["low"]) < float(row[measure]) < float(row["high"]) for row in curve)
    # A Frechet distance falls with the number of pictures, whatever they are.
    by_num = {path.stem for path in (tmp_path / "figures").glob("*_by_num.csv")}
    assert by_num == {f"{measure}_by_num" for measure in MEASURES[:-1]}


def test_the_page_says_in_which_features_a_distance_is(tmp_path):
    rows = [row for w in (0.0, 0.5, 1.0) for row in drawn("diversity", weight=w, by=w / 9)]
    own = [{**row, "features": "clip 1"} for row in rows]
    study.write(tmp_path / "own", own)
    page = (tmp_path / "own" / "report.html").read_text("utf-8")
    assert '<th class="n">Frechet distance (clip 1)</th>' in page
    assert "<dt>features</dt><dd>clip 1</dd>" in page
    axis = (tmp_path / "own" / "figures" / "mean_cosine_against_frechet.svg").read_text()
    assert "Frechet distance (clip 1)" in axis
    curve = (tmp_path / "own" / "figures" / "frechet_by_weight.svg").read_text()
    assert "Frechet distance (clip 1)" in curve
    # Rows from before it was kept, alone and among others; these are seeds of one setting still.
    for name, some in (("old", rows), ("gone_on_from", [*rows[::2], *own[1::2]])):
        study.write(tmp_path / name, some)
        page = (tmp_path / name / "report.html").read_text("utf-8")
        assert "Frechet distance (" not in page and '<th class="n">Frechet distance</th>' in page
        assert [row["seeds"] for row in read(tmp_path / name / "table.csv")] == ["3"] * 3


def test_rows_of_several_features_are_no_seeds(tmp_path):
    rows = [
        {**row, "features": name, "true_clip_score": 0.5 + by}
        for name, by in (("clip 1", 0.0), ("clip 2", 0.3))
        for w in (0.0, 0.5, 1.0)
        for row in drawn("diversity", weight=w, by=by + w / 9)
    ]
    rows += [{**row, "features": "clip 2"} for row in drawn("other", by=0.1)]
    study.write(tmp_path, rows)
    table = read(tmp_path / "table.csv")
    assert sorted((row["features"], row["training"], row["seeds"]) for row in table) == [
        *[("clip 1", "diversity", "3")] * 3,
        *[("clip 2", "diversity", "3")] * 3,
        ("clip 2", "other", "3"),
    ]
    page = (tmp_path / "report.html").read_text("utf-8")
    assert '<th class="n">Frechet distance</th>' in page
    assert page.count("diversity 1, s=5, K=8, features=clip ") >= 2
    # Each has its own true pictures, and one of them alone is drawn.
    assert page.count("true pictures, K=8, features=clip ") == 2
    curve = read(tmp_path / "figures" / "clip_score_by_weight.csv")
    assert len({row["line"] for row in curve}) == 2
    true = [float(row["clip_score"]) for row in curve if row["line"] == "true"]
    assert true == pytest.approx([0.8] * 3)
    assert "K = 8, 64 prompts, clip 2" in page
