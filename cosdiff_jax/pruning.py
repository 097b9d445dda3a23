"""Many candidates, few finished: after every step those that add least to the group are dropped.

    x0_hat = z_i - t_i v(z_i, t_i)              the preview, from the state before the step
    z_{i+1} = z_i - v(z_i, t_i) / steps
    n_{i+1} = max(ceil(n_i (1 - share)), k)     candidates kept, chosen by their previews

Choosing k of M by previews costs n_0 + n_1 + ... evaluations of the model instead of M steps. At
t = 1 the best preview is the mean of all pictures, the same for every noise, so early previews
tell the candidates of a many-step model hardly apart: none are dropped before t = ``start``. A
descent moves the noise of all M before the first step.

It follows group inference (arXiv 2508.15773), whose published code takes the preview with the
state after the step, off by v / steps.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cosdiff_jax.diversity.exact import product
from cosdiff_jax.diversity.programme import QuadraticProgram
from cosdiff_jax.diversity.selection import Selection
from cosdiff_jax.features.clip import ClipFeature
from cosdiff_jax.sampler import Sampler, even
from cosdiff_jax.shapes import Frozen, Params


def sizes(candidates: int, k: int, steps: int, share: float, unpruned: int = 0) -> tuple[int, ...]:
    """n_0 ... n_steps: how many candidates are alive before each step and, last, at the end.

    The sum of all but the last is the number of candidate evaluations.

    Raises:
      ValueError: fewer candidates than are to be kept, a share outside [0, 1), or as many steps
        without pruning as there are.
    """
    if not 1 <= k <= candidates or not 0 <= share < 1:
        raise ValueError(
            f"cannot prune {candidates} candidates to {k} by a share of {share} a step"
        )
    if not 0 <= unpruned < steps:
        raise ValueError(f"cannot prune after {unpruned} of {steps} steps: none would be left")
    alive = [candidates] * (1 + unpruned)
    for _ in range(steps - unpruned):
        # The slack keeps 64 (1 - 0.9) at 7 and 10 (1 - 0.9) at 1, whatever the rounding.
        alive.append(max(math.ceil(alive[-1] * (1 - share) - 1e-9), k))
    # What is left at the end is what was asked for, even where the steps were too few.
    return (*alive[:-1], k)


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Draws k of M candidates by Euler steps on the solver's grid, pruning after each.

    Attributes:
      sampler: draws; of its solver only the grid is used, but for a descent's rollouts. Its
        ``rows`` bound what is evaluated, seen and decoded at once; samples that repel one another
        need the velocity of all, and a descent all its rollouts.
      view: sees pictures and captions.
      share: r, dropped after every step.
      start: the t from which on they are dropped.
      selection: which to keep, by the previews' features and CLIP-scores.
    """

    sampler: Sampler
    view: ClipFeature
    share: float = 0.5
    start: float = 1.0
    selection: Selection = field(default_factory=QuadraticProgram)

    def alive(self, candidates: int, num: int) -> tuple[int, ...]:
        """How many of M candidates are left before each step and, last, at the end: ``sizes``.

        Raises:
          ValueError: M below k, or no step is left to prune after.
        """
        times = self.sampler.solver.grid(self.sampler.steps)[:-1]
        # The slack keeps 0.6 at 0.6, whatever the rounding of the grid.
        unpruned = sum(float(t) > self.start + 1e-6 for t in times)
        return sizes(candidates, num, self.sampler.steps, self.share, unpruned)

    def evaluations(self, candidates: int, num: int) -> int:
        """Velocity evaluations of one prompt, those of a descent included; errors as ``alive``."""
        return sum(self.alive(candidates, num)[:-1]) + candidates * self.sampler.rollouts

    def __call__(
        self,
        params: Params,
        frozen: Frozen,
        tokens: Int[np.ndarray, "P T"],
        mask: Bool[np.ndarray, "P T"],
        key: jax.Array,
        *,
        candidates: int,
        num: int,
        seeds: Int[np.ndarray, " P"],
    ) -> tuple[Float[np.ndarray, "P k X Y C"], Int[np.ndarray, "P k"]]:
        """Pictures of the candidates that are left, and their numbers among the M.

        Args:
          params: of the backbone.
          frozen: "llm", "clip", and "vae" where there is one.
          tokens: right-padded, bos first.
          mask: True at real tokens.
          key: together with ``seeds`` decides the noise, as for the sampler.
          candidates: M.
          num: k.
          seeds: one number per prompt.

        Raises:
          ValueError: M below k, or no step is left to prune after.
        """
        alive = self.alive(candidates, num)
        drawn, kept = [], []
        for p in range(len(tokens)):
            row = slice(p, p + 1)
            text, empty = self.sampler.read(frozen, tokens[row], mask[row])
            said = self._said(frozen, tokens[row], mask[row])
            noise, keys = self.sampler.start(key, jnp.asarray(seeds[row]), candidates)
            z, keys, left = noise[0], keys[0], jnp.arange(candidates)
            if self.sampler.descent is not None:
                z = self._descended(params, frozen, text, empty, z, keys)
            times = self.sampler.solver.grid(self.sampler.steps)
            for t, after, keep in zip(times[:-1], times[1:], alive[1:], strict=True):
                # The length of the step is taken before rounding, as the solvers do.
                moved = (np.float32(t), np.float32(t - after))
                z, chosen = self._step(params, frozen, text, empty, said, z, moved, keys, keep)
                keys, left = keys[chosen], left[chosen]
            drawn.append(np.asarray(self._pictures(frozen, z)))
            kept.append(np.asarray(left))
        return np.stack(drawn), np.stack(kept)

    @cached_property
    def _said(self) -> Callable:
        return _reading(self.view)

    @cached_property
    def _descended(self) -> Callable:
        alike, scales = self.sampler.apart()
        return partial(_descending(alike), scales)

    @cached_property
    def _pictures(self) -> Callable:
        return _decoding(self.sampler.apart()[0])

    @cached_property
    def _step(self) -> Callable:
        alike, scales = self.sampler.apart()
        return partial(_stepping(dataclasses.replace(self, sampler=alike)), scales)


