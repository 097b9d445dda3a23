"""Gradient transformations, learning-rate schedules and the moving average of the weights.

Everything here is optax; this file only fixes which parts are chained in which order and which
parameters they touch.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from cosdiff_jax.shapes import Batch, Params


@runtime_checkable
class Rule(Protocol):
    """An update rule: a learning-rate schedule in, a gradient transformation out."""

    def __call__(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Build the transformation."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (Loshchilov & Hutter 2019); decay touches matrices only, not norms and biases.

    Attributes:
      decay: decoupled weight decay, per unit of learning rate.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment; SD3 pairs bf16 and QK-norm with 1e-15.
    """

    decay: float = 1e-4
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __call__(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Build the transformation."""
        return optax.adamw(
            rate, b1=self.b1, b2=self.b2, eps=self.eps, weight_decay=self.decay, mask=matrices
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon:
    """Orthogonalised momentum for hidden matrices, AdamW for everything else (Jordan 2024).

    The update's root mean square is matched to AdamW's (0.2 sqrt(max(in, out)), Liu et al. 2025),
    so that one learning rate serves both halves.

    Attributes:
      decay: decoupled weight decay, per unit of learning rate.
      momentum: decay of the momentum buffer.
      b2: second-moment decay of the AdamW half.
    """

    decay: float = 1e-4
    momentum: float = 0.95
    b2: float = 0.99

    def __call__(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Build the transformation."""
        return optax.contrib.muon(
            rate,
            beta=self.momentum,
            weight_decay=self.decay,
            adam_weight_decay=self.decay,
            weight_decay_mask=matrices,
            adam_b2=self.b2,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_muon_dimensions,
        )


def matrices(params: Params) -> Params:
    """Mark the parameters that weight decay touches: kernels and embedding tables."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim >= 2 and _name(path) in ("kernel", "embedding"), params
    )


def schedule(
    rate: float, *, steps: int, warmup: int = 0, shape: str = "constant", floor: float = 0.0
) -> optax.Schedule:
    """Learning rate by optimizer step: linear warm-up, then constant, linear or cosine to a floor.

    Args:
      rate: peak learning rate.
      steps: length of the run in optimizer steps.
      warmup: steps of linear growth from 0.
      shape: "constant", "linear" or "cosine".
      floor: the last learning rate as a share of the peak.

    Raises:
      ValueError: an unknown shape.
    """
    rest = max(steps - warmup, 1)
    shapes = {
        "constant": lambda: optax.constant_schedule(rate),
        "linear": lambda: optax.linear_schedule(rate, rate * floor, rest),
        "cosine": lambda: optax.cosine_decay_schedule(rate, rest, alpha=floor),
    }
    if shape not in shapes:
        raise ValueError(f"optimizer.shape is {shape!r}; choose one of {', '.join(shapes)}")
    if not warmup:
        return shapes[shape]()
    return optax.join_schedules(
        [optax.linear_schedule(0.0, rate, warmup), shapes[shape]()], [warmup]
    )


def chain(rule: Rule, rate: optax.Schedule, *, clip: float = 0.0) -> optax.GradientTransformation:
    """Clip by global norm, then apply the rule.

    Args:
      rule: the update rule.
      rate: learning rate by optimizer step.
      clip: largest global gradient norm; 0 switches clipping off.
    """
    parts = [optax.clip_by_global_norm(clip)] if clip else []
    return optax.chain(*parts, rule(rate))


def accumulated(value_and_grad: Callable, parts: int) -> Callable:
    """Run ``value_and_grad(params, frozen, batch, key, step, memory)`` on parts of a batch in turn.

    Loss, logs and gradients are the mean over the parts: space falls by their number, the batch
    stays what the config says. Part i takes prompts i, i + parts, ...: every device splits its
    own rows. What the objective remembers goes from part to part; the step is the same for all.

    Args:
      value_and_grad: returns ``((loss, (logs, memory)), grads)``.
      parts: how many; 1 changes nothing.

    Raises:
      ValueError: the prompts of a batch cannot be split so (when traced).
    """
    if parts == 1:
        return value_and_grad

    def split(batch: Batch) -> list[Array]:
        prompts = batch.tokens.shape[0]
        if prompts % parts:
            raise ValueError(
                f"data.prompts = {prompts} does not divide into "
                f"optimizer.accumulate = {parts} parts"
            )

        def one(x: Array) -> Array:
            rows = x.shape[0] // prompts
            x = x.reshape(prompts // parts, parts, rows, *x.shape[1:]).swapaxes(0, 1)
            return x.reshape(parts, -1, *x.shape[3:])

        return [one(leaf) for leaf in jax.tree.leaves(batch)]

    def over_parts(params, frozen, batch, key, step, memory):
        form = jax.tree.structure(batch)

        def part(memory, number, leaves):
            rows, now = jax.tree.unflatten(form, leaves), jax.random.fold_in(key, number)
            (loss, (logs, memory)), grads = value_and_grad(params, frozen, rows, now, step, memory)
            return memory, (loss, logs, grads)

        def body(carried, piece):
            total, memory = carried
            memory, values = part(memory, *piece)
            return (jax.tree.map(jnp.add, total, values), memory), None

        pieces = (jnp.arange(parts), split(batch))
        _, like = jax.eval_shape(part, memory, *jax.tree.map(lambda x: x[0], pieces))
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        (total, memory), _ = jax.lax.scan(body, (zero, memory), pieces)
        loss, logs, grads = jax.tree.map(lambda x: x / parts, total)
        return (loss, (logs, memory)), grads

    return over_parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ema:
    """Exponential moving average of the weights, taken every so many steps.

    ema <- decay ema + (1 - decay) params. The published deep-fusion recipe takes 0.99 every 100
    steps, which is about 0.9999 a step.

    Attributes:
      decay: share of the old average that stays.
      every: optimizer steps between two updates.
    """

    decay: float = 0.99
    every: int = 100

    def __call__(self, ema: Params, params: Params, step: Int[Array, ""]) -> Params:
        """Average after optimizer step number ``step`` (counted from 1)."""
        # Early on a long memory would mostly remember the random initial weights.
        decay = jnp.minimum(self.decay, (1.0 + step / self.every) / (10.0 + step / self.every))
        share = jnp.where(step % self.every == 0, 1.0 - decay, 0.0)
        return jax.tree.map(lambda e, p: e + share.astype(e.dtype) * (p - e), ema, params)


def _name(path: tuple) -> str:
    return str(getattr(path[-1], "key", path[-1]))


def _muon_dimensions(params: Params) -> Params:
    """Which axes of a kernel are its input and its output; the others are a batch of matrices.

    Fused kernels are taken apart: [D, H, E] into one matrix per head, [D, 2, M] into gate and up.
    A convolution's [3, 3, C, D] is one matrix from its whole window to D.
    A leading axis too many is the layer axis of nn.scan.
    """

    def one(path: tuple, leaf: Array) -> optax.contrib.MuonDimensionNumbers | None:
        inside = "/".join(str(getattr(part, "key", part)) for part in path)
        hidden = re.search(r"blocks/|/level\d|/mid/|/down\d|/up\d", inside)
        if _name(path) != "kernel" or not hidden or "modulation" in inside:
            # Muon is for hidden matrices: not for what reads raw inputs or makes raw outputs.
            return None
        if re.search(r"conv\d|shortcut|down\d|up\d", inside):
            return optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
        first, last = int("blocks/" in inside), leaf.ndim - 1
        if re.search(r"qkv|gate_up|cross_q/", inside):
            return optax.contrib.MuonDimensionNumbers(first, last)
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, last)), last)

    return jax.tree_util.tree_map_with_path(one, params)
