"""What a scene is, what a caption can say of it, and the exact law between the two.

A scene is a flat background with one to four objects on 64x64 pixels. A `Spec` is the meaning of
a caption: one entry per *group* of alike objects, each attribute either said or ``None``.

**The prior**, given the structure (how many groups, how many objects in each):

    background        uniform over BACKGROUNDS
    shapes, colours   uniform over all assignments in which no two groups have both in common
    sizes             independent, uniform over `allowed_sizes` (one size for a whole group)
    relation          for two single objects: uniform over RELATIONS
    places            uniform over all placements that keep MARGIN pixels between the objects' boxes
                      and to the border, and that make the relation true beyond doubt

    p(scene) = p(background) p(looks) p(sizes) p(relation) p(places | sizes, relation)

Which attributes a caption mentions is drawn without looking at their values, so
p(scene | spec) is that prior restricted to scenes with the said values. The factors are
independent of one another, hence restricting one leaves the others as they are: `sample_scene`
fills what was left open factor by factor, and that *is* the true conditional distribution.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

SIDE = 64
"""Width and height of a picture in pixels."""
MARGIN = 2.0
"""Least distance in pixels between the boxes of two objects, and from a box to the border."""
REACH = 16.0
"""Least distance in pixels between two centres along the axis of their relation."""

SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
COLOURS = {
    "red": (215, 20, 40),
    "green": (25, 150, 55),
    "blue": (30, 70, 225),
    "yellow": (250, 225, 40),
    "orange": (245, 125, 0),
    "purple": (145, 45, 190),
    "pink": (255, 115, 185),
    "cyan": (40, 205, 225),
}
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
    "beige": (232, 215, 180),
}
SIZES = {"small": 8.0, "medium": 11.0, "large": 14.0}
"""Half the side of an object's box, in pixels."""
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

Split = Literal["train", "test"]


@dataclasses.dataclass(frozen=True)
class Object:
    """One object; ``x`` to the right and ``y`` downwards are its box's centre in pixels."""

    shape: str | None
    colour: str | None
    size: str | None
    x: float
    y: float
    word: str | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
    """A whole picture. An attribute is ``None`` only where `oracle.read` could not tell."""

    background: str | None
    objects: tuple[Object, ...]


@dataclasses.dataclass(frozen=True)
class Group:
    """``count`` objects that share shape, colour and size; ``None`` is left unsaid."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    count: int = 1
    word: str | None = None


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a caption says; ``relation`` is that of the first object of a pair to the second."""

    groups: tuple[Group, ...]
    background: str | None = None
    relation: str | None = None

    @property
    def number(self) -> int:
        """How many objects the scene has."""
        return sum(group.count for group in self.groups)

    @property
    def pair(self) -> bool:
        """Whether the scene is two single objects, which stand in a relation, said or not."""
        return [group.count for group in self.groups] == [1, 1]

    @property
    def distinct(self) -> bool:
        """Whether it is a pair, both shapes and both colours are said, and no two are the same."""
        looks = zip(*((group.shape, group.colour) for group in self.groups), strict=True)
        return self.pair and all(len(set(said) - {None}) == 2 for said in looks)


def allowed_sizes(number: int) -> tuple[str, ...]:
    """Sizes that fit: with three or more objects in 64 pixels, no large ones."""
    return ("small", "medium") if number > 2 else tuple(SIZES)


def canonical(spec: Spec) -> Spec:
    """The one form of everything that means the same.

    "A right of B" becomes "B left of A"; groups without a said relation are sorted.
    """
    groups, relation = spec.groups, spec.relation
    if relation in ("right of", "below"):
        groups, relation = groups[::-1], OPPOSITE[relation]
    elif relation is None:
        groups = tuple(sorted(groups, key=_words))
    return Spec(groups, spec.background, relation)


def split_of(spec: Spec) -> Split:
    """The split a spec belongs to: about a tenth of all distinct specs is for testing only."""
    digest = hashlib.sha256(spec_to_json(canonical(spec)).encode()).digest()
    return "test" if digest[0] * 256 + digest[1] < 6554 else "train"


