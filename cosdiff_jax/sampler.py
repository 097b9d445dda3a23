"""Noise to pictures: backbone -> guidance -> solver -> autoencoder, K samples for each prompt.

A caption is read once, however many samples and steps follow. The noise of a sample depends on
the key, on its prompt's seed and on its number k alone, so four samples are the first four of
eight, and a prompt draws the same pictures whatever other prompts stand beside it.
"""

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cosdiff_jax.flow.guidance import ClassifierFree, Guidance
from cosdiff_jax.flow.solver import Euler, Solver
from cosdiff_jax.models import captions
from cosdiff_jax.shapes import Frozen, Params, TextStream
from cosdiff_jax.sharding import constrain


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws pictures; compiled at the first call of each shape.

    Attributes:
      backbone: (z_t, t, TextStream) -> v.
      language_model: (tokens, mask) -> TextStream.
      vae: to_images(latents); None where the flow is on pixels.
      shape: (h, w, c) of a latent, or of a picture where there is no ``vae``.
      steps: solver steps from noise to data.
      guidance: how closely captions are followed.
      solver: the rule of a step.
      rows: pictures drawn at once; bounds the memory, changes nothing else.
    """

    backbone: nn.Module
    language_model: nn.Module
    vae: nn.Module | None
    shape: tuple[int, int, int]
    steps: int = 25
    guidance: Guidance = field(default_factory=ClassifierFree)
    solver: Solver = field(default_factory=Euler)
    rows: int = 64

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, not {self.rows}")

    def __call__(
        self,
        params: Params,
        frozen: Frozen,
        tokens: Int[Any, "P T"],
        mask: Bool[Any, "P T"],
        key: jax.Array,
        *,
        num: int,
        seeds: Int[Any, " P"] | None = None,
    ) -> Float[np.ndarray, "P K X Y C"]:
        """``num`` pictures of each prompt, clipped to [-1, 1], on the host.

        Args:
          params: of the backbone.
          frozen: "llm", and "vae" where there is one.
          tokens: right-padded, bos first.
          mask: True at real tokens.
          key: together with ``seeds`` decides the noise.
          num: K.
          seeds: one number per prompt; by default its row.
        """
        tokens, mask = np.asarray(tokens), np.asarray(mask)
        prompts = tokens.shape[0]
        seeds = np.arange(prompts) if seeds is None else np.asarray(seeds)
        if num < 1 or prompts < 1:
            raise ValueError(f"nothing to draw: {prompts} prompts, {num} samples of each")

        # Equal chunks, so that there is one program; what pads the last one is drawn and dropped.
        samples = _even(num, self.rows)
        chunk = _even(prompts, max(1, self.rows // samples))
        places = np.arange(math.ceil(prompts / chunk) * chunk) % prompts
        numbers = np.arange(math.ceil(num / samples) * samples)
        drawn = []
        for rows in np.split(places, len(places) // chunk):
            text, empty = self._read(frozen, tokens[rows], mask[rows])
            columns = [
                np.asarray(self._draw(params, frozen, text, empty, key, seeds[rows], k))
                for k in np.split(numbers, len(numbers) // samples)
            ]
            drawn.append(np.concatenate(columns, axis=1)[:, :num])
        return np.concatenate(drawn)[:prompts]

    def noise(
        self, key: jax.Array, seeds: Int[Array, " P"], numbers: Int[Array, " K"]
    ) -> Float[Array, "P K h w c"]:
        """Standard normal starting points of samples ``numbers`` of prompts with these seeds."""

        def one(seed: jax.Array, number: jax.Array) -> jax.Array:
            return jax.random.normal(
                jax.random.fold_in(jax.random.fold_in(key, seed), number), self.shape
            )

        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(seeds, numbers)

    @functools.cached_property
    def _read(self):
        def read(frozen, tokens, mask):
            return captions.read(self.language_model, frozen["llm"], self.backbone, tokens, mask)

        return jax.jit(read)

    @functools.cached_property
    def _draw(self):
        def draw(
            params: Params,
            frozen: Frozen,
            text: TextStream,
            empty: TextStream,
            key: jax.Array,
            seeds: jax.Array,
            numbers: jax.Array,
        ) -> jax.Array:
            def backbone(z: jax.Array, t: jax.Array, text: TextStream) -> jax.Array:
                v: Any = self.backbone.apply({"params": params}, z, t, text)
                return v.astype(jnp.float32)

            noise = self.noise(key, seeds, numbers)
            groups = noise.shape[:2]
            z: Any = constrain(noise.reshape(-1, *self.shape))
            z = self.solver(self.guidance(backbone, text, empty), z, self.steps)
            if self.vae is not None:
                z = self.vae.apply({"params": frozen["vae"]}, z, method="to_images")
            return jnp.clip(z, -1, 1).reshape(*groups, *z.shape[1:])

        return jax.jit(draw)


def _even(number: int, most: int) -> int:
    """The size of equal parts of ``number`` things, none above ``most``, with least padding."""
    return math.ceil(number / math.ceil(number / most))
