"""Surveys side by side: what is compared with what, what is told of it, and what is not."""

import csv
import html
import json
import re

import numpy as np
import pytest
from PIL import Image

from cosdiff_jax import comparison, estimates
from cosdiff_jax.metrics import frechet, manifold
from cosdiff_jax.neighbours import Neighbours
from cosdiff_jax.report.measures import ROWS
from cosdiff_jax.survey import Surveyed


def surveyed(number, seed, features=4, **measures):
    """Prompts of two pictures each, as vectors that nobody saw."""
    f = np.random.default_rng(seed).normal(size=(2 * number, features)).astype(np.float32)
    rows = [
        {"index": p, "key": str(p), "caption": "", "num": 2}
        | {"measures": {n: v[p] for n, v in measures.items()}}
        for p in range(number)
    ]
    return Surveyed(rows=rows, f=f)


def compared(out, columns, **more):
    def none(indices):
        return [np.zeros((2, 8, 8, 3), np.uint8) for _ in indices]

    made = [comparison.Column(name=n, surveyed=s, pictures=none) for n, s in columns.items()]
    return comparison.write(out, made, **more)


SETS = ("frechet", "frechet_infinity", "mmd", "mmd_unbiased", *manifold.NAMES)
VENDI = ("vendi", "vendi_q0.5", "vendi_q2", "vendi_qinf")
PROMPTS = ("mean_cosine", "top_cosine", *VENDI, "clip_score", "nearest_training")
# Of other networks, or of none.
OTHERS = ("mean_cosine_vgg", "top_cosine_latent", "vendi_vgg", "lpips_mean", "all", "seconds")


def of_all(number, seed):
    names = [name for name in (*PROMPTS, *OTHERS) if name != "nearest_training"]
    return surveyed(number, seed, **{name: np.linspace(0, 1, number) for name in names})


def learnt(seed):
    """Training pictures: 5 groups of one."""
    f = np.random.default_rng(seed).normal(size=(5, 4)).astype(np.float32)
    source = [{"images": np.full((1, 8, 8, 3), 40 * n, np.uint8)} for n in range(5)]
    place = np.stack([np.arange(5), np.zeros(5, int)], axis=1)
    return Neighbours(source=source, f=f, place=place)


def small_print(page):
    """Measure -> what stands below its title, of the tables of all columns."""
    rows = re.findall(r'<tr><th scope="row">(.*?) <b class="arrow">.*?<small>(.*?)</small>', page)
    names = {html.escape(measure.title): name for name, measure in ROWS.items()}
    return {names[title]: said for title, said in rows}


def test_a_number_is_told_with_its_network_and_how_many_pictures(tmp_path):
    columns = {"many": of_all(40, 0), "few": of_all(6, 1)}
    found = compared(
        tmp_path, columns, reference=surveyed(50, 2), eye="my_clip", training=learnt(3),
        facts={"top_percent": 5.0},
    )  # fmt: skip
    # The key stays; what is printed and the page say which and of how many.
    assert set(found["columns"]["many"]) == {*SETS, *PROMPTS, *OTHERS}
    assert found["facts"]["pictures"] == {"many": 80, "few": 12, "reference": 100}
    told = dict.fromkeys(PROMPTS, "my_clip") | dict.fromkeys(SETS, "my_clip, n = 12 to 80")
    told |= {"top_cosine": "my_clip, 5 %", "frechet_infinity": "my_clip, from n = 80"}
    small = small_print((tmp_path / "report.html").read_text())
    for name, said in told.items():
        meaning = html.escape(ROWS[name].meaning)
        assert small[name] == (f"{meaning} ({said})" if meaning else said), name
    for name in OTHERS:
        assert small[name] == html.escape(ROWS[name].meaning), name
    # A line of the terminal is narrow: there the rest goes without saying.
    lines = [line.split("  ")[0] for line in comparison.text(found).splitlines()]
    brief = {name: said for name, said in told.items() if name in (*SETS, "clip_score")}
    for name in found["columns"]["many"]:
        said = {**brief, "top_cosine": "5 %"}.get(name)
        assert (f"{name} ({said})" if said else name) in lines
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-2:] == ["features", "n"]
    for row in rows:
        n = {"many": "80", "few": "12"}[row["column"]] if row["measure"] in SETS else ""
        seen = "my_clip" if row["measure"] in told else ""
        assert (row["features"], row["n"]) == (seen, n), row
    assert len(rows) == sum(map(len, found["columns"].values()))


