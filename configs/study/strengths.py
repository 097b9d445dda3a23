"""How strong should what acts on the way from noise to picture be?

python -m cosdiff_jax.study --config=configs/study/strengths.py --workdir=studies/strengths
python -m cosdiff_jax.evaluate --study=studies/strengths

Each method with a knob, at several values of it, on the embedded base model: 4 pictures of each of
64 held-out prompts, 16 steps, guidance 5. The prompts are of seed 2: a strength that is chosen here
has not seen those on which benchmarks/methods.py compares the methods, which are of seed 0.

On two CPU cores of an AMD EPYC a drawing takes a minute and a quarter. What it said is in
benchmarks/results/strengths/README.md.
"""

from typing import Any

from ml_collections import ConfigDict

_FREE = "guidance.classifier_free.interval"
_INTERVALS = ((0.0, 0.9), (0.0, 0.8), (0.0, 0.7), (0.1, 0.9), (0.1, 0.8), (0.3, 0.8))


def _choices(kind: str, name: str, knob: str, values: tuple[float, ...]) -> list[list[str]]:
    return [[f"{kind}.name={name}", f"{kind}.{name}.{knob}={value:g}"] for value in values]


def get_config(preset: str = ""):
    """The grid."""
    if preset:
        raise ValueError(f"configs/study/strengths.py has no preset {preset!r}; there is none")
    samples: list[list[str]] = [
        *_choices("repulsion", "particle", "weight", (100, 300, 1000, 3000)),
        *_choices("repulsion", "svgd", "weight", (1, 3, 10, 30)),
        *(
            [*heavy, f"repulsion.svgd.drive={drive:g}", "repulsion.svgd.clean=True"]
            for heavy in _choices("repulsion", "svgd", "weight", (100, 800))
            for drive in (3e-4, 1e-3)
        ),
        *_choices("repulsion", "diverse_flow", "weight", (100, 300, 1000, 3000)),
        *(
            [*few, "view.name=clip"]
            for few in _choices("repulsion", "particle", "weight", (10, 30))
        ),
        # At these weights the bound on the push binds, not the weight.
        *(
            [*strong, f"repulsion.{name}.largest={largest:g}"]
            for name, weight in (("particle", 1000), ("svgd", 10), ("diverse_flow", 1000))
            for strong in _choices("repulsion", name, "weight", (weight,))
            for largest in (1, 2)
        ),
        *_choices("condition", "cads", "scale", (0.05, 0.1, 0.15, 0.25)),
        *([f"{_FREE}=({low:g},{high:g})"] for low, high in _INTERVALS),
    ]
    plain: dict[str, Any] = dict(method="independent", guidance=5.0, num=4)
    draws = [plain, *({**plain, "sample": tuple(sample)} for sample in samples)]
    base = dict(name="base", labels={}, flags=(), model="fusion_base")
    return ConfigDict(
        dict(
            recipe="configs/fusion_div.py",
            trainings=[base],
            draws=draws,
            seeds=(2,),
            prompts=64,
            steps=16,
        )
    )
