"""A grid is computed once, point by point, and drawn."""

import csv
import json
import shlex
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import gradient_noise, methods, sensitivity, similarity
from configs import fusion_base, fusion_div, fusion_div_long
from configs.study import comparison, diversity, strengths
from cosdiff_jax import diverse, study, trained
from cosdiff_jax.report import facts as facts_lib
from cosdiff_jax.report import setting, study_figures
from cosdiff_jax.report import study as report

ROOT = Path(__file__).parent.parent


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_point_is_there_once():
    config = diversity.get_config()
    found = list(study.points(config))
    assert len(found) == len(config.trainings) * len(config.seeds) * len(config.draws)
    assert len({study._digest(point) for point in found}) == len(found)


def test_the_fraction_is_a_part_that_ends_in_hours():
    hours = {}
    for preset in ("", "fraction"):
        found = list(study.points(diversity.get_config(preset)))
        trainings = {study._source(point) for point in found if not point["model"]}
        hours[preset] = (7 * len(trainings) + 5 * len(found)) / 60
        said = f"{len(trainings)} trainings and {len(found)} drawings"
        told = " ".join(diversity.__doc__.split())
        assert said in told and f"{hours[preset]:.2g} hours" in told
    assert hours["fraction"] < 8
    whole, part = (
        {study._digest(point) for point in study.points(diversity.get_config(preset))}
        for preset in ("", "fraction")
    )
    assert part < whole
    with pytest.raises(ValueError, match="there are fraction, tiny"):
        diversity.get_config("half")


@pytest.mark.parametrize("preset", ["", "fraction"])
def test_the_sweeps_change_one_thing_alone(preset):
    found = list(study.points(diversity.get_config(preset)))
    recipe = fusion_div.get_config().objective.flow_matching.diversity.cosine
    assert recipe.schedule.linear.end == diversity.OWN
    rollout = fusion_div.get_config().objective.flow_matching.prediction.rollout
    assert diversity._DETACHED.endswith(f".prediction.rollout.detached={rollout.detached}")
    own = [point for point in found if point["training"] == "diversity"]
    assert {point["weight"] for point in own} >= {0.0, 0.01, 0.02, 0.05, 1.0, 8.0, 30.0}
    sizes = {}
    for point in own:
        changes = dict(change.split("=") for change in shlex.split(point["flags"]))
        sizes[point["samples"]] = int(changes["data.prompts"]), int(changes["data.samples"])
        assert changes["data.scenes.stored"] == "16"  # captions depend on it
    assert sizes.keys() >= {2, 8, 16}
    assert all(p * k == 32 and k == samples for samples, (p, k) in sizes.items())


def test_every_change_fits_its_recipe():
    """The command line refuses a field that the menu lacks; here before anything is trained."""
    modules = (fusion_base, fusion_div, fusion_div_long)
    recipes = {f"configs/{module.__name__.rpartition('.')[2]}.py": module for module in modules}
    found = [*study.points(diversity.get_config()), *study.points(comparison.get_config())]
    for recipe, flags in {(point["recipe"], point["flags"]) for point in found}:
        config = recipes[recipe].get_config()
        for change in shlex.split(flags):
            place = config
            for part in change.split("=")[0].split("."):
                assert part in place, change
                place = place[part]
            assert place is not None, change  # of no type, so that nothing can be put there


