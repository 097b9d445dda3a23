"""Rectified-flow training with cosine diversity and alignment: the main objective.

    L = L_RF + lambda(step) L_div + mu(step) L_align + nu L_anchor

    L_RF     = mean over rows of w(t) |o_hat - o|^2           (Esser et al. 2024, eq. 14)
    L_div    = mean over prompts of how far the cosine of their K samples exceeds its target
    L_align  = mean over rows of 1 - cos(f_image, f_text), or its contrastive form
    L_anchor = mean over rows of |v_hat - v_anchor|^2

Noise is independent of the data, unless the batch says which noise its pictures were drawn from
(reflow, Liu et al. 2022).

The output o is whatever the backbone is asked to predict, by default the velocity; the other
terms see the velocity it stands for. Diversity and alignment look at features of the clean image
the model predicts, one step from z_t or by a rollout from noise. Pairs of pictures are formed
within a prompt, never across prompts.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cosdiff_jax import rng, text_stream
from cosdiff_jax.diversity import control, similarity
from cosdiff_jax.diversity.alignment import Alignment, same_captions
from cosdiff_jax.features.feature import Feature, Reader
from cosdiff_jax.flow.guidance import Guidance
from cosdiff_jax.flow.parameterization import Parameterization
from cosdiff_jax.flow.parameterization import Velocity as VelocityOutput
from cosdiff_jax.flow.prediction import OneStep, Prediction
from cosdiff_jax.flow.solver import Velocity
from cosdiff_jax.flow.timestep import LogitNormal, Times
from cosdiff_jax.flow.trajectory import RectifiedFlow, Trajectory, check_path
from cosdiff_jax.flow.weighting import Constant, Weighting
from cosdiff_jax.models import captions as captions_lib
from cosdiff_jax.models.vae import AutoencoderKL
from cosdiff_jax.shapes import Batch, Frozen, Logs, Memory, Params, TextStream

# What the anchor holds to -> its key in Frozen.
_ANCHORS = {"start": "anchor", "average": "average"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMatching:
    """The objective; networks are handed in, their frozen parameters come with the call.

    ``frozen`` holds "llm", "vae" (if ``vae`` is set and the batch has no latents, or a feature
    decodes), "clip" or "latent_clip" (if ``reader`` or ``feature`` looks through it), "vgg" (if
    ``feature`` does), "anchor" (if ``anchor`` is above 0 and holds to the start, or the feature is
    a backbone's hidden state) and "average" (if ``anchor`` is above 0 and holds to the moving
    average).

    Attributes:
      backbone: (z_t, t, TextStream) -> output, the only trained network.
      language_model: (tokens, mask) -> TextStream.
      vae: to_latents(images); None trains on pixels.
      trajectory: the path from data to noise.
      times: the distribution of training times.
      parameterization: what the backbone's output means; the other terms see its velocity.
      weighting: the factor w(t) on the squared error of the output.
      caption_dropout: probability that a prompt is shown as the empty caption.
      samples: K, pictures per prompt.
      prediction: how the clean image is predicted.
      diversity: lambda(step), the measure and its target; None switches the term off.
      top_percent: share of pairs in the logged ``top_cosine``.
      feature: what the cosine is measured on, and what the language model's states are
        projected to.
      alignment: mu(step) and what it weighs; None switches the term off.
      reader: sees pictures and reads captions, for alignment without a projection.
      anchor: nu.
      anchor_to: "start", the weights that the run began with, or "average", their moving average.
    """

    backbone: nn.Module
    language_model: nn.Module
    vae: AutoencoderKL | None = None
    trajectory: Trajectory = dataclasses.field(default_factory=RectifiedFlow)
    times: Times = dataclasses.field(default_factory=LogitNormal)
    parameterization: Parameterization = dataclasses.field(default_factory=VelocityOutput)
    weighting: Weighting = dataclasses.field(default_factory=Constant)
    caption_dropout: float = 0.1
    samples: int = 1
    prediction: Prediction = dataclasses.field(default_factory=OneStep)
    diversity: control.CosineDiversity | None = None
    top_percent: float = 20.0
    feature: Feature | None = None
    alignment: Alignment | None = None
    reader: Reader | None = None
    anchor: float = 0.0
    anchor_to: str = "start"

    def __post_init__(self):
        check_path(self.trajectory, prediction=self.prediction, times=self.times)
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
        if self.diversity is not None and self.samples < 2:
            raise ValueError(
                "a diversity term compares the samples of one prompt: samples must be at least 2, "
                f"not {self.samples}"
            )
        if not 0 <= self.caption_dropout <= 1:
            raise ValueError(f"caption_dropout must lie in [0, 1], not {self.caption_dropout}")
        if self.anchor_to not in _ANCHORS:
            raise ValueError(f"anchor_to is {self.anchor_to!r}; choose {' or '.join(_ANCHORS)}")
        if self.diversity is not None and self.feature is None:
            raise ValueError("diversity is measured on a feature: feature is missing")
        if self._projects and self.feature is None:
            raise ValueError("alignment with hidden states needs pictures' feature: it is missing")
        if self.alignment is not None and not self._projects and self.reader is None:
            raise ValueError("alignment compares pictures with captions: reader is missing")

    @property
    def predicts(self) -> bool:
        """Whether a clean image is predicted at all; known before anything is traced."""
        return self.diversity is not None or self.alignment is not None

    @property
    def _projects(self) -> bool:
        return self.alignment is not None and self.alignment.projection is not None

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Fresh parameters of the backbone for batches of this shape."""

        # Only shapes reach the backbone's parameters, so the frozen networks may be random.
        llm = self.language_model.init(key, batch.tokens, batch.mask)
        text, _ = self._read(llm["params"], batch)
        x0: Any = batch.images if batch.latents is None else batch.latents
        if self.vae is not None and batch.latents is None:
            vae = self.vae.init(key, batch.images)
            x0 = self.vae.apply(vae, batch.images, method="to_latents")
        return self.backbone.init(key, x0, jnp.zeros(x0.shape[0]), text)["params"]

    def start(self, frozen: Frozen, batch: Batch, prompts: int) -> Memory:
        """What is remembered before the first step, for so many training prompts.

        Returns:
          "diversity" and "alignment", each only where the term is on and remembers something.
        """
        if self.feature is None or (self.diversity is None and not self._projects):
            return {}
        feature = self.feature

        def look(frozen: Frozen, batch: Batch) -> tuple[jax.Array, jax.Array]:
            text, _ = self._read(frozen["llm"], batch)
            return feature(frozen, self._data(frozen, batch), text), text.hidden

        f, hidden = (x.shape[-1] for x in jax.eval_shape(look, frozen, batch))
        memory = {}
        if self.diversity is not None:
            memory["diversity"] = self.diversity.start(prompts, f)
        if self.alignment is not None and self.alignment.projection is not None:
            memory["alignment"] = self.alignment.projection.start(hidden, f)
        return memory

    def __call__(
        self,
        params: Params,
        frozen: Frozen,
        batch: Batch,
        key: jax.Array,
        step: jax.Array,
        memory: Memory,
    ) -> tuple[Float[Array, ""], tuple[Logs, Memory]]:
        """The loss, its terms, and what to remember after this step.

        Args:
          params: the backbone's parameters.
          frozen: parameters by role, see the class.
          batch: P prompts and B = P K pictures, prompt-major.
          key: for this step.
          step: the optimizer step, which lambda and mu depend on.
          memory: as ``start`` or the step before gave it.
        """
        keys = rng.named(key, "time", "noise", "drop", "rollout", "pairs")
        prompts = batch.tokens.shape[0]
        x0 = self._data(frozen, batch)
        rows = prompts * self.samples
        if x0.shape[0] != rows:
            raise ValueError(
                f"{prompts} prompts with {self.samples} samples each need {rows} pictures, "
                f"the batch has {x0.shape[0]}"
            )

        captions, empty = self._read(frozen["llm"], batch)
        kept = jax.random.bernoulli(keys["drop"], 1 - self.caption_dropout, (prompts,))
        text = text_stream.where(kept, captions, empty)

        if self.predicts and self.prediction.shared_time:
            t = jnp.repeat(self.times(keys["time"], prompts), self.samples)
        else:
            t = self.times(keys["time"], rows)
        eps = batch.noise
        if eps is None:
            eps = jax.random.normal(keys["noise"], x0.shape, x0.dtype)
        z_t, _ = self.trajectory.corrupt(x0, eps, t)
        output = self._output(params, z_t, t, text)
        target = self.parameterization.target(x0, eps, z_t, t, self.trajectory)
        v_hat = self.parameterization.velocity(output, z_t, t, self.trajectory)

        weight = self.weighting(t, self.trajectory, self.parameterization)
        flow = jnp.mean(weight * _row_mean((output - target) ** 2))
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
                # A dropped caption's estimate says nothing about that caption.
                counts = counts & jnp.repeat(kept, self.samples)
            counts = counts.reshape(prompts, self.samples)
            extra, terms, memory = self._similarities(
                frozen, batch, captions, x0, x0_hat, counts, step, memory, keys["pairs"]
            )
            loss, logs = loss + extra, logs | terms

        if self.anchor:
            held = frozen[_ANCHORS[self.anchor_to]]
            v_anchor = jax.lax.stop_gradient(self._velocity(held, z_t, t, text))
            logs["anchor"] = jnp.mean(_row_mean((v_hat - v_anchor) ** 2))
            loss = loss + self.anchor * logs["anchor"]
        return loss, ({"loss": loss, **logs}, memory)

    def _similarities(
        self,
        frozen: Frozen,
        batch: Batch,
        captions: TextStream,
        x0: Float[Array, "B *x"],
        x0_hat: Float[Array, "B *x"],
        counts: Bool[Array, "P K"],
        step: jax.Array,
        memory: Memory,
        key: jax.Array,
    ) -> tuple[Float[Array, ""], Logs, Memory]:
        """Diversity and alignment, weighted and summed, what to log of them and to remember."""
        total, logs = jnp.zeros(()), {}
        f: Any = None
        real: Any = None

        def view(feature: Feature, samples: Float[Array, "B *x"]) -> Float[Array, "P K F"]:
            return feature(frozen, samples, captions).reshape(*counts.shape, -1)

        if self.feature is not None and (self.diversity is not None or self._projects):
            f = view(self.feature, x0_hat)
            if self._projects or (self.diversity is not None and self.diversity.reads_real):
                real = jax.lax.stop_gradient(view(self.feature, x0))

        if self.diversity is not None:
            held, distinct, shown = memory["diversity"], batch.distinct, counts
            if distinct is not None and self.prediction.drops:
                # One picture under two noises has one clean image: to say so is no lack of variety.
                shown = counts & distinct
            if real is not None:
                cosine = similarity.mean_cosine(real, distinct)
                varied = None if distinct is None else distinct.sum(axis=1) >= 2
                logs["real_cosine"] = _mean_where(cosine, varied)
            # Prompts with a single sample that counts have no pair, hence no cosine.
            pairs = shown.sum(axis=1) >= 2
            logs["mean_cosine"] = _mean_where(similarity.mean_cosine(f, shown), pairs)
            top = similarity.top_cosine(f, self.top_percent, shown)
            logs["top_cosine"] = _mean_where(top, pairs)
            logs["lambda"] = self.diversity.weight(step, held)
            excess = self.diversity(
                f, real, shown, memory=held, prompt=batch.prompt, key=key, distinct=distinct
            )
            logs["diversity"] = _mean_where(excess, self.diversity.asked(shown, distinct))
            total = total + logs["lambda"] * logs["diversity"]
            held = self.diversity.after(held, f, shown, logs["mean_cosine"], step, batch.prompt)
            memory = {**memory, "diversity": held}

        if self.alignment is not None:
            if self.alignment.projection is not None:
                assert real is not None  # a projection learns from real pictures, seen above
                projection, held = self.alignment.projection, memory["alignment"]
                hidden = captions_lib.pooled(captions, projection.layer)
                text = projection.text(held, hidden)
                held = projection.after(held, hidden, _group_mean(real, batch.distinct))
                memory = {**memory, "alignment": held}
            else:
                assert self.reader is not None  # refused when this was made
                text = jax.lax.stop_gradient(self.reader.text(frozen, batch.tokens, batch.mask))
                # Where diversity looks through the same network it has the answer already.
                if f is None or self.feature != self.reader:
                    f = view(self.reader, x0_hat)
            cost = self.alignment.form(f, text, same_captions(batch.tokens, batch.mask))
            logs["mu"] = self.alignment.weight(step)
            logs["alignment"] = _mean_where(cost, counts)
            total = total + logs["mu"] * logs["alignment"]
        return total, logs, memory

    def _read(self, llm: Params, batch: Batch) -> tuple[TextStream, TextStream]:
        return captions_lib.read(
            self.language_model,
            llm,
            self.backbone,
            batch.tokens,
            batch.mask,
            layers=self._projects,
        )

    def _data(self, frozen: Frozen, batch: Batch) -> Float[Array, "B *x"]:
        if batch.latents is not None:
            return batch.latents
        if batch.images is None:
            raise ValueError("a flow needs pictures: the batch has neither images nor latents")
        if self.vae is None:
            return batch.images
        latents: Any = self.vae.apply({"params": frozen["vae"]}, batch.images, method="to_latents")
        return jax.lax.stop_gradient(latents)

    def _output(self, params: Params, z: jax.Array, t: jax.Array, text: TextStream) -> jax.Array:
        # Losses are float32 whatever the backbone computes in.
        seen = self.parameterization.network_input(z, t, self.trajectory)
        output: Any = self.backbone.apply({"params": params}, seen, t, text)
        return output.astype(jnp.float32)

    def _velocity(self, params: Params, z: jax.Array, t: jax.Array, text: TextStream) -> jax.Array:
        output = self._output(params, z, t, text)
        return self.parameterization.velocity(output, z, t, self.trajectory)


def _row_mean(x: Float[Array, "B *x"]) -> Float[Array, " B"]:
    return x.reshape(x.shape[0], -1).mean(axis=1)


def _group_mean(f: Float[Array, "P K F"], counts: Bool[Array, "P K"] | None) -> Float[Array, "P F"]:
    if counts is None:
        return jnp.mean(f, axis=1)
    # A picture that fills its group up again would weigh twice.
    total = jnp.sum(jnp.where(counts[:, :, None], f, 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(counts, axis=1), 1)[:, None]


def _mean_where(x: jax.Array, counts: jax.Array | None) -> jax.Array:
    if counts is None:
        return jnp.mean(x)
    # Where nothing counts, the term is 0 and so is its gradient.
    return jnp.sum(jnp.where(counts, x, 0.0)) / jnp.maximum(jnp.sum(counts), 1)
