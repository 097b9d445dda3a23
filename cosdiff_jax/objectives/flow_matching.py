"""Rectified-flow training with cosine diversity and alignment: the main objective.

    L = L_RF + lambda(step) L_div + mu L_align + nu L_anchor

    L_RF     = mean over rows of w(t) |v_hat - v|^2           (Esser et al. 2024, eq. 14)
    L_div    = mean over prompts of how far the cosine of their K samples exceeds its target
    L_align  = mean over rows of 1 - cos(f_image, f_text)
    L_anchor = mean over rows of |v_hat - v_anchor|^2

Diversity and alignment look at features of the clean image the model predicts, one step from z_t
or by a rollout from noise. Pairs are formed within a prompt, never across prompts.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cosdiff_jax import rng
from cosdiff_jax.diversity import similarity
from cosdiff_jax.flow.guidance import Guidance
from cosdiff_jax.flow.prediction import OneStep, Prediction
from cosdiff_jax.flow.solver import Velocity
from cosdiff_jax.flow.timestep import LogitNormal, Times
from cosdiff_jax.flow.trajectory import RectifiedFlow, Trajectory
from cosdiff_jax.flow.weighting import Constant, Weighting
from cosdiff_jax.models import text_stream
from cosdiff_jax.shapes import Batch, Frozen, Logs, Params, TextStream


@runtime_checkable
class Diversity(Protocol):
    """What alike samples cost.

    Attributes:
      reads_real: whether the target is measured on the real pictures of the same prompts.
    """

    reads_real: bool

    def weight(self, step: jax.Array) -> Float[Array, ""]:
        """lambda(step)."""
        ...

    def __call__(
        self, f: Float[Array, "P K F"], real: Float[Array, "P K F"] | None
    ) -> Float[Array, " P"]:
        """The penalty of each prompt, from unit features of its samples and real pictures."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMatching:
    """The objective; networks are handed in, their frozen parameters come with the call.

    ``frozen`` holds "llm", "vae" (if ``vae`` is set and the batch has no latents, or a feature
    decodes), "clip" (if ``alignment`` is above 0 or a feature reads it) and "anchor" (if
    ``anchor`` is above 0).

    Attributes:
      backbone: (z_t, t, TextStream) -> v, the only trained network.
      language_model: (tokens, mask) -> TextStream.
      vae: to_latents(images); None trains on pixels.
      clip: text(tokens, mask) -> unit vectors, for alignment.
      trajectory: the path from data to noise.
      times: the distribution of training times.
      weighting: w(t).
      caption_dropout: probability that a prompt is shown as the empty caption.
      samples: K, pictures per prompt.
      diversity: the diversity term, None for none.
      alignment: mu.
      anchor: nu.
      prediction: how the clean image is predicted.
      feature: (frozen, latents) -> unit vectors; alignment needs the one of ``clip``.
    """

    backbone: nn.Module
    language_model: nn.Module
    vae: nn.Module | None = None
    clip: nn.Module | None = None
    trajectory: Trajectory = dataclasses.field(default_factory=RectifiedFlow)
    times: Times = dataclasses.field(default_factory=LogitNormal)
    weighting: Weighting = dataclasses.field(default_factory=Constant)
    caption_dropout: float = 0.1
    samples: int = 1
    diversity: Diversity | None = None
    alignment: float = 0.0
    anchor: float = 0.0
    prediction: Prediction = dataclasses.field(default_factory=OneStep)
    feature: Any = None

    def __post_init__(self):
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
        if self.diversity is not None and self.samples < 2:
            raise ValueError(
                "a diversity term compares the samples of one prompt: samples must be at least 2, "
                f"not {self.samples}"
            )
        if not 0 <= self.caption_dropout <= 1:
            raise ValueError(f"caption_dropout must lie in [0, 1], not {self.caption_dropout}")
        if self.predicts and self.feature is None:
            raise ValueError("diversity and alignment are measured on features: feature is missing")
        if self.alignment and self.clip is None:
            raise ValueError("alignment compares pictures with captions in CLIP: clip is missing")

    @property
    def predicts(self) -> bool:
        """Whether a clean image is predicted at all; known before anything is traced."""
        return self.diversity is not None or self.alignment > 0

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Fresh parameters of the backbone for batches of this shape."""

        def first_pass(key: jax.Array, batch: Batch) -> Params:
            # Only shapes reach the backbone's parameters, so the frozen networks may be random.
            llm = self.language_model.init(key, batch.tokens, batch.mask)
            text, _ = text_stream.read(
                self.language_model, llm["params"], self.backbone, batch.tokens, batch.mask
            )
            if self.vae is not None and batch.latents is None:
                vae = self.vae.init(key, batch.images)
                x0 = self.vae.apply(vae, batch.images, method="to_latents")
            else:
                x0 = batch.images if batch.latents is None else batch.latents
            return self.backbone.init(key, x0, jnp.zeros(x0.shape[0]), text)["params"]

        return first_pass(key, batch)

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Float[Array, ""], Logs]:
        """The loss and its terms.

        Args:
          params: the backbone's parameters.
          frozen: parameters by role, see the class.
          batch: P prompts and B = P K pictures, prompt-major.
          key: for this step.
          step: the optimizer step, which lambda depends on.
        """
        keys = rng.named(key, "time", "noise", "drop", "rollout")
        prompts = batch.tokens.shape[0]
        x0 = self._data(frozen, batch)
        rows = prompts * self.samples
        if x0.shape[0] != rows:
            raise ValueError(
                f"{prompts} prompts with {self.samples} samples each need {rows} pictures, "
                f"the batch has {x0.shape[0]}"
            )

        captions, empty = text_stream.read(
            self.language_model, frozen["llm"], self.backbone, batch.tokens, batch.mask
        )
        kept = jax.random.bernoulli(keys["drop"], 1 - self.caption_dropout, (prompts,))
        text = text_stream.select(kept, captions, empty)

        if self.predicts and self.prediction.shared_time:
            t = jnp.repeat(self.times(keys["time"], prompts), self.samples)
        else:
            t = self.times(keys["time"], rows)
        eps = jax.random.normal(keys["noise"], x0.shape, x0.dtype)
        z_t, v = self.trajectory.corrupt(x0, eps, t)
        v_hat = self._velocity(params, z_t, t, text)

        flow = jnp.mean(self.weighting(t) * _row_mean((v_hat - v) ** 2))
        loss, logs = flow, {"flow": flow}

        if self.predicts:

            def guided(guidance: Guidance) -> Velocity:
                return guidance(
                    lambda z, t, text: self._velocity(params, z, t, text), captions, empty
                )

            x0_hat, counts = self.prediction(
                trajectory=self.trajectory,
                guided=guided,
                z_t=z_t,
                t=t,
                v=v_hat,
                noise=jax.random.normal(keys["rollout"], x0.shape, x0.dtype),
            )
            if self.prediction.drops:
                counts = counts * jnp.repeat(kept, self.samples)
            f = self.feature(frozen, x0_hat)
            extra, terms = self._similarities(frozen, batch, x0, f, counts, step)
            loss, logs = loss + extra, logs | terms

        if self.anchor:
            v_anchor = jax.lax.stop_gradient(self._velocity(frozen["anchor"], z_t, t, text))
            logs["anchor"] = jnp.mean(_row_mean((v_hat - v_anchor) ** 2))
            loss = loss + self.anchor * logs["anchor"]
        return loss, {"loss": loss, **logs}

    def _similarities(
        self,
        frozen: Frozen,
        batch: Batch,
        x0: Float[Array, "B *x"],
        f: Float[Array, "B F"],
        counts: Float[Array, " B"],
        step: jax.Array,
    ) -> tuple[Float[Array, ""], Logs]:
        """Diversity and alignment, weighted and summed, and what to log of them."""
        grouped = f.reshape(-1, self.samples, f.shape[-1])
        # A prompt counts as a whole: a pair is only as good as the worse of its two samples.
        groups = counts.reshape(-1, self.samples).min(axis=1)
        total, logs = jnp.zeros(()), {}
        if self.samples > 1:
            logs["mean_cosine"] = _weighted_mean(similarity.mean_cosine(grouped), groups)
        if self.diversity is not None:
            real = None
            if self.diversity.reads_real:
                real = jax.lax.stop_gradient(self.feature(frozen, x0)).reshape(grouped.shape)
                logs["real_cosine"] = jnp.mean(similarity.mean_cosine(real))
            logs["lambda"] = self.diversity.weight(step)
            logs["diversity"] = _weighted_mean(self.diversity(grouped, real), groups)
            total = total + logs["lambda"] * logs["diversity"]
        if self.clip is not None and self.alignment:
            f_text = self.clip.apply(
                {"params": frozen["clip"]}, batch.tokens, batch.mask, method="text"
            )
            cosine = jnp.einsum("pkf,pf->pk", grouped, jax.lax.stop_gradient(f_text))
            logs["alignment"] = _weighted_mean(1 - cosine.reshape(-1), counts)
            total = total + self.alignment * logs["alignment"]
        return total, logs

    def _data(self, frozen: Frozen, batch: Batch) -> Float[Array, "B *x"]:
        if batch.latents is not None:
            return batch.latents
        if batch.images is None:
            raise ValueError("a flow needs pictures: the batch has neither images nor latents")
        if self.vae is None:
            return batch.images
        latents = self.vae.apply({"params": frozen["vae"]}, batch.images, method="to_latents")
        return jax.lax.stop_gradient(latents)

    def _velocity(self, params: Params, z: jax.Array, t: jax.Array, text: TextStream) -> jax.Array:
        # Losses are float32 whatever the backbone computes in.
        return self.backbone.apply({"params": params}, z, t, text).astype(jnp.float32)


def _row_mean(x: Float[Array, "B *x"]) -> Float[Array, " B"]:
    return x.reshape(x.shape[0], -1).mean(axis=1)


def _weighted_mean(x: jax.Array, weight: jax.Array) -> jax.Array:
    # Where no row counts, the term is 0 and so is its gradient.
    return jnp.sum(x * weight) / jnp.maximum(jnp.sum(weight), 1.0)
