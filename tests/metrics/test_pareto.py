import numpy as np
import pytest

from cosdiff_jax.metrics import pareto


def dominates(q, p):
    return all(b >= a for a, b in zip(p, q, strict=True)) and any(
        b > a for a, b in zip(p, q, strict=True)
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("respects", [2, 3])
def test_the_front_is_what_nothing_dominates(seed, respects):
    # Few distinct values, so that there are ties and equal points.
    points = np.random.default_rng(seed).integers(0, 5, (30, respects)).astype(float)
    expected = [not any(dominates(q, p) for q in points) for p in points]
    assert pareto.front(points).tolist() == expected
    assert 0 < sum(expected) < 30


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("respects", [2, 3])
def test_ranks_are_the_longest_chains_of_better_points(seed, respects):
    points = np.random.default_rng(seed).integers(0, 5, (30, respects)).astype(float)

    # Another way to say it: one more than the worst rank among those that dominate a point.
    def rank(p):
        return 1 + max((rank(q) for q in points if dominates(q, p)), default=0)

    expected = [rank(p) for p in points]
    assert pareto.ranks(points).tolist() == expected
    assert max(expected) > 2


def test_what_is_not_known_ranks_last():
    points = np.array([[1.0, 1.0], [np.nan, 9.0], [0.0, 0.0], [9.0, np.nan]])
    assert pareto.ranks(points).tolist() == [1, 3, 2, 3]
    assert pareto.ranks(np.full((2, 2), np.nan)).tolist() == [1, 1]


def test_what_is_not_known_is_not_on_the_front():
    points = np.array([[1.0, 1.0], [np.nan, 9.0], [0.0, 0.0]])
    assert pareto.front(points).tolist() == [True, False, False]


@pytest.mark.parametrize("seed", range(3))
def test_the_area_by_counting(seed):
    rng = np.random.default_rng(seed)
    points, reference = rng.uniform(-0.2, 1, (12, 2)), np.array([0.1, 0.2])
    grid = rng.uniform(reference, 1, (200_000, 2))
    covered = (grid[:, None] <= points[None]).all(axis=2).any(axis=1)
    area = covered.mean() * np.prod(1 - reference)
    assert pareto.hypervolume(points, reference) == pytest.approx(area, abs=0.005)


def test_a_dominated_point_adds_nothing_and_a_better_one_adds():
    points, reference = np.array([[1.0, 2.0], [2.0, 1.0]]), np.zeros(2)
    assert pareto.hypervolume(points, reference) == 3.0
    assert pareto.hypervolume(np.vstack([points, [0.5, 0.5]]), reference) == 3.0
    assert pareto.hypervolume(np.vstack([points, [3.0, 3.0]]), reference) == 9.0
    assert pareto.hypervolume(np.array([[-1.0, 5.0], [np.nan, 1.0]]), reference) == 0.0
