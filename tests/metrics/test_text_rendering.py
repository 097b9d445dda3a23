import itertools
import unicodedata

import numpy as np
import pytest

from cosdiff_jax.metrics.text_rendering import WEIGHTS, TextRendering, edits, hits


def measure(asked, read, usable=None, **changes):
    metric = TextRendering(**changes)
    return metric.result(metric.update(metric.init(), asked, read, usable))


def words(seed, number, letters="ab", longest=5):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, number)
    return ["".join(rng.choice(list(letters), n)) for n in lengths]


def test_edits_are_the_shortest_way_from_one_text_to_the_other():
    def near(text):
        """Every text one edit away."""
        for i in range(len(text) + 1):
            yield from (text[:i] + x + text[i:] for x in "ab")
            if i < len(text):
                yield text[:i] + text[i + 1 :]
                yield from (text[:i] + x + text[i + 1 :] for x in "ab")

    texts = ["".join(t) for n in range(4) for t in itertools.product("ab", repeat=n)]
    for start in texts:
        steps, edge = {start: 0}, {start}
        for step in range(1, 5):
            edge = {t for text in edge for t in near(text) if len(t) < 6 and t not in steps}
            steps.update(dict.fromkeys(edge, step))
        assert all(edits(start, end) == steps[end] for end in texts)


def test_hits_are_the_longest_common_subsequence():
    for a, b in zip(words(0, 200), words(1, 200), strict=True):
        parts = [
            {"".join(c) for n in range(len(t) + 1) for c in itertools.combinations(t, n)}
            for t in (a, b)
        ]
        assert hits(a, b) == max(len(part) for part in parts[0] & parts[1])


def test_accuracy_never_exceeds_the_hit_rate():
    for asked, read in zip(words(2, 300, "abc", 8), words(3, 300, "abc", 8), strict=True):
        if asked:
            found = measure([asked], [read])
            assert found["text_accuracy"] <= found["text_hit_rate"] + 1e-12 <= 1 + 1e-12


@pytest.mark.parametrize(
    ("asked", "read", "accuracy", "hit"),
    [
        ("OPEN", "OPEN", 1.0, 1.0),
        ("OPEN", "OPEM", 0.75, 0.75),
        ("OPEN", "OPENING", 0.25, 1.0),
        ("OPEN", "", 0.0, 0.0),
        ("青花瓷", "青花", 2 / 3, 2 / 3),
        ("青花瓷", "清花瓷", 2 / 3, 2 / 3),
        ("새해 복 많이", "새해복많이", 1.0, 1.0),
        ("한글", "한국", 0.5, 0.5),
    ],
)
def test_english_chinese_and_korean(asked, read, accuracy, hit):
    found = measure([asked], [read])
    assert found["text_accuracy"] == pytest.approx(accuracy)
    assert found["text_hit_rate"] == pytest.approx(hit)


def test_a_syllable_is_one_character_however_it_is_written():
    asked, parts = "한글 café", unicodedata.normalize("NFD", "한글 café")
    assert len(parts) > len(asked)
    for a, b in itertools.product((asked, parts), repeat=2):
        assert measure([a], [b])["text_accuracy"] == 1
    assert measure([parts], ["한국 café"])["text_accuracy"] == pytest.approx(5 / 6)


def test_spaces_and_case_count_where_asked_for():
    assert measure(["a b"], ["ab"])["text_accuracy"] == 1
    assert measure(["a b"], ["ab"], spaces=True)["text_accuracy"] == pytest.approx(2 / 3)
    assert measure(["Sale"], ["SALE"])["text_accuracy"] == pytest.approx(1 / 4)
    assert measure(["Sale"], ["SALE"], case=False)["text_accuracy"] == 1


def test_availability_is_what_people_say_or_an_accuracy_that_is_enough():
    asked, read = ["OPEN", "OPEN", "OPEN"], ["OPEN", "OPEM", "shut"]
    assert measure(asked, read)["text_availability"] == pytest.approx(1 / 3)
    assert measure(asked, read, enough=0.75)["text_availability"] == pytest.approx(2 / 3)
    said = measure(asked, read, usable=[False, True, True])
    assert said["text_availability"] == pytest.approx(2 / 3)
    assert said["text_accuracy"] == measure(asked, read)["text_accuracy"]


def test_long_texts_weigh_more():
    found = measure(["a", "bcdefghij"], ["x", "bcdefghij"])
    assert found["text_accuracy"] == found["text_hit_rate"] == pytest.approx(0.9)
    assert found["text_availability"] == 0.5


def test_shares_of_prompts_weighed_by_their_counts_give_the_whole():
    asked, read = ["A", "ABCDEFGHIJ", "ab"], ["B", "ABCDEFGHIJ", "axx"]
    metric = TextRendering()
    parts = [
        metric.counted(metric.update(metric.init(), [a], [r]))
        for a, r in zip(asked, read, strict=True)
    ]
    whole = measure(asked, read)
    for name, weight in WEIGHTS.items():
        total = sum(part[weight] for part in parts)
        found = sum(part[name] * part[weight] for part in parts) / total
        assert found == pytest.approx(whole[name])


def test_parts_and_hosts_give_what_all_at_once_gives():
    asked = [text + "a" for text in words(4, 12)]
    read = words(5, 12)
    metric = TextRendering()
    whole = metric.update(metric.init(), asked, read)
    here = metric.update(metric.update(metric.init(), asked[:1], read[:1]), asked[1:5], read[1:5])
    there = metric.update(metric.init(), asked[5:], read[5:])
    assert metric.merge(here, there) == metric.merge(there, here) == whole


def test_what_cannot_be_is_refused_and_nothing_is_nan():
    metric = TextRendering()
    assert np.isnan(list(metric.result(metric.init()).values())).all()
    with pytest.raises(ValueError, match="2 texts asked for, 1 read"):
        measure(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="and 2 opinions"):
        measure(["a"], ["a"], usable=[True, False])
    with pytest.raises(ValueError, match="text 1 asked for has no characters"):
        measure(["a", "  "], ["a", "b"])
