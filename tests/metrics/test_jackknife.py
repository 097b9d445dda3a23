"""Intervals of measures of sets, by leaving groups of prompts out."""

import numpy as np
import pytest

from cosdiff_jax.metrics import frechet
from cosdiff_jax.metrics.jackknife import Jackknife


def without(values, group):
    return [values[group != number] for number in range(group.max() + 1)]


def test_of_a_mean_it_is_the_textbook_interval():
    # One prompt a group: the spread is the standard error of a mean, to the last digit.
    values = np.random.default_rng(0).normal(size=15)
    around = Jackknife(groups=15)
    group = around.deal(15)
    assert group is not None and np.array_equal(group, np.arange(15))
    left = np.array([part.mean() for part in without(values, group)])
    found = around.interval(float(values.mean()), left)
    reach = 2.144786687916925 * values.std(ddof=1) / np.sqrt(15)  # Student's t of 14 degrees
    np.testing.assert_allclose(found, values.mean() + reach * np.array([0, -1, 1]), rtol=1e-9)


def test_prompts_are_dealt_evenly_and_few_are_not():
    group = Jackknife().deal(64)
    assert group is not None
    sizes = np.bincount(group)
    assert len(sizes) == 20 and set(sizes) == {3, 4}
    assert Jackknife().deal(9) is None
    few = Jackknife().deal(10)
    assert few is not None and len(np.bincount(few)) == 10


def test_bounds_hold_and_never_shut_the_value_out():
    around = Jackknife()
    assert around.interval(0.99, np.linspace(0.8, 1.0, 20), 0.0, 1.0).high == 1.0
    assert around.interval(0.01, np.linspace(0.0, 0.2, 20), 0.0, 1.0).low == 0.0
    rounded = around.interval(-1e-17, np.full(20, -1e-17), 0.0)
    assert rounded.low == rounded.value == -1e-17


def test_intervals_of_a_frechet_distance_hold_the_truth():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 6)) / 2
    other = mix + 0.1 * rng.normal(size=(6, 6))

    def distance(f, g):
        nothing = frechet.init(6)
        sets = (frechet.update(nothing, part.reshape(-1, 6)) for part in (f, g))
        return frechet.distance(*sets)

    def world():
        # Pictures of a prompt are alike: what single pictures would tell is far too sure.
        prompt = 0.8 * rng.normal(size=(40, 1, 6))
        real = (prompt + 0.6 * rng.normal(size=(40, 4, 6))) @ mix
        return (prompt + 0.5 * rng.normal(size=(40, 4, 6))) @ other + 0.2, real

    truth = np.mean([distance(*world()) for _ in range(1000)])
    around, held = Jackknife(), []
    group = around.deal(40)
    assert group is not None
    for _ in range(300):
        f, g = world()
        left = [distance(*both) for both in zip(without(f, group), without(g, group), strict=True)]
        by = around.interval(distance(f, g), np.array(left))
        held.append(by.low <= truth <= by.high)
    assert 0.92 <= np.mean(held) <= 0.985, np.mean(held)


@pytest.mark.parametrize("wrong", [{"groups": 1}, {"fewest": 1}, {"level": 1.0}])
def test_what_makes_no_interval_is_refused(wrong):
    with pytest.raises(ValueError, match="jackknife"):
        Jackknife(**wrong)
