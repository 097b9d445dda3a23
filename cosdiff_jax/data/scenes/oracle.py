"""The oracle: plain image analysis that says what is in a picture, with no network to trust.

Every pixel is unmixed into background and one object colour,

    pixel = background + cover (colour - background),    0 <= cover <= 1,

with the colour of the palette that leaves the smallest residual; that holds for soft edges too,
where a nearest-colour rule sees pink between red and white. What is covered by half or more is an
object, cut into connected parts; a part's shape is the one whose rendering at the part's own
place and area overlaps it best.

From a reading follow GenEval's six tasks (Ghosh et al. 2023, section 3) in exact form, the share of
every said attribute that is right, and how much of what the caption left open varies.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from cosdiff_jax.data.scenes.grammar import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIDE,
    SIZES,
    Group,
    Object,
    Scene,
    Spec,
    open_attributes,
    relation_between,
)
from cosdiff_jax.data.scenes.renderer import coverage

LEAST_AREA = 24
"""Covered pixels below which a part is a speck and no object; the smallest star covers 94."""
LEAST_OVERLAP = 0.6
"""Intersection over union below which a part has no shape that a person would name."""
FAR = 60.0
"""RGB distance (of 255) beyond which a border colour is none of the backgrounds."""

TASKS = ("single_object", "two_objects", "counting", "colours", "position", "colour_attribution")
"""GenEval's tasks."""
ATTRIBUTES = ("colour", "shape", "size", "background", "relation", "count")
"""What a caption can say."""

Score = dict[str, float | None]
"""Name to a value in [0, 1]; None where the caption does not ask for it."""

_NAMES = tuple(COLOURS)
_PALETTE = np.array(list(COLOURS.values()), np.float32)
_GROUND_NAMES = tuple(BACKGROUNDS)
_GROUNDS = np.array(list(BACKGROUNDS.values()), np.float32)


def read(image: UInt8[np.ndarray, "X Y 3"] | Float[np.ndarray, "X Y 3"]) -> Scene:
    """Reads a picture back.

    Args:
      image: RGB, either uint8 or float in [-1, 1].

    Returns:
      The scene: objects from top to bottom, then left to right; a shape or a background that
      nobody could name is None. Words are not read.
    """
    pixels = image.astype(np.float32)
    if image.dtype != np.uint8:
        pixels = np.round(np.clip((pixels + 1) * 127.5, 0, 255))
    border = np.concatenate(
        [pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3),
         pixels[2:-2, :2].reshape(-1, 3), pixels[2:-2, -2:].reshape(-1, 3)]
    )  # fmt: skip
    # The median is right as long as objects touch less than half of the border.
    ground = np.median(border, axis=0)
    distance = np.linalg.norm(_GROUNDS - ground[None], axis=-1)
    nearest = int(distance.argmin())
    background = _GROUND_NAMES[nearest] if distance[nearest] < FAR else None

    cover, label = _unmix(pixels, ground)
    objects = [
        _object(pixels, ground, part, others) for part, others in _parts(cover >= 0.5, label)
    ]
    return Scene(background, tuple(sorted(objects, key=lambda item: (item.y, item.x))))


def score(image: UInt8[np.ndarray, "X Y 3"] | Float[np.ndarray, "X Y 3"], spec: Spec) -> Score:
    """Reads a picture and scores it: `score_reading` of `read`."""
    return score_reading(read(image), spec)