def test_without_an_eye_no_features_are_named(tmp_path):
    # Vectors that nobody says the name of, and a share of pairs that is told all the same.
    columns = {"many": of_all(40, 0), "few": of_all(6, 1)}
    facts = {"top_percent": 5.0, "peak_memory": "process"}
    found = compared(tmp_path, columns, reference=surveyed(50, 2), facts=facts)
    small = small_print((tmp_path / "report.html").read_text())
    assert small.pop("top_cosine") == f"{ROWS['top_cosine'].meaning} (5 %)"
    assert small == {name: html.escape(ROWS[name].meaning) for name in small}
    assert {*small} >= {*SETS, "mean_cosine", "clip_score"}
    said = comparison.text(found)
    assert re.search(r"^frechet  ", said, re.MULTILINE) and "None" not in said and "n =" not in said
    with open(tmp_path / "metrics.csv") as file:
        assert {(row["features"], row["n"]) for row in csv.DictReader(file)} == {("", "")}


def test_the_pages_pictures_are_files_too(tmp_path):
    made = surveyed(16, 0, all=np.linspace(0, 1, 16))
    for p, row in enumerate(made.rows):
        row |= {"key": f"k{p}", "caption": f"prompt {p}"}

    def drawn(indices):
        return [np.full((2, 8, 8, 3), 10 * index, np.uint8) for index in indices]

    columns = [comparison.Column(name=n, surveyed=made, pictures=drawn) for n in ("made", "true")]
    comparison.write(tmp_path, columns, eye="my_clip", training=learnt(1))
    with open(tmp_path / "figures" / "galleries.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    page = (tmp_path / "report.html").read_text()
    named = re.findall(r"<h2>([^<]*)</h2>[^<]*<p[^>]*>Also as <code>figures/(.*?)</code>", page)
    assert list(dict.fromkeys((row["heading"], row["file"]) for row in rows)) == named
    assert [row["file"] for row in rows if row["column"] == "made"] == [
        *["the_first_prompts.png"] * 8,
        *["worst_of_made_by_oracle_accuracy.png"] * 3,
        *["best_of_made_by_oracle_accuracy.png"] * 3,
        *["nearest_to_training_pictures_5_of_them.png"] * 3,
    ]
    assert all(row["caption"] == f"prompt {row['key'][1:]}" for row in rows)
    # Key, caption and pixels are of one prompt.
    worst = [row for row in rows if row["file"].startswith("worst_of_made_")]
    assert [row["key"] for row in worst] == ["k0", "k0", "k1", "k1", "k2", "k2"]
    sheet = np.asarray(Image.open(tmp_path / "figures" / worst[0]["file"]))
    grey = sheet[:, -64, 0][[64, 194, 340, 470, 616, 746]]
    assert grey.tolist() == [0, 0, 10, 10, 20, 20]


def test_a_frechet_distance_is_drawn_against_the_number_of_pictures(tmp_path):
    columns = {"many": surveyed(40, 0), "few": surveyed(6, 1)}
    reference = surveyed(50, 2)
    found = compared(tmp_path, columns, reference=reference, eye="my_clip")
    with open(tmp_path / "figures" / "frechet_by_n.csv") as file:
        rows = list(csv.DictReader(file))
    many = [row for row in rows if row["column"] == "many"]
    assert [int(row["n"]) for row in many] == np.linspace(40, 80, 15).astype(int).tolist()
    assert float(many[-1]["frechet"]) == pytest.approx(found["columns"]["many"]["frechet"]["mean"])
    real = frechet.update(frechet.init(4), reference.f)
    line = frechet.infinity(columns["many"].f, real, lowest=40)
    assert found["columns"]["many"]["frechet_infinity"]["mean"] == pytest.approx(line.value)
    wanted = [line.value + line.slope / int(row["n"]) for row in many]
    assert [float(row["fitted"]) for row in many] == pytest.approx(wanted)
    # Too few pictures for a line, not for the distances.
    few = [row for row in rows if row["column"] == "few"]
    assert [int(row["n"]) for row in few] == [*range(6, 13)] and few[0]["fitted"] == ""
    assert "frechet_infinity" not in found["columns"]["few"]
    page = (tmp_path / "report.html").read_text()
    assert "Frechet distance of n pictures, my_clip features" in page
    # Without real pictures there is nothing to draw.
    compared(tmp_path / "other", columns, eye="my_clip")
    assert not (tmp_path / "other" / "figures" / "frechet_by_n.csv").exists()


def test_columns_are_told_apart_prompt_by_prompt(tmp_path):
    hard = np.random.default_rng(3).uniform(size=40)
    noise = 0.01 * np.random.default_rng(4).normal(size=40)
    peaks = [1.0] * 40
    columns = {
        "true": surveyed(40, 2, all=np.ones(40)),
        "base": surveyed(40, 0, all=hard, seconds=peaks),
        "better": surveyed(40, 1, all=hard + 0.02 + noise, seconds=peaks),
        "same": surveyed(40, 1, all=hard + noise - noise.mean(), seconds=peaks),
    }
    # Neither the order in which prompts were measured means anything, nor their numbers: a folder
    # may lack a prompt.
    columns["better"].rows.reverse()
    for number, row in enumerate(columns["better"].rows):
        row["index"] = number
    columns["better"].rows[7]["measures"]["all"] = float("nan")
    found = compared(tmp_path, columns)
    cell = found["differences"]["better"]["all"]
    assert 0.01 < cell["low"] < cell["mean"] < cell["high"] < 0.03
    assert cell["mean"] == pytest.approx(0.02 + np.delete(noise, 32).mean(), abs=1e-6)
    assert list(found["differences"]) == ["better", "same"]
    assert list(found["differences"]["same"]) == ["all"]  # a median of seconds is no mean
    # Their own intervals overlap by far, and say nothing of it.
    own = [found["columns"][name]["all"] for name in ("base", "better")]
    assert own[0]["high"] > own[1]["mean"] + 0.03
    said = comparison.text(found).splitlines()
    assert (
        said[-2].startswith("better: all +0.0192 (+0.016")
        and said[-1] == "same: nothing that is sure"
    )
    page = (tmp_path / "report.html").read_text()
    assert "Against base" in page
    bold = re.findall(r'class="n after" data-of="(\w+)">([^<]+)<', page)
    assert [column for column, _ in bold] == ["better", "better"]  # the best, and apart from base
    with open(tmp_path / "differences.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(r["measure"], r["column"], r["against"]) for r in rows] == [
        ("all", "better", "base"), ("all", "same", "base"),
    ]  # fmt: skip
    assert not compared(tmp_path / "one", {"base": columns["base"]})["differences"]


def test_each_language_has_its_own_numbers(tmp_path):
    columns = {
        "made": surveyed(6, 0, all=[0.0, 1.0, 0.5, 0.2, 0.8, 0.6], seconds=[1.0] * 6),
        "true": surveyed(6, 1, all=[1.0] * 6, relation=[1.0] * 6),
    }
    captions = ["a <b>", "红色的圆", "빨간 원 圆", "a ring", "two", "一个圆环"]
    for found in columns.values():
        for row, caption in zip(found.rows, captions, strict=True):
            row["caption"] = caption
    del columns["true"].rows[2]["measures"]["relation"]  # nothing to say of the Korean one
    found = compared(tmp_path, columns)["languages"]
    assert list(found) == ["en", "zh", "ko"]
    assert found["en"]["made"]["all"]["mean"] == pytest.approx((0.0 + 0.2 + 0.8) / 3)
    assert found["en"]["made"]["all"]["low"] < found["en"]["made"]["all"]["high"]
    assert found["ko"]["made"]["all"] == {"mean": 0.5}
    assert found["zh"]["made"]["all"]["mean"] == pytest.approx(0.8)
    assert "relation" in found["zh"]["true"] and "relation" not in found["ko"]["true"]
    assert all(list(said["made"]) == ["all"] for said in found.values())  # no median, no set's
    said = comparison.text(json.loads((tmp_path / "metrics.json").read_text())).splitlines()
    where = said.index("by the language of the prompt:")
    assert said[where + 1].split() == ["all", "en", "zh", "ko"]
    assert re.findall(r"\S+", said[where + 2])[0::2] == ["made", "±0.4000", "±0.2000"]
    with open(tmp_path / "languages.csv") as file:
        rows = list(csv.DictReader(file))
    assert [r["mean"] for r in rows if r["column"] == "made" and r["language"] == "ko"] == ["0.5"]
    page = (tmp_path / "report.html").read_text()
    assert "By language" in page
    part = page[page.index("By language") : page.index("</section>", page.index("By language"))]
    assert re.findall(r'data-of="(\w+)">([^<]+)<', part)[:3] == [
        ("English", "33.3 %"), ("Chinese", "80.0 %"), ("Korean", "50.0 %"),
    ]  # fmt: skip


def test_one_language_is_no_table(tmp_path):
    found = compared(tmp_path, {"made": surveyed(3, 0, all=[1.0, 0.0, 1.0])})
    assert found["languages"] == {}
    assert "By language" not in (tmp_path / "report.html").read_text()
    assert "language" not in comparison.text(found)


def test_a_peak_is_that_of_all_prompts(tmp_path):
    columns = {"made": surveyed(3, 0, peak_mib=[10.0, 30.0, 30.0], seconds=[9.0, 1.0, 1.0])}
    found = compared(tmp_path, columns, facts={"peak_memory": "process"})
    assert found["columns"]["made"]["peak_mib"] == {"mean": 30.0}
    assert found["columns"]["made"]["seconds"] == {"mean": 1.0}
    assert "peak_mib (process) " in comparison.text(found)


def captioned(captions, seed, **measures):
    """A survey of prompts with these captions, numbered from 0."""
    found = surveyed(len(captions), seed, **measures)
    for row, caption in zip(found.rows, captions, strict=True):
        row["caption"] = caption
    return found


def test_prompts_of_one_number_are_not_one_prompt(tmp_path):
    same = [f"prompt {number}" for number in range(5)]
    made = captioned(["a photo of a cat", *same], 0, all=[1.0, *[0.0] * 5])
    # An accent of its own is the same letter, as macOS writes it.
    other = captioned(["a red star", *same], 1, all=[0.0, *[0.2] * 5])
    found = compared(tmp_path, {"made": made, "other": other})
    assert found["differences"]["other"]["all"]["mean"] == pytest.approx(0.2)
    assert found["shared"] == 5
    note = "5 prompts are in all columns (made 6, other 6): "
    assert sum(line.startswith(note) for line in comparison.text(found).splitlines()) == 1
    page = (tmp_path / "report.html").read_text()
    assert note in page and "on the same prompts" not in page
    shown = re.findall(r"<article><h3[^>]*>([^<]+)<", page)
    assert shown == same


def test_letters_are_compared_as_read_not_as_stored(tmp_path):
    a, b = captioned(["caf\u00e9", "x"], 0), captioned(["cafe\u0301", "x"], 1)
    assert compared(tmp_path, {"a": a, "b": b})["shared"] == 2


def test_without_a_shared_prompt_one_line_says_so(tmp_path):
    a = captioned(["one", "two", "three"], 0, all=[1.0, 0.9, 1.0])
    b = captioned(["vier", "sechs", "acht"], 1, all=[0.1, 0.0, 0.1])
    found = compared(tmp_path, {"a": a, "b": b})
    assert found["shared"] == 0 and found["differences"] == {"b": {}}
    note = "No prompt is in all columns (a 3, b 3): their numbers are of different prompts."
    said = comparison.text(found).splitlines()
    assert said.count(note) == 1
    assert said[-1] == "b: nothing measured of 2 prompts that both have"
    page = (tmp_path / "report.html").read_text()
    assert page.count(note) == 1 and "<article>" not in page and "on the same prompts" not in page
    # Prompts that differ do not tell which column is better.
    assert 'class="n after"' not in page


def test_columns_of_the_same_prompts_need_no_word(tmp_path):
    columns = {name: captioned(["one", "two"], 0, all=[1.0, 0.0]) for name in "ab"}
    found = compared(tmp_path, columns)
    assert found["shared"] == 2 and found["notes"] == []
    assert "measured on the same prompts" in (tmp_path / "report.html").read_text()


def test_each_category_has_its_own_numbers(tmp_path):
    scores = [0.0, 1.0, 0.5, 0.2, 0.8, 0.6]
    columns = {"made": surveyed(6, 0, all=scores), "true": surveyed(6, 1, all=[1.0] * 6)}
    groups = ["counting", "two <objects>", "counting", "two <objects>", "", "counting"]
    for found in columns.values():
        for row, group in zip(found.rows, groups, strict=True):
            row["group"] = group
    found = compared(tmp_path, columns)["categories"]
    assert list(found) == ["counting", "two <objects>"]  # what is in none has no table
    assert found["counting"]["made"]["all"]["mean"] == pytest.approx(1.1 / 3)
    assert found["two <objects>"]["made"]["all"]["mean"] == pytest.approx(0.6)
    with open(tmp_path / "categories.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(r["category"], r["column"]) for r in rows if r["measure"] == "all"] == [
        ("counting", "made"), ("counting", "true"),
        ("two <objects>", "made"), ("two <objects>", "true"),
    ]  # fmt: skip
    assert float(rows[0]["mean"]) == pytest.approx(1.1 / 3)
    page = (tmp_path / "report.html").read_text()
    part = page[page.index("By category") : page.index("</section>", page.index("By category"))]
    assert re.findall(r'data-of="([^"]+)">([^<]+)<', part)[:2] == [
        ("counting", "36.7 %"), ("two &lt;objects&gt;", "60.0 %"),
    ]  # fmt: skip


def test_one_category_is_no_table(tmp_path):
    made = surveyed(3, 0, all=[1.0, 0.0, 1.0])
    for row in made.rows[:2]:
        row["group"] = "counting"
    assert compared(tmp_path, {"made": made})["categories"] == {}
    assert not (tmp_path / "categories.csv").exists()
    assert "By category" not in (tmp_path / "report.html").read_text()


def test_captions_too_long_for_clip_are_counted_once(tmp_path):
    columns = {name: captioned(["short", "long", "longer"], 0) for name in ("made", "true")}
    for found in columns.values():
        for row in found.rows[1:]:
            row["too_long"] = True
    found = compared(tmp_path, columns, eye="my_clip")
    note = "2 of 3 captions are too long for my_clip and left out of clip_score."
    assert comparison.text(found).count(note) == 1
    assert (tmp_path / "report.html").read_text().count(note) == 1


def test_a_texts_share_weighs_as_much_as_it_has_letters(tmp_path):
    letters, pictures = [2.0, 20.0], [2.0, 2.0]
    counts = {"text_characters": letters, "text_pictures": pictures}
    columns = {
        "bad": surveyed(2, 0, text_accuracy=[0.0, 1.0], text_availability=[0.0, 1.0], **counts),
        "good": surveyed(2, 1, text_accuracy=[1.0, 1.0], text_availability=[1.0, 1.0], **counts),
    }
    found = compared(tmp_path, columns)
    bad = found["columns"]["bad"]
    assert set(bad) == {"text_accuracy", "text_availability"}  # counts are no measures
    assert bad["text_accuracy"] == {"mean": pytest.approx(20 / 22), "low": 0.0, "high": 1.0}
    assert bad["text_availability"]["mean"] == 0.5
    apart = found["differences"]["good"]["text_accuracy"]
    assert apart == {"mean": pytest.approx(2 / 22), "low": 0.0, "high": 1.0}
    assert set(found["differences"]["good"]) == set(bad)


def test_measures_of_sets_have_intervals_and_differences(tmp_path):
    reference, plain = surveyed(30, 0), surveyed(30, 1)
    shifted = Surveyed(rows=plain.rows, f=plain.f + np.float32(0.7))
    few, others = surveyed(9, 2), captioned([f"another {n}" for n in range(30)], 3)
    columns = {"plain": plain, "shifted": shifted, "few": few, "others": others}
    found = compared(tmp_path, columns, reference=reference, eye="my_clip")
    for name in ("plain", "shifted", "others"):
        for measure in set(SETS) - {"frechet_infinity"}:
            cell = found["columns"][name][measure]
            assert cell["low"] <= cell["mean"] <= cell["high"], (name, measure)
            assert cell["low"] < cell["high"], (name, measure)
    assert "low" not in found["columns"]["few"]["frechet"]
    # The same prompts from a shifted network are surely further away, and by the same prompts.
    apart = found["differences"]["shifted"]
    assert apart["frechet"]["low"] > 0 and apart["mmd"]["low"] > 0
    value = found["columns"]["shifted"]["frechet"]["mean"]
    value -= found["columns"]["plain"]["frechet"]["mean"]
    assert apart["frechet"]["mean"] == pytest.approx(value)
    assert not set(SETS) & (found["differences"]["few"].keys() | found["differences"]["others"])


def test_left_out_prompts_are_left_out_on_both_sides():
    reference, made = surveyed(25, 0), surveyed(25, 1)
    of = estimates.compared(made, reference)
    assert of is not None and set(of.left) == set(SETS) - {"frechet_infinity"}
    assert of.change("frechet", of) == (0.0, 0.0, 0.0)  # whoever is left out, both are the same
    keep = np.repeat(np.arange(25) % 20 != 3, 2)  # without prompts 3 and 23
    assert made.f is not None and reference.f is not None
    by_hand = estimates.sets(made.f[keep], reference.f[keep])
    for name, values in of.left.items():
        assert values[3] == pytest.approx(by_hand[name], rel=1e-5), name
        assert len(values) == 20
    # Real pictures of other prompts stay, whoever is left out.
    other = Surveyed(
        rows=[row | {"key": "x" + row["key"]} for row in reference.rows], f=reference.f
    )
    of = estimates.compared(made, other)
    assert of is not None
    assert of.left["frechet"][3] == pytest.approx(
        estimates.sets(made.f[keep], reference.f)["frechet"], rel=1e-9
    )


def test_too_few_real_pictures_for_neighbours_have_no_interval():
    few = surveyed(3, 0)  # 6 pictures: more than there are neighbours, and fewer without a prompt
    of = estimates.compared(surveyed(12, 1), few)
    assert of is not None and "recall" in of.whole
    assert set(of.left) == {"frechet", "mmd", "mmd_unbiased"}
    later = Surveyed(rows=[row | {"key": str(9 + n)} for n, row in enumerate(few.rows)], f=few.f)
    of = estimates.compared(surveyed(12, 1), later)  # missed by the last groups alone
    assert of is not None and set(of.left) == {"frechet", "mmd", "mmd_unbiased"}


def test_of_many_pictures_pairs_are_looked_at_once(monkeypatch):
    monkeypatch.setattr(estimates, "PAIRED", 40)
    of = estimates.compared(surveyed(25, 1), surveyed(25, 0))
    assert of is not None and set(of.left) == {"frechet"} and "recall" in of.whole


def test_differences_and_parts_name_the_features(tmp_path):
    score = {"clip_score": np.linspace(0, 1, 12), "all": np.linspace(0, 1, 12)}
    captions = ["a ring", "红色的圆"] * 6
    one, other = captioned(captions, 0, **score), captioned(captions, 1, **score)
    compared(tmp_path, {"a": one, "b": other}, reference=surveyed(12, 2), eye="my_clip")
    page = (tmp_path / "report.html").read_text()
    for heading, least in (("Against a", "my_clip, n = 24"), ("By language", "my_clip")):
        section = page[page.index(f"<h2>{heading}") :].split("</section>")[0]
        rows = dict(re.findall(r'<tr><th scope="row">(.*?)(?:<small>(.*?)</small>)?</th>', section))
        assert rows[ROWS["clip_score"].title] == "my_clip" and rows[ROWS["all"].title] == ""
        assert least in rows.values(), rows
    for file in ("differences", "languages"):
        with open(tmp_path / f"{file}.csv") as lines:
            of = {row["measure"]: row for row in csv.DictReader(lines)}
        assert of["clip_score"]["features"] == "my_clip" and of["all"]["features"] == ""
        if file == "differences":
            assert (of["frechet"]["features"], of["frechet"]["n"]) == ("my_clip", "24")
            assert of["clip_score"]["n"] == ""