def sample_spec(rng: np.random.Generator, split: Split | None = None) -> Spec:
    """Draws a spec in canonical form, of the given split only if one is named.

    One object 45 %, two 35 % (a pair 26 %, "two ..." 9 %), three 12 % (7 % "three ...") and four
    8 % (5 % "four ..."). Shapes are said in 87 % of cases, colours in 80 %, sizes in 35 % (15 % in
    lists of three and four), backgrounds in 35 %, the relation of a pair in 75 %.
    """
    while True:
        counts = _STRUCTURES[rng.choice(len(_STRUCTURES), p=_STRUCTURE_WEIGHTS)]
        scene = _attributes(Spec(tuple(Group(count=count) for count in counts)), rng)
        size_said = 0.15 if len(counts) > 2 else 0.35
        spec = Spec(
            tuple(
                Group(
                    shape=group.shape if rng.random() < 0.87 else None,
                    colour=group.colour if rng.random() < 0.80 else None,
                    size=group.size if rng.random() < size_said else None,
                    count=group.count,
                )
                for group in scene.groups
            ),
            background=scene.background if rng.random() < 0.35 else None,
            relation=scene.relation if rng.random() < 0.75 else None,
        )
        # "A circle and a circle" is no caption anybody writes. Redrawing everything, not only
        # the mask, keeps the law of the scene given the spec as the module says.
        if len(set(spec.groups)) < len(spec.groups):
            continue
        if split is None or split_of(spec) == split:
            return canonical(spec)


def sample_scene(spec: Spec, rng: np.random.Generator) -> Scene:
    """Draws from the true conditional distribution of scenes given the spec (see the module).

    Objects come in the order of the spec's groups.

    Raises:
      ValueError: the spec asks for something no scene has, such as three large objects.
    """
    check(spec)
    full = _attributes(spec, rng)
    sizes = [group.size for group in full.groups for _ in range(group.count)]
    centres = _places(np.array([SIZES[str(size)] for size in sizes]), full.relation, rng)
    members = [group for group in full.groups for _ in range(group.count)]
    return Scene(
        full.background,
        tuple(
            Object(group.shape, group.colour, group.size, float(x), float(y), group.word)
            for group, (x, y) in zip(members, centres, strict=True)
        ),
    )


def open_attributes(spec: Spec) -> dict[str, int]:
    """What the caption left open: attribute name to its number of possible values.

    Names are "background", "relation" (of a pair) and "0.shape", "0.colour", "0.size",
    "1.shape" ... for the groups of the spec in order. Places are open always and not listed.
    """
    found = {}
    if spec.background is None:
        found["background"] = len(BACKGROUNDS)
    if spec.pair and spec.relation is None:
        found["relation"] = len(RELATIONS)
    values = {
        "shape": len(SHAPES),
        "colour": len(COLOURS),
        "size": len(allowed_sizes(spec.number)),
    }
    for index, group in enumerate(spec.groups):
        for name, number in values.items():
            if getattr(group, name) is None:
                found[f"{index}.{name}"] = number
    return found


def describe(scene: Scene) -> Spec:
    """The canonical spec that says everything about a scene but the exact places.

    Objects that look the same become one group.
    """
    groups: dict[tuple[str | None, ...], Group] = {}
    for item in scene.objects:
        look = (item.shape, item.colour, item.size, item.word)
        before = groups.get(look, Group(item.shape, item.colour, item.size, 0, item.word))
        groups[look] = dataclasses.replace(before, count=before.count + 1)
    spec = Spec(tuple(groups.values()), scene.background)
    if spec.pair:
        spec = dataclasses.replace(spec, relation=relation_between(*scene.objects))
    return canonical(spec)


def relation_between(first: Object, second: Object) -> str:
    """The relation along the axis on which the two centres lie further apart."""
    dx, dy = second.x - first.x, second.y - first.y
    if abs(dx) >= abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def check(spec: Spec) -> None:
    """Raises ValueError, in one line, for a spec that no scene of the prior fulfils."""
    if not spec.groups or not 1 <= spec.number <= 4 or min(g.count for g in spec.groups) < 1:
        raise ValueError(f"a scene has one to four objects, not {spec.number}")
    if spec.background is not None and spec.background not in BACKGROUNDS:
        raise ValueError(f"background {spec.background!r} is none of {', '.join(BACKGROUNDS)}")
    if spec.relation is not None and (not spec.pair or spec.relation not in RELATIONS):
        raise ValueError(f"relation {spec.relation!r} needs two single objects")
    tables = {"shape": SHAPES, "colour": COLOURS, "size": allowed_sizes(spec.number)}
    for group in spec.groups:
        for name, table in tables.items():
            value = getattr(group, name)
            if value is not None and value not in table:
                raise ValueError(f"{name} {value!r} is none of {', '.join(table)} here")
    looks = [(g.shape, g.colour) for g in spec.groups if g.shape and g.colour]
    if len(set(looks)) < len(looks):
        raise ValueError("two groups of one scene have the same shape and colour: use a count")


