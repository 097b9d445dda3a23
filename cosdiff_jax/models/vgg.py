"""VGG's convolutional trunk, whose layers judge pictures much as people do.

Levels of 3x3 convolutions, each followed by a ReLU, with a 2x2 maximum between two levels
(https://arxiv.org/abs/1409.1556, table 1). ``relu{l}_{i}`` is what comes out of the i-th ReLU of
level l, both counted from 1; VGG16 ends at ``relu5_3``. The classifier on top is not here.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Of ImageNet's pictures in [0, 1], red, green, blue: what the published weights were trained on.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class VGG(nn.Module):
    """Pictures to the activations of chosen layers.

    Attributes:
      widths: channels of each level.
      convolutions: of each level; (1, 1, 2, 2, 2) is VGG11, (2, 2, 4, 4, 4) is VGG19.
      dtype: of the computation; parameters stay float32.
    """

    widths: Sequence[int] = (64, 128, 256, 512, 512)
    convolutions: Sequence[int] = (2, 2, 3, 3, 3)
    dtype: Any = jnp.float32

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of all layers, in order.

        Raises:
          ValueError: ``widths`` and ``convolutions`` differ in length.
        """
        if len(self.widths) != len(self.convolutions):
            raise ValueError(
                f"vgg.widths has {len(self.widths)} levels and vgg.convolutions "
                f"{len(self.convolutions)}"
            )
        return tuple(
            f"relu{level}_{index}"
            for level, number in enumerate(self.convolutions, start=1)
            for index in range(1, number + 1)
        )

    @nn.compact
    def __call__(
        self, images: Float[Array, "B X Y C"], layers: Sequence[str] | None = None
    ) -> dict[str, Float[Array, "B _ _ _"]]:
        """Activations by name; nothing above the highest layer asked for is computed.

        Args:
          images: in [-1, 1]; a grey picture is shown as three equal channels.
          layers: names; None is the last one alone, which passes through every weight.

        Raises:
          ValueError: no such layer, or pictures too small to be halved so often.
        """
        wanted = self.layers[-1:] if layers is None else tuple(layers)
        last = max(place_of(name, self.layers) for name in wanted)
        if images.shape[-1] == 1:
            images = jnp.broadcast_to(images, (*images.shape[:-1], 3))
        mean, std = (np.asarray(value, np.float32).reshape(1, 1, 1, 3) for value in (MEAN, STD))
        x = ((0.5 * (images + 1.0) - mean) / std).astype(self.dtype)
        found: dict[str, jax.Array] = {}
        for name in self.layers[: last + 1]:
            level, index = (int(number) for number in name.removeprefix("relu").split("_"))
            if level > 1 and index == 1:
                if min(x.shape[1:3]) < 2:
                    side = " x ".join(str(n) for n in images.shape[1:3])
                    raise ValueError(f"pictures of {side} pixels are too small for {name} of VGG")
                x = nn.max_pool(x, (2, 2), (2, 2))
            width = self.widths[level - 1]
            x = nn.relu(nn.Conv(width, (3, 3), dtype=self.dtype, name=f"conv{level}_{index}")(x))
            found[name] = x
        return {name: found[name] for name in wanted}


def place_of(name: str, layers: Sequence[str]) -> int:
    """Where a layer stands among all.

    Raises:
      ValueError: there is none of this name.
    """
    if name not in layers:
        raise ValueError(f"VGG's layer {name!r} is not one of {', '.join(layers)}")
    return layers.index(name)
