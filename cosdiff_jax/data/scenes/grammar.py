"""One grammar, three languages: a spec to a caption and back, and lines to train a tokenizer on.

The meaning of captions and the scenes they allow are in `prior`; its names are here too, so that
this module is the one to import.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from cosdiff_jax.data.scenes import lexicon
from cosdiff_jax.data.scenes.lexicon import LANGUAGES
from cosdiff_jax.data.scenes.parser import parse
from cosdiff_jax.data.scenes.prior import (
    BACKGROUNDS,
    COLOURS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    SIDE,
    SIZES,
    Group,
    Object,
    Scene,
    Spec,
    Split,
    allowed_sizes,
    canonical,
    check,
    describe,
    open_attributes,
    relation_between,
    sample_scene,
    sample_spec,
    scene_from_json,
    scene_to_json,
    scenes_from_json,
    scenes_to_json,
    spec_from_json,
    spec_to_json,
    split_of,
)

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "LANGUAGES",
    "RELATIONS",
    "SHAPES",
    "SIDE",
    "SIZES",
    "Group",
    "Object",
    "Scene",
    "Spec",
    "Split",
    "allowed_sizes",
    "canonical",
    "caption",
    "check",
    "corpus",
    "describe",
    "digit_caption",
    "open_attributes",
    "parse",
    "relation_between",
    "sample_scene",
    "sample_spec",
    "scene_from_json",
    "scene_to_json",
    "scenes_from_json",
    "scenes_to_json",
    "spec_from_json",
    "spec_to_json",
    "split_of",
]


def caption(
    spec: Spec,
    language: str = "en",
    rng: np.random.Generator | None = None,
    placed: float = 0.0,
    ordered: bool = False,
) -> str:
    """Says a spec in a language.

    Args:
      spec: what to say.
      language: "en", "zh" or "ko".
      rng: chooses among paraphrases; without it the plainest wording is taken.
      placed: share of the things of a relation whose side stands among their attributes too, "a
        red left circle"; wants ``rng``. What is said like that is not read back.
      ordered: name things in the spec's own order, whatever ``rng`` says.

    Raises:
      ValueError: an unknown language.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r} is none of {', '.join(LANGUAGES)}")
    groups, relation = list(spec.groups), spec.relation
    # Either side may be named first: that is how the reader learns what "right of" means.
    if rng is not None and not ordered:
        groups, relation = _in_any_order(groups, relation, rng)
    say = {"en": _english, "zh": _chinese, "ko": _korean}[language]
    sides: list[str | None] = [None] * len(groups)
    if rng is not None and placed and relation is not None:
        words = lexicon.PLACED[language]
        sides = [words[side] for side in (relation, OPPOSITE[relation])]
        sides = [side if rng.random() < placed else None for side in sides]
    return say(groups, relation, spec.background, rng, sides)


def _in_any_order(
    groups: list[Group], relation: str | None, rng: np.random.Generator
) -> tuple[list[Group], str | None]:
    """The same meaning with the things in another order, or in the same."""
    if relation is None:
        return [groups[index] for index in rng.permutation(len(groups))], None
    if rng.random() < 0.5:
        return groups[::-1], OPPOSITE[relation]
    return groups, relation


def digit_caption(digit: int, language: str = "en", rng: np.random.Generator | None = None) -> str:
    """Says a handwritten digit, e.g. "a handwritten three"; without rng the plainest wording.

    Raises:
      ValueError: not a digit, or an unknown language.
    """
    if digit not in range(10):
        raise ValueError(f"{digit} is not a digit")
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r} is none of {', '.join(LANGUAGES)}")
    word = _pick((lexicon.DIGIT[language][digit], str(digit)), rng, 0.6)
    forms = {
        "en": ("a handwritten {}", "the handwritten digit {}", "the digit {} written by hand"),
        "zh": ("手写数字{}", "一个手写的{}"),
        "ko": ("손글씨 숫자 {}", "손으로 쓴 숫자 {}"),
    }[language]
    return _pick(forms, rng, 0.6).format(word)


