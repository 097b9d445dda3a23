"""The before/after table: what each measure means, which way is better, what a run changed."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, SupportsFloat, TypeAlias

from cosdiff_jax.metrics import bootstrap
from cosdiff_jax.metrics.bootstrap import Interval

Better: TypeAlias = Literal["higher", "lower", "true", ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the before/after table.

    ``better`` says what to wish for: a ``higher`` value, a ``lower`` one, or one nearer to the
    ``true`` distribution's own (a cosine far below that of real pictures is no success), or ""
    where nothing is known of it. ``change`` is that from before to after with its interval, where
    single prompts tell it. A ``detail`` is folded away. ``None`` and NaN show as "n/a".
    """

    name: str
    before: float | None
    after: float | None
    true: float | None
    better: Better
    meaning: str = ""
    percent: bool = False
    detail: bool = False
    change: Interval | None = None

    def verdict(self) -> Literal["better", "worse", "unchanged", "unsure", ""]:
        """Compare after with before, at the precision shown; "" where a value is missing.

        A change whose interval holds 0 is "unsure".
        """
        before, after, true = known(self.before), known(self.after), known(self.true)
        if before is None or after is None or not self.better:
            return ""
        if self.better != "true":
            gain = (after - before) * (1 if self.better == "higher" else -1)
        elif true is None:
            return ""
        else:
            gain = abs(before - true) - abs(after - true)
        if abs(gain) < 0.0005:
            return "unchanged"
        if self.change is not None and self.change.low <= 0 <= self.change.high:
            return "unsure"
        return "better" if gain > 0 else "worse"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """How a measure is told to a reader; the fields are those of ``Row``."""

    title: str
    better: Better
    meaning: str = ""
    percent: bool = False
    detail: bool = False


def _share(title: str, meaning: str = "", *, detail: bool = True) -> Measure:
    return Measure(title=title, better="higher", meaning=meaning, percent=True, detail=detail)


