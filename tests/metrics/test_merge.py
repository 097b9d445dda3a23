"""What two hosts saw of a set, put together, is what one that saw all of it has."""

import ast
import pathlib

import numpy as np
import pytest

from cosdiff_jax.data.scenes.grammar import Group, Spec
from cosdiff_jax.metrics import (
    clip_score,
    consistency,
    cosine,
    digits,
    frechet,
    intra_prompt,
    manifold,
    mmd,
    psnr,
    questions,
    retrieval,
    scenes,
    ssim,
    text_rendering,
    vendi,
)

ROOT = pathlib.Path(clip_score.__file__).parent
# Of these there is no state: intervals, fronts, and a distance of two pictures.
STATELESS = {"__init__", "bootstrap", "jackknife", "pareto", "lpips"}
P = 6


def of_any(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


GROUPS = pictures(P, 2, 64, 64, 3)
SHADES = pictures(P, 2, 8, 8, 1)
SPECS = [Spec((Group(("star", None)[p % 2], "red"),)) for p in range(P)]
WORDS = ["OPEN", "shut", "7", "sale", "no", "exit"]


class Bound:
    """A metric whose init or result takes something more."""

    def __init__(self, metric, init=(), result=()):
        self.metric, self.first, self.last = metric, init, result

    def __getattr__(self, name):
        return getattr(self.metric, name)

    def init(self):
        return self.metric.init(*self.first)

    def result(self, state):
        return self.metric.result(state, *self.last)


def answers(images, asked):
    return np.outer(images.mean(axis=(1, 2, 3)) / 255, np.ones(len(asked)))


# name -> the metric, and what its update takes of prompts p.
METRICS = {
    "clip_score": (clip_score, lambda p: (of_any(P, 2, 4)[p], of_any(P, 4, seed=1)[p])),
    "consistency": (consistency, lambda p: (of_any(2, P, 3)[:, p], of_any(P, 2, 4, seed=1)[p])),
    "cosine": (cosine, lambda p: (of_any(P, 3, 4)[p],)),
    "digits": (digits.DigitMetric(), lambda p: (SHADES[p], np.arange(P, dtype=np.int32)[p])),
    "frechet": (
        Bound(frechet, (3,), (frechet.update(frechet.init(3), of_any(9, 3, seed=1)),)),
        lambda p: (of_any(P, 3)[p],),
    ),
    "intra_prompt": (Bound(intra_prompt, (), ("x",)), lambda p: (of_any(P, 3, 3)[p],)),
    "manifold": (
        manifold.Manifold(neighbours=2),
        lambda p: (of_any(P, 3)[p], of_any(P, 3, seed=1)[p]),
    ),
    "mmd": (mmd.Discrepancy(), lambda p: (of_any(P, 3)[p], of_any(P, 3, seed=1)[p])),
    "psnr": (psnr, lambda p: (of_any(P, 4, 4, 1)[p], of_any(P, 4, 4, 1, seed=1)[p])),
    "questions": (
        questions.Questions(answers=answers),
        lambda p: (GROUPS[p], [["Is it?"] * (1 + n % 2) for n in range(P)][p]),
    ),
    "retrieval": (retrieval, lambda p: (of_any(P, 3)[p], of_any(P, 3, seed=1)[p])),
    "scenes": (scenes, lambda p: (GROUPS[p], SPECS[p])),
    "ssim": (ssim, lambda p: (of_any(P, 12, 12, 1)[p], of_any(P, 12, 12, 1, seed=1)[p])),
    "text_rendering": (text_rendering.TextRendering(), lambda p: (WORDS[p], WORDS[::-1][p])),
    "vendi": (vendi.Vendi(), lambda p: (of_any(P, 3, 4)[p],)),
}


def test_every_metric_is_here():
    files = {path.stem for path in ROOT.glob("*.py")}
    assert files - STATELESS == METRICS.keys()
    for name in sorted(files - STATELESS):
        tree = ast.parse((ROOT / f"{name}.py").read_text())
        made = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert {"init", "update", "merge", "result"} <= made, name


@pytest.mark.parametrize("name", METRICS)
def test_parts_give_what_the_whole_gives(name):
    metric, of = METRICS[name]
    # Parts of one size, so that what is compiled is compiled once.
    parts = [of(slice(first, first + 2)) for first in range(0, P, 2)]
    whole = metric.init()
    for part in parts:
        whole = metric.update(whole, *part)
    a, b, c = (metric.update(metric.init(), *part) for part in parts)
    kept = repr(a)
    merged = metric.merge(metric.merge(a, metric.init()), metric.merge(b, c))
    batch = metric.update(metric.init(), *of(slice(0, P)))
    batch, *others = (metric.result(state) for state in (batch, whole, merged))
    for other in others:
        both = zip(batch, other, strict=True) if isinstance(batch, tuple) else [(batch, other)]
        for one, found in both:
            assert one.keys() == found.keys() and one
            values = list(one.values())
            assert [found[key] for key in one] == pytest.approx(values, rel=1e-6, abs=1e-6)
    assert repr(a) == kept  # pure: neither part has changed
