import numpy as np
import pytest

from cosdiff_jax.report import facts, page


def test_the_page_is_one_file_that_needs_nothing(tmp_path, checked):
    random = np.random.default_rng(0)
    shape = (3, 4, 16, 16, 1)
    before = random.uniform(-1, 1, shape).astype(np.float32)
    captions = ['a <b>bold</b> & "quoted" prompt', "숫자 3", "数字三"]
    steps = np.arange(30.0)
    page.write(
        tmp_path / "new" / "report.html",
        title="run <1>",
        captions=captions,
        before=before,
        after=random.integers(0, 256, shape, np.uint8),
        true=np.zeros((3, 5, 300, 200, 3), np.uint8),
        rows=page.table({"mean_cosine": 0.9}, {"mean_cosine": 0.8}, {"mean_cosine": float("nan")}),
        curves={"loss": (steps, steps), "lambda": (steps, steps)},
        facts={"seed": 0, "wall time": facts.duration(433), "versions": facts.versions()},
        config={"data": {"name": "<script>"}, "seed": 0},
    )
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["report.html"]
    text = (tmp_path / "new" / "report.html").read_text("utf-8")
    found = checked(tmp_path / "new" / "report.html")
    assert found.count["img"] == 3 * (4 + 4 + 5)
    assert found.count["figure"] == 2
    assert "a &lt;b&gt;bold" in text
    assert "<b>bold" not in text
    assert 'lang="ko">' in text
    assert 'lang="zh">' in text
    assert "n/a" in text
    assert "7 min 13 s" in text


def test_a_run_without_pictures_has_a_page_too(tmp_path, checked):
    nothing = np.zeros((0, 1, 1, 1, 1), np.uint8)
    rows = page.table({"loss": 3.0, "colour": 0.5, "strange": 1.0}, {"loss": 2.0}, {})
    page.write(
        tmp_path / "report.html",
        title="words",
        captions=(),
        before=nothing,
        after=nothing,
        rows=rows,
    )
    text = (tmp_path / "report.html").read_text("utf-8")
    checked(tmp_path / "report.html")
    assert "In pictures" not in text
    assert "Better after training: loss 3.000 → 2.000." in text
    assert "<details><summary>In detail (2 more)" in text


def test_groups_and_captions_must_match(tmp_path):
    images = np.zeros((2, 1, 8, 8, 1), np.uint8)
    with pytest.raises(ValueError, match="3 captions but 2 groups of pictures before"):
        page.write(
            tmp_path / "report.html",
            title="",
            captions=["a"] * 3,
            before=images,
            after=images,
            rows=[],
        )
    assert not list(tmp_path.iterdir())