def test_every_way_of_the_comparison_costs_the_same(folder):
    """In calls of the network, as the sampler itself counts what it does."""
    config = comparison.get_config()
    roles = ("llm", "vae", "clip")
    model = trained.load(folder, roles)
    base, *trainings = config.trainings
    draws = [*base["draws"], *config.draws]
    assert {name for draw in draws for name in draw["method"].split("+")} == set(diverse.METHODS)
    for draw in draws:
        names = ("method", "num", "candidates", "steps", "guidance")
        asked = {"steps": config.steps, **{name: draw[name] for name in names if name in draw}}
        changed = trained.load(folder, roles, sample=draw["sample"]) if "sample" in draw else model
        sampler = diverse.DiverseSampler(model=changed, **asked)
        weaker = draw["method"] in ("skip_layer", "perturbed_attention")
        fields = 1 if draw["guidance"] == 1 else 3 if weaker else 2
        calls = sampler.evaluations * fields
        most = comparison.CALLS // 2 if fields == 1 else comparison.CALLS
        assert 0.95 * most <= calls <= most, draw
    found = list(study.points(config))
    assert f"{len(found)} drawings" in " ".join(comparison.__doc__.split())
    assert len(found) == 3 * (len(base["draws"]) + len(trainings) * len(config.draws))
    assert len({study._digest(point) for point in found}) == len(found)
    small = list(study.points(comparison.get_config("small")))
    assert len(small) * 3 == len(found) and {point["prompts"] for point in small} == {64}
    with pytest.raises(ValueError, match="there is small"):
        comparison.get_config("half")


def test_a_drawing_can_change_the_recipes_sample(tmp_path):
    config = strengths.get_config()
    found = list(study.points(config))
    assert len({study._digest(point) for point in found}) == len(found) == len(config.draws)
    model = fusion_base.get_config()
    words = set()
    for point in found:
        command = study.draw_command(point, tmp_path, tmp_path / "out")
        asked = [o.removeprefix("--sample=") for o in command if o.startswith("--sample=")]
        assert asked == shlex.split(point.get("sample", ""))
        told = trained._told(model, asked)  # refuses what the recipe lacks
        changed = trained._changed(model, told)
        assert (changed.to_json() == model.to_json()) == (not asked)
        words |= {word.split("=")[0] for word in asked}
    assert {"repulsion.svgd.weight", "condition.cads.scale"} <= words
    rows = [{**point, "all": 0.5} for point in found]
    names = [each.name for each in setting.settings(rows)]
    assert len(set(names)) == len(names)
    assert names[0] == "base, s=5, K=4" and "base + cads.scale=0.1, s=5, K=4" in names
    assert names.index("base + particle.weight=300, s=5, K=4") == 1 + names.index(
        "base + particle.weight=100, s=5, K=4"
    )
    assert "base + particle.weight=10 + view.name=clip, s=5, K=4" in names
    assert [each.plain for each in setting.settings(rows)].count(True) == 1


class Commands:
    """Instead of the commands themselves: leaves what they would, and fails where told to."""

    def __init__(self, fail=None):
        self.asked, self.fail = [], fail

    def __call__(self, command, stdout, **_):
        options = dict(o.removeprefix("--").split("=", 1) for o in command[3:])
        self.asked.append(command[2].removeprefix("cosdiff_jax."))
        # A page for each would draw some prompts twice.
        assert ("page" in options) == command[2].endswith("evaluate")
        if self.fail is not None and len(self.asked) == self.fail:
            stdout.write("error: no luck\n")
            stdout.flush()
            return subprocess.CompletedProcess(command, 1)
        if command[2].endswith("train"):
            place = Path(options["workdir"]) / "model"
            place.mkdir(parents=True)
            (place / "config.json").write_text("{}")
        else:
            place = Path(options["out"])
            place.mkdir(parents=True, exist_ok=True)
            own = {"all": {"mean": float(options["guidance"]), "low": 0.0, "high": 9.0}}
            facts = {"date": "today", "processor": "a fast one", "features": "scenes_clip 1"}
            facts |= {"versions": {"jax": "1", "b": "2"}, "pictures": {"m": 8}}
            found = {
                "facts": facts,
                "columns": {"m": own, "true": {"all": {"mean": 1.0}}},
            }
            (place / "metrics.json").write_text(json.dumps(found))
        return subprocess.CompletedProcess(command, 0)


