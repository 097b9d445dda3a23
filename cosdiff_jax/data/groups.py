"""From a source of prompt groups to batches: shuffle, tokenize, stack, flatten to B = P K rows.

A source is anything with ``__len__`` and ``__getitem__(i) -> {"caption": str, ...}``: a group is
one caption with K pictures ("images", uint8 [K X Y C]) or K encoded pictures ("latents", [K h w c],
and "noise" where a model drew them from it); a text source has captions only. "prompt" numbers the
prompts where several groups share one; otherwise a group's own number does. "distinct" (bool [K])
marks the pictures that repeat no other, in a source that fills short groups up. Where groups are of
several shapes, ``buckets`` says of which each is, and every batch is of one. Grain does the rest,
so that the iterator's place in the data is a small dictionary and a resumed run sees the batches it
would have seen.
"""

import dataclasses
import logging
import math
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Float, UInt8

from cosdiff_jax.data.buckets import Plan
from cosdiff_jax.data.tokenizer import Tokenizer

_log = logging.getLogger("cosdiff_jax")


@runtime_checkable
class Source(Protocol):
    """Random access to groups."""

    def __len__(self) -> int:
        """Number of groups."""
        ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One group."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encode:
    """One group of a source -> arrays of one prompt.

    Attributes:
      tokenizer: turns captions into tokens.
      context: tokens a caption is padded to.
      eos: end the caption with an end-of-text token (language-model training).
    """

    tokenizer: Tokenizer
    context: int
    eos: bool = False

    def __call__(self, group: dict[str, Any]) -> dict[str, np.ndarray]:
        """Tokenize the caption and scale the pictures to [-1, 1].

        Raises:
          ValueError: the caption is longer than the context.
        """
        tokens, mask = self.tokenizer.encode([group["caption"]], self.context, eos=self.eos)
        rows = {"tokens": tokens[0], "mask": mask[0], "prompt": np.int32(group["prompt"])}
        if "images" in group:
            rows["images"] = to_float(group["images"])
        for name in ("latents", "noise"):
            if name in group:
                rows[name] = np.asarray(group[name], np.float32)
        if "distinct" in group:
            rows["distinct"] = np.asarray(group["distinct"], bool)
        return rows


@dataclasses.dataclass(frozen=True)
class Numbered:
    """A source whose groups say the number of their prompt."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"prompt": index, **self.source[index]}


@dataclasses.dataclass(frozen=True)
class _Planned:
    """A host's part of the batches of a plan, encoded; there is no last one."""

    source: Source
    encode: Encode
    plan: Plan
    shard: int
    shards: int

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        _, items = self.plan[index]
        rows = [self.encode(self.source[int(i)]) for i in items[self.shard :: self.shards]]
        return flatten({name: np.stack([row[name] for row in rows]) for name in rows[0]})


def count_prompts(source: Source) -> int:
    """How many prompts a source has: its groups, unless it deals several out of one."""
    return getattr(source, "prompts", len(source))


