"""The page of formulations; what is ranked on it stands in tests/test_study_sd3.py."""

from cosdiff_jax.report import formulations


def test_the_page_is_one_file_that_needs_nothing(tmp_path, checked):
    rows = [
        {
            "formulation": name, "data": data, "seed": seed, "ema": True, "steps": steps,
            "guidance": 5.0, "clip_score": good + 0.01 * seed, "frechet": 9 - good,
            "classifier_accuracy": good, "meaningful_diversity": 0.5 + good / 10,
            "true_meaningful_diversity": 0.5,
        }
        for name, good in {"rf/mode(1.29)": 0.5, "<b> & more": 0.9}.items()
        for data in ("scenes", "digits") for seed in (0, 1) for steps in (5, 50)
    ]  # fmt: skip
    formulations.write(tmp_path, [*rows, {**rows[0], "formulation": "half <i>"}])
    found = checked(tmp_path / "report.html")
    # A bar chart of every ranking; of each data set its trade-off and two curves as well.
    assert found.count["figure"] == found.count["svg"] == 1 + 2 * 4
    # Of every ranking a table, and one of its pairs.
    assert found.count["table"] == 2 * 3
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "Not ranked, settings missing: half &lt;i&gt;" in text
