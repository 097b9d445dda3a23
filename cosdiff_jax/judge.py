"""A set of weights -> pictures to look at and numbers to compare: what runs are judged by."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from cosdiff_jax.data.groups import to_float, to_uint8
from cosdiff_jax.features.clip import see
from cosdiff_jax.metrics import clip_score, cosine, frechet
from cosdiff_jax.sampler import Sampler, even
from cosdiff_jax.shapes import Batch, Frozen, Params

Groups = UInt8[np.ndarray, "P K X Y C"]
Table = dict[str, float]
State = TypeVar("State")


class Measured(NamedTuple):
    """Measures by name.

    Attributes:
      table: of all prompts together.
      each: of every prompt alone, in order; what cannot be said of one is absent there. Measures
        of a set, such as a Frechet distance, are not among them.
    """

    table: Table
    each: list[Table]


Measure = Callable[[Groups], Measured]
"""Groups of pictures of the judge's own prompts -> measures by name."""


def _never() -> bool:
    return False


def together(
    states: Sequence[State],
    merge: Callable[[State, State], State],
    result: Callable[[State], Mapping[str, float]],
) -> Measured:
    """What the states of a metric, one for each prompt, say alone and merged."""
    whole = functools.reduce(merge, states)
    return Measured(dict(result(whole)), [dict(result(state)) for state in states])