def batches(
    source: Source,
    encode: Encode,
    *,
    prompts: int,
    seed: int,
    shard: int = 0,
    shards: int = 1,
    shuffle: bool = True,
    repeat: bool = True,
    threads: int = 2,
) -> grain.IterDataset:
    """An endless, seekable stream of batches: dicts of arrays in ``Batch``'s field names.

    Args:
      source: groups; of several shapes where it has ``buckets``, and then always shuffled and
        repeated as ``buckets.Plan`` does.
      encode: what is done to each group.
      prompts: P over all hosts.
      seed: order of the groups; every epoch is shuffled anew.
      shard: this host's number.
      shards: hosts; each reads groups ``shard, shard + shards, ...``, of the plan's batches where
        there is one, so that all have the same shape at the same step.
      shuffle: draw in random order.
      repeat: go on for ever; without it one pass is made, the rest that fills no batch dropped.
      threads: reading threads.

    Raises:
      ValueError: P is not divisible by the hosts, or the source has fewer groups (of every shape)
        than a batch.
    """
    if prompts % shards:
        raise ValueError(f"data.prompts = {prompts} cannot be split over {shards} hosts")
    local = prompts // shards
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    of = getattr(source, "buckets", None)
    if of is not None:
        plan = Plan(of, rows=prompts, seed=seed)
        _log.info(f"{plan.summary}. A program is compiled for each bucket when it first comes")
        planned = _Planned(Numbered(source), encode, plan, shard, shards)
        return grain.MapDataset.source(planned).to_iter_dataset(reading)
    dataset = grain.MapDataset.source(Numbered(source))[shard::shards]
    if len(dataset) < local:
        raise ValueError(
            f"the data has {len(source)} prompt groups, fewer than one batch of "
            f"data.prompts = {prompts}"
        )
    dataset = dataset.seed(seed)
    if shuffle:
        dataset = dataset.shuffle()
    if repeat:
        dataset = dataset.repeat()
    dataset = dataset.map(encode).batch(local, drop_remainder=True).map(flatten)
    return dataset.to_iter_dataset(reading)


def flatten(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Join prompts and samples: [P K ...] -> [B ...] for everything on the image side."""
    pictures = ("images", "latents", "noise")
    return {
        name: value.reshape(-1, *value.shape[2:]) if name in pictures else value
        for name, value in rows.items()
    }


def to_float(images: UInt8[np.ndarray, "*any X Y C"]) -> Float[np.ndarray, "*any X Y C"]:
    """Pixels 0..255 -> [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1.0


def to_uint8(images: Float[np.ndarray, "*any X Y C"]) -> UInt8[np.ndarray, "*any X Y C"]:
    """Pixels [-1, 1] -> 0..255, rounded and clipped."""
    return np.clip(np.rint((np.asarray(images) + 1.0) * 127.5), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class WithLatents:
    """A source whose pictures were encoded beforehand.

    Where more pictures are kept of a prompt than a group has, they are dealt out over several
    groups of that prompt, so that every picture is seen.

    Attributes:
      captions: one per prompt.
      latents: encoded pictures in the same order; may be a memory map.
      samples: K, pictures per group.
    """

    captions: tuple[str, ...]
    latents: Float[np.ndarray, "prompts stored h w c"]
    samples: int

    def __len__(self) -> int:
        return len(self.captions) * self._hands

    def __getitem__(self, index: int) -> dict[str, Any]:
        prompt, hand = divmod(index, self._hands)
        # The last of a prompt's groups shares pictures with the one before, rather than be short.
        start = max(min(hand * self.samples, self.latents.shape[1] - self.samples), 0)
        return {
            "caption": self.captions[prompt],
            "prompt": prompt,
            "latents": self.latents[prompt, start : start + self.samples],
        }

    @property
    def prompts(self) -> int:
        """Of each there may be several groups."""
        return len(self.captions)

    @property
    def _hands(self) -> int:
        return max(math.ceil(self.latents.shape[1] / self.samples), 1)


@dataclasses.dataclass(frozen=True)
class Replaced:
    """A source whose pictures were encoded beforehand, whatever captions it gives them.

    Attributes:
      source: groups of K pictures.
      latents: those of all groups, in the same order; may be a memory map.
    """

    source: Source
    latents: Float[np.ndarray, "groups K h w c"]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        group = dict(self.source[index])
        group.pop("images")
        return {**group, "latents": self.latents[index]}


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Captions with pictures that a model drew of them.

    Attributes:
      captions: one per group.
      pairs: of each picture the noise it was drawn from and its latents; may be a memory map.
    """

    captions: tuple[str, ...]
    pairs: Float[np.ndarray, "groups K 2 h w c"]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        noise, latents = np.moveaxis(self.pairs[index], 1, 0)
        return {"caption": self.captions[index], "latents": latents, "noise": noise}


@dataclasses.dataclass(frozen=True)
class Captions:
    """Lines of text without pictures, for language-model training."""

    lines: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"caption": self.lines[index]}