def corpus(
    seed: int,
    number: int,
    digits: bool = True,
    focus: float = 0.0,
    placed: float = 0.0,
    ordered: float = 0.0,
    languages: tuple[str, ...] = LANGUAGES,
) -> Iterator[str]:
    """Lines for language-model training, from the training specs only.

    About 15 % are handwritten digits (with ``digits``). Nine lines in ten say one meaning twice,
    in two languages or two wordings, joined by " = ": to continue such a line a small model has
    to keep which colour belongs to which shape, and that is what a picture needs too. Trained on
    single captions it forgets the words: nothing after a colour depends on which one it was.

    Args:
      seed: the same seed gives the same lines.
      number: how many lines.
      digits: whether digit captions are among them.
      focus: share of the scenes that are drawn until they name different things: in a single one
        no word has to be kept apart from another's.
      placed: share of the things of a relation that are said the second time with their side, "a
        red left circle". Whoever may be asked for it next has to know at "red" where the red thing
        is; otherwise only nouns do, whose colours are forgotten.
      ordered: share of the lines that name things in one order both times, as a caption does that
        is simply repeated. In Chinese, where both things come before what relates them, a small
        model does not learn from the others which of the two it is hearing of again.
      languages: of the lines, from "en", "zh", "ko".

    Raises:
      ValueError: focus, placed or ordered is no share, or an unknown language.
    """
    if not languages or set(languages) - set(LANGUAGES):
        known = ", ".join(LANGUAGES)
        raise ValueError(f"captions: languages {list(languages)} must be some of {known}")
    for name, share in (("focus", focus), ("placed", placed), ("ordered", ordered)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} = {share} is no share: take a number from 0 to 1")
    rng = np.random.default_rng([seed, 0x5CE7E5])
    for _ in range(number):
        first, second = (languages[index] for index in rng.integers(len(languages), size=2))
        twice = rng.random() < 0.9
        if digits and rng.random() < 0.15:
            digit = int(rng.integers(10))
            sides = [digit_caption(digit, language, rng) for language in (first, second)]
        else:
            spec = sample_spec(rng, "train")
            if focus and rng.random() < focus:
                while len(spec.groups) < 2:
                    spec = sample_spec(rng, "train")
            # Twice a list of four would be longer than any context that captions need.
            twice = twice and len(spec.groups) < 4
            same = bool(ordered) and rng.random() < ordered
            if same:
                groups, relation = _in_any_order(list(spec.groups), spec.relation, rng)
                spec = dataclasses.replace(spec, groups=tuple(groups), relation=relation)
            again = placed if twice else 0.0
            sides = [
                caption(spec, first, rng, ordered=same),
                caption(spec, second, rng, again, ordered=same),
            ]
        yield " = ".join(sides) if twice and sides[0] != sides[1] else sides[0]


def _pick(options: Sequence[str], rng: np.random.Generator | None, usual: float = 0.7) -> str:
    """The first option with probability ``usual``, else one of the others."""
    if rng is None or len(options) == 1 or rng.random() < usual:
        return options[0]
    return options[1 + int(rng.integers(len(options) - 1))]


def _english(
    groups: list[Group],
    relation: str | None,
    background: str | None,
    rng: np.random.Generator | None,
    sides: Sequence[str | None],
) -> str:
    parts = [_english_group(*one, rng) for one in zip(groups, sides, strict=True)]
    if relation is not None:
        text = f"{parts[0]} {_pick(lexicon.RELATION['en'][relation], rng)} {parts[1]}"
    else:
        text = " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)
    if background is not None:
        text += f" {_pick(('on', 'with'), rng)} a {lexicon.BACKGROUND['en'][background]} background"
    return _pick(("", "a picture of ", "an image of "), rng, 0.85) + text


def _english_group(group: Group, side: str | None, rng: np.random.Generator | None) -> str:
    noun = _pick(lexicon.SHAPE["en"][group.shape], rng)
    words = [] if group.size is None else [_pick(lexicon.SIZE["en"][group.size], rng)]
    words += [] if group.colour is None else [group.colour]
    words = _among(words, side, rng)
    words += [noun if group.count == 1 else lexicon.PLURAL[noun]]
    if group.count == 1:
        article = "an" if words[0][0] in "aeiou" else "a"
        words = [_pick((article, "one"), rng, 0.95), *words]
    else:
        words = [lexicon.COUNT["en"][group.count][0], *words]
    return " ".join(words) + (f' with the word "{group.word}"' if group.word else "")


