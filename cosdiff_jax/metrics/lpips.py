"""How unlike do two pictures look? The learned perceptual distance of a network's activations.

    d(a, b) = sum over levels l of mean over places x, y of  w_l . (u_l - u'_l)^2
    u_l     = activations at a place, over their length

Source: Zhang et al. 2018, https://arxiv.org/abs/1801.03924, eq. 1. The published distance reads
VGG16 after the last ReLU of each of its five levels (LEVELS) with weights w_l >= 0 that were fitted
to people's judgements (``load``); ``unweighted`` is the same with all w_l = 1 and another number.
``features.vgg`` has the unweighted one as a feature, as a cosine.

A prompt's own variety is the mean and variance of d over its pairs: ``pairwise``, then
``metrics.intra_prompt``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cosdiff_jax.models.convert import layout
from cosdiff_jax.models.vgg import VGG, place_of
from cosdiff_jax.shapes import Frozen

LEVELS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
"""What the published distance reads of VGG16."""

Activations = Sequence[Float[Array, "B _ _ _"]]
Weights = Sequence[Float[Array, " _"] | Float[np.ndarray, " _"]]
"""One number per channel for each level, none below 0."""


def distance(a: Activations, b: Activations, weights: Weights) -> Float[Array, " B"]:
    """d of B pairs of pictures, from their levels "B x y D"; 0 for equal ones, symmetric.

    Raises:
      ValueError: the weights do not fit the levels.
    """
    _fits(a, weights)
    total = jnp.zeros(a[0].shape[0])
    for x, y, w in zip(a, b, weights, strict=True):
        apart = (_unit(x) - _unit(y)) ** 2
        total = total + jnp.mean(apart @ jnp.asarray(w, jnp.float32), axis=(1, 2))
    return total


def pairwise(levels: Activations, weights: Weights, samples: int) -> Float[Array, "P K K"]:
    """d of all pairs among each prompt's K samples, from levels of B = P K pictures.

    d is a squared Euclidean distance of weighted unit vectors, so that products of two pictures
    are enough: O(P K^2) numbers are kept, never the differences of all pairs.

    Args:
      levels: "B x y D"; row p K + k is sample k of prompt p.
      weights: of each level.
      samples: K.

    Raises:
      ValueError: the weights do not fit the levels, or K does not divide B.
    """
    _fits(levels, weights)
    rows = levels[0].shape[0]
    if rows % samples:
        raise ValueError(f"{rows} pictures are not groups of {samples}")
    total = jnp.zeros((rows // samples, samples, samples))
    for x, w in zip(levels, weights, strict=True):
        root = jnp.sqrt(jnp.asarray(w, jnp.float32)).reshape(1, 1, 1, -1)
        v = (_unit(x) * root).reshape(rows // samples, samples, -1)
        highest = jax.lax.Precision.HIGHEST
        inner = jnp.einsum("pif,pjf->pij", v, v, precision=highest) / (x.shape[1] * x.shape[2])
        own = jnp.diagonal(inner, axis1=1, axis2=2)
        total = total + own[:, :, None] + own[:, None, :] - 2.0 * inner
    # Rounding leaves 1e-7 of the lengths where nothing differs.
    return jnp.maximum(total, 0.0) * (1.0 - jnp.eye(samples))[None]


def unweighted(levels: Activations) -> list[Float[np.ndarray, " _"]]:
    """All w_l = 1, which is not the published distance."""
    return [np.ones(x.shape[-1], np.float32) for x in levels]


def load(folder: str | Path) -> list[Float[np.ndarray, " _"]]:
    """The published weights, from a folder's model.safetensors with the package's names.

    These are ``lin{l}.model.1.weight``, [1, D, 1, 1]: the layers of https://github.com/
    richzhang/PerceptualSimilarity, which hands out pickles, not opened here. Names of the trunk
    beside them are not read.

    Raises:
      ValueError: the file is missing or broken, a level is missing, of another shape or below 0.
    """
    return from_published(layout.load_tensors(folder))


def from_published(tensors: Mapping[str, np.ndarray]) -> list[Float[np.ndarray, " _"]]:
    """Weights of each level from tensors by their published names; errors as ``load``."""
    hits = (re.fullmatch(r"lin(\d+)\.model\.1\.weight", name) for name in tensors)
    found = {int(hit[1]): np.asarray(tensors[hit[0]], np.float32) for hit in hits if hit}
    if not found or sorted(found) != list(range(len(found))):
        raise ValueError(
            f"levels {sorted(found)} of lin0.model.1.weight, lin1.model.1.weight ...: these are "
            "not the names of the published weights of LPIPS"
        )
    for level, w in found.items():
        if w.ndim != 4 or w.shape != (1, w.shape[1], 1, 1):
            raise ValueError(f"lin{level}.model.1.weight is {w.shape}, not (1, D, 1, 1)")
        if (w < 0).any():
            raise ValueError(f"lin{level}.model.1.weight has numbers below 0")
    return [found[level].reshape(-1) for level in sorted(found)]


@dataclass(frozen=True, kw_only=True)
class Lpips:
    """The distance of pictures, with a VGG.

    Attributes:
      vgg: the network; its weights are ``frozen["vgg"]``. It takes pictures in [-1, 1] with
        ImageNet's mean and deviation, which are the published distance's own.
      layers: whose activations are compared.

    Raises:
      ValueError: no layers, or one that the network does not have.
    """

    vgg: VGG
    layers: tuple[str, ...] = LEVELS

    def __post_init__(self):
        if not self.layers:
            raise ValueError("lpips.layers names no layer of vgg")
        for name in self.layers:
            place_of(name, self.vgg.layers)

    def levels(self, frozen: Frozen, images: Float[Array, "B X Y C"]) -> list[jax.Array]:
        """Activations "B x y D" of each layer."""
        found = self.vgg.apply({"params": frozen["vgg"]}, images, self.layers)
        activations = cast(dict[str, jax.Array], found)
        return [activations[name] for name in self.layers]

    def __call__(
        self,
        frozen: Frozen,
        images: Float[Array, "B X Y C"],
        others: Float[Array, "B X Y C"],
        weights: Weights | None = None,
    ) -> Float[Array, " B"]:
        """``distance`` of B pairs; without weights, the unweighted one."""
        a, b = self.levels(frozen, images), self.levels(frozen, others)
        return distance(a, b, unweighted(a) if weights is None else weights)

    def pairs(
        self,
        frozen: Frozen,
        images: Float[Array, "P K X Y C"],
        weights: Weights | None = None,
    ) -> Float[Array, "P K K"]:
        """``pairwise`` within each prompt; without weights, the unweighted one."""
        samples, *picture = images.shape[1:]
        levels = self.levels(frozen, images.reshape(-1, *picture))
        return pairwise(levels, unweighted(levels) if weights is None else weights, samples)


def _unit(x: jax.Array) -> jax.Array:
    """A place without any activation has no direction: zeros."""
    x = x.astype(jnp.float32)
    # Added to the length, not compared with it: parity with the published distance.
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10)


def _fits(levels: Activations, weights: Weights) -> None:
    channels, numbers = [x.shape[-1] for x in levels], [len(w) for w in weights]
    if channels != numbers:
        raise ValueError(f"weights of {numbers} channels do not fit levels of {channels}")
