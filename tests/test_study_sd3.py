"""The study of formulations: 61 names in 24 settings, computed once, ranked, drawn."""

import csv
import json

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import digits_div, fusion_base, fusion_div, scenes_llm
from configs.study import sd3
from cosdiff_jax import build, checks, evaluate, study, trained
from cosdiff_jax.flow.formulation import FORMULATIONS
from cosdiff_jax.report import formulations as report


def test_the_grid_has_61_formulations_in_24_settings():
    found = list(study.points(sd3.get_config()))
    names = {point["formulation"] for point in found}
    assert len(names) == 61 and names == set(FORMULATIONS)
    settings = {tuple(point[name] for name in report.SETTING) for point in found}
    assert len(settings) == 24
    assert len(found) == 61 * 24 == len({study._digest(point) for point in found})
    samplers = {(point["steps"], point["guidance"]) for point in found}
    assert samplers == {(50, 1.0), (50, 2.5), (50, 5.0), (5, 5.0), (10, 5.0), (25, 5.0)}
    # Nothing but the formulation tells the trainings of a data set apart.
    for data in ("scenes", "digits"):
        own = [point for point in found if point["data"] == data]
        assert len({point["flags"] for point in own}) == 61 and len({p["recipe"] for p in own}) == 1


def test_the_twelve_are_of_every_family():
    found = {p["formulation"] for p in study.points(sd3.get_config("twelve"))}
    assert len(found) == 12 and found <= set(FORMULATIONS)
    assert {name.split("(")[0] for name in found} == {name.split("(")[0] for name in FORMULATIONS}
    with pytest.raises(ValueError, match="there are twelve, tiny"):
        sd3.get_config("thirteen")


@pytest.mark.parametrize("name", FORMULATIONS)
def test_the_changes_to_a_recipe_make_the_published_formulation(name):
    config, made = fusion_base.get_config(f"{name}+tiny"), FORMULATIONS[name]
    plain = fusion_base.get_config("tiny")
    told = dict(change.split("=") for change in sd3.formulations()[name])
    plain.update_from_flattened_dict(
        {field: v if field.endswith(".name") else float(v) for field, v in told.items()}
    )
    assert str(plain) == str(config)
    objective, _ = build.objective(config)
    for part in ("trajectory", "parameterization", "weighting", "times"):
        assert getattr(objective, part) == getattr(made, part)
    sampler = build.sampler(config, (64, 64, 3))
    assert sampler.trajectory == made.trajectory
    assert sampler.parameterization == made.parameterization


def test_a_formulation_of_any_numbers_is_a_word_after_the_recipe():
    config = fusion_base.get_config("edm( -0.3, 1.7)")
    times = config.objective.flow_matching.times
    assert times.name == "log_normal_sigma"
    assert dict(times.log_normal_sigma) == {"mean": -0.3, "std": 1.7}
    known = r"fusion_2b, pod_256, tiny, eps/linear, .*rf/mode\(scale\), edm\(mean,std\)"
    for name in ("edm(1.0)", "edm(a,b)", "rf/other", "edm", "tiny+rf/mode(1,2)", "tiny+", "rf("):
        with pytest.raises(ValueError, match=known):
            fusion_base.get_config(name)


def test_a_formulation_is_laid_over_flows_alone_and_not_over_weights_of_another():
    with pytest.raises(ValueError, match="objective is next_token"):
        scenes_llm.get_config("rf")
    checks.recipe(fusion_div.get_config("rf/mode(1.29)"))
    with pytest.raises(
        ValueError, match=r"trajectory\.name=cosine, but fusion_base was trained with"
    ):
        checks.recipe(fusion_div.get_config("v/cos"))
    config = fusion_div.get_config()
    config.objective.flow_matching.parameterization.name = "x0"
    with pytest.raises(ValueError, match=r"parameterization\.name=x0, but .* with velocity"):
        checks.recipe(config)


def test_every_change_fits_its_recipe():
    """The command line refuses a field that the menu lacks; here before anything is trained."""
    recipes = {"configs/fusion_base.py": fusion_base, "configs/digits_div.py": digits_div}
    for recipe, flags in {(p["recipe"], p["flags"]) for p in study.points(sd3.get_config())}:
        config = recipes[recipe].get_config()
        for change in flags.split():
            place = config
            for part in change.split("=")[0].split("."):
                assert part in place, change
                place = place[part]