def score_reading(reading: Scene, spec: Spec) -> Score:
    """How well a picture does what its caption says.

    The objects that were found are first matched to those that were asked for, such that as much
    as possible agrees. What is not asked for is None; what is not found is wrong.

    * ``colour``, ``shape``, ``size``: share of the said ones that are right;
      ``background``, ``relation``: right or not; ``count``: exactly as many objects as asked for;
      ``empty``: nothing was found; ``all``: everything said is right, and the count.
    * ``single_object``: one object with a said shape: exactly one is there and has it.
      ``two_objects``: two said shapes: exactly two are there and have them.
      ``counting``: "three red stars": exactly three, all as said.
      ``colours``: one object with a said colour: exactly one, colour and (if said) shape right.
      ``position``: two objects in a said relation: exactly two, and the relation holds between
      those meant (known by their shapes if these differ, else by shape and colour as said).
      ``colour_attribution``: two objects with said colours: exactly two, each shape with its own.

    GenEval itself forgives additional objects outside of counting; here they are always wrong.
    """
    matched = match(reading, spec)
    slots = [group for group in spec.groups for _ in range(group.count)]
    found = [item for members in matched for item in members]
    exact = len(reading.objects) == spec.number
    result: Score = {"empty": float(not reading.objects), "count": float(exact)}

    def right(name: str, pairs: Iterable[tuple[Group, Object | None]]) -> list[bool]:
        return [
            item is not None and getattr(item, name) == getattr(group, name)
            for group, item in pairs
            if getattr(group, name) is not None
        ]

    pairs = list(zip(slots, found, strict=True))
    said = {name: right(name, pairs) for name in ("colour", "shape", "size")}
    for name, values in said.items():
        result[name] = sum(values) / len(values) if values else None
    result["background"] = _unless(spec.background, reading.background == spec.background)
    holds = spec.pair and _relation(found) == spec.relation
    result["relation"] = _unless(spec.relation, holds)
    result["all"] = float(
        exact
        and all(map(all, said.values()))
        and result["background"] != 0.0
        and result["relation"] != 0.0
    )

    first = spec.groups[0]
    shapes, colours = all(said["shape"]), all(said["colour"])
    known = [group.shape for group in spec.groups if group.shape is not None]
    coloured = sum(group.colour is not None for group in spec.groups)
    apart = len(set(known)) == 2
    one, two = spec.number == 1, spec.pair
    tasks = {
        "single_object": (one and first.shape, shapes),
        "two_objects": (two and len(known) == 2, shapes),
        "counting": (len(spec.groups) == 1 and not one, shapes and colours),
        "colours": (one and first.colour, shapes and colours),
        "position": (two and spec.relation, holds and shapes and (apart or colours)),
        "colour_attribution": (two and coloured == 2, shapes and colours),
    }
    for name, (asked, good) in tasks.items():
        result[name] = float(exact and bool(good)) if asked else None
    return result


def mean_score(scores: Iterable[Mapping[str, float | None]]) -> dict[str, float]:
    """The mean of every entry over the pictures that it applies to; entries of none are absent."""
    values: dict[str, list[float]] = {}
    for entry in scores:
        for name, value in entry.items():
            if value is not None:
                values.setdefault(name, []).append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def match(reading: Scene, spec: Spec) -> list[list[Object | None]]:
    """The objects found for every group of the spec: as many as its count, None for missing ones.

    The matching with the most said attributes right is taken (a colour or a shape weighs 1, a
    size or a relation less), and of several such the first in reading order.
    """
    ordered = sorted(reading.objects, key=lambda item: (item.y, item.x))
    objects: list[Object | None] = [*ordered[:8]]
    slots = [group for group in spec.groups for _ in range(group.count)]
    objects += [None] * (len(slots) - len(objects))

    def agreement(group: Group, item: Object | None) -> float:
        # Any object is better than none, by less than any attribute weighs.
        weights = {"shape": 1.0, "colour": 1.0, "size": 0.5}
        return 0.0 if item is None else 0.01 + sum(
            weight
            for name, weight in weights.items()
            if getattr(group, name) is not None and getattr(group, name) == getattr(item, name)
        )  # fmt: skip

    table = [[agreement(group, item) for item in objects] for group in slots]

    def total(chosen: tuple[int, ...]) -> float:
        value = sum(table[slot][index] for slot, index in enumerate(chosen))
        if spec.relation is not None:
            value += 0.75 * (_relation([objects[index] for index in chosen]) == spec.relation)
        return value

    if len(spec.groups) == 1:
        # All slots are alike: the best few objects, without trying every order.
        order = sorted(range(len(objects)), key=lambda index: -table[0][index])
        best = tuple(order[: len(slots)])
    else:
        best = max(itertools.permutations(range(len(objects)), len(slots)), key=total)
    chosen = iter(best)
    return [[objects[next(chosen)] for _ in range(group.count)] for group in spec.groups]


