import itertools
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import LinearConstraint, milp

from cosdiff_jax.diversity import programme, selection

# One shape for nearly everything: what takes time here is compiling.
P, M, F, K = 200, 12, 5, 4

MAX_MIN = selection.MaxMin()
MIN_SUM = selection.MinSum()
RELEVANCE = selection.MaximalMarginalRelevance(balance=0.3)
POINT_PROCESS = selection.DeterminantalPointProcess(quality=0.4)
MEDOIDS = selection.KMedoids()
# Without restarts the local search often falls short and the exact one has to find the optimum.
EXACT = programme.QuadraticProgram(restarts=0)
LOCAL = programme.QuadraticProgram(exact_below=0)

every = pytest.mark.parametrize(
    "select", [MAX_MIN, MIN_SUM, RELEVANCE, POINT_PROCESS, MEDOIDS, EXACT, LOCAL], ids=repr
)


@partial(jax.jit, static_argnums=(0, 3))
def compiled(select, f, score, k):
    return select(f, score, k)


@partial(jax.jit, static_argnums=(0, 3))
def mapped(select, f, score, k):
    return jax.vmap(lambda f, score: select(f, score, k))(f, score)


def one(*args):
    return np.asarray(compiled(*args))


def many(*args):
    return np.asarray(mapped(*args))


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def cosines(f):
    f = np.asarray(f, np.float64)
    f = f / np.linalg.norm(f, axis=-1, keepdims=True)
    return f @ np.swapaxes(f, -1, -2)


def sets(m, k):
    return np.asarray(list(itertools.combinations(range(m), k)))


def objectives(f, score, weight, chosen):
    """Of every set, for one prompt or several: [..., sets]."""
    chosen = np.asarray(chosen)
    distance = 1 - cosines(f)
    pairs = distance[..., chosen[:, :, None], chosen[:, None, :]]
    off = ~np.eye(chosen.shape[1], dtype=bool)
    unary = np.asarray(score, np.float64)[..., chosen].sum(-1)
    return unary + 0.5 * weight * (pairs * off).sum((-1, -2))


def greedy(start, k, gain):
    """The rule itself, candidate by candidate."""
    kept = [int(start)]
    while len(kept) < k:
        free = [i for i in range(M) if i not in kept]
        kept.append(max(free, key=lambda i: gain(i, kept)))
    return kept


@every
class TestSelection:
    def test_it_keeps_k_different_candidates(self, select):
        assert isinstance(select, selection.Selection)
        for kept in many(select, draw(P, M, F), draw(P, M, seed=1), K):
            assert len(set(kept)) == K and kept.min() >= 0 and kept.max() < M

    def test_prompts_do_not_meet(self, select):
        f, score = draw(P, M, F), draw(P, M, seed=1)
        others = jnp.where((jnp.arange(P) % 2 == 0)[:, None, None], f, draw(P, M, F, seed=2))
        together, apart = many(select, f, score, K), many(select, others, score, K)
        np.testing.assert_array_equal(together[::2], apart[::2])
        assert (together[1::2] != apart[1::2]).any()

    def test_order_of_arrival_and_length_do_not_matter(self, select):
        f, score = draw(P, M, F), draw(P, M, seed=1)
        order = np.random.default_rng(2).permutation(M)
        length = jnp.exp(3 * draw(P, M, 1, seed=3))
        kept = many(select, f, score, K)
        moved = many(select, f[:, order] * length, score[:, order], K)
        back = order[moved]
        if select in (MEDOIDS, EXACT, LOCAL):
            assert (np.diff(kept) > 0).all() and (np.diff(moved) > 0).all()
        if select not in (MAX_MIN, RELEVANCE, POINT_PROCESS):
            back, kept = np.sort(back), np.sort(kept)
        np.testing.assert_array_equal(back, kept)

    def test_one_and_all(self, select):
        f, score = draw(P, M, F), draw(P, M, seed=1)
        assert sorted(one(select, f[0], score[0], M)) == list(range(M))
        distance = 1 - cosines(f)
        if select == MIN_SUM:
            want = distance.max(2).argmax(1)
        elif select == MEDOIDS:
            want = distance.sum(2).argmin(1)
        else:
            want = np.argmax(score, axis=1)
        np.testing.assert_array_equal(many(select, f, score, 1)[:, 0], want)

    @pytest.mark.parametrize("value", ["identical", "zero"])
    def test_where_nothing_differs_the_lowest_indices_stay(self, select, value):
        f = jnp.repeat(draw(P, 1, F), M, axis=1) * (value == "identical")
        kept = many(select, f, jnp.ones((P, M)), K)
        np.testing.assert_array_equal(kept, np.tile(np.arange(K), (P, 1)))

    def test_some_zero_vectors_are_harmless(self, select):
        f = draw(P, M, F).at[:, ::2].set(0)
        for kept in many(select, f, draw(P, M, seed=1), K):
            assert len(set(kept)) == K and kept.min() >= 0 and kept.max() < M

    @pytest.mark.parametrize("k", [0, M + 1])
    def test_too_few_or_too_many_are_refused(self, select, k):
        with pytest.raises(ValueError, match=f"k = {k} of {M}"):
            select(draw(M, F), draw(M), k)


