"""LPIPS among a prompt's pictures, as one more measure of an evaluation.

The networks are the user's: VGG16 as ``convert --from=vgg`` wrote it, and the weights that were
fitted to people's judgements. With both the number is the published distance, and called LPIPS;
without the second it is the unweighted one, and says so.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from cosdiff_jax import modules, weights
from cosdiff_jax.data.groups import to_float
from cosdiff_jax.features.pictures import fit
from cosdiff_jax.metrics import intra_prompt, lpips
from cosdiff_jax.models.vgg import VGG
from cosdiff_jax.shapes import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perceptual:
    """Mean and variance of the distance over the pairs of a prompt's pictures.

    Attributes:
      vgg: the network and what of it is read.
      params: its weights.
      fitted: a number per channel for each level; None takes 1.
      side: of the square in pixels that the middle of every picture is brought to: the distance
        depends on it.
    """

    vgg: lpips.Lpips
    params: Params
    fitted: Sequence[Float[np.ndarray, " _"]] | None = None
    side: int = 64

    @property
    def name(self) -> str:
        """Of the numbers."""
        return "lpips_unweighted" if self.fitted is None else "lpips"

    @functools.cached_property
    def digest(self) -> str:
        """What the numbers depend on."""
        of = weights.digest({"vgg": self.params, "fitted": self.fitted or ()})
        return f"{self.name} {of} at {self.side}"

    def __call__(
        self, images: UInt8[np.ndarray, "K X Y C"], group: Mapping[str, Any]
    ) -> dict[str, float]:
        """``lpips_mean`` and ``lpips_variance``; nothing of a single picture."""
        del group
        if len(images) < 2:
            return {}
        pairs = self._pairs(self.params, to_float(images))
        found = intra_prompt.result(intra_prompt.update(intra_prompt.init(), pairs), self.name)
        return {key: found[key] for key in (f"{self.name}_mean", f"{self.name}_variance")}

    @functools.cached_property
    def _pairs(self) -> Callable:
        def pairs(params: Params, images: jax.Array) -> jax.Array:
            return self.vgg.pairs({"vgg": params}, fit(images, self.side)[None], self.fitted)

        return jax.jit(pairs)


def load(vgg: str, fitted: str | None, side: int) -> Perceptual:
    """The measure of a folder with VGG16's weights and one with the fitted ones.

    Args:
      vgg: as ``convert --from=vgg`` wrote it: the folder named there, or the ``vgg`` inside.
      side: as for ``Perceptual``.
      fitted: holds model.safetensors with the published names, see ``lpips.load``.

    Raises:
      ValueError: no such folder, another network, or weights that do not fit it.
    """
    of, params = network(vgg)
    numbers = None if fitted is None else lpips.load(fitted)
    if numbers is not None and [len(w) for w in numbers] != list(of.widths):
        raise ValueError(
            f"--lpips={fitted} is of levels of {[len(w) for w in numbers]} channels, and --vgg's "
            f"are of {list(of.widths)}"
        )
    view = lpips.Lpips(vgg=of, layers=levels(of))
    return Perceptual(vgg=view, params=params, fitted=numbers, side=side)


def network(vgg: str) -> tuple[VGG, Params]:
    """VGG16 and its weights, of a folder as ``load`` takes it; errors likewise."""
    place = Path(vgg)
    folder = place / "vgg" if (place / "vgg" / "config.json").is_file() else place
    if not folder.is_dir():
        raise ValueError(f"--vgg={vgg}: there is no such folder")
    entry = weights.entry(str(folder))
    if entry["name"] != "vgg":
        raise ValueError(f"--vgg={vgg} holds a {entry['name']!r}, not a vgg")
    return modules.model("vgg", entry), weights.load(str(folder))


def levels(network: VGG) -> tuple[str, ...]:
    """What each level ends with; of VGG16 these are ``lpips.LEVELS``."""
    ends = enumerate(network.convolutions, start=1)
    return tuple(f"relu{level}_{number}" for level, number in ends)