def open_values(readings: Sequence[Scene], spec: Spec) -> dict[str, list[str | None]]:
    """What each picture made of each attribute that the caption left open (None: nothing)."""
    names = open_attributes(spec)
    found: dict[str, list[str | None]] = {name: [] for name in names}
    for reading in readings:
        matched = match(reading, spec)
        for name, values in found.items():
            if name == "background":
                values.append(reading.background)
            elif name == "relation":
                values.append(_relation([members[0] for members in matched]))
            else:
                index, attribute = name.split(".")
                members = [getattr(item, attribute) for item in matched[int(index)] if item]
                # The objects of a group share what was left open; a stray one is outvoted.
                values.append(Counter(members).most_common(1)[0][0] if members else None)
    return found


def diversities(readings: Sequence[Scene], spec: Spec) -> dict[str, float]:
    """Normalised entropy, in [0, 1], of each attribute that the caption left open.

    For one open attribute with V possible values, of which K pictures show counts n_v, m in all:

        H = -sum_v (n_v / m) log (n_v / m)        H_max(K, V) = H of K spread evenly over V
        diversity = (m / K) H / H_max(K, V)

    with H_max for K, not m, and the factor m / K, so that pictures in which the attribute could
    not be read count as a lack of variety.

    K is finite, so K independent draws from the true distribution do not reach 1 (some values come
    up twice while others are still missing). Nothing is corrected for that: the very same
    function of K true scenes of the same spec is the number to compare with.

    Returns:
      By the names of ``open_attributes``; empty where there are no two pictures.
    """
    if len(readings) < 2:
        return {}
    possible = open_attributes(spec)
    return {
        name: _evenness(values, possible[name])
        for name, values in open_values(readings, spec).items()
    }


def place_variety(readings: Sequence[Scene], spec: Spec) -> float:
    """Normalised entropy, in [0, 1], of where the one object of a caption stands.

    No caption says it, so it is none of the attributes that ``diversities`` are of. The picture is
    cut into 3 x 3 equal cells; otherwise it is reckoned as one of those with V = 9. NaN for a
    caption of several objects, or of fewer than two pictures.
    """
    if len(readings) < 2 or sum(group.count for group in spec.groups) != 1:
        return math.nan
    found = [match(reading, spec)[0][0] for reading in readings]
    return _evenness([_cell(item) if item else None for item in found], 9)


def _cell(item: Object) -> str:
    x, y = (min(max(int(3 * at / SIDE), 0), 2) for at in (item.x, item.y))
    return f"{x} {y}"


def _evenness(values: Sequence[str | None], possible: int) -> float:
    """(m / K) H / H_max(K, V) of K values, of which m could be read, among V."""
    number = len(values)
    counts = [count for value, count in Counter(values).items() if value is not None]
    even, more = divmod(number, possible)
    most = _entropy([even + 1] * more + [even] * (possible - more))
    return sum(counts) / number * _entropy(counts) / most


def meaningful_diversity(readings: Sequence[Scene], spec: Spec) -> float:
    """The mean of ``diversities``; NaN where nothing is open, or there are no two pictures."""
    found = diversities(readings, spec)
    return math.fsum(found.values()) / len(found) if found else math.nan


def _relation(pair: Sequence[Object | None]) -> str | None:
    first, second = pair
    return relation_between(first, second) if first and second else None


def _entropy(counts: Sequence[int]) -> float:
    whole = sum(counts)
    # A float also where nothing was counted.
    return -math.fsum(n / whole * math.log(n / whole) for n in counts if n)


def _unless(asked: str | None, good: bool) -> float | None:
    return None if asked is None else float(good)