ROWS = {
    "mean_cosine": Measure(
        title="Intra-prompt mean cosine",
        better="true",
        meaning="how alike the samples of one prompt are; 1 = identical",
    ),
    "top_cosine": Measure(
        title="Intra-prompt top-k cosine",
        better="true",
        meaning="the same, over the most similar 20 % of the pairs, or top_percent of this run",
    ),
    **{
        f"{which}_cosine_{view}": Measure(
            title=f"Intra-prompt {title} cosine, {view}", better="true", detail=True
        )
        for view in ("latent", "latent_clip", "hidden", "vgg")
        for which, title in (("mean", "mean"), ("top", "top-k"))
    },
    **{
        f"vendi_{view}": Measure(title=f"Vendi score, {view}", better="true", detail=True)
        for view in ("latent", "latent_clip", "hidden", "vgg")
    },
    "vendi": Measure(
        title="Vendi score",
        better="true",
        meaning="how many of the samples of one prompt are different; 1 = identical",
        detail=True,
    ),
    "lpips_mean": Measure(
        title="LPIPS among a prompt's pictures",
        better="true",
        meaning="how unlike they look; 0 = identical",
    ),
    "lpips_variance": Measure(title="LPIPS, variance over the pairs", better="true", detail=True),
    "lpips_unweighted_mean": Measure(
        title="Unweighted LPIPS among a prompt's pictures",
        better="true",
        meaning="how unlike they look to VGG; not the published number",
        detail=True,
    ),
    "lpips_unweighted_variance": Measure(
        title="Unweighted LPIPS, variance over the pairs", better="true", detail=True
    ),
    "clip_score": Measure(
        title="CLIP-score", better="higher", meaning="do picture and caption agree?"
    ),
    "questions_yes": _share(
        "Questions answered yes",
        "mean probability of yes, by the answers of this run",
        detail=False,
    ),
    "text_accuracy": _share(
        "Text accuracy",
        "1 - edits per character asked for; below 0 where far too much is written",
        detail=False,
    ),
    "text_hit_rate": _share("Text hit rate", "characters asked for that were read, in their order"),
    "text_availability": _share("Text availability", "pictures whose text was read without error"),
    "all": _share(
        "Oracle accuracy",
        "share of pictures in which all that the caption says is right",
        detail=False,
    ),
    "classifier_accuracy": _share(
        "Recognised as asked",
        "share read by a classifier that was fitted on real pictures",
        detail=False,
    ),
    "meaningful_diversity": Measure(
        title="Meaningful diversity",
        better="true",
        meaning="variety in what the caption left open; 1 = every choice equally often",
    ),
    "colour": _share("Colour right"),
    "shape": _share("Shape right"),
    "size": _share("Size right"),
    "background": _share("Background right"),
    "relation": _share("Relation right"),
    "count": _share("Count right"),
    "single_object": _share("Task: single object"),
    "two_objects": _share("Task: two objects"),
    "counting": _share("Task: counting"),
    "colours": _share("Task: colours"),
    "position": _share("Task: position"),
    "colour_attribution": _share("Task: colour attribution"),
    "empty": Measure(
        title="Empty pictures",
        better="lower",
        meaning="nothing is found",
        percent=True,
        detail=True,
    ),
    **{
        f"variety_{name}": Measure(
            title=f"Variety of {name}", better="true", meaning="where left open", detail=True
        )
        for name in ("shape", "colour", "size", "background", "relation", "place")
    },
    "vendi_q0.5": Measure(title="Vendi score, q = 0.5", better="true", detail=True),
    "vendi_q2": Measure(title="Vendi score, q = 2", better="true", detail=True),
    "vendi_qinf": Measure(title="Vendi score, q = inf", better="true", detail=True),
    "frechet": Measure(
        title="Frechet distance",
        better="lower",
        meaning="to real pictures of the same prompts, over the features and with the number of "
        "pictures of this run; no FID",
    ),
    "frechet_infinity": Measure(
        title="Frechet distance, n to infinity", better="lower", meaning="extrapolated", detail=True
    ),
    "mmd": Measure(
        title="MMD x 1000",
        better="lower",
        meaning="biased, CMMD's form, over the features of this run",
        detail=True,
    ),
    "mmd_unbiased": Measure(title="MMD x 1000, unbiased", better="lower", detail=True),
    "precision": _share("Precision", "share of pictures among the real ones"),
    "recall": _share("Recall", "share of real pictures among these"),
    "density": Measure(title="Density", better="true", detail=True),
    "coverage": _share("Coverage", "share of real pictures with one of these near"),
    "nearest_training": Measure(
        title="Nearest training picture",
        better="true",
        meaning="its cosine; far above that of true pictures, the model has learnt by heart",
        detail=True,
    ),
    "evaluations": Measure(
        title="Model evaluations",
        better="lower",
        meaning="per prompt; guidance asks twice, or more",
    ),
    "seconds": Measure(title="Seconds", better="lower", meaning="per prompt, median"),
    "peak_mib": Measure(
        title="Peak memory, MiB",
        better="lower",
        meaning="of the fullest device where its backend counts, else of the whole process, as "
        "peak_memory says; of later columns no less",
    ),
    "retrieval@1": _share("Retrieval@1", "held-out pairs matched, both ways", detail=False),
    "image_to_text@1": _share("Image to text@1"),
    "text_to_image@1": _share("Text to image@1"),
    "psnr": Measure(title="PSNR", better="higher", meaning="decibels, to the original"),
    "ssim": Measure(title="SSIM", better="higher", meaning="structure shared with the original"),
    "accuracy": _share("Next token right", detail=False),
    "perplexity": Measure(title="Perplexity", better="lower"),
    "loss": Measure(title="Loss", better="lower", meaning="held-out data"),
    "flow": Measure(title="Flow loss", better="lower", meaning="held-out data"),
    "mse": Measure(title="Squared error", better="lower", detail=True),
    "mae": Measure(title="Absolute error", better="lower", detail=True),
    "anchor": Measure(title="Distance to the base model", better="", detail=True),
}
"""Known measures by name, in the order of the page."""


def table(
    before: Mapping[str, SupportsFloat],
    after: Mapping[str, SupportsFloat],
    true: Mapping[str, SupportsFloat],
    change: Mapping[str, Interval] | None = None,
) -> list[Row]:
    """Rows for every measure that ``before`` or ``after`` has, known ones first and in order.

    An unknown name is shown as it is, folded with the details, and not judged; only a Frechet
    distance is known whatever its features and number of pictures: ``frechet_scenes_clip_n256``.
    """
    names = [name for name in ROWS if name in before or name in after]
    names += [name for name in {**before, **after} if name not in ROWS]
    rows = []
    for name in names:
        measure = ROWS.get(name) or _frechet(name)
        measure = measure or Measure(title=name.replace("_", " "), better="", detail=True)
        rows.append(
            Row(
                name=measure.title,
                before=_float(before.get(name)),
                after=_float(after.get(name)),
                true=_float(true.get(name)),
                better=measure.better,
                meaning=measure.meaning,
                percent=measure.percent,
                detail=measure.detail,
                change=(change or {}).get(name),
            )
        )
    return rows