def test_a_stopped_study_goes_on_and_computes_nothing_twice(tmp_path, monkeypatch):
    config = diversity.get_config("tiny")
    fails = Commands(fail=5)
    monkeypatch.setattr(study.subprocess, "run", fails)
    with pytest.raises(ValueError, match="ended with 1: error: no luck"):
        study.run(config, tmp_path)
    # Two drawings of the first training and its training, the second one's training; then the end.
    assert fails.asked == ["train", "evaluate", "evaluate", "train", "evaluate"]
    goes = Commands()
    monkeypatch.setattr(study.subprocess, "run", goes)
    assert study.run(config, tmp_path) == (6, 2)
    assert goes.asked == ["evaluate"] * 2 + (["train"] + ["evaluate"] * 2) * 2
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert len(rows) == 8
    assert all(row["all"] == row["guidance"] and row["true_all"] == 1 for row in rows)
    assert study.run(config, tmp_path) == (0, 8)
    assert len(goes.asked) == 8


def test_a_table_from_elsewhere_is_gone_on_from(tmp_path, monkeypatch):
    config = diversity.get_config("tiny")
    first = Commands(fail=5)
    monkeypatch.setattr(study.subprocess, "run", first)
    here, there = tmp_path / "here", tmp_path / "there"
    with pytest.raises(ValueError, match="no luck"):
        study.run(config, here)
    study.gather(here)
    lines = pq.read_table(here / "rows.parquet").to_pylist()
    lines = [{**line, "all_change": 0.25, "against": "base"} for line in lines]
    other = {**lines[0], "flags": "of another grid", "command": "evaluate --out=drawings/other"}
    lines.append({**other, "all_change": 0.5})
    there.mkdir()
    pq.write_table(pa.Table.from_pylist(lines), there / "rows.parquet")
    goes = Commands()
    monkeypatch.setattr(study.subprocess, "run", goes)
    assert study.run(config, there) == (6, 2)
    # The training of the two known points is another seed's only where that is drawn from.
    assert goes.asked == (["train"] + ["evaluate"] * 2) * 3
    rows = pq.read_table(there / "rows.parquet").to_pylist()
    assert sorted(row["all_change"] or 0 for row in rows) == [0] * 6 + [0.25] * 2 + [0.5]
    # A row whose file is taken away is computed again, whatever the table says.
    gone = next(row for row in rows if row["all_change"] == 0.25)
    (there / "rows" / f"{Path(shlex.split(gone['command'])[-1]).name}.parquet").unlink()
    assert study.run(config, there) == (1, 7)


def test_rows_of_a_model_that_was_replaced_are_not_gone_on_from(tmp_path, monkeypatch):
    config = comparison.get_config("small")
    base = {**config.trainings[0], "draws": config.trainings[0]["draws"][:2]}
    config.trainings = [base]
    monkeypatch.setattr(study.subprocess, "run", Commands())
    assert study.run(config, tmp_path) == (2, 0)
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    of = trained.load("fusion_base", ()).digests["weights"]
    assert [row["weights"] for row in rows] == [of, of]
    assert study.run(config, tmp_path) == (0, 2)
    with monkeypatch.context() as other:
        other.setattr(study, "_weights", lambda model: "another")
        with pytest.raises(
            ValueError, match=rf"of other weights .* fusion_base \({of}, not another\)"
        ):
            study.run(config, tmp_path)
    monkeypatch.setitem(diverse.METHODS, "independent", {"pruning": 0.5})
    with pytest.raises(ValueError, match=r"of other changes .* independent \(\{\}, not \{\"pru"):
        study.run(config, tmp_path)


def test_of_two_machines_that_unpack_one_table_either_may_be_first(tmp_path, monkeypatch):
    row = dict(training="base", command="evaluate --out=drawings/one", weight=0.5)
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    write, into = study._write, []

    def slow(place, line):  # the other begins and ends while this one writes its first row
        into.append(place.parent)
        if len(into) == 1:
            study._unpack(tmp_path)
        write(place, line)

    monkeypatch.setattr(study, "_write", slow)
    study._unpack(tmp_path)
    assert len(set(into)) == 2  # neither takes the folder away in which the other writes
    assert [place.name for place in tmp_path.iterdir() if place.is_dir()] == ["rows"]
    assert pq.read_table(tmp_path / "rows" / "one.parquet").to_pylist() == [row]


