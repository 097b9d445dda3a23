"""Published ways to train, by the names they are published under.

A formulation is a path, what the network predicts, how its error is weighted and which times are
drawn. The study of Esser et al. 2024 (section 5.1) compares 61 of them:

    eps/linear, v/linear       the chain of latent diffusion, uniform times
    eps/cos, v/cos             the cosine path, uniform times
    rf                         rectified flow, uniform times (also rf/mode(0.00))
    rf/lognorm(m,s)            logit-normal times: 5 means, 6 widths
    rf/mode(s)                 mode sampling: 8 more scales
    rf/cosmap                  the cosine path's log-SNRs
    edm(P_m,P_s)               EDM, log-normal noise levels: 5 means, 3 widths
    edm/rf, edm/cos            EDM's network with the noise levels and the weight in log-SNR of
                               rf and of v/cos

Of its grids the study gives the ranges and how many values there are; here they are equally far
apart, which gives every number that its tables print.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from jaxtyping import Array, Float

from cosdiff_jax.flow import parameterization, timestep, trajectory, weighting


@dataclass(frozen=True, kw_only=True)
class Formulation:
    """What makes one way to train a flow different from another.

    Attributes:
      trajectory: the path from data to noise.
      parameterization: what the network predicts.
      weighting: the factor on its squared error.
      times: the distribution of training times.
    """

    trajectory: trajectory.Trajectory
    parameterization: parameterization.Parameterization
    weighting: weighting.Weighting
    times: timestep.Times

    def weight(self, t: Float[Array, " B"]) -> Float[Array, " B"]:
        """w_t pi(t), the weight in the common loss L_w, times included (see ``weighting``)."""
        factor = self.weighting(t, self.trajectory, self.parameterization) * self.times.density(t)
        return weighting.common_weight(factor, t, self.trajectory, self.parameterization)


def named(name: str) -> Formulation:
    """The formulation of a published name; families take any numbers, in or out of the study.

    Args:
      name: such as "rf/lognorm(0.00,1.00)", "edm(-1.20,1.20)", "v/cos"; spaces do not matter.

    Raises:
      ValueError: no such formulation, or numbers out of its range.
    """
    text = name.replace(" ", "")
    if text in _SINGLE:
        return _SINGLE[text]()
    found = re.fullmatch(r"([a-z/]+)\(([^()]+)\)", text)
    if found is not None and found[1] in _FAMILIES:
        family, count = _FAMILIES[found[1]]
        try:
            numbers = [float(number) for number in found[2].split(",")]
        except ValueError:
            numbers = []
        if len(numbers) == count:
            return family(*numbers)
    families = (f"{family}({','.join('x' * count)})" for family, (_, count) in _FAMILIES.items())
    raise ValueError(f"{name!r} is not one of {', '.join((*_SINGLE, *families))}")


def _diffusion(
    path: Callable[[], trajectory.Trajectory],
    meaning: Callable[[], parameterization.Parameterization],
) -> Callable[[], Formulation]:
    return lambda: Formulation(
        trajectory=path(),
        parameterization=meaning(),
        weighting=weighting.Constant(),
        times=timestep.Uniform(),
    )


def _rectified(times: timestep.Times) -> Formulation:
    return Formulation(
        trajectory=trajectory.RectifiedFlow(),
        parameterization=parameterization.Velocity(),
        weighting=weighting.Constant(),
        times=times,
    )


def _edm(mean: float, std: float) -> Formulation:
    path = trajectory.Edm()
    return Formulation(
        trajectory=path,
        parameterization=parameterization.Edm(),
        weighting=weighting.Constant(),
        times=timestep.LogNormalSigma(mean=mean, std=std, trajectory=path),
    )


def _matched(path: Callable[[], trajectory.Trajectory]) -> Callable[[], Formulation]:
    # On the cosine path EDM's z_t is the same and only the clock, so the noise levels, differ.
    return lambda: Formulation(
        trajectory=path(),
        parameterization=parameterization.Edm(),
        weighting=weighting.Exponential(),
        times=timestep.Uniform(),
    )


_SINGLE: dict[str, Callable[[], Formulation]] = {
    "eps/linear": _diffusion(trajectory.LdmLinear, parameterization.Noise),
    "v/linear": _diffusion(trajectory.LdmLinear, parameterization.V),
    "eps/cos": _diffusion(trajectory.Cosine, parameterization.Noise),
    "v/cos": _diffusion(trajectory.Cosine, parameterization.V),
    "rf": lambda: _rectified(timestep.Uniform()),
    "rf/cosmap": lambda: _rectified(timestep.CosMap()),
    "edm/rf": _matched(trajectory.Edm),
    "edm/cos": _matched(trajectory.Cosine),
}
# Name -> (constructor, how many numbers it takes).
_FAMILIES: dict[str, tuple[Callable[..., Formulation], int]] = {
    "rf/lognorm": (lambda m, s: _rectified(timestep.LogitNormal(mean=m, std=s)), 2),
    "rf/mode": (lambda s: _rectified(timestep.Mode(scale=s)), 1),
    "edm": (_edm, 2),
}


def _study() -> dict[str, Formulation]:
    names = list(_SINGLE)
    names += [
        f"rf/lognorm({m:.2f},{s:.2f})"
        for m in (-1.0, -0.5, 0.0, 0.5, 1.0)
        for s in (0.2, 0.6, 1.0, 1.4, 1.8, 2.2)
    ]
    # Seven scales equally far apart from -1 to 1.75, and 1; the ninth, 0, is rf.
    names += [f"rf/mode({s:.2f})" for s in (-1.0, -0.54, -0.08, 0.38, 0.83, 1.0, 1.29, 1.75)]
    names += [f"edm({m:.2f},{s:.2f})" for m in (-1.2, -0.6, 0.0, 0.6, 1.2) for s in (0.6, 1.2, 1.8)]
    return {name: named(name) for name in names}


FORMULATIONS: Mapping[str, Formulation] = MappingProxyType(_study())
"""The 61 formulations of the study by their published names."""
