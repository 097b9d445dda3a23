"""Which way to different pictures is worth what? The embedded base model, trained and not.

python -m cosdiff_jax.study --config=configs/study/diversity.py --workdir=studies/diversity

Trainings are fine-tunings of the base model (``configs/fusion_div.py``, 80 steps); every training
is drawn from in every way of ``draws``, for every seed. A training takes about six minutes on two
CPU cores and a drawing of 64 prompts about five; ``:tiny`` is for tests.
"""

from typing import Any

from ml_collections import ConfigDict

_TERM = "objective.flow_matching.diversity.cosine.schedule.linear.end"
_OFF = "objective.flow_matching.diversity.name=none"
_ALIGNMENT = "objective.flow_matching.alignment"


def get_config(preset: str = ""):
    """The grid."""
    trainings: list[dict[str, Any]] = [
        dict(name="base", labels=dict(weight=0.0), flags=(), model="fusion_base")
    ]
    for weight in (0.1, 0.3, 1.0):
        flags = (f"{_TERM}={weight}", f"{_ALIGNMENT}.name=none")
        trainings.append(dict(name="diversity", labels=dict(weight=weight), flags=flags))
    trainings.append(dict(name="alignment", labels=dict(weight=0.0), flags=(_OFF,)))
    both = dict(name="diversity+alignment", labels=dict(weight=1.0), flags=(f"{_TERM}=1.0",))
    trainings.append(both)
    draws: list[dict[str, Any]] = [
        dict(method="independent", guidance=scale, num=8) for scale in (1.0, 2.5, 5.0)
    ]
    draws += [dict(method="independent", guidance=5.0, num=num) for num in (2, 4, 16)]
    draws.append(dict(method="relevance", guidance=5.0, num=8, candidates=16))
    config = ConfigDict(
        dict(
            recipe="configs/fusion_div.py",
            trainings=trainings,  # labels: columns of the table; flags: changes to the recipe
            draws=draws,
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
    elif preset:
        raise ValueError(f"configs/study/diversity.py has no preset {preset!r}; there is tiny")
    return config
