"""What a feature is: samples in, one unit vector per sample out."""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int

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


@runtime_checkable
class Reader(Feature, Protocol):
    """A view that captions have vectors in too."""

    def text(
        self, frozen: Frozen, tokens: Int[Array, "P T"], mask: Bool[Array, "P T"]
    ) -> Float[Array, "P F"]:
        """Unit vectors of captions, in the same space as samples'."""
        ...