# Not the local search: it may reach either of two equal sets.
@pytest.mark.parametrize("select", [MAX_MIN, MIN_SUM, RELEVANCE, POINT_PROCESS, MEDOIDS, EXACT])
def test_a_copy_never_goes_before_its_original(select):
    f, score = jnp.tile(draw(P, M // 2, F), (1, 2, 1)), jnp.tile(draw(P, M // 2, seed=1), (1, 2))
    for kept in many(select, f, score, K):
        place = {int(i): n for n, i in enumerate(kept)}
        for i in kept[kept >= M // 2]:
            assert place[int(i) - M // 2] < place[int(i)]


def test_max_min_is_the_farthest_point_rule():
    f, score = draw(P, M, F), np.asarray(draw(P, M, seed=1))
    kept = many(MAX_MIN, f, score, K)
    bare = many(MAX_MIN, f, None, K)
    for p, cosine in enumerate(cosines(f)):

        def gain(i, kept, cosine=cosine):
            return -cosine[i, kept].max()

        np.testing.assert_array_equal(kept[p], greedy(score[p].argmax(), K, gain))
        np.testing.assert_array_equal(bare[p], greedy(cosine.sum(0).argmin(), K, gain))


def test_max_min_is_half_as_wide_as_the_best():
    f = draw(P, M, F)
    chosen = sets(M, K)
    rows, columns = np.triu_indices(K, 1)
    for cosine, kept in zip(cosines(f), many(MAX_MIN, f, None, K), strict=True):
        width = np.sqrt(np.maximum(1 - cosine, 0))
        best = width[chosen[:, rows], chosen[:, columns]].min(1).max()
        assert width[kept[rows], kept[columns]].min() >= 0.5 * best


def test_min_sum_is_its_rule():
    f = draw(P, M, F)
    for cosine, kept in zip(cosines(f), many(MIN_SUM, f, draw(P, M), K), strict=True):
        start = cosine.min(1).argmin()

        def gain(i, kept, cosine=cosine):
            return -cosine[i, kept].sum()

        np.testing.assert_array_equal(kept, greedy(start, K, gain))


def test_relevance_is_its_rule_and_has_two_ends():
    f, score = draw(P, M, F), np.asarray(draw(P, M, seed=1))
    kept = many(RELEVANCE, f, score, K)
    for p, cosine in enumerate(cosines(f)):

        def gain(i, kept, cosine=cosine, p=p):
            return 0.3 * score[p, i] - 0.7 * cosine[i, kept].max()

        np.testing.assert_array_equal(kept[p], greedy(score[p].argmax(), K, gain))
    bare = many(selection.MaximalMarginalRelevance(balance=0.0), f, score, K)
    np.testing.assert_array_equal(bare, many(MAX_MIN, f, score, K))
    top = many(selection.MaximalMarginalRelevance(balance=1.0), f, score, K)
    np.testing.assert_array_equal(top, np.argsort(-score, axis=1)[:, :K])


def test_relevance_refuses_what_it_cannot_weigh():
    with pytest.raises(ValueError, match="needs a score"):
        RELEVANCE(draw(M, F), None, K)
    with pytest.raises(ValueError, match="balance"):
        selection.MaximalMarginalRelevance(balance=1.1)


@pytest.mark.parametrize("scored", [True, False])
def test_point_process_is_greedy_on_the_determinant(scored):
    f, score = draw(P, M, F), np.asarray(draw(P, M, seed=1))
    kept = many(POINT_PROCESS, f, score if scored else None, K)
    for p, cosine in enumerate(cosines(f)):
        q = np.exp(0.4 * scored * score[p])
        kernel = q[:, None] * cosine * q[None, :]

        def gain(i, kept, kernel=kernel):
            some = [*kept, i]
            return np.linalg.det(kernel[np.ix_(some, some)])

        start = np.argmax(q)
        np.testing.assert_array_equal(kept[p], greedy(start, K, gain))


def test_point_process_past_the_rank_takes_the_lowest_indices():
    kept = one(POINT_PROCESS, draw(M, F), draw(M, seed=1), M)
    assert (np.diff(kept[F:]) > 0).all()
    assert not (np.diff(kept[:F]) > 0).all()


def test_point_process_bears_any_score():
    score = 1e4 * draw(P, M, seed=1)
    kept = many(POINT_PROCESS, draw(P, M, F), score, K)
    np.testing.assert_array_equal(kept, np.argsort(-score, axis=1)[:, :K])


def test_medoids_of_planted_clusters():
    centres = jnp.eye(F)[:K]
    label = np.random.default_rng(0).permutation(np.repeat(np.arange(K), M // K))
    f = centres[label][None] + 0.1 * draw(P, M, F)
    for cosine, kept in zip(cosines(f), many(MEDOIDS, f, draw(P, M), K), strict=True):
        assert sorted(label[kept]) == list(range(K))
        for medoid in kept:
            cluster = np.flatnonzero(label == label[medoid])
            assert medoid == cluster[cosine[np.ix_(cluster, cluster)].sum(0).argmax()]


def test_medoids_beside_the_best():
    f = draw(P, M, F)
    distance = 1 - cosines(f)
    best = distance[:, sets(M, K)].min(2).sum(2).min(1)
    cost = {}
    for turns in (0, 10):
        kept = many(selection.KMedoids(iterations=turns), f, draw(P, M), K)
        cost[turns] = np.asarray([d[k].min(0).sum() for d, k in zip(distance, kept, strict=True)])
    assert (cost[10] <= cost[0] + 1e-6).all() and (cost[10] < cost[0] - 1e-3).any()
    assert (cost[10] >= best - 1e-6).all() and cost[10].mean() <= 1.05 * best.mean()


@pytest.mark.parametrize(
    ("m", "k"), [(3, 1), (3, 2), (5, 2), (5, 4), (8, 3), (8, 5), (12, 2), (12, 4), (12, 5)]
)
def test_exact_is_the_best_of_all_sets(m, k):
    f, score = draw(P, m, F, seed=m + k), 0.5 * draw(P, m, seed=10 * m + k)
    kept = many(EXACT, f, score, k)
    chosen = sets(m, k)
    values = objectives(f, score, EXACT.weight, chosen)
    row = {tuple(some): n for n, some in enumerate(chosen)}
    reached = values[np.arange(P), [row[tuple(some)] for some in kept]]
    # What float32 can tell apart: 1e-6 k (max u - min u + weight).
    slack = 1e-6 * k * (np.ptp(score, axis=1) + EXACT.weight)
    assert (reached >= values.max(1) - slack).all()
    assert (reached == values.max(1)).mean() > 0.98


@pytest.mark.parametrize(("m", "k"), [(14, 5), (17, 5), (19, 5), (19, 9)])
def test_exact_is_the_best_up_to_where_it_gives_way_to_the_search(m, k):
    """In few and in many dimensions, with scores and without; the longest walk takes 0.06 s."""
    assert m < EXACT.exact_below
    chosen = sets(m, k)
    one(EXACT, draw(m, 64), draw(m), k)  # compiled
    longest = 0.0
    for seed, features, scale in ((0, F, 0.5), (1, F, 0.0), (2, 64, 0.05), (3, 64, 0.0)):
        f = draw(m, 64, seed=seed) * (np.arange(64) < features)[None, :]
        score = scale * draw(m, seed=10 + seed)
        began = time.perf_counter()
        kept = one(EXACT, f, score, k)
        longest = max(longest, time.perf_counter() - began)
        values = objectives(f, score, EXACT.weight, chosen)
        (reached,) = objectives(f, score, EXACT.weight, kept[None])
        slack = 1e-6 * k * (np.ptp(score) + EXACT.weight)
        assert reached >= values.max() - slack
    assert longest < 10, f"{longest:.2f} s"


def test_exact_without_scores():
    f = draw(20, 13, 3, seed=13)
    kept = many(EXACT, f, None, 6)
    best = objectives(f, np.zeros((20, 13)), EXACT.weight, sets(13, 6)).max(1)
    reached = jax.vmap(lambda f, kept: EXACT.objective(f, None, kept))(f, kept)
    np.testing.assert_allclose(reached, best, atol=2e-5)


def test_exact_beside_an_integer_programming_solver():
    f, score = draw(P, M, F, seed=7), draw(P, M, seed=8)
    first, second = np.triu_indices(M, 1)
    pairs = len(first)
    # y_ij = x_i x_j by y_ij <= x_i and y_ij <= x_j: it is maximised, and D_ij >= 0.
    below = np.zeros((2 * pairs, M + pairs))
    below[np.arange(2 * pairs), np.concatenate([first, second])] = -1
    below[np.arange(2 * pairs), M + np.tile(np.arange(pairs), 2)] = 1
    size = np.concatenate([np.ones(M), np.zeros(pairs)])[None]
    kept = many(EXACT, f, score, K)
    for p in range(3):
        distance = 1 - cosines(f[p])[first, second]
        found = milp(
            -np.concatenate([score[p], EXACT.weight * distance]),
            integrality=np.concatenate([np.ones(M), np.zeros(pairs)]),
            bounds=(0, 1),
            constraints=[LinearConstraint(below, ub=0), LinearConstraint(size, K, K)],
        )
        np.testing.assert_array_equal(np.flatnonzero(found.x[:M] > 0.5), kept[p])
        value = EXACT.objective(f[p], score[p], jnp.asarray(kept[p]))
        np.testing.assert_allclose(value, -found.fun, rtol=1e-5)


def test_local_search_on_small_sets():
    f, score = draw(P, M, F), 0.5 * draw(P, M, seed=1)
    best = objectives(f, score, LOCAL.weight, sets(M, K)).max(1)

    def reached(select):
        return jax.jit(jax.vmap(select.objective))(f, score, many(select, f, score, K))

    value, greedy = reached(LOCAL), reached(programme.QuadraticProgram(restarts=0, exact_below=0))
    assert (value >= 0.99 * best).all() and (value >= best - 1e-4).mean() >= 0.98
    assert (greedy >= 0.95 * best).all() and (greedy < best - 1e-4).any()


def test_local_search_on_64_beside_a_long_run():
    f, score = draw(20, 64, 16), 0.3 * draw(20, 64, seed=1)
    kept = many(LOCAL, f, score, 8)
    reference = many(programme.QuadraticProgram(restarts=300), f, score, 8)
    objective = jax.jit(jax.vmap(LOCAL.objective))
    value, best = objective(f, score, kept), objective(f, score, reference)
    assert (value >= 0.99 * best).all() and (value <= best + 1e-4).all()
    # In many dimensions all distances are much alike: what counts is the way up from chance.
    rng = np.random.default_rng(0)
    some = np.asarray([rng.permutation(64)[:8] for _ in range(100)])
    chance = objectives(f, score, LOCAL.weight, some).mean(1)
    assert ((value - chance) / (best - chance)).mean() >= 0.99
    order = rng.permutation(64)
    moved = order[many(LOCAL, f[:, order], score[:, order], 8)]
    np.testing.assert_array_equal(np.sort(moved), kept)


def test_fewer_than_no_restarts_are_refused():
    with pytest.raises(ValueError, match="restarts"):
        programme.QuadraticProgram(restarts=-1)


def test_what_all_scores_share_decides_nothing():
    f, score = draw(P, M, F), draw(P, M, seed=1)
    # Steps of 2^-6 survive in float32 beside 2^14.
    score = jnp.round(64 * score) / 64
    np.testing.assert_array_equal(many(EXACT, f, score, K), many(EXACT, f, score + 16384.0, K))


def test_first_is_the_lowest_index_of_near_equals():
    value = jnp.asarray([0.5, 1.0 - 3e-7, 1.0, 1.0 - 1e-5])
    assert selection.first(value) == 1
    assert selection.first(value[::-1]) == 1
    assert selection.first(value, jnp.asarray([True, False, False, True])) == 3
    assert selection.first(jnp.full(4, -jnp.inf), jnp.arange(4) > 1) == 2