def test_a_row_says_how_and_where_it_was_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(study.subprocess, "run", Commands())
    monkeypatch.chdir(tmp_path)
    config = diversity.get_config("tiny")
    model = dict(name="base", labels=dict(weight=0.0), flags=(), model="fusion_base")
    config.trainings = [{**model, "draws": config.draws[:1]}, config.trainings[0]]
    config.seeds = (0,)
    assert study.run(config, Path("studies/x")) == (3, 0)
    rows = {row["training"]: row for row in pq.read_table("studies/x/rows.parquet").to_pylist()}
    train, draw = rows["diversity"]["command"].split(" && ")
    assert train.startswith("python -m cosdiff_jax.train --config=configs/fusion_div.py:tiny ")
    place = shlex.split(train)[-1]
    assert place.startswith("--workdir=studies/x/trainings/diversity-")
    assert draw.startswith(f"python -m cosdiff_jax.evaluate {place} ")
    alone = rows["base"]["command"]
    assert alone.startswith("python -m cosdiff_jax.evaluate --model=fusion_base ")
    assert "--out=studies/x/drawings/" in alone
    for row in rows.values():
        assert (row["date"], row["processor"], row["versions"]) == (
            "today",
            "a fast one",
            "jax 1, b 2",
        )
        assert row["features"] == "scenes_clip 1" and "pictures" not in row
        assert str(tmp_path) not in row["command"] and sys.executable not in row["command"]


def test_machines_share_the_trainings(tmp_path, monkeypatch):
    monkeypatch.setattr(study.subprocess, "run", Commands())
    config = diversity.get_config("tiny")
    done = [study.run(config, tmp_path, shard=shard, shards=3)[0] for shard in range(3)]
    assert sum(done) == 8 and max(done) == 4
    with pytest.raises(ValueError, match="no training"):
        study.run(config, tmp_path, only=["nothing"])


def rows_of(weights, seeds=3, **more):
    """Accuracy falls and diversity grows with the weight, with a little noise of the seed."""
    rng = np.random.default_rng(0)
    return [
        {
            "training": "diversity" if weight else "base", "weight": weight, "seed": seed,
            "method": "independent", "guidance": 5.0, "num": 8, "candidates": 0,
            "all": 0.5 - 0.1 * weight + 0.01 * rng.normal(),
            "meaningful_diversity": 0.4 + 0.2 * weight + 0.01 * rng.normal(),
            "mean_cosine": 0.9 - 0.1 * weight, "clip_score": 0.7, "frechet": None,
            "true_all": 1.0, "true_meaningful_diversity": 0.7, "true_mean_cosine": 0.82, **more,
        }
        for weight in weights for seed in range(seeds)
    ]  # fmt: skip


def test_seeds_are_one_point_with_students_interval():
    (each,) = setting.settings(rows_of([0.5]))
    values = [row["all"] for row in each.rows]
    cell = each.cell("all")
    assert cell["mean"] == pytest.approx(np.mean(values))
    # The 97.5 % point of Student's t with 2 degrees of freedom is 4.3027.
    assert cell["high"] - cell["mean"] == pytest.approx(
        4.3027 * np.std(values, ddof=1) / 3**0.5, rel=1e-4
    )
    assert each.cell("frechet") is None
    assert "low" not in setting.settings(rows_of([0.5], seeds=1))[0].cell("all")
    # The measurement's own interval, over prompts, where one seed is all there is.
    own = {"all_low": 0.1, "all_high": 0.9}
    (one,) = setting.settings([{**rows_of([0.5], seeds=1)[0], **own}])
    assert one.cell("all") == {"mean": one.rows[0]["all"], "low": 0.1, "high": 0.9}
    several = setting.settings([{**row, **own} for row in rows_of([0.5])])[0].cell("all")
    assert several == cell


