"""What a run's pictures are measured by on the way."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

from cosdiff_jax.data.groups import to_float
from cosdiff_jax.judge import InClip, prompt_by_prompt

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