def spec_to_json(spec: Spec) -> str:
    """JSON with sorted keys, the same for equal specs."""
    return json.dumps(dataclasses.asdict(spec), sort_keys=True)


def spec_from_json(text: str) -> Spec:
    """The inverse of `spec_to_json`."""
    fields = json.loads(text)
    return Spec(**{**fields, "groups": tuple(Group(**group) for group in fields["groups"])})


def scene_to_json(scene: Scene) -> str:
    """JSON with sorted keys, the same for equal scenes."""
    return json.dumps(dataclasses.asdict(scene), sort_keys=True)


def scene_from_json(text: str) -> Scene:
    """The inverse of `scene_to_json`."""
    return _scene(json.loads(text))


def scenes_to_json(scenes: Iterable[Scene]) -> str:
    """JSON list of scenes, with sorted keys."""
    return json.dumps([dataclasses.asdict(scene) for scene in scenes], sort_keys=True)


def scenes_from_json(text: str) -> tuple[Scene, ...]:
    """The inverse of `scenes_to_json`."""
    return tuple(map(_scene, json.loads(text)))


def _scene(fields: dict[str, Any]) -> Scene:
    return Scene(fields["background"], tuple(Object(**item) for item in fields["objects"]))


# Counts of the groups, and how often each structure is drawn.
_STRUCTURES = ((1,), (1, 1), (2,), (3,), (1, 1, 1), (4,), (1, 1, 1, 1))
_STRUCTURE_WEIGHTS = (0.45, 0.26, 0.09, 0.07, 0.05, 0.05, 0.03)


def _words(group: Group) -> tuple[Any, ...]:
    words = (group.shape, group.colour, group.size, group.word)
    return (group.count, *(word or "" for word in words))


def _attributes(spec: Spec, rng: np.random.Generator) -> Spec:
    """The spec with everything that was left open drawn from the prior."""
    sizes = allowed_sizes(spec.number)
    while True:
        groups = tuple(
            dataclasses.replace(
                group,
                shape=group.shape or SHAPES[rng.integers(len(SHAPES))],
                colour=group.colour or _COLOUR_NAMES[rng.integers(len(_COLOUR_NAMES))],
                size=group.size or sizes[rng.integers(len(sizes))],
            )
            for group in spec.groups
        )
        # Rejection keeps the law uniform over the assignments that are left.
        if len({(group.shape, group.colour) for group in groups}) == len(groups):
            break
    background = spec.background or _BACKGROUND_NAMES[rng.integers(len(_BACKGROUND_NAMES))]
    relation = spec.relation
    if spec.pair and relation is None:
        relation = RELATIONS[rng.integers(len(RELATIONS))]
    return Spec(groups, background, relation)


_COLOUR_NAMES = tuple(COLOURS)
_BACKGROUND_NAMES = tuple(BACKGROUNDS)


def _places(radii: np.ndarray, relation: str | None, rng: np.random.Generator) -> np.ndarray:
    """Centres [n, 2] (x, y), uniform over all placements the prior allows, by rejection."""
    number = len(radii)
    low = (radii + MARGIN)[None, :, None]
    if number == 1:
        return rng.uniform(low[0], SIDE - low[0], (1, 2))
    gaps = radii[:, None] + radii[None, :] + MARGIN
    first, second = np.triu_indices(number, 1)
    for _ in range(1000):
        # One large draw is cheaper than many small ones: four medium objects fit once in ~150.
        tries = 64 if number == 2 else 512
        centres = rng.uniform(low, SIDE - low, (tries, number, 2))
        apart = np.abs(centres[:, first] - centres[:, second]).max(-1)
        good = (apart >= gaps[first, second][None, :]).all(-1)
        if relation is not None:
            along, across, sign = _AXES[relation]
            delta = centres[:, 1] - centres[:, 0]
            distance = sign * delta[:, along]
            # Half as far again along the axis as across it: nobody could say "above" instead.
            good &= (distance >= REACH) & (distance >= 1.5 * np.abs(delta[:, across]))
        if good.any():
            return centres[np.argmax(good)]
    raise ValueError(f"no room for objects of radii {radii.tolist()} on {SIDE} pixels")


# Relation: axis along, axis across, sign of second minus first.
_AXES = {"left of": (0, 1, 1), "right of": (0, 1, -1), "above": (1, 0, 1), "below": (1, 0, -1)}