def test_a_figure_names_what_is_not_usual(tmp_path):
    plain = {"training": "base", "weight": None, "method": "independent"}
    rows = [{**row, **plain} for row in rows_of([1.0], seeds=1)]
    rows += [{**rows[0], "method": "cads"}, {**rows[0], "guidance": 1.0}]
    rows += [{**rows[0], "training": "trained", "method": "cads"}]
    names = study_figures._short(setting.settings(rows))
    assert names == ["base, s=1", "base", "cads", "trained + cads"]


def test_the_report_draws_fronts_and_curves(tmp_path):
    worse = rows_of([2.0], training="other", all=0.1, meaningful_diversity=0.1)
    volumes = report.write(tmp_path, [*rows_of([0.0, 0.3, 1.0]), *worse])
    # Nothing here is better than the base in both.
    assert volumes["meaningful_diversity against all"] == 0
    plain = rows_of([0.0], seeds=1, all=0.5, meaningful_diversity=0.4)
    good = rows_of([0.5], seeds=1, all=0.6, meaningful_diversity=0.5)
    more = rows_of([1.0], seeds=1, all=0.55, meaningful_diversity=0.7)
    found = report.write(tmp_path / "better", [*plain, *good, *more])
    # 0.1 x 0.1, and beyond it 0.05 x 0.2.
    assert found["meaningful_diversity against all"] == pytest.approx(0.02)
    assert "mean_cosine against frechet" not in volumes
    front = {
        row["setting"]: row["front"]
        for row in read(tmp_path / "figures" / "meaningful_diversity_against_all.csv")
    }
    # Each weight trades one for the other; the last setting loses in both.
    assert list(front.values()) == ["True", "True", "True", "False"]
    curve = read(tmp_path / "figures" / "all_by_weight.csv")
    assert [(row["line"], float(row["weight"])) for row in curve] == [
        (line, weight) for line in ("diversity, s=5, K=8", "true") for weight in (0.0, 0.3, 1.0)
    ]
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == len(list((tmp_path / "figures").glob("*.svg"))) >= 5
    assert "true pictures" in page
    assert [row["seeds"] for row in read(tmp_path / "table.csv")] == ["3"] * 4


def test_every_k_has_its_own_truth(tmp_path):
    truth = {2: 0.2, 4: 0.3, 8: 0.7, 16: 0.8}
    rows = [
        {**row, "frechet": 8 / num + row["weight"], "evaluations": 50.0 * num, "prompts": 64}
        for num, true in truth.items()
        for row in rows_of([0.3], num=num, true_meaningful_diversity=true, meaningful_diversity=0.6)
    ]
    # As different as true pictures are; of all four K together it would be too different.
    at_8 = {"prompts": 64, "all": 0.4, "clip_score": 0.7}
    rows += rows_of([0.5], **at_8, frechet=1.4, meaningful_diversity=0.7)
    rows += rows_of([0.0], **at_8, frechet=1.5, meaningful_diversity=0.5)
    rows = [{**row, "command": f"draw --seed={row['seed']} <x>", "system": "Any"} for row in rows]
    found = setting.settings(rows)
    for each in found:
        assert each.true.cell("meaningful_diversity")["mean"] == pytest.approx(
            truth[each.said["num"]]
        )
    volumes = report.write(tmp_path, rows)
    against = ("all", "clip_score", "frechet")
    assert volumes.keys() >= {f"meaningful_diversity against {measure}" for measure in against}
    (line, true) = (
        [
            row
            for row in read(tmp_path / "figures" / "meaningful_diversity_by_num.csv")
            if which(row)
        ]
        for which in (lambda row: row["line"] != "true", lambda row: row["line"] == "true")
    )
    assert [int(row["num"]) for row in line] == [int(row["num"]) for row in true] == list(truth)
    assert [float(row["meaningful_diversity"]) for row in true] == pytest.approx(
        list(truth.values())
    )
    # A distance of few pictures is another one than that of many.
    front = read(tmp_path / "figures" / "meaningful_diversity_against_frechet.csv")
    assert {row["setting"]: row["front"] for row in front} == {
        "diversity 0.3, s=5, K=8": "True",
        "diversity 0.5, s=5, K=8": "True",
        "base, s=5, K=8": "False",
    }
    page = (tmp_path / "report.html").read_text()
    assert "K = 8, 64 prompts; filled" in page
    assert [f"true pictures, K={num}<" in page for num in (2, 4, 8, 16, 3)] == [True] * 4 + [False]
    assert page.count("<details>") == len(found) and "draw --seed=2 &lt;x&gt;" in page
    assert "<dt>system</dt><dd>Any</dd>" in page
    table = read(tmp_path / "table.csv")
    assert table[1]["commands"].splitlines() == [f"draw --seed={seed} <x>" for seed in range(3)]
    assert [float(row["evaluations"] or 0) for row in table[1:5]] == [100, 200, 400, 800]