def _unmix(pixels: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cover in [0, 1] and palette index of every pixel."""
    offset = pixels - ground[None, None]
    axes = _PALETTE - ground[None]
    lengths = (axes * axes).sum(-1)
    # A palette colour that equals the background can cover nothing.
    usable = lengths > 40.0**2
    cover = np.clip(offset @ axes.T / np.maximum(lengths, 1.0)[None, None], 0.0, 1.0)
    # |o - c a|^2 = |o|^2 - 2 c o.a + c^2 |a|^2; the first term is the same for all colours.
    residual = cover * cover * lengths[None, None] - 2 * cover * (offset @ axes.T)
    residual[..., ~usable] = np.inf
    label = residual.argmin(-1)
    return np.take_along_axis(cover, label[..., None], -1)[..., 0], label


def _parts(covered: np.ndarray, label: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Connected parts, each with everything that belongs to the other parts."""
    found = []
    pieces, number = _label(covered)
    for index in range(1, number + 1):
        piece = pieces == index
        area = int(piece.sum())
        if area < LEAST_AREA:
            continue
        votes: np.ndarray = np.bincount(label[piece], minlength=len(_NAMES))
        shares = [int(c) for c in np.flatnonzero(votes) if votes[c] >= max(LEAST_AREA, 0.2 * area)]
        if len(shares) > 1:
            # Objects that touch, told apart by colour; stray pixels go to the nearest of them.
            cores = [_largest(piece & (label == c)) for c in shares]
            cores = [core for core in cores if core.sum() >= LEAST_AREA]
            if len(cores) > 1:
                away = np.stack(
                    [np.asarray(ndimage.distance_transform_edt(~core)) for core in cores]
                )
                owner = away.argmin(0)
                found += [piece & (owner == i) for i in range(len(cores))]
                continue
        found.append(piece)
    whole = functools.reduce(np.logical_or, found, np.zeros_like(covered))
    return [(part, whole & ~part) for part in found]


def _label(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The number of its connected part, from 1, for every pixel, and how many there are."""
    pieces = np.zeros(mask.shape, np.int32)
    number: Any = ndimage.label(mask, output=pieces)
    return pieces, int(number)


def _largest(mask: np.ndarray) -> np.ndarray:
    pieces, number = _label(mask)
    if number < 2:
        return mask
    return pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()


def _object(pixels: np.ndarray, ground: np.ndarray, part: np.ndarray, others: np.ndarray) -> Object:
    core = np.asarray(ndimage.binary_erosion(part)).astype(bool)
    inner = pixels[core if core.sum() >= 8 else part]
    colour = np.asarray(np.median(inner, axis=0))
    name = _NAMES[int(np.linalg.norm(_PALETTE - colour[None], axis=-1).argmin())]

    # Its own colour from here on: a model's red need not be the palette's.
    axis = colour - ground
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    top, bottom = max(rows[0] - 2, 0), rows[-1] + 3
    left, right = max(columns[0] - 2, 0), columns[-1] + 3
    window = (slice(top, bottom), slice(left, right))
    # Soft edges reach two pixels beyond the half-covered ones; pixels of others do not count.
    near = ndimage.binary_dilation(part[window], iterations=2) & ~others[window]
    cover = (pixels[window] - ground) @ axis / max(float(axis @ axis), 1.0)
    cover = np.where(near, np.clip(cover, 0.0, 1.0), 0.0).astype(np.float32)
    x = np.arange(left, left + cover.shape[1], dtype=np.float32)[None, :] + 0.5
    y = np.arange(top, top + cover.shape[0], dtype=np.float32)[:, None] + 0.5
    # Noise makes background pixels half a per cent covered each: not part of the area.
    solid = np.where(cover > 0.15, cover, 0.0)
    area = float(solid.sum())
    centre_x, centre_y = float((solid * x).sum() / area), float((solid * y).sum() / area)

    best = (-1.0, "", 0.0, 0.0)
    for shape in SHAPES:
        unit_area, sink = _moments(shape)
        radius = float(np.clip(np.sqrt(area / unit_area), 3.0, 30.0))
        middle = centre_y - sink * radius
        model = coverage(shape, x - np.float32(centre_x), y - np.float32(middle), radius)
        overlap = np.minimum(solid, model).sum() / np.maximum(solid, model).sum()
        best = max(best, (float(overlap), shape, radius, middle))
    overlap, shape, radius, middle = best
    size = min(SIZES, key=lambda size: abs(np.log(SIZES[size] / radius)))
    return Object(shape if overlap >= LEAST_OVERLAP else None, name, size, centre_x, middle)


@functools.cache
def _moments(shape: str) -> tuple[float, float]:
    """Area / radius^2, and how far the centroid lies below the box's centre / radius."""
    radius = 100.0
    steps = np.arange(-110, 111, dtype=np.float32)
    cover = coverage(shape, steps[None, :], steps[:, None], radius)
    area = float(cover.sum())
    return area / radius**2, float((cover * steps[:, None]).sum()) / area / radius