def changes(
    before: Mapping[Any, Mapping[str, float]], after: Mapping[Any, Mapping[str, float]]
) -> dict[str, Interval]:
    """What each measure changed by, after - before, with 95 % intervals over the prompts.

    Args:
      before: prompt -> measures by name; what cannot be said of one is absent there.
      after: the same; only prompts that both have count.
    """
    found = {}
    for name in dict.fromkeys(name for table in before.values() for name in table):
        old, new = (
            {key: table[name] for key, table in side.items() if name in table}
            for side in (before, after)
        )
        interval = bootstrap.change(old, new)
        if interval is not None:
            found[name] = interval
    return found


def summarise(rows: Sequence[Row]) -> str:
    """The table in a paragraph, with a warning where variety was bought with broken pictures."""
    shown = [row for row in rows if not row.detail]
    if not shown:
        return "No measurements were made."
    sentences = []
    for verdict, opening in (
        ("better", "Better after training"),
        ("worse", "Worse"),
        ("unsure", "Too little to be told from chance"),
        ("unchanged", "Unchanged"),
        ("", "Also measured"),
    ):
        parts = []
        for row in shown:
            if row.verdict() == verdict:
                true = "" if known(row.true) is None else f" (true {show(row, row.true)})"
                change = f"{show(row, row.before)} → {show(row, row.after)}"
                if verdict == "unchanged":
                    change = show(row, row.after)
                parts.append(f"{inner(row.name)} {change}{true}")
        if parts:
            sentences.append(f"{opening}: {', '.join(parts)}.")
    lost = [inner(row.name) for row in shown if row.better != "true" and row.verdict() == "worse"]
    gained = [inner(row.name) for row in rows if row.better == "true" and row.verdict() == "better"]
    if lost and gained:
        sentences.append(
            f"Since {_and(lost)} got worse, part of the gain in {_and(gained)} may be damage "
            "rather than variety: look at the pictures."
        )
    return " ".join(sentences)


def show_change(row: Row) -> str:
    """What the row changed by, and its interval; "" where single prompts do not tell it."""
    if row.change is None:
        return ""
    value, low, high = signed(row.change, percent=row.percent)
    return f"{value} ({low} to {high})"


def signed(change: Interval, *, percent: bool) -> tuple[str, str, str]:
    """A change and the ends of its interval as pages print them."""
    factor, digits = (100, 1) if percent else (1, 3)
    if not percent and all(x == round(x) for x in change):
        digits = 0  # a count
    value, low, high = (f"{factor * x:+.{digits}f}".replace("-", "−") for x in change)
    return value, low, high


def show(row: Row, value: float | None) -> str:
    """A value as the row prints it."""
    value = known(value)
    if value is None:
        return "n/a"
    # Nothing less than nothing: 0.0 takes the sign from what rounds to -0.
    return f"{round(100 * value, 1) + 0.0:.1f} %" if row.percent else f"{round(value, 3) + 0.0:.3f}"


def _frechet(name: str) -> Measure | None:
    told = re.fullmatch(r"frechet_(.+)_n(\d+)", name)
    if told is None:
        return None
    title = f"Frechet distance of {int(told[2]):,} pictures, {told[1]} features"
    return dataclasses.replace(ROWS["frechet"], title=title)


def _float(value: SupportsFloat | None) -> float | None:
    return None if value is None else float(value)


def known(value: float | None) -> float | None:
    """The value, or None where it is not a number."""
    return None if value is None or not math.isfinite(value) else float(value)


def inner(name: str) -> str:
    """A measure's title inside a sentence: "CLIP-score" and names of people keep their capitals."""
    proper = name[1:2].isupper() or name.startswith(("Frechet", "Vendi"))
    return name if proper else name[:1].lower() + name[1:]


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