def _chinese(
    groups: list[Group],
    relation: str | None,
    background: str | None,
    rng: np.random.Generator | None,
    sides: Sequence[str | None],
) -> str:
    parts = [_chinese_group(*one, rng) for one in zip(groups, sides, strict=True)]
    if relation is not None:
        side = _pick(lexicon.RELATION["zh"][relation], rng)
        text = f"{parts[0]}在{parts[1]}的{side}"
    else:
        text = "和".join(["、".join(parts[:-1]), parts[-1]] if parts[1:] else parts)
    if background is None:
        return _pick(("", "图中有", "画面上有"), rng, 0.85) + text
    where = lexicon.BACKGROUND["zh"][background] + "背景"
    return _pick((f"{where}上有{text}", f"{text}，{where}"), rng)


def _chinese_group(group: Group, side: str | None, rng: np.random.Generator | None) -> str:
    noun = _pick(lexicon.SHAPE["zh"][group.shape], rng)
    words = []
    if group.size is not None:
        # "大红色" would be a hue of its own: before a colour the long form is the clear one.
        sizes = lexicon.SIZE["zh"][group.size]
        words += [sizes[0] if group.colour is not None else _pick(sizes, rng)]
    if group.colour is not None:
        colour = _pick(lexicon.COLOUR["zh"][group.colour], rng)
        words += [colour + ("的" if len(noun) == 1 else _pick(("", "的"), rng, 0.5))]
    text = lexicon.COUNT["zh"][group.count][0] + "".join(_among(words, side, rng))
    return text + noun + (f"（写着“{group.word}”）" if group.word else "")


def _korean(
    groups: list[Group],
    relation: str | None,
    background: str | None,
    rng: np.random.Generator | None,
    sides: Sequence[str | None],
) -> str:
    if relation is not None:
        # The picture's subject comes last: "B 위에 있는 A" is "A above B".
        pairs = zip(groups, sides, strict=True)
        parts = [_korean_group(*one, rng, counted=False) for one in pairs]
        of = _pick(("", "의"), rng, 0.6)
        text = f"{parts[1]}{of} {_pick(lexicon.RELATION['ko'][relation], rng)} 있는 {parts[0]}"
    else:
        parts = [_korean_group(group, None, rng, counted=True) for group in groups]
        text = parts[-1]
        if parts[1:]:
            text = f"{', '.join(parts[:-1])}{_and(parts[-2])} {text}"
    if background is None:
        return text
    where = lexicon.BACKGROUND["ko"][background] + " 배경"
    return _pick((f"{where}에 {text}", f"{text}, {where}"), rng)


def _korean_group(
    group: Group, side: str | None, rng: np.random.Generator | None, counted: bool
) -> str:
    words = [] if group.size is None else [_pick(lexicon.SIZE["ko"][group.size], rng)]
    words += [] if group.colour is None else [_pick(lexicon.COLOUR["ko"][group.colour], rng)]
    words = _among(words, side, rng)
    words += [_pick(lexicon.SHAPE["ko"][group.shape], rng)]
    counts = lexicon.COUNT["ko"][group.count]
    if group.count > 1:
        words = [f"{counts[0]}의", *words] if _pick("12", rng) == "2" else [*words, counts[0]]
    elif counted and _pick("12", rng, 0.85) == "2":
        words += [_pick(counts, rng)]
    lead = f"“{group.word}”라고 쓰인 " if group.word else ""
    return lead + " ".join(words)


def _among(words: list[str], side: str | None, rng: np.random.Generator | None) -> list[str]:
    """The words with the side anywhere among them."""
    if side is None or rng is None:
        return words
    place = int(rng.integers(len(words) + 1))
    return [*words[:place], side, *words[place:]]


def _and(text: str) -> str:
    """The particle "and": 과 after a final consonant, 와 after a vowel."""
    code = ord(text[-1]) - 0xAC00
    return "과" if 0 <= code < 11172 and code % 28 else "와"
