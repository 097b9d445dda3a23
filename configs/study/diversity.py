"""Which way to different pictures is worth what? The embedded base model, trained and not.

python -m cosdiff_jax.study --config=configs/study/diversity.py:fraction --workdir=studies/diversity
python -m cosdiff_jax.evaluate --study=studies/diversity

Most trainings are fine-tunings of the base model (``configs/fusion_div.py``, 42 steps of 32
pictures): over lambda, the weight of the diversity term, from 0, and at the recipe's own lambda
over K, the pictures of a prompt, with as many fewer prompts. All read the same pictures, 16 of each
prompt. Six small models from scratch (``configs/fusion_base.py``, 1,000 steps) tell how
the caption is best read: deep and shallow fusion by self- and by cross-attention, and deep fusion
that reads the upper 4 or 2 of the language model's 6 layers. These six are trained without any
term, so that only fine-tunings of the embedded base make groups with losses: a term needs a model
that draws already, and these have 1,000 steps from nothing. Every training is drawn from in every
way of ``draws``, for every seed.

On two CPU cores a training should take about seven minutes and a drawing of 64 prompts about five.
That makes 54 trainings and 399 drawings 40 hours, an estimate. ``:fraction`` was chosen before
any of it was run: the lambdas, K of 2, 8 and 16, and the recipe's own mixture with alignment, drawn
from in one way, and the base model in four; 30 trainings and 42 drawings, 7 hours. It is a part
of the whole, in the same folder: what is there is not computed again. The rows that numbers are
taken from belong in ``benchmarks/results/study/rows.parquet``. ``:tiny`` is for tests.
"""

from typing import Any

from ml_collections import ConfigDict

_TERM = "objective.flow_matching.diversity.cosine.schedule.linear.end"
# The recipe's own, said because rows are found again by what is said: those of a recipe whose
# gradient still passed through the states of a rollout are others.
_DETACHED = "objective.flow_matching.prediction.rollout.detached=True"
_OFF = "objective.flow_matching.diversity.name=none"
_ALIGNMENT = "objective.flow_matching.alignment"
_ATTENTION = "backbone.fuse_dit.attention"

OWN = 30.0  # the recipe's own, held equal by a test: rows are found again by it
WEIGHTS = (0.0, 0.01, 0.02, 0.05, 1.0, 8.0, OWN)
ROWS = 32  # pictures of a step, P K

# Seen with 10 steps of 8 pictures, a run costs little more than its steps.
_LOOK = ("sample.prompts=4", "sample.shown=4", "sample.num=2", "sample.steps=10")
# The data of configs/study/sd3.py's trainings, and their size.
_SCRATCH = (
    *("steps=1000", "checkpoint.every=250", "sample.every=1000"),
    *("data.scenes.folder=datasets/scenes_study", "data.scenes.train=12000"),
    *("data.scenes.stored=2", "backbone.fuse_dit.patch=2", "optimizer.ema.decay=0.99"),
    *_LOOK,
)


def _tuned(name: str, *flags: str, samples: int = 8, **labels: float) -> dict[str, Any]:
    """A fine-tuning of the base model, with K pictures of each prompt in a step."""
    data = (f"data.prompts={ROWS // samples}", f"data.samples={samples}")
    stored = ("data.scenes.folder=datasets/scenes_groups", "data.scenes.stored=16")
    labels = {**labels, "samples": samples}
    return dict(name=name, labels=labels, flags=(*flags, _DETACHED, *data, *stored, *_LOOK))


def _scratch(fusion: str, *flags: str, **labels: int) -> dict[str, Any]:
    """A small model from scratch that reads captions in another way."""
    flags = (f"{_ATTENTION}.name={fusion}", *flags, *_SCRATCH)
    return dict(name=fusion, labels=labels, flags=flags, recipe="configs/fusion_base.py")


def get_config(preset: str = ""):
    """The grid."""
    off, own = f"{_ALIGNMENT}.name=none", f"{_TERM}={OWN}"
    base = dict(name="base", labels=dict(weight=0.0), flags=(), model="fusion_base")
    over_weights = [_tuned("diversity", f"{_TERM}={w}", off, weight=w) for w in WEIGHTS]
    over_samples = {
        num: _tuned("diversity", own, off, samples=num, weight=OWN) for num in (2, 4, 16)
    }
    both = _tuned("diversity+alignment", own, weight=OWN)
    fusions = [
        _scratch("deep_self", f"{_ATTENTION}.deep_self.initial_layers={6 - layers}", layers=layers)
        for layers in (6, 4, 2)
    ]
    # Layer by layer, as deep_self reads it.
    fusions.append(_scratch("deep_cross", f"{_ATTENTION}.deep_cross.text_layers=()"))
    fusions += [_scratch(name) for name in ("shallow_self", "shallow_cross")]
    trainings: list[dict[str, Any]] = [
        *(base, *over_weights, *over_samples.values()),
        *(_tuned("alignment", _OFF), both, *fusions),
    ]
    draws: list[dict[str, Any]] = [
        dict(method="independent", guidance=scale, num=8) for scale in (1.0, 2.5, 5.0)
    ]
    chosen = dict(method="relevance", guidance=5.0, num=8, candidates=16)
    if preset == "fraction":
        trainings = [
            *({**base, "draws": [*draws, chosen]}, *over_weights),
            *(over_samples[2], over_samples[16], both),
        ]
        draws = draws[-1:]
    else:
        draws += [dict(method="independent", guidance=5.0, num=num) for num in (2, 4, 16)]
        draws.append(chosen)
    config = ConfigDict(
        dict(
            recipe="configs/fusion_div.py",
            trainings=trainings,  # labels: columns of the table; flags: changes to the recipe
            draws=draws,  # of every training that has none of its own
            seeds=(0, 1, 2),
            prompts=64,  # held-out prompts of a drawing
            steps=25,  # solver steps
        )
    )
    if preset == "tiny":
        tiny = ("steps=2", "data.prompts=8", "data.samples=2", "sample.prompts=2", "sample.num=2")
        config.update(recipe="configs/fusion_div.py:tiny", seeds=(0, 1), prompts=4, steps=2)
        config.trainings = [
            dict(name="diversity", labels=dict(weight=w), flags=(f"{_TERM}={w}", *tiny))
            for w in (0.1, 1.0)
        ]
        config.draws = [dict(method="independent", guidance=g, num=2) for g in (1.0, 2.0)]
    elif preset not in ("", "fraction"):
        raise ValueError(
            f"configs/study/diversity.py has no preset {preset!r}; there are fraction, tiny"
        )
    return config
