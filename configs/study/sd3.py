"""Which way to train a flow is best? The 61 formulations of SD3's study in its 24 settings.

python -m cosdiff_jax.study --config=configs/study/sd3.py:twelve --workdir=studies/sd3 --only=scenes
python -m cosdiff_jax.evaluate --study=studies/sd3

A formulation is trained once on each of two data sets and drawn from in 24 settings: EMA on and
off, the data sets, and six samplers, which are 50 steps at guidance 1.0, 2.5 and 5.0 and 5, 10 and
25 steps at 5.0 (Esser et al. 2024, section 5.1, with Scenes and digits for ImageNet and CC12M).
Everything but the formulation is the same for all: network, optimizer, a constant rate (a rate that
falls to nothing does an average's work), the number of steps. All are drawn from by DDIM, which on
rectified flow is Euler's rule and is exact on every path for a network that is sure of its picture.
EDM's sigma_data is 1 on Scenes, whose latents have unit variance (published: 0.5). "FID" is a
Frechet distance in the features of the embedded CLIP; the digits, which it has not learnt to see,
are judged by a classifier's accuracy and by how far their diversity is from the real ones'. A rank
over all settings mixes the two.

``:twelve`` takes twelve formulations that were chosen before any was trained: each of the eleven
families, and of ``rf/lognorm`` both that the paper names. A Scenes training of 500 steps took 12
minutes on one slow core of an AMD EPYC, and a drawing of 128 pictures one: on two cores, a share
each (``--shard=0 --shards=2``), twelve of them and two more seeds of five take some five hours.
``--only`` picks trainings, by their whole name where there is one of that name; more seeds of the
best are

    ... --config.seeds="(0,1,2)" --only="scenes eps/linear" --only="scenes rf/lognorm(0.00,1.00)"

and compute nothing again that is there. ``:tiny`` is for tests.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import formulations as published

_FLOW = "objective.flow_matching"

TWELVE = (
    *("eps/linear", "v/linear", "eps/cos", "v/cos", "rf", "rf/cosmap"),
    *("rf/lognorm(0.00,1.00)", "rf/lognorm(0.50,0.60)", "rf/mode(1.29)"),
    *("edm(-1.20,1.20)", "edm/rf", "edm/cos"),
)
# (steps, guidance)
SAMPLERS = ((50, 1.0), (50, 2.5), (50, 5.0), (5, 5.0), (10, 5.0), (25, 5.0))

# Seen with 10 steps of 8 pictures, a run costs little more than its steps.
_LOOK = ("sample.prompts=4", "sample.shown=4", "sample.num=2", "sample.steps=10")
_SAME = ("optimizer.shape=constant", "optimizer.rate=1e-3", "sample.solver.name=ddim", *_LOOK)
# Data set -> recipe, and the changes that make its size.
_DATA: dict[str, tuple[str, tuple[str, ...]]] = {
    "scenes": (
        "configs/fusion_base.py",
        (
            *("steps=500", "checkpoint.every=250", "sample.every=500"),
            *("data.scenes.folder=datasets/scenes_study", "data.scenes.train=12000"),
            *("data.scenes.stored=2", "backbone.fuse_dit.patch=2", "optimizer.ema.decay=0.99"),
            f"{_FLOW}.parameterization.edm.sigma_data=1.0",  # latents have unit variance
            *_SAME,
        ),
    ),
    "digits": (
        "configs/digits_div.py",
        (
            *("steps=1500", "checkpoint.every=500", "sample.every=1500"),
            *(f"{_FLOW}.diversity.name=none", "optimizer.ema.decay=0.99"),
            *_SAME,
        ),
    ),
}
_TINY: dict[str, tuple[str, tuple[str, ...]]] = {
    "scenes": ("configs/fusion_base.py:tiny", ("steps=2", "data.prompts=4")),
    "digits": ("configs/digits_div.py:tiny", ("steps=2", f"{_FLOW}.diversity.name=none")),
}


def formulations() -> dict[str, tuple[str, ...]]:
    """The 61 by their published names, as changes to a recipe."""
    named = {name: published.changes(name) or {} for name in published.STUDY}
    return {name: tuple(f"{f}={v}" for f, v in of.items()) for name, of in named.items()}


def get_config(preset: str = ""):
    """The grid."""
    names, data, samplers, num = tuple(formulations()), _DATA, SAMPLERS, 4
    if preset == "twelve":
        names = TWELVE
    elif preset == "tiny":
        names, data = ("eps/linear", "rf/lognorm(0.00,1.00)"), _TINY
        samplers, num = ((1, 1.0), (2, 2.0)), 2
    elif preset:
        raise ValueError(f"configs/study/sd3.py has no preset {preset!r}; there are twelve, tiny")
    ways = formulations()
    trainings: list[dict[str, Any]] = [
        dict(
            name=f"{source} {name}",
            labels=dict(formulation=name, data=source),
            recipe=recipe,
            flags=(*size, *ways[name]),
        )
        for source, (recipe, size) in data.items()
        for name in names
    ]
    draws: list[dict[str, Any]] = [
        dict(method="independent", guidance=guidance, num=num, steps=steps, ema=ema)
        for steps, guidance in samplers
        for ema in (True, False)
    ]
    return ConfigDict(
        dict(
            trainings=trainings,  # labels: columns of the table; flags: changes to the recipe
            draws=draws,
            seeds=(0,),
            prompts=4 if preset == "tiny" else 32,  # held-out prompts of a drawing
        )
    )
