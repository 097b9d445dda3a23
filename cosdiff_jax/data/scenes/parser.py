"""Captions read back: the words of three languages to a spec (the inverse of `grammar.caption`)."""

import re
from collections.abc import Sequence
from typing import Any

from cosdiff_jax.data.scenes import lexicon
from cosdiff_jax.data.scenes.prior import BACKGROUNDS, RELATIONS, Group, Spec, canonical, check

Table = dict[Any, Any]
"""A table of the lexicon for one language: value to word or words."""


def parse(text: str) -> Spec | None:
    """Reads a caption of this grammar back, whatever its language; None if it is not one.

    The spec comes in canonical form. Words that the grammar does not know make it None: a wrong
    reading would be scored as if the user had asked for it.
    """
    text = " ".join(text.strip().lower().rstrip(".。").split())
    if re.search(r"[가-힣]", text):
        found = _read_korean(text)
    elif re.search(r"[\u4e00-\u9fff]", text):
        found = _read_chinese(text)
    else:
        found = _read_english(text)
    if found is None:
        return None
    try:
        check(found)
    except ValueError:
        return None
    return canonical(found)


def _invert(table: Table) -> dict[str, Any]:
    return {word: value for value, words in table.items() for word in words}


def _read_english(text: str) -> Spec | None:
    text = re.sub(r"^(a |an )?(picture|image|photo) of ", "", text).replace("gray", "grey")
    match = re.search(r" (?:on|with) an? (\w+) background$", text)
    background = None
    if match:
        background, text = match[1], text[: match.start()]
        if background not in BACKGROUNDS:
            return None
    for relation in RELATIONS:
        # A relation's own name is its shortest wording.
        sides = re.split(rf" (?:to the )?{relation} ", text)
        if len(sides) == 2:
            groups = [_english_noun(side) for side in sides]
            return _assemble(groups, background, relation)
    groups = [_english_noun(part) for part in re.split(r",? and |, ", text)]
    return _assemble(groups, background, None)


def _english_noun(text: str) -> Group | None:
    word = None
    match = re.search(r' with the word ["“]([^"”]+)["”]$', text)
    if match:
        word, text = match[1], text[: match.start()]
    counts = {w: n for n, words in lexicon.COUNT["en"].items() for w in words}
    singular = {plural: noun for noun, plural in lexicon.PLURAL.items()}
    words = text.split(" ")
    count = counts.get(words[0])
    if count is not None:
        words = words[1:]
    elif words[-1] in singular:
        return None  # "circles" without a number says no count the grammar has
    words = [singular.get(w, w) for w in words]
    tables = (lexicon.SIZE["en"], lexicon.COLOUR["en"], lexicon.SHAPE["en"])
    return _consume(words, tables, count or 1, word)


def _consume(
    words: list[str], tables: Sequence[Table], count: int, written: str | None
) -> Group | None:
    """Size, colour, noun in this order, the first two optional, and nothing left over."""
    rest, values = list(words), []
    for table in tables[:2]:
        inverse = _invert(table)
        values.append(inverse[rest.pop(0)] if rest and rest[0] in inverse else None)
    nouns = _invert(tables[2])
    if len(rest) != 1 or rest[0] not in nouns:
        return None
    return Group(nouns[rest[0]], values[1], values[0], count, written)


def _assemble(
    groups: Sequence[Group | None], background: str | None, relation: str | None
) -> Spec | None:
    known = tuple(group for group in groups if group is not None)
    return Spec(known, background, relation) if len(known) == len(groups) else None


def _alternatives(table: Table) -> str:
    words = [
        word for entry in table.values() for word in ((entry,) if isinstance(entry, str) else entry)
    ]
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


def _value(table: Table, word: str | None) -> Any:
    for value, words in table.items():
        if word is not None and word in ((words,) if isinstance(words, str) else words):
            return value
    return None


def _read_chinese(text: str) -> Spec | None:
    text = re.sub(r"^(图中有|画面上有)", "", text)
    grounds = lexicon.BACKGROUND["zh"]
    names = _alternatives(grounds)
    match = re.fullmatch(rf"({names})背景上?有?(?P<text>.+)", text) or re.fullmatch(
        rf"(?P<text>.+)[，,]({names})背景", text
    )
    background = None
    if match:
        background = _value(grounds, next(g for g in match.groups() if g and g != match["text"]))
        text = match["text"]
    sides = lexicon.RELATION["zh"]
    match = re.fullmatch(rf"(.+?)在(.+)的({_alternatives(sides)})", text)
    if match:
        groups = [_chinese_noun(match[1]), _chinese_noun(match[2])]
        return _assemble(groups, background, _value(sides, match[3]))
    return _assemble([_chinese_noun(part) for part in re.split("[、和]", text)], background, None)


def _chinese_noun(text: str) -> Group | None:
    counts, sizes = lexicon.COUNT["zh"], lexicon.SIZE["zh"]
    colours, shapes = lexicon.COLOUR["zh"], lexicon.SHAPE["zh"]
    match = re.fullmatch(
        rf"({_alternatives(counts)})?({_alternatives(sizes)})?(?:({_alternatives(colours)})的?)?"
        rf"({_alternatives(shapes)})(?:（写着“([^”]+)”）)?",
        text,
    )
    if not match:
        return None
    return Group(
        shape=_value(shapes, match[4]),
        colour=_value(colours, match[3]),
        size=_value(sizes, match[2]),
        count=_value(counts, match[1]) or 1,
        word=match[5],
    )


def _read_korean(text: str) -> Spec | None:
    grounds = lexicon.BACKGROUND["ko"]
    names = _alternatives(grounds)
    match = re.fullmatch(rf"({names}) 배경(?:에|의) (?P<text>.+)", text) or re.fullmatch(
        rf"(?P<text>.+), ({names}) 배경", text
    )
    background = None
    if match:
        background = _value(grounds, next(g for g in match.groups() if g and g != match["text"]))
        text = match["text"]
    sides = lexicon.RELATION["ko"]
    match = re.fullmatch(rf"(.+?)의? ({_alternatives(sides)}) 있는 (.+)", text)
    if match:
        groups = [_korean_noun(match[3]), _korean_noun(match[1])]
        return _assemble(groups, background, _value(sides, match[2]))
    parts = re.split(r", |(?:와|과) ", text)
    return _assemble([_korean_noun(part) for part in parts], background, None)


def _korean_noun(text: str) -> Group | None:
    counts, sizes = lexicon.COUNT["ko"], lexicon.SIZE["ko"]
    colours, shapes = lexicon.COLOUR["ko"], lexicon.SHAPE["ko"]
    match = re.fullmatch(
        rf"(?:“([^”]+)”라고 쓰인 )?(?:({_alternatives(counts)})의 )?(?:({_alternatives(sizes)}) )?"
        rf"(?:({_alternatives(colours)}) )?({_alternatives(shapes)})"
        rf"(?: ({_alternatives(counts)}))?",
        text,
    )
    if not match:
        return None
    return Group(
        shape=_value(shapes, match[5]),
        colour=_value(colours, match[4]),
        size=_value(sizes, match[3]),
        count=_value(counts, match[2]) or _value(counts, match[6]) or 1,
        word=match[1],
    )
