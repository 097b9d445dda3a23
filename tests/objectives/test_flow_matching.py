import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax import rng
from cosdiff_jax.diversity import control, schedule, similarity
from cosdiff_jax.diversity.alignment import Alignment, Contrastive, Projection
from cosdiff_jax.diversity.bank import Bank
from cosdiff_jax.features.clip import ClipFeature
from cosdiff_jax.features.latent_clip import LatentClipFeature
from cosdiff_jax.flow import (
    guidance,
    parameterization,
    prediction,
    timestep,
    trajectory,
    weighting,
)
from cosdiff_jax.models.clip import CLIP
from cosdiff_jax.objectives.flow_matching import FlowMatching
from cosdiff_jax.sampler import Sampler
from cosdiff_jax.shapes import Batch, TextStream

P, K = 3, 4


class Reads(NamedTuple):
    rotate: bool = True
    layers: bool = False
    echo: int | None = None


class LanguageModel(nn.Module):
    @nn.compact
    def __call__(self, tokens, mask, *, rotate=True, layers=False):
        gain = self.param("gain", nn.initializers.ones, ())
        said = gain * (tokens * mask).astype(jnp.float32)
        hidden = jnp.stack([said, said**2], axis=-1)
        kv = hidden[None, ..., None]
        states = jnp.stack([hidden, hidden + 1, 3 * hidden]) if layers else None
        return TextStream(keys=kv, values=kv, hidden=hidden, mask=mask, layers=states)


