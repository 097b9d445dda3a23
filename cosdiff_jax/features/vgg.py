"""VGG's view of a sample: how alike two pictures look, place by place."""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cosdiff_jax.features.pictures import shown
from cosdiff_jax.models.clip import unit
from cosdiff_jax.models.vae import AutoencoderKL
from cosdiff_jax.models.vgg import VGG, place_of
from cosdiff_jax.shapes import Frozen, TextStream


@dataclasses.dataclass(frozen=True, kw_only=True)
class VggFeature:
    """f = [f_1 ; f_2 ; ...] / sqrt(L), a unit vector f_l of each of L layers.

        u_l[x, y] = a_l[x, y] / |a_l[x, y]|       a_l: the layer's activations at a place
        f_l       = unit([u_l[0, 0] ; u_l[0, 1] ; ...])

    so that the cosine of two samples is the mean of their layers' cosines, and that of a layer
    the mean over places of the cosine of the channel vectors. With d the distance of Zhang et
    al. 2018 (https://arxiv.org/abs/1801.03924, eq. 1) without its learned weights, all w_l = 1:

        d = sum over l of mean over x, y of |u_l - u'_l|^2 = 2 L (1 - cos(f, f'))

    A place without any activation has no direction and counts for nothing. Places are compared
    one by one, so the same thing elsewhere is another picture; ``pooled`` compares what is there
    wherever it is, in shorter vectors, but all activations are positive and so their means are
    more alike.

    Attributes:
      vgg: the network; its weights are ``frozen["vgg"]``.
      layers: names like "relu3_3"; the published five are the last ones of each level.
      pooled: f_l = unit(mean over x, y of u_l): F is the sum of the layers' channels instead of
        places times channels (at 64 pixels 1,472 instead of 499,712), for memory banks and large
        pictures.
      vae: decodes latents with the weights ``frozen["vae"]``; None where samples are pictures.

    Raises:
      ValueError: no layers, one twice, or one that the network does not have.
    """

    vgg: VGG
    layers: tuple[str, ...]
    pooled: bool = False
    vae: AutoencoderKL | None = None

    def __post_init__(self):
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(
                f"layers of the vgg feature must be some different ones: {self.layers}"
            )
        for name in self.layers:
            place_of(name, self.vgg.layers)

    def __call__(
        self, frozen: Frozen, samples: Float[Array, "B h w c"], text: TextStream | None = None
    ) -> Float[Array, "B F"]:
        """Unit vectors of normalised latents if there is a ``vae``, else of pictures."""
        variables = {"params": jax.lax.stop_gradient(frozen["vgg"])}
        found = self.vgg.apply(variables, shown(frozen, samples, self.vae), self.layers)
        views = [self._view(a) for a in cast(dict[str, jax.Array], found).values()]
        return jnp.concatenate(views, axis=-1) / np.sqrt(len(views))

    def _view(self, a: Float[Array, "B x y D"]) -> Float[Array, "B F"]:
        u = unit(a.astype(jnp.float32))
        return unit(jnp.mean(u, axis=(1, 2)) if self.pooled else u.reshape(u.shape[0], -1))
