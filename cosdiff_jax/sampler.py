"""Noise to pictures: backbone -> guidance -> repulsion -> solver -> autoencoder, K for each prompt.

A caption is read once, however many samples and steps follow. The noise of a sample depends on
the key, on its prompt's seed and on its number k alone, so four samples are the first four of
eight, and a prompt draws the same pictures whatever other prompts stand beside it. Samples that
repel one another, whose noise is optimised together or that share out an arc (``noise.Slerp``) are
a group: then K matters as well.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from cosdiff_jax import rng
from cosdiff_jax.diversity import noise as noises
from cosdiff_jax.diversity import similarity
from cosdiff_jax.diversity.repulsion import Repulsion
from cosdiff_jax.features.feature import Feature
from cosdiff_jax.flow import composed
from cosdiff_jax.flow.condition import Annealed, Cads
from cosdiff_jax.flow.guidance import ClassifierFree, Guidance
from cosdiff_jax.flow.parameterization import Parameterization
from cosdiff_jax.flow.parameterization import Velocity as VelocityOutput
from cosdiff_jax.flow.solver import Euler, Solver, Velocity
from cosdiff_jax.flow.trajectory import RectifiedFlow, Trajectory, check_path
from cosdiff_jax.models import captions, layers
from cosdiff_jax.shapes import Frozen, Params, TextStream
from cosdiff_jax.sharding import constrain, to_host


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Moves a group's noise until a short rollout from it is less alike (``noise.optimise``).

    Attributes:
      moves: how many times; each costs a rollout and its gradient.
      rate: of a move, in lengths of the noise.
      pull: share of the way back to the start after each move.
      rollout: solver steps of the short rollout.
      feature: what of the rollouts is compared; None compares the latents themselves.
    """

    moves: int = 8
    rate: float = 0.05
    pull: float = 0.0
    rollout: int = 4
    feature: Feature | None = None


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws pictures; compiled at the first call of each shape.

    Attributes:
      backbone: (z_t, t, TextStream) -> output.
      language_model: (tokens, mask) -> TextStream.
      vae: to_images(latents); None where the flow is on pixels.
      shape: (h, w, c) of a latent, or of a picture where there is no ``vae``.
      trajectory: the path the backbone was trained on.
      parameterization: what its output means.
      steps: solver steps from noise to data.
      guidance: how closely captions are followed.
      weaker: the network that autoguidance moves away from, reading the same streams; its weights
        are ``frozen["weaker"]``.
      solver: the rule of a step.
      precision: in which the backbone multiplies matrices, see ``layers.precision``; the
        language model and the autoencoder as JAX is asked to around the call.
      rows: pictures drawn at once; bounds the memory, changes nothing else. A group that is
        coupled on the way is always drawn at once.
      noise: the joint law of the K starting points of a prompt.
      descent: how the noise is optimised; None leaves it as drawn.
      condition: how captions are annealed; None shows them as they are.
      repulsion: what keeps the samples of a prompt apart on the way; of rectified flow alone.
      view: the feature that repulsion compares, of latents; None compares latents.
    """

    backbone: nn.Module
    language_model: nn.Module
    vae: nn.Module | None
    shape: tuple[int, int, int]
    trajectory: Trajectory = field(default_factory=RectifiedFlow)
    parameterization: Parameterization = field(default_factory=VelocityOutput)
    steps: int = 25
    guidance: Guidance = field(default_factory=ClassifierFree)
    weaker: nn.Module | None = None
    solver: Solver = field(default_factory=Euler)
    precision: str = ""
    rows: int = 64
    noise: noises.Noise = field(default_factory=noises.Independent)
    descent: Descent | None = None
    condition: Cads | None = None
    repulsion: Repulsion | None = None
    view: Feature | None = None

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, not {self.rows}")
        layers.precision(self.precision)  # an unknown name is told here
        check_path(self.trajectory, guidance=self.guidance, solver=self.solver)
        if self.repulsion is None:
            return
        kind = type(self.repulsion).__name__
        if not isinstance(self.trajectory, RectifiedFlow):
            raise ValueError(
                f"{kind} is reckoned for rectified flow and the model follows "
                f"{type(self.trajectory).__name__}: set sample.repulsion.name=none"
            )
        if self.view is not None and not hasattr(self.repulsion, "feature"):
            raise ValueError(
                f"{kind} compares noisy latents and cannot look through a feature: set "
                "sample.view.name=none"
            )

    @property
    def evaluations(self) -> int:
        """Velocity evaluations a picture, those of a descent included."""
        return self.solver.calls * self.steps + self.rollouts

    @property
    def rollouts(self) -> int:
        """Velocity evaluations a picture in a descent's rollouts; each has a gradient as well."""
        descent = self.descent
        return 0 if descent is None else self.solver.calls * descent.moves * descent.rollout

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
        coupled = self.repulsion is not None or self.descent is not None
        samples = num if coupled else even(num, self.rows)
        chunk = even(prompts, max(1, self.rows // samples))
        places = np.arange(math.ceil(prompts / chunk) * chunk) % prompts
        numbers = np.arange(math.ceil(num / samples) * samples) % num
        drawn = []
        for rows in np.split(places, len(places) // chunk):
            text, empty = self.read(frozen, tokens[rows], mask[rows])
            start, keys = self.start(key, seeds[rows], num)
            columns = [
                to_host(self._draw(params, frozen, text, empty, start[:, k], keys[:, k]))
                for k in np.split(numbers, len(numbers) // samples)
            ]
            drawn.append(np.concatenate(columns, axis=1)[:, :num])
        return np.concatenate(drawn)[:prompts]

    @property
    def start(self) -> Callable[[jax.Array, jax.Array, int], tuple[jax.Array, jax.Array]]:
        """(key, seeds "P", K) -> starting points "P K h w c", and one key "P K" for each."""
        return _starting(self.noise, self.shape)

    @property
    def read(self) -> Callable[..., tuple[TextStream, TextStream]]:
        """(frozen, tokens, mask) -> the captions' streams and the empty caption's."""
        return _reading(self.language_model, self.backbone)

    def velocity(
        self,
        params: Params,
        frozen: Frozen,
        text: TextStream,
        empty: TextStream,
        keys: Key[Array, " B"],
    ) -> Velocity:
        """The velocity that is followed: guided, its caption annealed, its samples kept apart."""
        velocity = self._guided(params, frozen, text, empty, keys)
        if self.repulsion is None:
            return velocity
        repulsion = self.repulsion
        if self.view is not None:
            see = functools.partial(self.view, frozen)
            repulsion = dataclasses.replace(repulsion, feature=see)  # pyright: ignore
        return repulsion(velocity, keys.shape[0] // text.mask.shape[0])

    def descended(
        self,
        params: Params,
        frozen: Frozen,
        text: TextStream,
        empty: TextStream,
        z: Float[Array, "B h w c"],
        keys: Key[Array, " B"],
    ) -> Float[Array, "B h w c"]:
        """The starting points as the descent moves them; one sample has nobody to differ from."""
        samples, descent = z.shape[0] // text.mask.shape[0], self.descent
        if descent is None or samples == 1:
            return z
        velocity = jax.checkpoint(self._guided(params, frozen, text, empty, keys))
        # The noise of a solver's steps is that of the drawing, the same at every move.
        drawn = _solvers(keys)

        def alike(x0: jax.Array) -> jax.Array:
            see = descent.feature
            f = x0.reshape(x0.shape[0], -1) if see is None else see(frozen, x0)
            return similarity.mean_cosine(f.reshape(-1, samples, f.shape[-1]))

        moved, _ = noises.optimise(
            lambda z: self.solver(velocity, z, descent.rollout, key=drawn),
            z,
            alike,
            steps=descent.moves,
            rate=descent.rate,
            pull=descent.pull,
        )
        return moved

    def pictures(self, frozen: Frozen, z: Float[Array, "B h w c"]) -> Float[Array, "B X Y C"]:
        """Latents decoded, where there is an autoencoder, and clipped to [-1, 1]."""
        if self.vae is not None:
            z = cast(Array, self.vae.apply({"params": frozen["vae"]}, z, method="to_images"))
        return jnp.clip(z, -1, 1)

    def _guided(
        self,
        params: Params,
        frozen: Frozen,
        text: TextStream,
        empty: TextStream,
        keys: jax.Array,
    ) -> Velocity:
        def backbone(
            z: jax.Array, t: jax.Array, text: TextStream, *, weaker: bool = False, **less: Any
        ) -> jax.Array:
            seen = self.parameterization.network_input(z, t, self.trajectory)
            network, weights = self.backbone, params
            if weaker:
                assert self.weaker is not None
                network, weights = self.weaker, frozen["weaker"]
            with layers.precision(self.precision):
                output: Any = network.apply({"params": weights}, seen, t, text, **less)
            output = output.astype(jnp.float32)
            return self.parameterization.velocity(output, z, t, self.trajectory)

        guidance = self.guidance
        if self.condition is not None:
            hidden = jax.vmap(lambda key: rng.named(key, "condition")["condition"])(keys)
            guidance = Annealed(guidance=guidance, condition=self.condition, keys=hidden)
        return guidance(backbone, text, empty)

    @functools.cached_property
    def _draw(self) -> Callable:
        """(params, frozen, text, empty, start, keys) -> pictures, compiled.

        Scales of guidance are arguments of the program, which all samplers share that differ in
        them alone: another scale is not compiled again. Only s = 1 is another program, for it
        needs fewer evaluations.
        """
        alike, scales = self.apart()
        return functools.partial(_program(dataclasses.replace(alike, rows=1)), scales)

    def apart(self) -> tuple["Sampler", tuple[Float[Array, ""], ...]]:
        """What is equal in all samplers that differ in scales of guidance alone, and the scales."""
        scales = composed.scales(self.guidance)
        alike = self.scaled([_ANY] * len(scales))
        return alike, tuple(jnp.asarray(scale, jnp.float32) for scale in scales)

    def scaled(self, scales: Sequence[float | Float[Array, ""]]) -> "Sampler":
        """The same sampler with other scales of guidance, those that ``apart`` says."""
        return dataclasses.replace(self, guidance=composed.scaled(self.guidance, scales))

    def latents(
        self,
        params: Params,
        frozen: Frozen,
        text: TextStream,
        empty: TextStream,
        start: Float[Array, "P K h w c"],
        keys: Key[Array, "P K"],
    ) -> Float[Array, "P K h w c"]:
        """What the flow makes of the starting points, before anything is decoded."""
        flat = keys.reshape(-1)
        z: Any = constrain(start.reshape(-1, *self.shape))
        z = self.descended(params, frozen, text, empty, z, flat)
        velocity = self.velocity(params, frozen, text, empty, flat)
        z = self.solver(velocity, z, self.steps, key=_solvers(flat))
        return z.reshape(start.shape)

    def _run(
        self,
        params: Params,
        frozen: Frozen,
        text: TextStream,
        empty: TextStream,
        start: Float[Array, "P K h w c"],
        keys: Key[Array, "P K"],
    ) -> Float[Array, "P K X Y C"]:
        z = self.latents(params, frozen, text, empty, start, keys)
        images = self.pictures(frozen, z.reshape(-1, *self.shape))
        return images.reshape(*start.shape[:2], *images.shape[1:])


# Compiled once for all samplers that start or read alike, whatever else they differ in.
@functools.lru_cache(maxsize=32)
def _starting(noise: noises.Noise, shape: tuple[int, int, int]) -> Callable:
    def start(key: jax.Array, seeds: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
        def one(seed: jax.Array) -> tuple[jax.Array, jax.Array]:
            own = jax.random.fold_in(key, seed)
            keys = jax.vmap(lambda k: jax.random.fold_in(own, k))(jnp.arange(number))
            return noise(own, number, shape), keys

        return jax.vmap(one)(seeds)

    return jax.jit(start, static_argnums=2)


@functools.lru_cache(maxsize=32)
def _reading(language_model: nn.Module, backbone: nn.Module) -> Callable:
    def read(frozen: Frozen, tokens: jax.Array, mask: jax.Array) -> tuple[TextStream, TextStream]:
        return captions.read(language_model, frozen["llm"], backbone, tokens, mask)

    return jax.jit(read)


# Stands for whatever scale is asked for; any number but 1.
_ANY = 2.0


@functools.lru_cache(maxsize=32)
def _program(sampler: Sampler) -> Callable:
    """The compiled form of a sampler, with the scales of guidance as its first argument."""

    def draw(scales: tuple[jax.Array, ...], *args: Any) -> jax.Array:
        return sampler.scaled(scales)._run(*args)

    return jax.jit(draw)


def _solvers(keys: Key[Array, " B"]) -> Key[Array, " B"]:
    """The keys of the noise that a solver draws."""
    return jax.vmap(lambda key: rng.named(key, "solver")["solver"])(keys)


def even(number: int, most: int) -> int:
    """The size of equal parts of ``number`` things, none above ``most``, with least padding."""
    return math.ceil(number / math.ceil(number / most))