class Backbone(nn.Module):
    """v is linear in z, in t and in the sum of the caption's tokens."""

    attention: Reads = Reads()

    @nn.compact
    def __call__(self, z, t, text):
        p = self.param("w", nn.initializers.normal(0.5), (4,))
        says = jnp.repeat(text.hidden[..., 0].sum(1), z.shape[0] // text.mask.shape[0]) / 10
        return p[0] * z + (p[1] * t + p[2] * says + p[3])[:, None, None, None]


class Flat(CLIP):
    """A stand-in for CLIP: the picture itself as its feature, the same vector for every text."""

    vocab: int = 9
    size: int = 2

    def setup(self):
        pass

    def image(self, images):
        return similarity.unit(images.reshape(images.shape[0], -1))

    def text(self, tokens, mask):
        return similarity.unit(jnp.ones((tokens.shape[0], 12)))


@dataclasses.dataclass(frozen=True)
class Whole:
    """The whole sample as its feature, handed on as it was seen."""

    seen: Callable = lambda samples: None

    def __call__(self, frozen, samples, text=None):
        jax.debug.callback(self.seen, samples)
        return similarity.unit(samples.reshape(samples.shape[0], -1))


@pytest.fixture
def batch():
    tokens = jnp.array([[2, 5, 7, 0], [2, 1, 0, 0], [2, 3, 3, 3]])
    images = jax.random.normal(jax.random.key(5), (P * K, 2, 2, 3))
    return Batch(tokens=tokens, mask=tokens > 0, images=images)


PARAMS = {"w": jnp.array([0.3, -0.2, 0.5, 0.1])}
SEEN = Whole()
FROZEN = {
    "llm": {"gain": jnp.ones(())},
    "clip": {},
    "latent_clip": {},
    "anchor": {"w": jnp.array([0.1, 0.2, 0.3, 0.4])},
}
KEY, STEP = jax.random.key(1), jnp.zeros((), int)


def div(value=1.0, cosine=None):
    target = control.RealPictures() if cosine is None else control.Fixed(cosine=cosine)
    return control.CosineDiversity(schedule=schedule.Constant(value=value), target=target)


def objective(**fields):
    fields = {"samples": K, "caption_dropout": 0.0} | fields
    return FlowMatching(backbone=Backbone(), language_model=LanguageModel(), **fields)


def run(batch, params=PARAMS, key=KEY, step=STEP, **fields):
    loss, (logs, _) = jax.jit(remembering(batch, **fields))(params, FROZEN, batch, key, step)
    return loss, logs


def remembering(batch, **fields):
    """The objective as a function of everything but its memory, which is fresh."""
    made = objective(**fields)
    memory = made.start(FROZEN, batch, P)
    return lambda *args: made(*args, memory)


def test_without_extra_terms_it_is_the_plain_flow_loss(batch):
    loss, logs = run(batch, times=timestep.LogitNormal(mean=0.3))
    assert set(logs) == {"loss", "flow"}
    t = timestep.LogitNormal(mean=0.3)(jax.random.fold_in(KEY, _name("time")), P * K)
    eps = jax.random.normal(
        jax.random.fold_in(KEY, _name("noise")), batch.images.shape, jnp.float32
    )
    t = t[:, None, None, None]
    says = jnp.repeat(batch.tokens.sum(1), K)[:, None, None, None] / 10
    z_t = (1 - t) * batch.images + t * eps
    w = PARAMS["w"]
    v_hat = w[0] * z_t + w[1] * t + w[2] * says + w[3]
    wanted = jnp.mean((v_hat - (eps - batch.images)) ** 2)
    chex.assert_trees_all_close(loss, wanted, rtol=1e-5)


def _name(name):
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def test_a_weight_of_zero_gives_the_flow_loss_and_its_gradient(batch):
    # The K samples share their times in both, so that only the term itself could differ.
    times = prediction.OneStep(shared_time=False)
    terms = {"diversity": div(0.0), "feature": SEEN, "prediction": times}
    plain = jax.value_and_grad(lambda p: run(batch, p)[0])(PARAMS)
    zero = jax.value_and_grad(lambda p: run(batch, p, **terms)[0])(PARAMS)
    chex.assert_trees_all_close(zero, plain, rtol=1e-6)


@pytest.mark.parametrize("reader", [ClipFeature, LatentClipFeature])
def test_the_terms_are_weighted_and_summed(batch, reader):
    loss, logs = run(
        batch,
        diversity=control.CosineDiversity(
            schedule=control.LinearRamp(end=0.5, warmup=2, ramp=4), target=control.Fixed()
        ),
        alignment=Alignment(schedule=schedule.LinearRamp(end=0.6, warmup=0, ramp=8)),
        reader=reader(clip=Flat()),
        feature=SEEN,
        anchor=0.7,
        step=jnp.asarray(4),
    )
    assert float(logs["lambda"]) == pytest.approx(0.25)
    assert float(logs["diversity"]) > 0
    total = logs["flow"] + 0.25 * logs["diversity"] + 0.7 * logs["anchor"]
    total = total + 0.3 * logs["alignment"]
    assert float(logs["mu"]) == pytest.approx(0.3)
    assert 0 < float(logs["alignment"]) < 2
    chex.assert_trees_all_close(loss, total, rtol=1e-6)


def test_groups_are_the_samples_of_one_prompt(batch):
    _, logs = run(batch, diversity=div(), feature=SEEN)
    images = np.asarray(batch.images).reshape(P, K, -1)
    hat = images / np.linalg.norm(images, axis=-1, keepdims=True)
    wanted = np.mean([hat[p, i] @ hat[p, j] for p in range(P) for i in range(K) for j in range(i)])
    assert float(logs["real_cosine"]) == pytest.approx(wanted, abs=1e-6)


def test_only_what_exceeds_the_real_pictures_cosine_costs(batch):
    same = batch.images.reshape(P, K, 2, 2, 3)[:, :1]
    same = jnp.broadcast_to(same, (P, K, 2, 2, 3)).reshape(batch.images.shape)
    terms = {"feature": SEEN}
    alike = run(Batch(tokens=batch.tokens, mask=batch.mask, images=same), diversity=div(), **terms)[
        1
    ]
    assert float(alike["real_cosine"]) == pytest.approx(1)
    assert float(alike["diversity"]) == pytest.approx(0, abs=1e-5)
    assert float(run(batch, diversity=div(cosine=-1.0), **terms)[1]["diversity"]) > 0.1


def test_a_gradient_step_on_diversity_opens_the_angles(batch):
    def cosine(params):
        _, logs = run(batch, params, diversity=div(), feature=SEEN)
        return logs["mean_cosine"]

    before, slope = jax.value_and_grad(cosine)(PARAMS)
    after = cosine(jax.tree.map(lambda p, g: p - 0.05 * g, PARAMS, slope))
    assert float(after) < float(before)


def test_dropped_prompts_see_bos_alone_and_leave_diversity_and_alignment(batch):
    terms = {"diversity": div(cosine=-1.0), "feature": SEEN}
    bos = Batch(
        tokens=jnp.where(jnp.arange(4)[None] == 0, batch.tokens, 0),
        mask=jnp.broadcast_to(jnp.arange(4)[None] == 0, (P, 4)),
        images=batch.images,
    )
    dropped = run(batch, caption_dropout=1.0, **terms)[1]
    chex.assert_trees_all_close(dropped["flow"], run(bos, **terms)[1]["flow"], rtol=1e-6)
    assert float(dropped["diversity"]) == 0
    assert float(run(batch, **terms)[1]["diversity"]) != 0


def test_captions_are_dropped_as_often_as_asked_and_for_whole_prompts():
    tokens = jnp.tile(jnp.array([[2, 50]]), (200, 1))
    images = jnp.zeros((400, 1, 1, 1))
    many = Batch(tokens=tokens, mask=tokens > 0, images=images)

    class Told(Backbone):
        @nn.compact
        def __call__(self, z, t, text):
            jax.debug.callback(lambda m: seen.append(np.asarray(m)), text.mask)
            return z + self.param("w", nn.initializers.ones, ())

    seen = []
    told = FlowMatching(
        backbone=Told(), language_model=LanguageModel(), samples=2, caption_dropout=0.1
    )
    told({"w": jnp.ones(())}, FROZEN, many, KEY, STEP, {})
    jax.effects_barrier()
    assert seen[0].shape == (200, 2)
    assert seen[0][:, 0].all()
    assert 0.04 < 1 - seen[0][:, 1].mean() < 0.18


def test_outside_the_window_nothing_counts(batch):
    terms = {"diversity": div(cosine=-1.0), "feature": SEEN}
    late = prediction.OneStep(window=(0.999, 1.0))
    logs = run(batch, prediction=late, **terms)[1]
    assert float(logs["diversity"]) == 0


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_rollout_is_measured_where_the_sampler_ends(batch, scale):
    seen = []
    rollout = prediction.Rollout(
        steps=3, gradient_steps=1, guidance=guidance.ClassifierFree(scale=scale)
    )
    run(
        batch,
        diversity=div(cosine=0.5),
        feature=Whole(lambda x: seen.append(np.asarray(x))),
        prediction=rollout,
        caption_dropout=1.0,
    )
    jax.effects_barrier()
    z = jax.random.normal(jax.random.fold_in(KEY, _name("rollout")), batch.images.shape)
    w = PARAMS["w"]
    said = jnp.repeat(2 + scale * (batch.tokens.sum(1) - 2), K) / 10
    for t in (1.0, 2 / 3, 1 / 3):
        z = z - (w[0] * z + (w[1] * t + w[2] * said + w[3])[:, None, None, None]) / 3
    np.testing.assert_allclose(seen[0], z, rtol=1e-4, atol=1e-5)


def test_the_anchor_is_zero_at_the_anchors_own_weights(batch):
    _, logs = run(batch, FROZEN["anchor"], anchor=1.0)
    assert float(logs["anchor"]) == 0
    gradient = jax.grad(lambda p: run(batch, p, anchor=1.0)[1]["anchor"])(PARAMS)
    assert float(jnp.abs(gradient["w"]).max()) > 0


def test_fresh_parameters_fit_the_backbone(batch):
    params = objective().init(KEY, batch)
    chex.assert_trees_all_equal_shapes(params, PARAMS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"samples": 1, "diversity": div(), "feature": SEEN}, "at least 2"),
        ({"diversity": div()}, "feature is missing"),
        ({"alignment": Alignment()}, "reader is missing"),
        ({"alignment": Alignment(projection=Projection())}, "needs pictures' feature"),
        ({"caption_dropout": 1.5}, "must lie in"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        objective(**fields)


def test_a_batch_of_other_groups_is_refused(batch):
    with pytest.raises(ValueError, match="need 6 pictures, the batch has 12"):
        run(batch, samples=2)


def test_what_the_term_remembers_goes_from_step_to_step(batch):
    """A controller's weight and a bank's vectors are there in the next step, per prompt."""
    term = control.CosineDiversity(
        schedule=schedule.Controller(wanted=-1.0, gain=0.1), target=control.Fixed(), bank=Bank()
    )
    made = objective(diversity=term, feature=SEEN)
    numbered = batch.replace(prompt=jnp.array([4, 0, 2]))
    memory = made.start(FROZEN, numbered, 5)
    assert set(memory) == {"diversity"}
    assert memory["diversity"]["bank"]["bank"].shape == (5, 8, 12)
    step = jax.jit(made)
    _, (first, memory) = step(PARAMS, FROZEN, numbered, KEY, STEP, memory)
    assert float(first["lambda"]) == 0
    counted = memory["diversity"]["bank"]["bank_count"]
    np.testing.assert_array_equal(counted, [K, 0, K, 0, K])
    _, (second, _) = step(PARAMS, FROZEN, numbered, KEY, STEP + 1, memory)
    want = 0.1 * (float(first["mean_cosine"]) + 1)
    assert float(second["lambda"]) == pytest.approx(want, rel=1e-5)
    # The same step again: its own copies of a moment ago are partners now, alike as can be.
    assert float(second["mean_cosine"]) == pytest.approx(float(first["mean_cosine"]), abs=1e-6)
    assert float(second["diversity"]) > float(first["diversity"])


def test_terms_that_remember_nothing_leave_no_memory(batch):
    assert objective().start(FROZEN, batch, P) == {}
    assert (
        objective(alignment=Alignment(), reader=ClipFeature(clip=Flat())).start(FROZEN, batch, P)
        == {}
    )


def test_the_language_models_states_are_projected_to_real_pictures_and_remembered(batch):
    """The first step learns from real pictures and asks nothing; the second asks what it learnt."""
    seen, fit = [], Projection(layer=1)
    term = Alignment(schedule=schedule.Constant(value=1.0), projection=fit)
    made = objective(alignment=term, diversity=div(), feature=SEEN)
    watched = dataclasses.replace(made, feature=Whole(lambda x: seen.append(np.asarray(x))))
    memory = made.start(FROZEN, batch, P)
    assert set(memory) == {"diversity", "alignment"}
    (_, (first, after)), slope = jax.jit(jax.value_and_grad(made, has_aux=True))(
        PARAMS, FROZEN, batch, KEY, STEP, memory
    )
    assert float(first["alignment"]) == 1
    plain = objective(diversity=div(), feature=SEEN)
    want = jax.jit(jax.grad(lambda *args: plain(*args)[0]))(
        PARAMS, FROZEN, batch, KEY, STEP, memory
    )
    chex.assert_trees_all_close(slope, want, rtol=1e-5)

    real = similarity.unit(batch.images.reshape(P, K, -1)).mean(1)
    counts = batch.mask.sum(1)
    said = [batch.tokens.sum(1) / counts, (batch.tokens**2).sum(1) / counts]
    hidden = jnp.stack(said, axis=-1).astype(jnp.float32) + 1  # the middle state of the stand-in
    learnt = fit.after(memory["alignment"], hidden, real)
    chex.assert_trees_all_close(after["alignment"], learnt, rtol=1e-4, atol=1e-5)

    later = jax.random.key(9)
    _, (second, _) = jax.jit(watched)(PARAMS, FROZEN, batch, later, STEP + 1, after)
    jax.effects_barrier()
    (drawn,) = (x for x in seen if not np.array_equal(x, batch.images))
    text = np.asarray(fit.text(after["alignment"], hidden))
    u = np.asarray(similarity.unit(jnp.asarray(drawn).reshape(P, K, -1)))
    wanted = 1 - np.einsum("pkf,pf->", u, text) / (P * K)
    assert abs(wanted - 1) > 0.01
    assert float(second["alignment"]) == pytest.approx(wanted, abs=1e-5)


def test_prompts_that_say_the_same_are_no_negatives_of_one_another(batch):
    alike = batch.replace(tokens=batch.tokens[:1].repeat(P, 0), mask=batch.mask[:1].repeat(P, 0))
    terms = {"alignment": Alignment(form=Contrastive()), "reader": ClipFeature(clip=Flat())}
    assert float(run(alike, **terms)[1]["alignment"]) == pytest.approx(0, abs=1e-6)
    # The stand-in says the same of every text, so nothing but the number of captions counts.
    got = float(run(batch, **terms)[1]["alignment"])
    assert got == pytest.approx(np.log(P), rel=1e-5)


def test_a_hidden_state_that_is_not_there_is_refused(batch):
    term = Alignment(projection=Projection(layer=3))
    with pytest.raises(ValueError, match="layer = 3: the text stream holds 3 hidden states"):
        run(batch, alignment=term, feature=SEEN)


def drawn(batch, path):
    """What the objective draws with KEY, and the stand-in's output: (t, eps, z_t, output)."""
    keys = rng.named(KEY, "time", "noise")
    t = timestep.LogitNormal()(keys["time"], P * K)
    eps = jax.random.normal(keys["noise"], batch.images.shape, batch.images.dtype)
    z_t, _ = path.corrupt(batch.images, eps, t)
    tokens = LanguageModel().apply({"params": FROZEN["llm"]}, batch.tokens, batch.mask)
    output: Any = Backbone().apply({"params": PARAMS}, z_t, t, tokens)
    return t, eps, z_t, output


def test_the_default_is_the_plain_regression_of_the_velocity_bit_for_bit(batch):
    def plain(batch):
        _, eps, _, v_hat = drawn(batch, trajectory.RectifiedFlow())
        errors = (v_hat - (eps - batch.images)) ** 2
        return jnp.mean(errors.reshape(P * K, -1).mean(axis=1))

    chex.assert_trees_all_equal(run(batch)[0], jax.jit(plain)(batch))


@pytest.mark.parametrize(
    "meaning",
    [parameterization.Noise(), parameterization.Edm(), parameterization.V()],
    ids=repr,
)
def test_the_error_is_that_of_the_output_and_its_factor_that_of_the_weight(batch, meaning):
    path = trajectory.Cosine()
    fields = {"trajectory": path, "parameterization": meaning}
    loss, _ = run(batch, weighting=weighting.Sech(), **fields)
    t, eps, z_t, _ = drawn(batch, path)
    tokens = LanguageModel().apply({"params": FROZEN["llm"]}, batch.tokens, batch.mask)
    seen = meaning.network_input(z_t, t, path)
    output: Any = Backbone().apply({"params": PARAMS}, seen, t, tokens)
    errors = (output - meaning.target(batch.images, eps, z_t, t, path)) ** 2
    factor = weighting.Sech()(t, path, meaning)
    wanted = jnp.mean(factor * errors.reshape(P * K, -1).mean(axis=1))
    chex.assert_trees_all_close(loss, wanted, rtol=1e-5)


def test_diversity_looks_at_the_picture_that_predicted_noise_stands_for(batch):
    seen, path = [], trajectory.LdmLinear()
    run(
        batch,
        diversity=div(cosine=0.5),
        feature=Whole(lambda x: seen.append(np.asarray(x))),
        prediction=prediction.OneStep(shared_time=False),
        trajectory=path,
        parameterization=parameterization.Noise(),
    )
    jax.effects_barrier()
    t, _, z_t, eps_hat = drawn(batch, path)
    a, b = (x[:, None, None, None] for x in path.coefficients(t))
    np.testing.assert_allclose(seen[0], (z_t - b * eps_hat) / a, rtol=2e-3, atol=2e-3)


class Optimal(nn.Module):
    """The best output for data N(1, 0.5^2): its conditional mean given z_t."""

    meaning: parameterization.Parameterization
    line: trajectory.Trajectory
    attention: Reads = Reads()

    @nn.compact
    def __call__(self, seen, t, text):
        a, b = (x[:, None, None, None] for x in self.line.coefficients(t))
        p, q = (x[:, None, None, None] for x in self.meaning.mixture(t, self.line))
        # The stand-in is shown the scaled z_t, and undoes it by what scaling makes of 1.
        z = seen / self.meaning.network_input(jnp.ones_like(seen), t, self.line)
        gain = (z - a) / (0.25 * a**2 + b**2)
        return p * (1 + 0.25 * a * gain) + q * b * gain


@pytest.mark.parametrize(
    "meaning",
    [
        parameterization.Noise(),
        parameterization.V(),
        # With the data's own 0.5 the best output would not depend on z_t at all.
        parameterization.Edm(sigma_data=0.8),
        parameterization.Score(),
    ],
    ids=repr,
)
def test_the_sampler_follows_the_velocity_that_an_output_stands_for(meaning):
    """A network that is right in any terms draws the pictures of one right in velocities."""
    path = trajectory.LdmLinear()

    def pictures(meaning):
        sampler = Sampler(
            backbone=Optimal(meaning=meaning, line=path),
            language_model=LanguageModel(),
            vae=None,
            shape=(2, 2, 1),
            steps=8,
            trajectory=path,
            parameterization=meaning,
        )
        tokens = np.array([[2, 5], [2, 1]])
        frozen = {"llm": FROZEN["llm"]}
        return sampler({}, frozen, tokens, tokens > 0, KEY, num=3)

    wanted = pictures(parameterization.Velocity())
    assert np.ptp(wanted) > 0.1
    np.testing.assert_allclose(pictures(meaning), wanted, atol=2e-3)