def test_what_has_no_truth_to_aim_at_is_on_no_front(tmp_path):
    rows = rows_of([0.0, 0.3, 1.0])
    for row in rows:
        if row["weight"] == 1:
            row |= {"true_meaningful_diversity": None, "meaningful_diversity": -9.0}
    goals = [study_figures._better("meaningful_diversity", each) for each in setting.settings(rows)]
    assert [np.isnan(goal) for goal in goals] == [False, False, True]
    study_figures.trade(tmp_path, setting.settings(rows), "all", "meaningful_diversity")
    front = [row["front"] for row in read(tmp_path / "meaningful_diversity_against_all.csv")]
    assert front[2] == "" and "True" in front[:2]
    bare = [{k: v for k, v in row.items() if not k.startswith("true_")} for row in rows]
    figure, volume = study_figures.trade(tmp_path, setting.settings(bare), "all", "mean_cosine")
    assert figure is not None and np.isnan(volume)
    assert {row["front"] for row in read(tmp_path / "mean_cosine_against_all.csv")} == {""}


def test_rows_of_another_question_are_no_seeds():
    same = {"recipe": "a.py", "flags": "", "steps": 25, "prompts": 64}
    rows = rows_of([0.5], **same)
    for other in ({"steps": 10}, {"prompts": 8}, {"recipe": "b.py"}, {"flags": "steps=9"}):
        rows += rows_of([0.5], **{**same, **other})
    found = setting.settings(rows)
    assert [len(each.rows) for each in found] == [3] * 5
    assert len({each.name for each in found}) == 5
    # What all of them share is not told.
    (alone,) = setting.settings(rows_of([0.5], **same))
    assert alone.name == "diversity 0.5, s=5, K=8"
    # Nor a recipe's changes, where a label says as much.
    rows = rows_of([1.0], flags="data.samples=2", samples=2) + rows_of([1.0], flags="", samples=8)
    assert [each.name for each in setting.settings(rows)] == [
        "diversity 1, s=5, K=8, samples=2", "diversity 1, s=5, K=8, samples=8"
    ]  # fmt: skip


