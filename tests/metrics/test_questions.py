import numpy as np
import pytest

from cosdiff_jax.data import prompts
from cosdiff_jax.data.scenes import grammar, oracle, renderer
from cosdiff_jax.data.scenes.grammar import Group, Spec
from cosdiff_jax.metrics import questions

STAR, RING = Group("star", "red"), Group("ring", "blue")


def question(group):
    return f"Is there a {group.colour} {group.shape}?"


def by_oracle(images, asked):
    """The Scenes oracle as the one who answers: sure of what it reads."""
    wanted = [said.rstrip("?").split()[-2:] for said in asked]
    seen = [[[o.colour, o.shape] for o in oracle.read(image).objects] for image in images]
    return np.array([[float(thing in things) for thing in wanted] for things in seen])


def draw(*groups, number=2):
    rng = np.random.default_rng(0)
    return np.stack(
        [renderer.render(grammar.sample_scene(Spec(groups), rng)) for _ in range(number)]
    )


def measure(answers, images, asked):
    metric = questions.Questions(answers=answers, name="eyes:look")
    return metric.result(metric.update(metric.init(), images, asked))["questions_yes"]


def test_the_oracle_says_yes_to_what_is_shown():
    true = np.stack([draw(STAR, RING), draw(STAR)])
    both, first = [question(STAR), question(RING)], [question(STAR)]
    assert measure(by_oracle, true, [both, first]) == 1
    # A prompt counts once, however many questions it has: (1/2 + 1) / 2.
    assert measure(by_oracle, true[1:].repeat(2, axis=0), [both, first]) == 0.75
    assert measure(by_oracle, true[1:], [[question(RING)]]) == 0
    # Without questions there is nothing to say.
    assert measure(by_oracle, true, [[], first]) == 1
    assert np.isnan(measure(by_oracle, true, [[], []]))


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (np.ones((2, 2)), r"eyes:look returned shape \(2, 2\) for 2 pictures and 1 questions"),
        (np.ones(2), r"it should be \(2, 1\)"),
        (2 * np.ones((2, 1)), "no probability"),
        (np.full((2, 1), np.nan), "no probability"),
        ([["yes"], ["no"]], "did not return numbers"),
        (None, "eyes:look"),
    ],
)
def test_answers_of_another_shape_are_one_line(told, message):
    with pytest.raises(ValueError, match=message) as said:
        measure(lambda images, asked: told, draw(STAR)[None], [["Is it?"]])
    assert "\n" not in str(said.value)


def test_prompts_and_pictures_must_match():
    with pytest.raises(ValueError, match="1 groups of pictures, questions of 2"):
        measure(by_oracle, draw(STAR)[None], [[], []])


def test_a_users_function_is_found_or_said_to_be_missing(tmp_path, monkeypatch):
    (tmp_path / "my_eyes.py").write_text("def look(images, asked): return 1\nWIDTH = 3\n")
    (tmp_path / "my_slip.py").write_text("import nothing_of\n  \nthis")
    monkeypatch.syspath_prepend(tmp_path)
    assert questions.load("my_eyes:look")(None, []) == 1
    for name, message in (
        ("my_eyes:see", "my_eyes:see: no such MODULE:FUNCTION"),
        ("my_ears:hear", "No module named 'my_ears'"),
        ("my_eyes", "no such MODULE:FUNCTION"),
        (":look", "no such MODULE:FUNCTION"),
        ("my_slip:look", "nothing_of"),
        ("my_eyes:WIDTH", "this is no function"),
    ):
        with pytest.raises(ValueError, match=message) as said:
            questions.load(name)
        assert "\n" not in str(said.value)


def test_questions_as_prompt_sets_write_them(tmp_path):
    place = tmp_path / "dpg.csv"
    place.write_text("item_id,text,question_natural_language\na,Two.,Are there two?\na,Two.,So?\n")
    (prompt,) = prompts.read(place)
    assert questions.asked(prompt.extra) == ["Are there two?", "So?"]
    assert questions.asked({"questions": ["So? ", {"question": "Is it?"}]}) == ["So?", "Is it?"]
    assert questions.asked({}) == questions.asked({"questions": None}) == []
    with pytest.raises(ValueError, match="'a hat' are neither"):
        questions.asked({"caption": "a hat", "questions": [{"tuple": "entity"}]})
