import math
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as Spec

from cosdiff_jax.diversity import blockwise, similarity

P, N, F = 2, 45, 6
WEIGHT = jnp.array([1.0, -2.0])


def draw(*shape, seed=0):
    """Features with a common part, so that cosines are not around 0."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) + 0.3, jnp.float32)


@cache
def compiled(percent):
    """(f, mask) -> top, percentile and the gradient of the weighted top, in blocks of 8."""

    def run(f, mask):
        def top(f):
            return blockwise.top_mean(similarity.unit(f), percent, mask, block=8)

        lowest = blockwise.percentile(similarity.unit(f), percent, mask, block=8)
        return top(f), lowest, jax.grad(lambda f: WEIGHT @ top(f))(f)

    run = jax.jit(run)
    return lambda f, mask=None: run(f, jnp.ones((P, N), bool) if mask is None else mask)


def brute(f, percent):
    """Top mean, k-th highest and gradient of one group without ties, in double precision."""
    f = np.asarray(f, np.float64)
    length = np.linalg.norm(f, axis=1, keepdims=True)
    u = f / length
    first, second = np.triu_indices(len(f), 1)
    ranked = np.sort((u @ u.T)[first, second])[::-1]
    k = math.ceil(percent / 100 * len(ranked) - 1e-9)
    chosen = (u @ u.T >= ranked[k - 1] - 1e-12) & ~np.eye(len(f), dtype=bool)
    slope = chosen @ u / k
    slope = (slope - np.sum(slope * u, axis=1, keepdims=True) * u) / length
    return ranked[:k].mean(), ranked[k - 1], slope


@pytest.mark.parametrize("percent", [0.2, 5.0, 100.0])
def test_value_threshold_and_gradient_over_every_pair(percent):
    f = draw(P, N, F)
    top, lowest, gradient = compiled(percent)(f)
    for p in range(P):
        value, tau, slope = brute(f[p], percent)
        np.testing.assert_allclose(top[p], value, atol=1e-6)
        np.testing.assert_allclose(lowest[p], tau, atol=1e-6)
        np.testing.assert_allclose(gradient[p], WEIGHT[p] * slope, atol=1e-6)
        assert np.abs(slope).max() > 1e-3


def test_order_and_length_do_not_matter():
    f, order = draw(P, N, F), np.random.default_rng(1).permutation(N)
    length = jnp.exp(5 * draw(P, N, 1, seed=2))
    top, lowest, gradient = compiled(5.0)(f)
    moved = compiled(5.0)((f * length)[:, order])
    np.testing.assert_allclose(moved[0], top, atol=1e-6)
    np.testing.assert_allclose(moved[1], lowest, atol=1e-6)
    np.testing.assert_allclose(moved[2] * length[:, order], gradient[:, order], atol=1e-6)


def test_masked_samples_do_not_count():
    f = draw(P, N, F)
    mask = jnp.asarray(np.random.default_rng(1).random((P, N)) < 0.6)
    top, lowest, gradient = compiled(5.0)(f, mask)
    for p in range(P):
        value, tau, slope = brute(f[p][mask[p]], 5.0)
        np.testing.assert_allclose([top[p], lowest[p]], [value, tau], atol=1e-6)
        np.testing.assert_allclose(gradient[p][mask[p]], WEIGHT[p] * slope, atol=1e-6)
    assert not gradient[~mask].any()
    few = jnp.zeros((P, N), bool).at[0, 3].set(True)
    for result in compiled(5.0)(f, few):
        np.testing.assert_array_equal(result, 0)


def test_zero_vectors_and_identical_samples():
    same = jnp.broadcast_to(draw(P, 1, F), (P, N, F))
    top, lowest, gradient = compiled(5.0)(same)
    np.testing.assert_allclose([top, lowest], 1, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    for result in compiled(5.0)(jnp.zeros((P, N, F))):
        np.testing.assert_allclose(result, 0, atol=5e-7)
    # Ten samples, all alike, among zeros: 45 pairs of cosine 1 and 945 of cosine 0; k = 50.
    top, lowest, gradient = compiled(5.0)(same.at[:, 10:].set(0))
    np.testing.assert_allclose(top, 0.9, atol=1e-6)
    np.testing.assert_allclose(lowest, 0, atol=1e-6)
    assert np.isfinite(gradient).all() and not gradient[:, 10:].any()


def test_ties_share():
    # Three pairs of cosine 0.6 in planes of their own, k = 2: each pair counts a third.
    f = np.zeros((N, F))
    for plane, (i, j) in enumerate([(0, 44), (7, 9), (20, 21)]):
        f[i, 2 * plane], f[j, 2 * plane : 2 * plane + 2] = 1, (0.6, 0.8)
    top, lowest, gradient = compiled(0.2)(jnp.asarray(np.stack([f, f]), jnp.float32))
    np.testing.assert_allclose([top, lowest], 0.6, atol=1e-6)
    third = np.zeros((N, F))
    for plane, (i, j) in enumerate([(0, 44), (7, 9), (20, 21)]):
        third[i, 2 * plane + 1] = 0.8 / 3
        third[j, 2 * plane : 2 * plane + 2] = np.array([0.64, -0.48]) / 3
    np.testing.assert_allclose(gradient, WEIGHT[:, None, None] * third[None], atol=1e-6)


def test_vmap_over_prompts_and_the_forward_derivative():
    f, direction = draw(P, N, F), draw(P, N, F, seed=1)

    def one(f):
        return blockwise.top_mean(similarity.unit(f), 5.0, block=8)

    def slope(f, direction):
        return jax.jvp(jax.vmap(one), (f,), (direction,))

    top, _, gradient = compiled(5.0)(f)
    value, tangent = jax.jit(slope)(f, direction)
    np.testing.assert_allclose(value, top, atol=1e-6)
    want = jnp.einsum("pnf,pnf->p", gradient, direction) / WEIGHT
    np.testing.assert_allclose(tangent, want, atol=1e-5)


def test_small_and_large_groups_agree(monkeypatch):
    f, mask = draw(1100, 8), jnp.arange(1100) % 7 > 0

    @partial(jax.jit, static_argnums=0)
    def both(ranked, f):
        top = jax.value_and_grad(similarity.top_cosine)(f, 3.0, mask)
        lowest = jax.value_and_grad(similarity.percentile_cosine)(f, 3.0, mask)
        return *top, *lowest

    blocks = both(similarity.RANKED, f)
    assert "argsort" not in str(jax.make_jaxpr(lambda f: similarity.top_cosine(f, 3.0))(f))
    monkeypatch.setattr(similarity, "RANKED", 2000)
    for got, want in zip(blocks, both(similarity.RANKED, f), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    assert blocks[1].any() and not blocks[3].any()


@pytest.mark.parametrize(
    ("pairs", "percent", "k"),
    [
        (0, 5.0, 0),
        (3, 1e-3, 1),
        (30, 10.0, 3),
        (31, 10.0, 4),
        (523776, 100.0, 523776),
        (5e4, 1.0, 500),
    ],
)
def test_how_many_pairs_are_wanted(pairs, percent, k):
    assert blockwise.wanted(jnp.float32(pairs), percent) == k


def mesh_of(**axes):
    devices = jax.devices()[: math.prod(axes.values())]
    kinds = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=kinds, devices=devices)


@pytest.mark.parametrize(
    ("axes", "samples", "prompts"),
    [
        ({"data": 8}, "data", None),
        ({"data": 4, "fsdp": 2}, "fsdp", "data"),
    ],
)
def test_samples_on_different_devices(axes, samples, prompts):
    mesh = mesh_of(**axes)
    # The second prompt is done after one pass, while the others go on.
    f, weight = draw(4, 48, 16).at[1].set(1.0), draw(4, seed=1)

    @jax.jit
    def one(f):
        top = jax.value_and_grad(lambda f: weight @ similarity.top_cosine(f, 5.0))(f)
        return *top, similarity.percentile_cosine(f, 5.0)

    @jax.jit
    def many(f):
        def loss(f):
            return weight @ similarity.top_cosine_sharded(f, 5.0, mesh, samples, prompts)

        lowest = similarity.percentile_cosine_sharded(f, 5.0, mesh, samples, prompts)
        return *jax.value_and_grad(loss)(f), lowest

    placed = jax.device_put(f, NamedSharding(mesh, Spec(prompts, samples)))
    for got, want in zip(many(placed), one(f), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("axes", [{"data": 3}, {"data": 2, "fsdp": 2}])
def test_a_ring_of_several_blocks_a_device(axes):
    mesh, names = mesh_of(**axes), tuple(axes)
    f = draw(math.prod(axes.values()) * 11, F)
    ring = blockwise.Ring(axes=names, size=math.prod(axes.values()))
    local = partial(blockwise.top_mean, percent=5.0, ring=ring, block=4)
    top = jax.shard_map(local, mesh=mesh, in_specs=Spec(names), out_specs=Spec())
    got = jax.jit(jax.value_and_grad(lambda f: top(similarity.unit(f))))(f)
    value, _, slope = brute(f, 5.0)
    np.testing.assert_allclose(got[0], value, atol=1e-6)
    np.testing.assert_allclose(got[1], slope, atol=1e-6)


def messages(function, shape, mesh, spec):
    """Bytes of each result of a collective in the compiled program, and its bytes of scratch."""
    f = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    program = jax.jit(function).lower(f).compile()
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    lines = re.findall(rf"= (.*?) (?:{kinds})(?:-start)?\(", program.as_text())
    sizes = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}
    found = [
        sizes[kind] * math.prod(int(n) for n in dims.split(",") if n)
        for line in lines
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", line)
    ]
    return found, program.memory_analysis().temp_size_in_bytes


def test_what_the_mean_sends_does_not_grow_with_the_samples():
    mesh = mesh_of(data=8)

    def sent(n):
        def mean(f):
            return similarity.mean_cosine_sharded(f, mesh, "data")

        def slope(f):
            return jax.value_and_grad(mean)(f)

        return [sum(messages(g, (n, 32), mesh, Spec("data"))[0]) for g in (mean, slope)]

    assert sent(16) == sent(4096)
    # F sums, that of the squares and the number of samples.
    assert sent(16) == [4 * 34, 4 * 34]


# The gradient goes round twice, the second time with what is owed to the visitor, which is then
# sent home.
@pytest.mark.parametrize(
    ("name", "n", "travel", "held"),
    [("top", 65536, 1, 4), ("percentile", 65536, 1, 4), ("slope", 16384, 4, 9)],
)
def test_the_ring_sends_one_devices_rows_at_a_time(name, n, travel, held):
    mesh, features = mesh_of(data=8), 768

    def top(f):
        return similarity.top_cosine_sharded(f, 5.0, mesh, "data")

    def percentile(f):
        return similarity.percentile_cosine_sharded(f, 5.0, mesh, "data")

    measure = {"top": top, "percentile": percentile, "slope": jax.value_and_grad(top)}[name]
    sent, scratch = messages(measure, (n, features), mesh, Spec("data"))
    rows, block = 4 * n // 8 * features, 4 * 1024 * 1024
    assert max(sent) == rows and sum(size >= rows for size in sent) == travel
    assert scratch < held * rows + 4 * block


@pytest.mark.parametrize(
    ("measure", "limit"),
    [
        (similarity.mean_cosine, 2**30),
        (lambda f: similarity.top_cosine(f, 5.0), 2**31),
        (lambda f: similarity.percentile_cosine(f, 5.0), 2**30),
    ],
)
def test_memory_of_a_large_group(measure, limit):
    f = jax.ShapeDtypeStruct((65536, 768), jnp.float32)
    program = jax.jit(jax.value_and_grad(measure)).lower(f).compile().memory_analysis()
    assert program.temp_size_in_bytes + program.output_size_in_bytes < limit


def test_what_cannot_be_measured_is_refused():
    mesh = mesh_of(data=8)
    with pytest.raises(ValueError, match="top percent"):
        similarity.percentile_cosine(draw(4, 3), 0.0)
    for sharded in (similarity.top_cosine_sharded, similarity.percentile_cosine_sharded):
        with pytest.raises(ValueError, match="top percent"):
            sharded(draw(8, 3), 101.0, mesh, "data")
        with pytest.raises(ValueError, match="6 samples of a prompt cannot be split"):
            sharded(draw(6, 3), 5.0, mesh, "data")
        with pytest.raises(ValueError, match="no axis 'model'"):
            sharded(draw(8, 3), 5.0, mesh, "model")
        with pytest.raises(ValueError, match="leading axis"):
            sharded(draw(8, 3), 5.0, mesh, "data", "data")
    with pytest.raises(ValueError, match="at least 2 samples"):
        similarity.percentile_cosine(draw(1, 3), 5.0)