def test_curves_are_over_what_a_training_was_told():
    def row(**of):
        return {**rows_of([1.0], seeds=1)[0], "model": "", "recipe": "a.py", "samples": 8, **of}

    weights = [row(weight=w, flags=f"end={w} off") for w in (0.3, 1.0)]
    samples = [row(samples=k, flags=f"end=1.0 off k={k}") for k in (2, 4, 16)]
    base = {**row(training="base", weight=0.0, flags=""), "model": "fusion_base", "samples": None}
    others = [row(training="alignment", weight=None, flags="x")]
    layers = [
        row(training="deep", weight=None, samples=None, layers=n, flags=f"layers={n}")
        for n in (6, 4, 2)
    ]
    found = setting.settings([*weights, *samples, base, *others, *layers])

    def over(knob, found=found):
        return {
            n: [e.said[knob] for e in group]
            for n, group in study_figures._lines(found, knob).items()
        }

    assert over("weight") == {"diversity, s=5, K=8": [0.3, 1.0, 0.0]}
    assert over("samples") == {"diversity 1, s=5, K=8": [2, 4, 16]}
    assert over("layers") == {"deep, s=5, K=8": [2, 4, 6]}
    assert over("num") == over("guidance") == {}
    # Fine-tuning alone is the weight 0 where there is one; of two at one weight there is no curve.
    alone = row(weight=0.0, flags="end=0.0 off")
    found = setting.settings([*weights, alone, base])
    assert over("weight", found) == {"diversity, s=5, K=8": [0.0, 0.3, 1.0]}
    assert (
        study_figures._lines(found, "weight")["diversity, s=5, K=8"][0].said["training"]
        == "diversity"
    )
    twice = setting.settings([*weights, alone, row(weight=0.3, flags="end=0.4 off")])
    assert over("weight", twice) == {}


def test_rows_are_held_to_the_base_prompt_by_prompt(tmp_path):
    hard = np.random.default_rng(0).uniform(0.2, 0.8, 30)

    def drawn(name, gain, **of):
        """A row, and what its drawing measured of each prompt."""
        point = {"training": "diversity", "method": "independent", "guidance": 5.0, "seed": 0}
        point |= {"num": 8, "prompts": 30, "weight": 1.0, "candidates": 0, **of}
        (tmp_path / "rows").mkdir(exist_ok=True)
        table = {key: [value] for key, value in point.items()}
        pq.write_table(pa.table(table), tmp_path / "rows" / f"{name}.parquet")
        for column in ("own", "true", "reference"):
            folder = tmp_path / "drawings" / name / "measured" / column
            folder.mkdir(parents=True)
            rows = [
                {
                    **{"index": index, "key": str(index), "caption": "", "num": 8},
                    "measures": {"all": x + gain, "mean_cosine": gain * x, "seconds": x},
                }
                for index, x in enumerate(hard if column == "own" else 0 * hard)
            ]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "rows-00000-of-00001.jsonl").write_text(lines)
            (folder / "survey.json").write_text(json.dumps({"shards": 1, "prompts": 30}))

    base = {"training": "base", "weight": 0.0, "features": "clip 1"}
    drawn("a", 0.1, steps=25)
    drawn("b", 0.0, steps=25, **base)
    drawn("c", 0.3, guidance=2.5, **base)
    drawn("d", 0.35, guidance=2.5)
    # At one price, what chooses among more takes fewer steps than anything was drawn in plainly.
    drawn("e", 0.2, steps=12, method="relevance", **base)
    drawn("f", 0.2, steps=25, seed=1)  # the base was not drawn with this one
    drawn("h", 0.4, steps=25, sample="repulsion.name=svgd", **base)
    drawn("g", 0.2, steps=25)
    drawn("i", 0.1, steps=25, features="clip 1")
    drawn("j", 0.1, steps=25, features="clip 2")
    (tmp_path / "drawings" / "g").rename(tmp_path / "elsewhere")
    study.gather(tmp_path)
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    found = {
        name: (row["against"], row["all_change"])
        for name, row in zip("abcdefghij", rows, strict=True)
    }
    assert found == {
        "a": ("base, guidance 5", pytest.approx(0.1)),
        "b": (None, None),
        "c": ("base, guidance 5", pytest.approx(0.3)),
        "d": ("base, guidance 2.5", pytest.approx(0.05)),
        "e": ("base, guidance 5", pytest.approx(0.2)),
        "f": (None, None),
        "g": ("base, guidance 5", None),
        "h": ("base, guidance 5", pytest.approx(0.4)),
        "i": ("base, guidance 5", pytest.approx(0.1)),
        "j": (None, None),  # another network has seen it
    }
    # What makes a prompt hard for both cancels; what does not, shows.
    assert rows[0]["all_change_low"] == pytest.approx(rows[0]["all_change_high"])
    assert (
        rows[0]["mean_cosine_change_low"] < 0.1 * hard.mean() < rows[0]["mean_cosine_change_high"]
    )
    assert not any(name.startswith("seconds_change") for name in rows[0])
    rows = [{**row, "all": 0.5, "mean_cosine": 0.8} for row in rows[:8]]
    report.write(tmp_path / "report", rows)
    page = (tmp_path / "report" / "report.html").read_text()
    part = page[page.index("Against the base") :]
    assert part.count("base, guidance 5<") == 4 and part.count("base, guidance 2.5<") == 1
    assert "+10.0 %" in part and "+5.0 %" in part
    report.write(tmp_path / "report", rows_of([0.5]))
    assert "Against the base" not in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.parametrize("kept", [True, False])