def test_trainings_are_asked_for_by_name(tmp_path):
    names = [training["name"] for training in sd3.get_config().trainings]
    assert study._asked(names, ["scenes rf"]) == {"scenes rf"}
    assert len(study._asked(names, ["rf/mode"])) == 16
    assert len(study._asked(names, ["digits", "scenes eps/linear"])) == 62
    assert study._asked(names, []) == set(names)
    point = next(p for p in study.points(sd3.get_config()) if "(" in p["formulation"])
    command, place = study.train_command(point, tmp_path)
    # One folder, of no special letters, inside the study's.
    assert place.parent == tmp_path / "trainings" and not set(place.name) & set("/() ,")
    assert command[3] == f"--config={point['recipe']}"


@pytest.mark.slow
def test_one_point_end_to_end_is_computed_once(tmp_path, monkeypatch):
    """Trained and drawn from in processes of their own, without EMA, on its own path."""
    # The emulated devices of the tests are more than the four pictures of a step.
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    config = sd3.get_config("tiny")
    config.draws = [draw for draw in config.draws if draw["steps"] == 1 and not draw["ema"]]
    asked = ["digits eps/linear"]
    assert study.run(config, tmp_path, only=asked) == (1, 0)
    (row,) = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert row["formulation"] == "eps/linear" and row["data"] == "digits" and row["ema"] is False
    assert 0 <= row["classifier_accuracy"] <= 1 and row["true_classifier_accuracy"] > 0.9

    (place,) = (tmp_path / "trainings").iterdir()
    models = [trained.load(str(place), ("llm",), ema=ema) for ema in (True, False)]
    for model in models:
        sampler = build.sampler(model.config, model.shape)
        assert sampler.trajectory == FORMULATIONS["eps/linear"].trajectory
        assert sampler.parameterization == FORMULATIONS["eps/linear"].parameterization
    averaged, raw = (jax.tree.leaves(model.params) for model in models)
    assert any(not np.array_equal(a, b) for a, b in zip(averaged, raw, strict=True))
    (facts,) = (tmp_path / "drawings").glob("*/metrics.json")
    assert json.loads(facts.read_text())["facts"]["ema"] is False
    assert any("not averaged" in name for name in json.loads(facts.read_text())["columns"])
    with pytest.raises(ValueError, match="averaged weights alone"):
        trained.load(str(place / "model"), ("llm",), ema=False)

    def refuse(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(study.subprocess, "run", refuse)
    assert study.run(config, tmp_path, only=asked) == (0, 1)


def rows_of(quality, seeds=(0,), data="scenes"):
    """Better formulations are better in both respects, and the more the more steps there are."""
    return [
        {
            "formulation": name, "data": data, "seed": seed, "ema": ema,
            "steps": steps, "guidance": guidance,
            "clip_score": good + 0.01 * seed, "frechet": 10 - good - 0.01 * seed,
            "classifier_accuracy": good, "meaningful_diversity": 0.5 + (1 - good) / 10,
            "true_meaningful_diversity": 0.5,
        }
        for name, good in quality.items()
        for seed in seeds for ema in (True, False) for steps, guidance in sd3.SAMPLERS
    ]  # fmt: skip


def test_ranks_are_averaged_over_settings():
    rows = rows_of({"rf": 0.5, "v/cos": 0.9, "edm/rf": 0.1})
    # In five of the twelve settings the worst becomes the best of all.
    worst = [row for row in rows if row["formulation"] == "edm/rf"]
    for row in worst[:5]:
        row |= {"clip_score": 2.0, "frechet": 0.0}
    # Nor can it be bettered where it has the best of one respect alone.
    worst[5] |= {"clip_score": 2.0}
    found = {each.name: each.rank for each in report.rank(rows)}
    assert found == pytest.approx(
        {"v/cos": (7 + 5 * 2) / 12, "rf": (7 * 2 + 5 * 3) / 12, "edm/rf": (6 + 6 * 3) / 12}
    )
    assert list(found) == ["v/cos", "edm/rf", "rf"]


def test_what_lacks_a_setting_is_not_ranked():
    rows = [*rows_of({"rf": 0.5, "v/cos": 0.9}), *rows_of({"edm/rf": 1.0})[:-1]]
    assert [each.name for each in report.rank(rows)] == ["v/cos", "rf"]


def test_digits_are_ranked_by_the_classifier_and_the_hands():
    rows = rows_of({"rf": 0.5, "v/cos": 0.9}, data="digits")
    assert report.respects(rows[0]) == pytest.approx((0.5, 0.05))
    assert [each.name for each in report.rank(rows)] == ["v/cos", "rf"]
    # More variety than real digits have is no more a success than less.
    low = dict(rows[0], meaningful_diversity=0.45)
    assert report.respects(low)[1] == pytest.approx(0.05)


def test_the_page_and_the_tables_have_every_formulation(tmp_path):
    quality = {"rf": 0.5, "v/cos": 0.9, "eps/linear": 0.2}
    rows = [*rows_of(quality), *rows_of(quality, data="digits")]
    rows += rows_of({"rf": 0.5, "v/cos": 0.9}, seeds=(1, 2))
    rows += rows_of({"edm/rf": 0.5})[:3]
    text = report.write(tmp_path, rows)
    assert text.splitlines()[1].split() == ["v/cos", "1.00"]
    with open(tmp_path / "table.csv") as file:
        table = list(csv.DictReader(file))
    lines = [(row["ranking"], row["formulation"], row["seeds"]) for row in table]
    assert lines == [
        *(("all", name, "1") for name in ("v/cos", "rf", "eps/linear")),
        *(("scenes", name, "1") for name in ("v/cos", "rf", "eps/linear")),
        *(("scenes_seeds", name, "3") for name in ("v/cos", "rf")),
        *(("digits", name, "1") for name in ("v/cos", "rf", "eps/linear")),
    ]
    best = table[3]
    assert float(best["rank"]) == float(best["rank_5_steps"]) == float(best["rank_no_ema"]) == 1
    assert float(best["clip_score"]) == pytest.approx(0.9) and not best["classifier_accuracy"]
    # Student's 97.5 % point with 2 degrees of freedom is 4.3027; the seeds lie 0.01 apart.
    several = table[6]
    half = float(several["clip_score_high"]) - float(several["clip_score"])
    assert half == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4)
    with open(tmp_path / "ranks.csv") as file:
        ranks = [row for row in csv.DictReader(file) if row["ranking"] == "all"]
    assert len(ranks) == 3 * 24
    page = (tmp_path / "report.html").read_text()
    assert page.count("<tr><th scope") == len(table) + 1  # one pair has several seeds
    assert "Not ranked, settings missing: edm/rf." in page
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.svg")}
    assert drawn == {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert page.count("<svg") == len(drawn)
    assert drawn >= {"rank_all", "rank_scenes", "trade_digits", "frechet_by_steps_scenes"}
    with pytest.raises(ValueError, match="let the study go on"):
        report.write(tmp_path, rows_of({"rf": 1}, seeds=(0,))[:3] + rows_of({"v/cos": 1})[3:])


def test_pairs_are_told_apart_seed_by_seed(tmp_path):
    """What a seed adds to all formulations is in their intervals and not in their difference."""
    rows = rows_of({"rf": 0.5, "v/cos": 0.9, "edm/rf": 0.4}, seeds=(0, 1, 2))
    for row in rows:
        if row["formulation"] == "edm/rf":
            row["clip_score"] += 0.02 * (row["seed"] == 2)
    best, second, last = report.rank(rows)
    assert (best.name, second.name, last.name) == ("v/cos", "rf", "edm/rf")
    wide, narrow = best.cell("high"), best.apart(second, "high")
    assert wide is not None and narrow is not None
    assert wide["high"] - wide["mean"] == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4)
    assert [narrow[part] for part in ("mean", "low", "high")] == pytest.approx([0.4] * 3)
    # Student's interval of 0.1, 0.1 and 0.08.
    far = second.apart(last, "high")
    assert far is not None and far["mean"] == pytest.approx(0.28 / 3)
    assert far["high"] - far["mean"] == pytest.approx(4.3027 * 0.02 / 3, rel=1e-4)

    # One that has a single seed is in no pair.
    report.write(tmp_path, [*rows, *rows_of({"v/linear": 0.1})])
    with open(tmp_path / "pairs.csv") as file:
        pairs = list(csv.DictReader(file))
    assert {row["ranking"] for row in pairs} == {"scenes_seeds"}
    told = [(row["formulation"], row["against"], row["measure"]) for row in pairs]
    apart = [("v/cos", "rf"), ("v/cos", "edm/rf"), ("rf", "edm/rf")]
    assert told == [(*pair, m) for pair in apart for m in ("rank", "clip_score", "frechet")]
    assert float(pairs[7]["mean"]) == pytest.approx(0.28 / 3) and float(pairs[7]["low"]) < 0.07
    page = (tmp_path / "report.html").read_text()
    assert page.count("How far apart, seed by seed") == 1
    assert page.count("<small>against ") == 3 and "+0.093<small>±0.029</small>" in page


def test_evaluate_chooses_the_page_by_the_columns(tmp_path):
    pq.write_table(pa.Table.from_pylist(rows_of({"rf": 1})), tmp_path / "rows.parquet")
    assert evaluate._study(tmp_path, tmp_path / "out").startswith("mean rank, Scenes:\nrf ")
    assert "Formulations" in (tmp_path / "out" / "report.html").read_text()
