import dataclasses
import json
import pathlib
import re

import pytest

from cosdiff_jax.data import prompts
from cosdiff_jax.data.prompts import Prompt

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "prompts"

# (text, key, group) by form, as a person reads the files.
EXPECTED = {
    "evaluation_metadata.jsonl": (
        "geneval",
        [
            ("a photo of a kettle", "00000", "single_object"),
            ("a photo of three buttons", "00001", "counting"),
            ("a photo of a tent left of an oak", "00002", "position"),
        ],
    ),
    "color_val.txt": (
        "compbench",
        [
            ("a teal ladder and a mauve drum", "00000", "color"),
            ("a grey canoe and a lime scarf", "00001", "color"),
            ("a teal ladder and a mauve drum", "00002", "color"),
        ],
    ),
    "3d_spatial_val.txt": (
        "compbench",
        [
            ("a harp behind a stove", "00000", "3d_spatial"),
            ("a comb in front of a globe", "00001", "3d_spatial"),
        ],
    ),
    "dpg": (
        "dpg_bench",
        [
            (
                "A quiet glade holds two wooden stools, one of them painted blue.",
                "glade2",
                "",
            ),
            ("Ten paper boats drift past a stone bridge at dawn.", "glade10", ""),
        ],
    ),
    "dpg.csv": (
        "dpg_bench",
        [
            ("Two stools, one of them blue.", "glade2", ""),
            ('A sign that says "ten boats".', "glade10", ""),
        ],
    ),
    "parti.tsv": (
        "parti",
        [
            ('"H I" spelled with pebbles', "00000", "Artifacts"),
            ("an otter, asleep", "00001", "Animals"),
            ("moss", "00002", "Produce & Plants"),
        ],
    ),
    "meta_data.json": (
        "mjhq",
        [
            ("a lamp on a piano, soft light --ar 1:1", "0af3", "indoor"),
            ("a baker at five in the morning", "17c9", "people"),
        ],
    ),
    "drawbench.csv": (
        "drawbench",
        [
            ("A violet snail.", "00000", "Colors"),
            ("Four spoons, two of them bent.", "00001", "Counting"),
        ],
    ),
    "plain.txt": (
        "text",
        [("빨간 별 하나", "00000", ""), ("a clock without hands", "00001", "")],
    ),
    "own.jsonl": (
        "jsonl",
        [
            ("a green kite", "kite-green", ""),
            ("a kite\u2028in two lines", "KITE-green.2", "toys"),
            ("a third kite", "00002", ""),
        ],
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_form_is_recognised_and_read(name):
    form, expected = EXPECTED[name]
    found = prompts.read(FIXTURES / name)
    assert [(p.text, p.key, p.group) for p in found] == expected
    assert prompts.read(str(FIXTURES / name), form) == found
    assert {EXPECTED[other][0] for other in EXPECTED} == set(prompts.FORMS)


@pytest.mark.parametrize("name", [name for name in EXPECTED if "." in name])
def test_marks_line_ends_and_empty_lines_do_no_harm(name, tmp_path):
    plain = (FIXTURES / name).read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    expected = prompts.read(FIXTURES / name)
    spaced = plain if name.endswith("json") else b"\n" + plain.replace(b"\n", b"\n\n") + b"\n \n"
    for other in (
        plain,
        b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + spaced,
        plain.decode().encode("utf-16"),
    ):
        (tmp_path / name).write_bytes(other)
        assert prompts.read(tmp_path / name) == expected


def test_what_else_an_author_says_is_kept():
    buttons = prompts.read(FIXTURES / "evaluation_metadata.jsonl")[1]
    assert buttons.extra == {
        "tag": "counting",
        "include": [{"class": "button", "count": 3}],
        "exclude": [{"class": "button", "count": 4}],
    }
    lines = (FIXTURES / "evaluation_metadata.jsonl").read_text().splitlines()
    assert buttons.line == lines[1]
    first, second = prompts.read(FIXTURES / "dpg.csv")
    asked = [question["question_natural_language"] for question in first.extra["questions"]]
    assert asked == ["Are there stools?", "Is a stool blue?"]
    assert second.extra["questions"][0]["tuple"] == "entity - whole (sign)"
    assert prompts.read(FIXTURES / "parti.tsv")[1].extra == {
        "challenge": "Basic",
        "note": "seen from above",
    }
    assert prompts.read(FIXTURES / "own.jsonl")[0].extra == {"spec": {"count": 1}}


def test_keys_name_files_are_no_others_and_stay():
    keys = [
        "a/b",
        "A:b",
        "a-b",
        "..",
        "",
        "ü\u0308",
        "00004",
        "x" * 300,
        "x" * 299,
        "a-b.2",
        "빨강",
    ]
    found = prompts.keyed([Prompt(text=str(n), key=key) for n, key in enumerate(keys)])
    named = [prompt.key for prompt in found]
    assert [prompt.text for prompt in found] == [str(n) for n in range(len(keys))]
    assert len({key.casefold() for key in named}) == len(keys)
    assert all(re.fullmatch(r"\w[\w.-]*", key) for key in named)
    assert all(len(key.encode()) < 250 for key in named)
    assert named[:5] == ["a-b", "A-b.2", "a-b.3", "00003", "00004"]
    assert prompts.keyed(found) == found
    assert len({hash(prompt) for prompt in found}) == len(found)


def test_a_set_of_many_prompts_keeps_its_order(tmp_path):
    records = {f"{number:x}": {"category": "c", "prompt": f"p {number}"} for number in range(2000)}
    (tmp_path / "one_line.json").write_text(json.dumps(records))
    found = prompts.read(tmp_path / "one_line.json")
    assert [p.text for p in found] == [f"p {number}" for number in range(2000)]
    for number in (1, 2, 10, 11):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / f"{number}.txt").write_text(f"p {number}")
    assert [p.key for p in prompts.read(tmp_path / "set")] == ["1", "2", "10", "11"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": \n', "a.jsonl line 2 is not JSON"),
        ("a.jsonl", '\n\n{"prompt": "a"}\n[1]', "a.jsonl line 4 is not an object"),
        ("a.jsonl", '{"prompt": "a"}\n{"words": "b"}', "a.jsonl line 2 has no text in 'prompt'"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": 7}', "a.jsonl line 2 has no text"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": " "}', "a.jsonl line 2 has no text"),
        ("a.jsonl", '{"tag": "x", "prompt": "a"}\n{"prompt": "b"}', "line 2 is not of GenEval"),
        ("a.jsonl", "{broken", "a.jsonl line 1 is not JSON"),
        ("a.json", '{"a": {\n"prompt": "b"', "a.json is not JSON"),
        ("a.json", '{"a": {"category": "b"}}', "'a' has no text in 'prompt'"),
        ("a.csv", "name,age\nx,1", "none of the known prompt files: GenEval's"),
        ("a.csv", 'Prompts,Category\n"unclosed,x\n', r"a.csv line \d: unexpected end of data"),
        ("a.csv", "Prompts,Category\na,b\na, b,c\n", "line 3 has 3 columns, the first line 2"),
        ("a.csv", "Prompts,Category\na,b\n,c\n", "line 3 has no text in 'prompts'"),
        ("a.tsv", "Prompt\tCategory\n", "a.tsv has no prompts"),
        ("a.txt", " \n\r\n", "a.txt has no prompts"),
        ("a.png", "what is this", "none of the known prompt files"),
        ("a.txt", b"caf\xe9", "a.txt is not text in UTF-8"),
    ],
)
def test_what_is_not_of_a_form_is_one_line_with_its_place(tmp_path, name, content, message):
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=message) as error:
        prompts.read(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_wrong_form_or_place_is_one_line(tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "color_val.txt").write_text("a\nb")
    for path, form, message in (
        (FIXTURES / "plain.txt", "partly", "'partly' is not one of geneval, compbench"),
        (FIXTURES / "drawbench.csv", "parti", "names no column 'prompt'"),
        (FIXTURES / "plain.txt", "mjhq", "is not JSON"),
        (FIXTURES / "own.jsonl", "geneval", "line 1 is not of GenEval"),
        (FIXTURES / "dpg", "text", "is a folder, but text prompts are one file"),
        (tmp_path / "none", None, "has no KEY.txt, of DPG-Bench"),
        (tmp_path / "bench", None, "has T2I-CompBench's color_val.txt: name one of its files"),
        (tmp_path / "gone.txt", None, "there is no file of prompts .*gone.txt"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            prompts.read(path, form)
        assert "\n" not in str(error.value)


def test_a_form_can_be_insisted_on(tmp_path):
    (tmp_path / "braces.txt").write_text('{"prompt": "said in JSON"}\n')
    assert prompts.read(tmp_path / "braces.txt")[0].text == "said in JSON"
    assert prompts.read(tmp_path / "braces.txt", "text")[0].text == '{"prompt": "said in JSON"}'
    assert dataclasses.replace(prompts.read(FIXTURES / "plain.txt")[0], text="x").key == "00000"


def test_what_is_written_is_read_back(tmp_path):
    said = [
        Prompt(
            text="빨간 별 하나", key="a-1", group="one", extra={"spec": "{}", "questions": ["?"]}
        ),
        Prompt(text="a kite\u2028in two lines", key="b"),
    ]
    place = tmp_path / "deep" / "own.jsonl"
    prompts.write(place, said)
    assert prompts.read(place) == said
    with pytest.raises(ValueError, match="is there already"):
        prompts.write(place, said)
    with pytest.raises(ValueError, match="cannot be written"):
        prompts.write(place / "below.jsonl", said)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("picture,text\na.png,SALE\nb.png,\n", {"a.png": "SALE", "b.png": ""}),
        ('{"file_name": "a.png", "text": null}\n\n', {"a.png": ""}),
        ("picture,said\na.png,SALE\n", "line 2 has no"),
        ("key,text\na,SALE\n", "names no column 'picture'"),
        ('{"picture": "", "text": "x"}', "line 1 has no"),
        ('{"picture": "a", "text": 7}', "line 1 has no"),
        ('{"picture": "a", "text": ""}\n{"picture": "a", "text": ""}', "a second time"),
        ("picture,text\n", "has no lines"),
        ("", "has no lines"),
    ],
)
def test_texts_that_were_read(tmp_path, text, expected):
    place = tmp_path / "read"
    place.write_text(text)
    if isinstance(expected, dict):
        assert prompts.texts_read(place) == expected
        return
    with pytest.raises(ValueError, match=expected) as said:
        prompts.texts_read(place)
    assert "\n" not in str(said.value)
