"""A backbone's own middle layers as a feature: no second network, one more look at the same one."""

import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cosdiff_jax.flow.parameterization import Parameterization, Velocity
from cosdiff_jax.flow.trajectory import RectifiedFlow, Trajectory, along_rows
from cosdiff_jax.models.clip import unit
from cosdiff_jax.shapes import Frozen, TextStream


@dataclasses.dataclass(frozen=True, kw_only=True)
class HiddenFeature:
    """The middle layer's state, averaged over positions, of a frozen copy of the backbone.

    It is read at one small time ``t``, where the samples are nearly pictures, and always with the
    frozen weights: were they the trained ones, the loss could be met by moving the features
    instead of the pictures.

    Attributes:
      backbone: the network; with ``features=True`` it also gives its pooled middle state "B D".
      role: key of its weights in ``frozen``.
      time: t at which the samples are shown to it.
      centre: subtract the mean vector of all samples given, so that what every sample has in
        common does not hold the cosines near 1.
      trajectory: the path that the backbone was trained on.
      parameterization: how its input was scaled.
    """

    backbone: nn.Module
    role: str = "anchor"
    time: float = 0.1
    centre: bool = False
    trajectory: Trajectory = dataclasses.field(default_factory=RectifiedFlow)
    parameterization: Parameterization = dataclasses.field(default_factory=Velocity)

    def __call__(
        self, frozen: Frozen, samples: Float[Array, "B h w c"], text: TextStream | None = None
    ) -> Float[Array, "B F"]:
        """Unit vectors of normalised latents; ``text`` is the stream of their P prompts.

        Raises:
          ValueError: no ``text``.
        """
        if text is None:
            raise ValueError("features of the backbone's hidden layers need the text stream")
        t = jnp.full((samples.shape[0],), self.time, jnp.float32)
        params: Any = {"params": frozen[self.role]}
        # The sample is shown as its own noisy version's mean, a_t x0: no draw is needed.
        mean = along_rows(self.trajectory.coefficients(t)[0], samples) * samples
        shown = self.parameterization.network_input(mean, t, self.trajectory)
        _, hidden = self.backbone.apply(params, shown, t, text, features=True)
        return self.pooled(cast(jax.Array, hidden))

    def pooled(self, hidden: Float[Array, "B D"]) -> Float[Array, "B D"]:
        """Unit vectors of states that a forward pass already gave: the cheapest form."""
        hidden = hidden.astype(jnp.float32)
        if self.centre:
            hidden = hidden - jnp.mean(hidden, axis=0, keepdims=True)
        return unit(hidden)
