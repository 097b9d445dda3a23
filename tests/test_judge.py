"""What a run's pictures are measured by on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

from cosdiff_jax.data.groups import to_float, to_uint8
from cosdiff_jax.judge import Drawn, HeldOut, InClip, Measured, prompt_by_prompt
from cosdiff_jax.models.fuse_dit import FuseDiT
from cosdiff_jax.models.gemma import Gemma
from cosdiff_jax.objectives.next_token import NextToken
from cosdiff_jax.sampler import Sampler

P, K = 5, 4


class Colours:
    """Instead of CLIP: a picture is seen as its mean colour, a unit vector."""

    features, size = 3, 2

    def apply(self, variables, *asked, method):
        if method == "text":
            return jnp.ones((len(asked[0]), 3)) / 3**0.5
        f = asked[0].mean(axis=(1, 2)) + variables["params"]
        return f / jnp.linalg.norm(f, axis=-1, keepdims=True)


def test_the_frechet_distance_is_that_of_the_set_to_the_real_pictures():
    rng = np.random.default_rng(0)
    real, drawn = rng.integers(0, 256, (2, P, K, 2, 2, 3), np.uint8)
    tokens = np.zeros((P, 3), np.int32)
    shift = jnp.array([[0.5, 0.0, 0.0]])
    see = InClip(
        clip=Colours(), name="colours", params=shift, tokens=tokens, mask=tokens == 0, real=real
    )
    name = f"frechet_colours_n{P * K}"
    # Of a set: whose prompt a picture is of does not matter.
    assert see(real[::-1]).table[name] == pytest.approx(0, abs=1e-9)
    f, g = (
        np.asarray(Colours().apply({"params": shift}, to_float(x.reshape(-1, 2, 2, 3)), method=""))
        for x in (drawn, real)
    )
    c, d = (np.cov(x, rowvar=False) for x in (f, g))
    apart = ((f.mean(0) - g.mean(0)) ** 2).sum()
    wanted = apart + np.trace(c) + np.trace(d) - 2 * np.trace(linalg.sqrtm(c @ d)).real
    found, each = see(drawn)
    assert found[name] == pytest.approx(wanted, rel=1e-3) and wanted > 0.01
    assert set(found) == {"mean_cosine", "top_cosine", "vendi", "clip_score", name}
    # What is said of single prompts is of those, and its mean is what is said of all.
    assert len(each) == P
    for measure in found.keys() - {name}:
        assert np.mean([one[measure] for one in each]) == pytest.approx(found[measure])
    middle = InClip(
        clip=Colours(),
        name="colours",
        params=shift,
        tokens=tokens[:1],
        mask=tokens[:1] == 0,
        real=real[2:3],
    )
    assert middle(drawn[2:3]).each == [pytest.approx(each[2])]


def test_a_metric_says_of_every_prompt_what_it_would_say_of_it_alone():
    class Share:
        """Sums and counts of what is as asked."""

        init = staticmethod(lambda: (0, 0))
        merge = staticmethod(lambda a, b: (a[0] + b[0], a[1] + b[1]))
        result = staticmethod(lambda state: {"share": state[0] / state[1]} if state[1] else {})

        @staticmethod
        def update(state, images, asked):
            right = [(group == wanted).sum() for group, wanted in zip(images, asked, strict=True)]
            number = [
                group.size if wanted else 0 for group, wanted in zip(images, asked, strict=True)
            ]
            return state[0] + sum(right) * (sum(number) > 0), state[1] + sum(number)

    images = np.zeros((3, 2, 1, 1, 1), np.uint8)
    images[1, 0], images[1, 1], images[2] = 1, 2, 2
    table, each = prompt_by_prompt(Share, images, [0, 1, 2])
    assert table == {"share": 0.75}
    assert each == [{}, {"share": 0.5}, {"share": 1.0}]


class Asked:
    """Says yes from the time on that it has been asked so often."""

    def __init__(self, number):
        self.number, self.times = number, 0

    def __call__(self):
        self.times += 1
        return self.times > self.number


@pytest.fixture(scope="module")
def judge():
    """Of five prompts, two samples each, drawn two prompts at once: one more has to fill up."""
    knobs = dict(width=16, depth=1, heads=2, kv_heads=2, head_size=8, mlp=16)
    llm, backbone = Gemma(vocab=16, **knobs), FuseDiT(**knobs, channels=4)
    tokens = np.arange(P * 3, dtype=np.int32).reshape(P, 3) % 16
    key = jax.random.key(0)
    mask = tokens >= 0
    one = jnp.asarray(tokens[:1]), jnp.asarray(mask[:1])
    frozen = {"llm": jax.jit(llm.init)(key, *one)["params"]}
    text = llm.apply({"params": frozen["llm"]}, *one)
    z = jnp.zeros((1, 4, 4, 4))
    params = jax.jit(backbone.init)(key, z, jnp.zeros(1), text)["params"]
    params = jax.tree.map(
        lambda x: x + 0.2 * np.random.default_rng(0).normal(size=x.shape).astype(x.dtype), params
    )
    made = Drawn(
        sampler=Sampler(
            backbone=backbone, language_model=llm, vae=None, shape=(4, 4, 4), steps=2, rows=5
        ),
        tokens=tokens,
        mask=mask,
        prompts=[str(number) for number in range(P)],
        groups=np.zeros((P, 2, 4, 4, 4), np.uint8),
        measures=[lambda groups: Measured({"mean": float(groups.mean())}, [{}] * len(groups))],
        shown=3,
        key=jax.random.key(1),
    )
    return made, params, frozen


def test_what_is_drawn_in_portions_is_what_would_be_drawn_at_once(judge, monkeypatch):
    drawn, params, frozen = judge
    draw, portions, never = Sampler.__call__, [], Asked(100)

    def counted(self, params, frozen, tokens, *args, **knobs):
        portions.append(len(tokens))
        return draw(self, params, frozen, tokens, *args, **knobs)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "__call__", counted)
        seen = drawn(params, frozen, measure=True, stop=never)
    assert portions == [2, 2, 2]  # one program
    args = drawn.tokens, drawn.mask, drawn.key
    whole = to_uint8(drawn.sampler(params, frozen, *args, num=2))
    assert len(np.unique(whole.reshape(2 * P, -1), axis=0)) == 2 * P
    assert seen.table["mean"] == whole.mean()
    assert np.array_equal(seen.images, whole[:3])
    # Once for each portion, and once before what was drawn is measured.
    assert never.times == 4
    few = drawn(params, frozen, measure=False)
    assert np.array_equal(few.images, whole[:3]) and few.table == {}


def test_a_look_that_is_stopped_between_two_portions_is_none(judge):
    drawn, params, frozen = judge
    for number in range(4):
        stop = Asked(number)
        assert drawn(params, frozen, measure=True, stop=stop) is None
        assert stop.times == number + 1


def test_held_out_batches_are_stopped_between_two():
    llm = Gemma(vocab=16, width=16, depth=1, heads=2, kv_heads=2, head_size=8, mlp=16)
    rows = {"tokens": np.ones((2, 4), np.int32), "mask": np.ones((2, 4), bool)}
    objective = NextToken(llm=llm)
    first = jnp.asarray(rows["tokens"]), jnp.asarray(rows["mask"])
    params = jax.jit(llm.init)(jax.random.key(0), *first)["params"]
    read = []

    def batches():
        for number in range(3):
            read.append(number)
            yield rows

    held_out = HeldOut(objective=objective, batches=batches, number=3)
    assert held_out(params, {}, measure=True, stop=Asked(1)) is None
    assert read == [0, 1]
    assert held_out(params, {}, measure=True).table["loss"] > 0
