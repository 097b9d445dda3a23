"""The terms beside the flow's own: who counts, what they are measured on, and what they hold to."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax import optimizer, rng, sharding
from cosdiff_jax.diversity import control, measure, schedule, similarity
from cosdiff_jax.diversity.alignment import Alignment, Contrastive, Cosine, Projection
from cosdiff_jax.diversity.bank import Bank
from cosdiff_jax.flow import guidance, prediction, timestep
from cosdiff_jax.models.fusion import SelfAttention
from cosdiff_jax.objectives.flow_matching import FlowMatching
from cosdiff_jax.shapes import Batch, TextStream

P, K = 4, 3
KEY, STEP = jax.random.key(1), jnp.zeros((), int)


class LanguageModel(nn.Module):
    @nn.compact
    def __call__(self, tokens, mask, *, rotate=True, layers=False):
        said = self.param("gain", nn.initializers.ones, ()) * (tokens * mask).astype(jnp.float32)
        hidden = jnp.stack([said, said**2], axis=-1)
        kv = hidden[None, ..., None]
        states = jnp.stack([hidden, hidden + 1, 3 * hidden]) if layers else None
        return TextStream(keys=kv, values=kv, hidden=hidden, mask=mask, layers=states)


class Backbone(nn.Module):
    """v is linear in z, in t and in the sum of the caption's tokens."""

    attention: SelfAttention = SelfAttention()

    @nn.compact
    def __call__(self, z, t, text):
        p = self.param("w", nn.initializers.normal(0.5), (4,))
        says = jnp.repeat(text.hidden[..., 0].sum(1), z.shape[0] // text.mask.shape[0]) / 10
        return p[0] * z + (p[1] * t + p[2] * says + p[3])[:, None, None, None]


@dataclasses.dataclass(frozen=True)
class Whole:
    """The whole sample as its feature, handed on as it was seen."""

    seen: Callable | None = None

    def __call__(self, frozen, samples, text=None):
        if self.seen is not None:
            jax.debug.callback(self.seen, samples)
        return similarity.unit(samples.reshape(samples.shape[0], -1))


PARAMS = {"w": jnp.array([0.3, -0.2, 0.5, 0.1])}
FROZEN = {
    "llm": {"gain": jnp.ones(())},
    "anchor": {"w": jnp.array([0.1, 0.2, 0.3, 0.4])},
    "average": {"w": jnp.array([0.4, -0.6, 0.2, 0.0])},
}


@pytest.fixture
def batch():
    tokens = jnp.array([[2, 5, 7, 0], [2, 1, 0, 0], [2, 3, 3, 3], [2, 8, 0, 0]])
    images = jax.random.normal(jax.random.key(5), (P * K, 2, 2, 3))
    return Batch(tokens=tokens, mask=tokens > 0, images=images, prompt=jnp.array([6, 0, 3, 1]))


def objective(**fields):
    fields = {"samples": K, "caption_dropout": 0.0, "feature": Whole()} | fields
    return FlowMatching(backbone=Backbone(), language_model=LanguageModel(), **fields)


def run(made, batch, memory=None, params=PARAMS, frozen=FROZEN, step=STEP):
    """What a step logs, and what it remembers."""
    memory = made.start(frozen, batch, 7) if memory is None else memory
    return jax.jit(made)(params, frozen, batch, KEY, step, memory)[1]


def controlled(**fields):
    holds = schedule.Controller(wanted=-1.0, gain=0.1, **fields)
    return control.CosineDiversity(schedule=holds, target=control.Fixed(), bank=Bank())


def test_the_controller_holds_still_where_no_pair_counted(batch):
    """Outside the window the logged cosine is 0: far above the one wanted, and no measurement."""
    never = prediction.OneStep(window=(0.9999, 1.0))
    logs, memory = run(objective(diversity=controlled(), prediction=never), batch)
    assert logs["mean_cosine"] == 0
    made = objective(diversity=controlled())
    second, memory = run(made, batch, memory, step=STEP + 1)
    assert second["lambda"] == 0
    third, _ = run(made, batch, memory, step=STEP + 2)
    want = 0.1 * (float(second["mean_cosine"]) + 1)
    assert float(third["lambda"]) == pytest.approx(want, rel=1e-5) and want > 0


def test_parts_of_a_batch_fill_the_bank_one_by_one_and_move_the_controller_once(batch):
    made = objective(diversity=controlled(warmup=1))
    grad = jax.value_and_grad(made, has_aux=True)
    step, memory, said = jax.jit(optimizer.accumulated(grad, 2)), made.start(FROZEN, batch, 7), []
    for number in range(3):
        (_, (logs, memory)), _ = step(PARAMS, FROZEN, batch, KEY, STEP + number, memory)
        said.append({name: float(value) for name, value in logs.items()})
    np.testing.assert_array_equal(
        memory["diversity"]["bank"]["bank_count"] > 0, [1, 1, 0, 1, 0, 0, 1]
    )
    assert [logs["lambda"] for logs in said[:2]] == [0, 0]
    # Both parts have as many prompts, so that the mean over the parts is that over all of them.
    want = 0.1 * (said[1]["mean_cosine"] + 1)
    assert said[2]["lambda"] == pytest.approx(want, rel=1e-5) and want > 0


def ragged(batch):
    """Three, two, one and three different pictures; what is missing is a repeat of the first."""
    images = batch.images.reshape(P, K, 2, 2, 3)
    number = jnp.array([3, 2, 1, 3])
    distinct = jnp.arange(K)[None, :] < number[:, None]
    images = jnp.where(distinct[..., None, None, None], images, images[:, :1])
    return batch.replace(images=images.reshape(batch.images.shape), distinct=distinct)


def real_cosine(images):
    u = images.reshape(len(images), -1)
    u = u / np.linalg.norm(u, axis=-1, keepdims=True)
    return np.mean([u[i] @ u[j] for i in range(len(u)) for j in range(i)])


def test_the_target_is_that_of_the_pictures_that_differ(batch):
    """In rollouts all K samples count; a caption with one picture has no target, and is let be."""
    rolls = prediction.Rollout(steps=2, gradient_steps=1)
    target = control.RealPictures(margin=-1.5)
    term = control.CosineDiversity(schedule=schedule.Constant(value=1.0), target=target)
    seen = []
    made = objective(
        diversity=term, prediction=rolls, feature=Whole(lambda x: seen.append(np.asarray(x)))
    )
    short = ragged(batch)
    logs, _ = run(made, short)
    jax.effects_barrier()
    groups = np.asarray(short.images).reshape(P, K, -1)
    own = [real_cosine(groups[p, :n]) for p, n in ((0, 3), (1, 2), (3, 3))]
    assert float(logs["real_cosine"]) == pytest.approx(np.mean(own), abs=1e-6)
    (drawn,) = (x for x in seen if not np.array_equal(x, short.images))
    drawn = np.stack([real_cosine(drawn.reshape(P, K, -1)[p]) for p in range(P)])
    assert float(logs["mean_cosine"]) == pytest.approx(drawn.mean(), abs=1e-5)
    excess = drawn[[0, 1, 3]] - own + 1.5
    assert excess.min() > 0.1
    assert float(logs["diversity"]) == pytest.approx(excess.mean(), abs=1e-5)


def test_the_projection_learns_from_the_pictures_that_differ(batch):
    """A picture that stands in for a missing one is no second witness of what its caption means."""
    made = objective(alignment=Alignment(projection=Projection()))
    short = ragged(batch)
    _, memory = run(made, short)
    u = np.asarray(similarity.unit(short.images.reshape(P, K, -1)))
    means = [u[p, :n].mean(0) for p, n in enumerate((3, 2, 1, 3))]
    got = memory["alignment"]["mean"][2:]
    np.testing.assert_allclose(got, np.mean(means, axis=0), atol=1e-6)
    assert np.abs(got - u.mean((0, 1))).max() > 0.01


def test_one_step_estimates_of_one_picture_may_be_alike(batch):
    """Near t = 0 the model gives every picture back: as alike as the data, nothing to pay."""
    early = timestep.LogitNormal(mean=-12.0, std=0.1)
    term = control.CosineDiversity(schedule=schedule.Constant(value=1.0))
    made = objective(diversity=term, times=early)
    short = ragged(batch)
    logs, _ = run(made, short)
    assert float(logs["mean_cosine"]) == pytest.approx(float(logs["real_cosine"]), abs=1e-3)
    assert float(logs["diversity"]) < 1e-3
    unmarked, _ = run(made, short.replace(distinct=None))
    assert float(unmarked["real_cosine"]) > float(logs["real_cosine"]) + 0.1


def test_marks_on_groups_that_are_whole_change_nothing(batch):
    made = objective(diversity=control.CosineDiversity(schedule=schedule.Constant(value=1.0)))
    plain = run(made, batch)
    marked = run(made, batch.replace(distinct=jnp.ones((P, K), bool)))
    chex.assert_trees_all_close(marked, plain, rtol=1e-6)


@pytest.mark.parametrize(("to", "key"), [("start", "anchor"), ("average", "average")])
def test_the_anchor_is_the_mean_squared_difference_of_velocities(batch, to, key):
    keys = rng.named(KEY, "time", "noise")
    t = np.asarray(timestep.LogitNormal()(keys["time"], P * K))[:, None, None, None]
    eps = np.asarray(jax.random.normal(keys["noise"], batch.images.shape))
    z = (1 - t) * np.asarray(batch.images) + t * eps
    says = np.repeat(np.asarray(batch.tokens).sum(1), K)[:, None, None, None] / 10
    d = np.asarray(PARAMS["w"] - FROZEN[key]["w"], np.float64)
    want = np.mean((d[0] * z + d[1] * t + d[2] * says + d[3]) ** 2)
    made = objective(anchor=0.7, anchor_to=to)
    logs, _ = run(made, batch)
    assert float(logs["anchor"]) == pytest.approx(want, rel=1e-5)
    assert float(logs["loss"]) == pytest.approx(float(logs["flow"]) + 0.7 * want, rel=1e-5)

    cost = jax.jit(lambda p, frozen: made(p, frozen, batch, KEY, STEP, {})[1][0]["anchor"])
    slope, pull = jax.grad(cost, (0, 1))(PARAMS, FROZEN)
    for number in range(4):
        h = jnp.zeros(4).at[number].set(0.05)
        there, back = (float(cost({"w": PARAMS["w"] + s * h}, FROZEN)) for s in (1, -1))
        assert float(slope["w"][number]) == pytest.approx((there - back) / 0.1, rel=2e-3, abs=1e-4)
    # What it holds to is not drawn towards the model.
    chex.assert_trees_all_equal(pull, jax.tree.map(jnp.zeros_like, FROZEN))


def test_an_unknown_anchor_lists_the_choices():
    with pytest.raises(ValueError, match="anchor_to is 'ema'; choose start or average"):
        objective(anchor_to="ema")


# A target that samples of an untrained model exceed: there is a gradient to compare.
BELOW = control.RealPictures(margin=-1.0)
SPREAD = {
    "log_determinant": {"diversity": measure.LogDeterminant()},
    "vendi": {"diversity": measure.Vendi()},
    "sampled": {"diversity": measure.SampledCosine(pairs=5)},
    "cosine": {"alignment": Cosine()},
    "contrastive": {"alignment": Contrastive()},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("vendi", "sampled", "cosine")))
        for name in SPREAD
    ],
)
def test_the_terms_on_a_mesh_equal_those_on_one_device(batch, name):
    """Each prompt's samples lie on two devices; the second step reads what the first has left."""
    (term, form), weight = *SPREAD[name].items(), schedule.Constant(value=1.0)
    if term == "diversity":
        made: Any = control.CosineDiversity(schedule=weight, measure=form, target=BELOW)
    else:
        made = Alignment(schedule=weight, form=form, projection=Projection())
    made = objective(samples=4, **{term: made})
    step = jax.jit(jax.value_and_grad(made, has_aux=True))
    one = batch.replace(images=jax.random.normal(jax.random.key(5), (P * 4, 2, 2, 3)))
    memory = made.start(FROZEN, one, 7)
    (_, (_, memory)), _ = step(PARAMS, FROZEN, one, KEY, STEP, memory)
    (_, (logs, after)), slope = step(PARAMS, FROZEN, one, KEY, STEP + 1, memory)
    assert float(logs[term]) > 0.01 and float(jnp.abs(slope["w"]).max()) > 1e-3

    mesh = sharding.make_mesh(data=4, fsdp=2)
    whole, split = sharding.replicated(mesh), jax.sharding.NamedSharding(mesh, sharding.ROWS)
    with jax.set_mesh(mesh):
        spread = one.replace(images=jax.device_put(one.images, split))
        rest = jax.device_put((PARAMS, FROZEN, spread.replace(images=None), KEY), whole)
        params, frozen, others, key = rest
        spread = others.replace(images=spread.images)
        (_, (logs8, after8)), slope8 = step(
            params, frozen, spread, key, STEP + 1, sharding.put(memory, mesh)
        )
    chex.assert_trees_all_close((logs8, slope8), (logs, slope), rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(after8, after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("m", [1, 2, 4])
def test_a_rollouts_cosine_and_its_gradient_are_those_of_a_loop_by_hand(batch, m):
    rolls = prediction.Rollout(
        steps=4, gradient_steps=m, guidance=guidance.ClassifierFree(scale=3.0)
    )
    term = control.CosineDiversity(schedule=schedule.Constant(value=1.0), target=control.Fixed())
    made = objective(diversity=term, prediction=rolls)

    def by_hand(params):
        w, z = params["w"], jax.random.normal(rng.named(KEY, "rollout")["rollout"], (P * K, 12))
        # The empty caption says its first token alone.
        said = 2 + 3.0 * (batch.tokens.sum(1) - 2)
        for n in range(4):
            if n == 4 - m:
                z = jax.lax.stop_gradient(z)
            z = (
                z
                - (w[0] * z + (w[1] * (1 - n / 4) + w[2] * said.repeat(K) / 10 + w[3])[:, None]) / 4
            )
        u = z.reshape(P, K, 12)
        u = u / jnp.linalg.norm(u, axis=-1, keepdims=True)
        i, j = np.triu_indices(K, 1)
        return jnp.mean(jnp.sum(u[:, i] * u[:, j], axis=-1)) + 1

    def loss(params):
        memory = made.start(FROZEN, batch, 7)
        return made(params, FROZEN, batch, KEY, STEP, memory)[1][0]["diversity"]

    got, want = (jax.jit(jax.value_and_grad(f))(PARAMS) for f in (loss, by_hand))
    assert float(jnp.abs(want[1]["w"]).max()) > 1e-3
    chex.assert_trees_all_close(got, want, rtol=1e-3, atol=1e-5)


@dataclasses.dataclass(frozen=True)
class Reads(Whole):
    """The same with a vector for captions, which is that of all ones."""

    def text(self, frozen, tokens, mask):
        return similarity.unit(jnp.ones((tokens.shape[0], 12)))


def test_alignment_reads_the_very_pictures_that_the_rollouts_end_at(batch):
    seen, read = [], []
    rolls = prediction.Rollout(
        steps=3, gradient_steps=2, guidance=guidance.ClassifierFree(scale=3.0)
    )
    term = control.CosineDiversity(schedule=schedule.Constant(value=1.0), target=control.Fixed())
    made = objective(
        diversity=term,
        prediction=rolls,
        feature=Whole(lambda x: seen.append(np.asarray(x))),
        alignment=Alignment(),
        reader=Reads(lambda x: read.append(np.asarray(x))),
    )
    logs, _ = run(made, batch)
    jax.effects_barrier()
    (drawn,), (looked,) = seen, read
    np.testing.assert_array_equal(looked, drawn)

    w, z = PARAMS["w"], jax.random.normal(rng.named(KEY, "rollout")["rollout"], batch.images.shape)
    said = (2 + 3.0 * (batch.tokens.sum(1) - 2)).repeat(K)[:, None, None, None] / 10
    for t in (1, 2 / 3, 1 / 3):
        z = z - (w[0] * z + w[1] * t + w[2] * said + w[3]) / 3
    np.testing.assert_allclose(looked, z, rtol=1e-4, atol=1e-5)
    u = similarity.unit(z.reshape(P * K, -1))
    assert float(logs["alignment"]) == pytest.approx(1 - float(u.sum(1).mean()) / 12**0.5, abs=1e-5)
    # Without a diversity term there is the same to read.
    alone, _ = run(dataclasses.replace(made, diversity=None, feature=None), batch)
    jax.effects_barrier()
    np.testing.assert_allclose(read[1], looked, rtol=1e-6, atol=1e-6)
    assert float(alone["alignment"]) == pytest.approx(float(logs["alignment"]), rel=1e-6)


FORMS = [Cosine(), Contrastive(temperature=0.3)]


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_alignment_does_not_know_in_which_order_prompts_and_samples_stand(form):
    draw = np.random.default_rng(0)
    images, text = (draw.normal(size=s).astype(np.float32) for s in ((5, 3, 6), (5, 6)))
    same = np.eye(5, dtype=bool)
    same[1, 4] = same[4, 1] = True
    p, k = draw.permutation(5), draw.permutation(3)
    assert (p != np.arange(5)).any() and (k != np.arange(3)).any()
    slope = jax.value_and_grad(lambda x, t, s: (form(x, t, s) ** 2).sum())

    whole = form(jnp.asarray(images), jnp.asarray(text), jnp.asarray(same))
    moved = [jnp.asarray(x) for x in (images[p][:, k], text[p], same[p][:, p])]
    np.testing.assert_allclose(form(*moved), whole[p][:, k], rtol=1e-5, atol=1e-6)
    want = slope(jnp.asarray(images), jnp.asarray(text), jnp.asarray(same))[1]
    np.testing.assert_allclose(slope(*moved)[1], want[p][:, k], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_a_picture_without_a_vector_is_pulled_nowhere_and_leaves_the_others_be(form):
    draw = np.random.default_rng(1)
    images = jnp.asarray(draw.normal(size=(3, 2, 6)), jnp.float32)
    text = jnp.asarray(draw.normal(size=(3, 6)), jnp.float32)
    slope = jax.grad(lambda x: form(x, text, jnp.eye(3, dtype=bool)).sum())
    got, want = slope(images.at[1, 0].set(0)), slope(images)
    np.testing.assert_array_equal(got[1, 0], 0)
    others = np.ones((3, 2), bool)
    others[1, 0] = False
    np.testing.assert_allclose(got[others], want[others], rtol=1e-5)
    assert np.isfinite(got).all() and np.abs(want[1, 0]).max() > 0.01


def test_alignment_of_samples_without_vectors_is_finite_through_the_whole_loss(batch):
    """Pictures of zeros and captions that nothing was learnt of yet."""

    @dataclasses.dataclass(frozen=True)
    class Nothing:
        def __call__(self, frozen, samples, text=None):
            return similarity.unit(0 * samples.reshape(samples.shape[0], -1))

    term = Alignment(projection=Projection(), schedule=schedule.Constant(value=1.0))
    made = objective(alignment=term, feature=Nothing())
    memory = made.start(FROZEN, batch, 7)
    slope, (logs, _) = jax.jit(jax.grad(made, has_aux=True))(
        PARAMS, FROZEN, batch, KEY, STEP, memory
    )
    assert float(logs["alignment"]) == 1
    chex.assert_tree_all_finite(slope)