# Compiled once for all that differ in scales of guidance alone, which come as an argument.
@lru_cache(maxsize=32)
def _reading(view: ClipFeature) -> Callable:
    return jax.jit(view.text)


@lru_cache(maxsize=32)
def _decoding(sampler: Sampler) -> Callable:
    def pictures(frozen, z) -> Float[Array, "k X Y C"]:
        return in_parts(lambda z: sampler.pictures(frozen, z), sampler.rows, z)

    return jax.jit(pictures)


@lru_cache(maxsize=32)
def _descending(sampler: Sampler) -> Callable:
    return jax.jit(lambda scales, *args: sampler.scaled(scales).descended(*args))


@lru_cache(maxsize=32)
def _stepping(pruning: Pruning) -> Callable:
    rows, trajectory = pruning.sampler.rows, pruning.sampler.trajectory

    def step(
        scales, params, frozen, text, empty, said, z, moved, keys, keep: int
    ) -> tuple[Float[Array, "n h w c"], Int[Array, " n"]]:
        sampler, (t, length) = pruning.sampler.scaled(scales), moved

        def velocity(z: Array, keys: Array) -> Array:
            field = sampler.velocity(params, frozen, text, empty, keys)
            return field(z, jnp.full(z.shape[0], t))

        def see(z: Array, v: Array) -> Array:
            times = jnp.full(z.shape[0], t)
            return pruning.view(frozen, trajectory.clean(z, v, times))

        coupled = sampler.repulsion is not None
        v = in_parts(velocity, z.shape[0] if coupled else rows, z, keys)
        after = z - length * v
        if keep == z.shape[0]:
            return after, jnp.arange(keep)
        f = in_parts(see, rows, z, v)
        chosen = jnp.sort(pruning.selection(f, product("mf,f->m", f, said[0]), keep))
        return after[chosen], chosen

    return jax.jit(step, static_argnames="keep")


def in_parts(call: Callable[..., Array], most: int, *arrays: Array) -> Array:
    """``call`` of at most so many rows at a time, where rows do not depend on one another.

    The parts are alike; what fills up the last one is dropped.
    """
    number = arrays[0].shape[0]
    size = even(number, most)
    if size == number:
        return call(*arrays)
    places = jnp.arange(math.ceil(number / size) * size) % number
    parts = tuple(x[places].reshape(-1, size, *x.shape[1:]) for x in arrays)
    done = jax.lax.map(lambda part: call(*part), parts)
    return done.reshape(-1, *done.shape[2:])[:number]