def prompt_by_prompt(metric: Any, images: Groups, asked: Sequence[Any] | np.ndarray) -> Measured:
    """A metric (init/update/merge/result) of pictures and what each prompt asked for."""
    states = [
        metric.update(metric.init(), images[p : p + 1], asked[p : p + 1])
        for p in range(len(images))
    ]
    return together(states, metric.merge, metric.result)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen of one set of weights.

    Attributes:
      table: measures by name.
      images: the pictures of the prompts shown in grids, or None where there is nothing to see.
      each: the measures of every prompt alone, [] where nothing was asked of single ones.
    """

    table: Table
    images: Groups | None = None
    each: list[Table] = dataclasses.field(default_factory=list)


@runtime_checkable
class Judge(Protocol):
    """A way to look at weights."""

    @property
    def captions(self) -> Sequence[str]:
        """Row labels of the grids."""
        ...

    @property
    def truth(self) -> Table:
        """The measures of the true distribution, {} where there is none."""
        ...

    @property
    def real(self) -> Groups | None:
        """Real pictures of the prompts shown, or None."""
        ...

    def __call__(
        self,
        params: Params,
        frozen: Frozen,
        *,
        measure: bool,
        stop: Callable[[], bool] = _never,
    ) -> Look | None:
        """Draw the fixed prompts; with ``measure`` also compute the numbers.

        ``stop`` is asked again and again; None comes back where it has said yes.
        """
        ...


@dataclasses.dataclass(kw_only=True)
class Drawn:
    """Pictures of fixed held-out prompts from fixed noise, and what the measures say of them.

    Attributes:
      sampler: draws.
      tokens, mask: the P prompts.
      prompts: their captions.
      groups: K real pictures of each prompt: the true distribution, measured the same way.
      measures: what is computed.
      shown: how many prompts are rows of the grids.
      key: of the noise.
    """

    sampler: Sampler
    tokens: Int[np.ndarray, "P T"]
    mask: Bool[np.ndarray, "P T"]
    prompts: Sequence[str]
    groups: Groups
    measures: Sequence[Measure]
    shown: int
    key: jax.Array

    @property
    def captions(self) -> Sequence[str]:
        """Row labels of the grids."""
        return self.prompts[: self.shown]

    @property
    def real(self) -> Groups:
        """Real pictures of the prompts shown."""
        return self.groups[: self.shown]

    @property
    def truth(self) -> Table:
        """The measures of the real pictures."""
        return self._truth

    @functools.cached_property
    def _truth(self) -> Table:
        return self.measured(self.groups).table

    def __call__(
        self,
        params: Params,
        frozen: Frozen,
        *,
        measure: bool,
        stop: Callable[[], bool] = _never,
    ) -> Look | None:
        """Draw; without ``measure`` only the prompts shown."""
        number, samples = len(self.prompts) if measure else self.shown, self.groups.shape[1]
        # As many at once as the sampler itself would draw of all: the same program, the same bits.
        chunk = even(number, max(1, self.sampler.rows // samples))
        parts = []
        for start in range(0, number, chunk):
            if stop():
                return None
            rows = np.arange(start, start + chunk) % number
            images = self.sampler(
                params,
                frozen,
                self.tokens[rows],
                self.mask[rows],
                self.key,
                num=samples,
                seeds=rows,
            )
            parts.append(to_uint8(images))
        drawn = np.concatenate(parts)[:number]
        if stop():
            return None
        table, each = self.measured(drawn) if measure else Measured({}, [])
        return Look(table=table, images=drawn[: self.shown], each=each)

    def measured(self, groups: Groups) -> Measured:
        """The measures of any pictures of these prompts."""
        found = Measured({}, [{} for _ in self.prompts])
        for one in self.measures:
            table, each = one(groups)
            found.table.update(table)
            for known, more in zip(found.each, each, strict=True):
                known.update(more)
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class InClip:
    """Cosines in each prompt's group and between picture and prompt, and how far off the set is.

    Attributes:
      clip: the network, in whose space all is measured.
      name: of it; a Frechet distance means nothing without.
      params: its weights.
      tokens, mask: the P prompts.
      real: pictures of the same prompts, which the set is held to.
      percent: of the top-k % cosine.
    """

    clip: Any
    name: str
    params: Params
    tokens: Int[np.ndarray, "P T"]
    mask: Bool[np.ndarray, "P T"]
    real: Groups
    percent: float = 20.0

    def __call__(self, groups: Groups) -> Measured:
        """``mean_cosine``, ``top_cosine``, ``vendi``, ``clip_score`` and ``frechet_NAME_nB``.

        The last is that of B = P K pictures from the real ones, whose own is 0. It falls as B
        grows, so it is comparable only at the same B.
        """
        cosines, scores = [], []
        moments = frechet.init(self.clip.features)
        for group, said in zip(groups, self._said, strict=True):
            f = self._seen(group)
            cosines.append(cosine.update(cosine.init(), f[None], self.percent))
            scores.append(clip_score.update(clip_score.init(), f[None], said[None]))
            moments = frechet.update(moments, f)
        alike = together(cosines, cosine.merge, cosine.result)
        fitting = together(scores, clip_score.merge, clip_score.result)
        apart = frechet.result(moments, self._real)["frechet"]
        return Measured(
            {**alike.table, **fitting.table, f"frechet_{self.name}_n{moments.number}": apart},
            [{**a, **b} for a, b in zip(alike.each, fitting.each, strict=True)],
        )

    def _seen(self, group: UInt8[np.ndarray, "K X Y C"]) -> Float[np.ndarray, "K F"]:
        return np.asarray(self._image(self.params, to_float(group)))

    @functools.cached_property
    def _real(self) -> frechet.Moments:
        moments = frechet.init(self.clip.features)
        for group in self.real:
            moments = frechet.update(moments, self._seen(group))
        return moments

    # A run is measured before, after and against real pictures: compiled once, captions read once.
    @functools.cached_property
    def _image(self) -> Callable:
        return jax.jit(functools.partial(see, self.clip))

    @functools.cached_property
    def _said(self) -> Float[np.ndarray, "P F"]:
        text = jax.jit(lambda p, t, m: self.clip.apply({"params": p}, t, m, method="text"))
        return np.asarray(text(self.params, self.tokens, self.mask))


@dataclasses.dataclass(kw_only=True)
class HeldOut:
    """The objective's own terms on data that training never sees.

    Attributes:
      objective: what is being trained.
      batches: opens the held-out data from its beginning.
      number: how many batches are averaged.
    """

    objective: Any
    batches: Callable[[], Iterator[dict[str, np.ndarray]]]
    number: int = 8
    captions: Sequence[str] = ()
    truth: Table = dataclasses.field(default_factory=dict)
    real: Groups | None = None

    @functools.cached_property
    def _logs(self) -> Callable:
        return jax.jit(lambda *args: self.objective(*args)[1][0])

    def __call__(
        self,
        params: Params,
        frozen: Frozen,
        *,
        measure: bool,
        stop: Callable[[], bool] = _never,
    ) -> Look | None:
        """Average the logs over the held-out batches."""
        total: Table = {}
        stream = self.batches() if measure else iter(())
        for index, rows in zip(range(self.number), stream, strict=False):
            if stop():
                return None
            batch = Batch(**jax.tree.map(jnp.asarray, rows))
            logs = self._logs(params, frozen, batch, jax.random.key(index), jnp.int32(0), {})
            for name, value in logs.items():
                total.setdefault(name, 0.0)
                total[name] += float(value) / self.number
        return Look(table=total)
