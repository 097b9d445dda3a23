"""The Frechet distance over the number of pictures: it falls to what infinitely many would have."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from cosdiff_jax.metrics import frechet
from cosdiff_jax.report import figures
from cosdiff_jax.survey import Surveyed

# Numbers of pictures at which a distance is taken, evenly spaced from half of them up.
POINTS = 15


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """A Frechet distance over the number of pictures.

    Attributes:
      sizes: numbers of pictures, the last all of them.
      distances: of random subsets of these sizes.
      line: the bias fitted to them, whose value is free of it; None of fewer pictures than fill
        the features' covariance.
    """

    sizes: list[int]
    distances: np.ndarray
    line: frechet.Line | None


def curve(surveyed: Surveyed, reference: Surveyed | None) -> Curve | None:
    """The Frechet distance over the number of pictures; None where nothing is compared.

    The line is ``frechet.infinity``'s own.
    """
    f, g = surveyed.f, None if reference is None else reference.f
    if f is None or g is None or min(len(f) // 2, len(g)) < 2:
        return None
    width = f.shape[1]
    real = frechet.update(frechet.init(width), g)
    sizes = sorted({int(size) for size in np.linspace(len(f) // 2, len(f), POINTS)})
    distances = frechet.curve(f, real, sizes)
    line = frechet.extrapolate(sizes, distances) if len(f) >= 4 * width else None
    return Curve(sizes=sizes, distances=distances, line=line)


def draw(
    folder: Path, curves: Mapping[str, Curve | None], eye: str | None
) -> figures.Figure | None:
    """The distances as marks and their lines, a colour for each column."""
    there = {name: curve for name, curve in curves.items() if curve is not None}
    if not there:
        return None

    def paint(axes: Axes) -> None:
        others = [name for name in there if name != "true"]
        for name, curve in there.items():
            true = name == "true"
            index = 0 if true else others.index(name)
            colour = figures.GREY if true else figures.COLOURS[index % len(figures.COLOURS)]
            mark = "*" if true else figures.MARKS[index % len(figures.MARKS)]
            axes.plot(curve.sizes, curve.distances, mark, color=colour, markersize=4, label=name)
            if curve.line is not None:
                fitted = [curve.line.value + curve.line.slope / n for n in curve.sizes]
                axes.plot(curve.sizes, fitted, color=colour, linewidth=1)
                axes.axhline(curve.line.value, color=colour, linewidth=0.8, linestyle=":")
        axes.set_xlabel("Pictures n")
        axes.set_ylabel("Frechet distance")
        figures.legend(axes)

    rows = [
        [name, n, distance, None if c.line is None else c.line.value + c.line.slope / n]
        for name, c in there.items()
        for n, distance in zip(c.sizes, c.distances, strict=True)
    ]
    fitted = any(curve.line is not None for curve in there.values())
    lines = "; the line d + b / n fitted to it, and d, dotted" if fitted else ""
    title = f"Frechet distance of n pictures, {eye} features{lines}"
    heads = ["column", "n", "frechet", "fitted"]
    return figures.save(folder, "frechet_by_n", title, paint, [heads, *rows])
