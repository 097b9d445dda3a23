import numpy as np
import pytest
import scipy.stats

from cosdiff_jax.metrics.bootstrap import Bootstrap, change, weighted


def variance(values):
    return float(values.var())


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("accelerated", [False, True])
def test_95_of_100_intervals_hold_the_truth(accelerated):
    held, trials = 0, 1000
    values = draw(trials, 60, seed=1) + 3.0
    for trial in range(trials):
        bootstrap = Bootstrap(draws=500, accelerated=accelerated, seed=trial)
        _, low, high = bootstrap(values[trial])
        held += low <= 3.0 <= high
    print(f"coverage {held / trials:.3f}")
    assert abs(held / trials - 0.95) < 0.03


@pytest.mark.parametrize(
    ("share", "prompts", "expected"),
    [(0.65, 64, 0.94), (0.65, 16, 0.92), (0.92, 64, 0.92), (0.92, 16, 0.83)],
)
def test_of_few_prompts_and_near_a_bound_they_are_too_narrow(share, prompts, expected):
    """Shares of 8 pictures, some prompts harder than others: as the docstring says."""
    rng, trials = np.random.default_rng(0), 400
    odds = rng.beta(1.5 * share, 1.5 * (1 - share), size=(trials, prompts))
    found = [Bootstrap(draws=200, seed=i)(v) for i, v in enumerate(rng.binomial(8, odds) / 8)]
    held = np.mean([one.low <= share <= one.high for one in found])
    print(f"coverage {held:.3f}")
    assert abs(held - expected) < 0.04


def test_half_of_the_intervals_of_half_hold_the_truth():
    values = draw(600, 60, seed=2)
    found = [Bootstrap(draws=300, level=0.5, seed=i)(v) for i, v in enumerate(values)]
    held = np.mean([one.low <= 0 <= one.high for one in found])
    assert abs(held - 0.5) < 0.05


def test_intervals_of_a_paired_difference_hold_the_truth_and_are_narrower():
    """Two methods on the same prompts, some of them hard for both."""
    trials = 600
    hard, a, b = (draw(trials, 40, seed=s) for s in range(3))
    a, b = 3 * hard + 0.5 * a + 0.2, 3 * hard + 0.5 * b
    found = [Bootstrap(draws=300, seed=i).difference(a[i], b[i]) for i in range(trials)]
    held = np.mean([one.low <= 0.2 <= one.high for one in found])
    print(f"coverage {held:.3f}")
    assert abs(held - 0.95) < 0.03
    alone = Bootstrap(draws=300)(a[0])
    assert found[0].high - found[0].low < 0.4 * (alone.high - alone.low)
    assert found[0].value == pytest.approx(a[0].mean() - b[0].mean())


@pytest.mark.parametrize(("accelerated", "method"), [(False, "percentile"), (True, "BCa")])
@pytest.mark.parametrize("statistic", [np.mean, np.var])
def test_it_is_scipys_own(accelerated, method, statistic):
    values = np.random.default_rng(0).exponential(size=40)
    found = Bootstrap(draws=20000, accelerated=accelerated)(values, lambda v: float(statistic(v)))
    rng = np.random.default_rng(1)
    wanted = scipy.stats.bootstrap(
        (values,), statistic, n_resamples=20000, method=method, rng=rng
    ).confidence_interval
    # Two ways of drawing at random: what is left is the noise of 20,000 draws.
    width = wanted.high - wanted.low
    np.testing.assert_allclose(found[1:], wanted, atol=0.03 * width)


def test_the_accelerated_one_leans_to_the_long_side():
    values = np.random.default_rng(0).exponential(size=40)
    plain = Bootstrap(draws=4000)(values, variance)
    better = Bootstrap(draws=4000, accelerated=True)(values, variance)
    assert better.low > plain.low and better.high > plain.high + 0.1


def test_all_samples_of_a_prompt_are_drawn_together():
    """K copies of each prompt tell no more than one: single pictures would seem to."""
    values = draw(30)
    one = Bootstrap()(values)
    copies = Bootstrap()(np.repeat(values[:, None], 50, axis=1))
    np.testing.assert_allclose(copies, one, rtol=1e-9)
    single = Bootstrap()(np.repeat(values, 50))
    assert single.high - single.low < 0.3 * (one.high - one.low)


def test_the_mean_is_one_statistic_among_others():
    values = draw(25, 3)
    fast = Bootstrap(draws=8000)(values)
    slow = Bootstrap(draws=8000)(values, lambda v: float(v.mean()))
    assert fast.value == slow.value
    np.testing.assert_allclose(fast[1:], slow[1:], atol=0.03 * (slow.high - slow.low))
    other = values + 0.1 * draw(25, 3, seed=1)
    fast = Bootstrap(draws=8000).difference(values, other)
    slow = Bootstrap(draws=8000).difference(values, other, lambda v: float(v.mean()))
    assert fast.value == pytest.approx(slow.value)
    np.testing.assert_allclose(fast[1:], slow[1:], atol=0.03 * (slow.high - slow.low))
    paired = Bootstrap().difference(values, 0 * values, lambda v: float(np.median(v)))
    assert paired.value == np.median(values) and paired.low < paired.value < paired.high


def test_a_weighted_mean_is_the_ratio_of_sums():
    rng = np.random.default_rng(5)
    right, asked = rng.integers(0, 5, 30), rng.integers(5, 40, 30)
    pairs = np.stack([right / asked, asked], axis=1)
    found = Bootstrap()(pairs, weighted)
    assert found.value == pytest.approx(right.sum() / asked.sum())
    assert found.low < found.value < found.high
    # The one prompt that nobody knows the weight of counts on neither side.
    better = {p: np.array([x + 0.1, w]) for p, (x, w) in enumerate(pairs)}
    known = {p: np.array(pair) for p, pair in enumerate(pairs)} | {3: np.array([0.5, np.nan])}
    by = change(known, better, weighted)
    assert by is not None and by == pytest.approx((0.1, 0.1, 0.1))


def test_more_prompts_and_less_certainty_narrow_it():
    widths = [np.ptp(Bootstrap()(draw(n))[1:]) for n in (20, 80, 320)]
    np.testing.assert_allclose(widths, 2 * 1.96 / np.sqrt([20, 80, 320]), rtol=0.3)
    sure = [np.ptp(Bootstrap(level=level)(draw(40))[1:]) for level in (0.5, 0.9, 0.99)]
    assert np.all(np.diff(sure) > 0)


@pytest.mark.parametrize("accelerated", [False, True])
def test_the_same_seed_gives_the_same_interval_and_equal_prompts_a_point(accelerated):
    values = draw(20)
    same = [Bootstrap(accelerated=accelerated, seed=s)(values) for s in (3, 3, 4)]
    assert same[0] == same[1] != same[2]
    assert Bootstrap(accelerated=accelerated)(np.full(9, 2.0)) == (2.0, 2.0, 2.0)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        Bootstrap()(np.ones(1))
    with pytest.raises(ValueError, match="same prompts"):
        Bootstrap().difference(np.ones(3), np.ones(4))
    for wrong in ({"draws": 0}, {"level": 1.0}):
        with pytest.raises(ValueError, match=r"bootstrap\.draws"):
            Bootstrap(**wrong)
