"""What a feature is: samples in, one unit vector per sample out."""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float

from cosdiff_jax.shapes import Frozen, TextStream


@runtime_checkable
class Feature(Protocol):
    """A view of samples in which cosines mean something.

    Samples are latents or pictures, "B h w c" or "B X Y C", as the feature says. Gradients flow
    through; ``frozen`` holds the weights it needs, by role, and gets none.
    """

    def __call__(
        self, frozen: Frozen, samples: Float[Array, "B h w c"], text: TextStream | None = None
    ) -> Float[Array, "B F"]:
        """Unit vectors; a sample without any direction gives a zero vector.

        Args:
          frozen: weights by role.
          samples: B = P K, prompt-major.
          text: of the P prompts, for the features that read it.
        """
        ...