def test_the_notebook_reads_what_was_kept(tmp_path, monkeypatch, kept):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    place = tmp_path / "benchmarks" / "results" / "study" / "rows.parquet"
    if kept:
        place.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows_of([0.25])), place)
    shown = types.SimpleNamespace(SVG=None, display=None)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    cells = json.loads((ROOT / "notebooks" / "read_a_study.ipynb").read_text())["cells"]
    found = {}
    exec("".join(cells[1]["source"]), found)
    assert (len(found["rows"]) == 3 and found["rows"][0]["weight"] == 0.25) is kept


def test_benchmarks_say_what_their_numbers_depend_on(tmp_path, monkeypatch):
    asked = []

    class Draw:
        def draw(self, prompts, *, seed):
            asked.append(seed)
            size = (len(prompts), 1)
            return diverse.Candidates(
                images=np.zeros((*size, 4, 4, 3), np.uint8), number=np.zeros(size, int),
                f=np.zeros((*size, 2)), score=np.zeros(size), evaluations=1,
            )  # fmt: skip

    methods.in_groups(Draw(), ["a", "b", "c"], 32, 7)
    assert asked == [7, 7]
    assert similarity.row("mean", 64, 8, 5.0, 16, 1)["machine"] == facts_lib.machine()

    def survey(*, facts, **_):
        raise InterruptedError(facts["eye"])

    monkeypatch.setattr(sensitivity, "Survey", survey)
    monkeypatch.setattr(sys, "argv", ["sensitivity.py", "--prompts=2", "--num=2"])
    with pytest.raises(InterruptedError, match=r"^scenes_clip [0-9a-f]{16}$"):
        sensitivity.main()


def test_gradients_of_batches_agree_as_far_as_they_share_a_direction():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(16, 4096)) / 64
    signal = np.eye(1, 4096)
    # Unit noise beside a signal of length s: the cosine of two is s^2 / (1 + s^2).
    found = gradient_noise.agreement((0.5 * signal + noise) * rng.uniform(1, 100, (16, 1)))
    assert found["cosine"] == pytest.approx(0.2, abs=0.02)
    assert found["halves"] == pytest.approx(0.25 / (0.25 + 1 / 8), abs=0.05)
    assert abs(gradient_noise.agreement(noise)["cosine"]) < 0.01
    assert gradient_noise.agreement(np.ones((4, 8)))["cosine"] == 1


def test_the_commands_end_with_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "cosdiff_jax.evaluate", f"--study={tmp_path}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: no study in")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--config=configs/study/sd3.py:thirteen"], "has no preset 'thirteen'; there are twelve"),
        (["--config=configs/study/sd3.py:tiny", "--config.sedes=(1,)"], 'Did you mean "seeds"'),
        (["--config=configs/study/nothing.py"], "nothing.py"),
        ([], "both --config=configs/study/GRID.py and --workdir=FOLDER are needed"),
    ],
)
def test_a_wrong_command_is_one_line(options, said, tmp_path):
    command = [sys.executable, "-m", "cosdiff_jax.study", f"--workdir={tmp_path}", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and said in done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1
