"""Published ways to train a flow, by the names they are published under, laid over a recipe.

    --config="configs/fusion_base.py:edm(-1.20,1.20)"

A name stands for a path, what the network predicts, how its error is weighted and which times are
drawn (``cosdiff_jax/flow/formulation.py`` says what each is); everything else stays the recipe's.
Families take any numbers, in or out of the study of Esser et al. 2024. EDM's sigma_data is the
menu's, 0.5 as published; for latents of unit variance set ``parameterization.edm.sigma_data=1.0``.
"""

import re
from typing import Any

_FLOW = "objective.flow_matching"


def _ways(
    trajectory: str,
    parameterization: str,
    times: str = "uniform",
    weighting: str = "constant",
    **knobs: float,
) -> dict[str, str | float]:
    return {
        f"{_FLOW}.trajectory.name": trajectory,
        f"{_FLOW}.parameterization.name": parameterization,
        f"{_FLOW}.times.name": times,
        **{f"{_FLOW}.times.{times}.{knob}": value for knob, value in knobs.items()},
        f"{_FLOW}.weighting.name": weighting,
    }


_RECTIFIED = ("rectified_flow", "velocity")
_SINGLE: dict[str, dict[str, str | float]] = {
    "eps/linear": _ways("ldm_linear", "eps"),
    "v/linear": _ways("ldm_linear", "v"),
    "eps/cos": _ways("cosine", "eps"),
    "v/cos": _ways("cosine", "v"),
    "rf": _ways(*_RECTIFIED),
    "rf/cosmap": _ways(*_RECTIFIED, "cos_map"),
    "edm/rf": _ways("edm", "edm", weighting="exponential"),
    "edm/cos": _ways("cosine", "edm", weighting="exponential"),
}
# Name -> path, prediction, times, and the times' knobs that its numbers are.
_FAMILIES = {
    "rf/lognorm": (*_RECTIFIED, "logit_normal", ("mean", "std")),
    "rf/mode": (*_RECTIFIED, "mode", ("scale",)),
    "edm": ("edm", "edm", "log_normal_sigma", ("mean", "std")),
}

STUDY = (
    *_SINGLE,
    *(
        f"rf/lognorm({mean:.2f},{std:.2f})"
        for mean in (-1.0, -0.5, 0.0, 0.5, 1.0)
        for std in (0.2, 0.6, 1.0, 1.4, 1.8, 2.2)
    ),
    *(f"rf/mode({s:.2f})" for s in (-1.0, -0.54, -0.08, 0.38, 0.83, 1.0, 1.29, 1.75)),
    *(
        f"edm({mean:.2f},{std:.2f})"
        for mean in (-1.2, -0.6, 0.0, 0.6, 1.2)
        for std in (0.6, 1.2, 1.8)
    ),
)
"""The 61 of the study."""

KNOWN = (*_SINGLE, *(f"{name}({','.join(of[3])})" for name, of in _FAMILIES.items()))
"""What may be asked for, for messages."""


def changes(name: str) -> dict[str, str | float] | None:
    """Field -> value of a published formulation; None where none is called so."""
    text = name.replace(" ", "")
    if text in _SINGLE:
        return dict(_SINGLE[text])
    found = re.fullmatch(r"([a-z/]+)\(([^()]+)\)", text)
    if found is None or found[1] not in _FAMILIES:
        return None
    *parts, knobs = _FAMILIES[found[1]]
    try:
        numbers = [float(number) for number in found[2].split(",")]
        return _ways(*parts, **dict(zip(knobs, numbers, strict=True)))
    except ValueError:  # not numbers, or not as many
        return None


def apply(config: Any, name: str) -> bool:
    """Lay a formulation over a recipe; whether there is one of this name.

    Raises:
      ValueError: the recipe trains no flow.
    """
    found = changes(name)
    if found is None:
        return False
    if config.objective.name != "flow_matching":
        raise ValueError(
            f"{name} is a way to train a flow; the recipe's objective is {config.objective.name}"
        )
    config.update_from_flattened_dict(found)
    return True
