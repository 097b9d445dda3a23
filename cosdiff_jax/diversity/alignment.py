"""Alignment as a training signal: does a picture show what its prompt says?

    loss = flow + mu(step) mean_pk form(picture pk, captions) + ...

The caption's vector is CLIP's, which lives beside pictures' vectors already, or is read off the
frozen language model's hidden states (``Projection``). No gradient flows into it: pictures go to
captions, never the other way.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cosdiff_jax.diversity import similarity
from cosdiff_jax.diversity.exact import product
from cosdiff_jax.diversity.schedule import Constant, Schedule, Step
from cosdiff_jax.shapes import Memory


@runtime_checkable
class Form(Protocol):
    """What it costs a picture not to fit its caption."""

    def __call__(
        self,
        images: Float[Array, "P K F"],
        text: Float[Array, "P F"],
        same: Bool[Array, "P P"],
    ) -> Float[Array, "P K"]:
        """One value per sample, whose gradient is zero where its caption has a zero vector.

        Args:
          images: vectors of the samples.
          text: vectors of their captions.
          same: which prompts of the batch say the same.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine:
    """1 - cos(picture, its caption), in [0, 2]; zero vectors give 1."""

    def __call__(
        self,
        images: Float[Array, "P K F"],
        text: Float[Array, "P F"],
        same: Bool[Array, "P P"],
    ) -> Float[Array, "P K"]:
        """One value per sample; other captions are not looked at."""
        del same
        images, text = similarity.unit(images), similarity.unit(text)
        return 1.0 - product("pkf,pf->pk", images, text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive:
    """InfoNCE of a picture over the captions of its batch (van den Oord et al. 2018, eq. 4).

        c_pkq = cos(picture pk, caption q) / temperature
        l_pk  = log sum_q exp c_pkq - c_pkp        q = p, or a caption that says something else

    The other pictures of a prompt are nobody's negatives, so the term does not ask them to differ.

    Attributes:
      temperature: in units of the cosine; the lower, the more the nearest wrong caption counts.
    """

    temperature: float = 0.07

    def __post_init__(self):
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")

    def __call__(
        self,
        images: Float[Array, "P K F"],
        text: Float[Array, "P F"],
        same: Bool[Array, "P P"],
    ) -> Float[Array, "P K"]:
        """One value per sample, at least 0; 0 where no other caption is in the batch."""
        images, text = similarity.unit(images), similarity.unit(text)
        c = product("pkf,qf->pkq", images, text) / self.temperature
        own = jnp.eye(len(text), dtype=bool)
        right = jnp.einsum("pkp->pk", c)
        every = jnp.where((own | ~same)[:, None, :], c, -jnp.inf)
        return jax.nn.logsumexp(every, axis=-1) - right


def same_captions(tokens: Int[Array, "P T"], mask: Bool[Array, "P T"]) -> Bool[Array, "P P"]:
    """Which prompts have the same real tokens, whatever stands in their padding."""
    said = jnp.where(mask, tokens, -1)
    return jnp.all(said[:, None, :] == said[None, :, :], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Projection:
    """From the language model's pooled hidden states to pictures' vectors: a running regression.

        text = f_mean + W^T (h - h_mean)
        W    = (S_hh + ridge diag(S_hh))^-1 S_hf

    with h_mean, f_mean and the covariances S taken over the real pictures of past steps' prompts,
    older steps counting ``decay`` times less each. The model's own pictures never enter, so it
    cannot move the captions towards what it draws; the step at hand does not enter either, so the
    captions it is judged by were not fitted to it.

    The ridge is a share of each coordinate's variance: layers differ a thousandfold in scale, and
    one number serves them all. Before the first step everything is zero, and so is the text; a few
    steps later it is rough still, which a warm-up of mu passes over.

    Attributes:
      layer: which hidden state: 0 the embeddings, ... L the last one; negative counts from there,
        None takes the middle one.
      ridge: shrinkage towards f_mean, as a share of the variance of h.
      decay: share of the old statistics that stays after a step; 1 / (1 - decay) steps are
        remembered, which should hold several times as many prompts as h has coordinates.
    """

    layer: int | None = None
    ridge: float = 0.01
    decay: float = 0.99

    def __post_init__(self):
        if self.ridge <= 0:
            raise ValueError(f"ridge must be above 0, not {self.ridge}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), not {self.decay}")

    def start(self, hidden: int, features: int) -> Memory:
        """Statistics of nothing, for D = ``hidden`` and F = ``features``.

        ``mean`` [D + F] of h and f side by side, ``covariance`` [D, D + F] of h with both, and the
        ``weight`` that all steps so far add up to.
        """
        return {
            "weight": jnp.zeros(()),
            "mean": jnp.zeros((hidden + features,)),
            "covariance": jnp.zeros((hidden, hidden + features)),
        }

    def text(self, memory: Memory, hidden: Float[Array, "P D"]) -> Float[Array, "P F"]:
        """Unit vectors of captions where pictures have theirs; zero while nothing was seen.

        Args:
          memory: as ``start`` or ``after`` gave it.
          hidden: pooled states of the captions.
        """
        memory, hidden = jax.lax.stop_gradient((memory, hidden.astype(jnp.float32)))
        d = hidden.shape[-1]
        h_mean, f_mean = memory["mean"][:d], memory["mean"][d:]
        s_hh, s_hf = memory["covariance"][:, :d], memory["covariance"][:, d:]
        # Solved for h in units of its own spread: the matrix has a unit diagonal whatever the
        # scale. A coordinate that never changes has no such unit, and nothing to say.
        variance = jnp.diagonal(s_hh)
        varies = variance > 1e-10 * memory["weight"] * h_mean**2
        scale = jnp.where(varies, jax.lax.rsqrt(jnp.where(varies, variance, 1.0)), 0.0)
        unit_diagonal = scale[:, None] * s_hh * scale[None, :] + self.ridge * jnp.eye(d)
        w = scale[:, None] * jnp.linalg.solve(unit_diagonal, scale[:, None] * s_hf)
        change = product("pd,df->pf", hidden - h_mean[None, :], w)
        return similarity.unit(f_mean[None, :] + change)

    def after(self, memory: Memory, hidden: Float[Array, "P D"], f: Float[Array, "P F"]) -> Memory:
        """The statistics with one more step in them.

        Means and covariances of two samples are merged (Chan et al. 1979), since a difference of
        raw moments would lose a covariance that is small beside the squared mean.

        Args:
          memory: before it.
          hidden: pooled states of its captions.
          f: mean vector of each caption's real pictures.
        """
        x = jnp.concatenate([hidden.astype(jnp.float32), f.astype(jnp.float32)], axis=-1)
        x, d, share = jax.lax.stop_gradient(x), hidden.shape[-1], 1.0 - self.decay
        old = self.decay * memory["weight"]
        weight = old + share
        mean = jnp.mean(x, axis=0)
        spread = x - mean[None, :]
        spread = product("pd,px->dx", spread[:, :d], spread) / len(x)
        moved = mean - memory["mean"]
        between = old * share / weight * moved[:d, None] * moved[None, :]
        return {
            "weight": weight,
            "mean": memory["mean"] + share / weight * moved,
            "covariance": self.decay * memory["covariance"] + share * spread + between,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment:
    """The alignment term: mu(step) times what ``form`` says of each sample.

    Attributes:
      schedule: mu, by the steps alone.
      form: what is compared.
      projection: makes the captions' vectors of the language model's states; None leaves them to
        CLIP.
    """

    schedule: Schedule = dataclasses.field(default_factory=lambda: Constant(value=0.02))
    form: Form = dataclasses.field(default_factory=Cosine)
    projection: Projection | None = None

    def weight(self, step: Step) -> Float[Array, ""]:
        """mu(step)."""
        return self.schedule(step)
