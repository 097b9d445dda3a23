"""Every product of features is exact, however the rest of a run multiplies."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from cosdiff_jax.diversity import (
    alignment,
    bank,
    exact,
    measure,
    noise,
    programme,
    repulsion,
    selection,
    similarity,
)


def some(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def slope(measure):
    """The value and the gradient in the first argument."""
    return jax.value_and_grad(lambda f, *rest: jnp.sum(measure(f, *rest)))


def ring(measure):
    def split(f):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        return measure(f, 5.0, mesh, "data")

    return split


def repelled(form):
    return lambda z, t: form(interval=(0.0, 1.0))(lambda z, t: jnp.sin(z), 4)(z, t)


def drawn(family):
    return lambda key: family(key, 4, (4, 4, 2))


def learnt(h, f):
    fit = alignment.Projection()
    return fit.text(fit.after(fit.start(6, 4), h, f), h)


GROUPS, MANY = some(2, 5, 4), some(similarity.RANKED + 76, 4)
PICTURES = (some(3, 4, 5), some(3, 5), some(3, 3, dtype=bool))
CHOICE = (some(9, 4), some(9))
CASES = {
    "product": (slope(lambda a, b: exact.product("ij,jk->ik", a, b)), some(2, 3), some(3, 4)),
    "cosine_matrix": (slope(similarity.cosine_matrix), GROUPS),
    "mean_cosine": (slope(similarity.mean_cosine), GROUPS),
    "top_cosine": (slope(lambda f: similarity.top_cosine(f, 20.0)), GROUPS),
    "top_cosine, blocks": (slope(lambda f: similarity.top_cosine(f, 20.0)), MANY),
    "top_cosine, ring": (slope(ring(similarity.top_cosine_sharded)), some(48, 4)),
    "percentile_cosine": (lambda f: similarity.percentile_cosine(f, 20.0), GROUPS),
    "percentile_cosine, blocks": (lambda f: similarity.percentile_cosine(f, 20.0), MANY),
    "percentile_cosine, ring": (ring(similarity.percentile_cosine_sharded), some(48, 4)),
    "top": (slope(measure.TopCosine()), GROUPS),
    "sampled": (
        slope(lambda f: measure.SampledCosine()(f, None, jax.random.key(0))),
        GROUPS,
    ),
    "log_determinant": (slope(measure.LogDeterminant()), GROUPS),
    "vendi": (slope(measure.Vendi()), GROUPS),
    "spectral_entropy": (slope(measure.spectral_entropy), GROUPS),
    "cosine": (slope(alignment.Cosine()), *PICTURES),
    "contrastive": (slope(alignment.Contrastive()), *PICTURES),
    "projection": (learnt, some(7, 6), some(7, 4)),
    "bank": (
        lambda f: bank.Bank().after(
            bank.Bank().start(3, 4), jnp.arange(2), f, jnp.ones(f.shape[:2], bool)
        ),
        GROUPS,
    ),
    "distance_matrix": (selection.distance_matrix, some(9, 4)),
    "max_min": (lambda f, _: selection.MaxMin()(f, None, 3), *CHOICE),
    "max_min, scores": (lambda *x: selection.MaxMin()(*x, 3), *CHOICE),
    "min_sum": (lambda *x: selection.MinSum()(*x, 3), *CHOICE),
    "relevance": (lambda *x: selection.MaximalMarginalRelevance()(*x, 3), *CHOICE),
    "volume": (lambda *x: selection.DeterminantalPointProcess()(*x, 3), *CHOICE),
    "medoids": (lambda *x: selection.KMedoids()(*x, 3), *CHOICE),
    "programme": (lambda *x: programme.QuadraticProgram(restarts=2)(*x, 3), *CHOICE),
    "particle": (repelled(repulsion.ParticleGuidance), some(8, 3), some(8)),
    "svgd": (repelled(repulsion.Svgd), some(8, 3), some(8)),
    "diverse_flow": (repelled(repulsion.DiverseFlow), some(8, 3), some(8)),
    "orthogonal": (drawn(noise.Orthogonal()), jax.random.key(0)),
    "repelled": (drawn(noise.Repelled(cosine=-0.1)), jax.random.key(0)),
    "low_frequency": (drawn(noise.LowFrequency(cutoff=0.9)), jax.random.key(0)),
}
# These take sums of elementwise products, which nobody rounds.
WITHOUT = {"mean_cosine", "sampled", "bank", "particle", "orthogonal"}


def precisions(jaxpr):
    """Of every matrix product, through loops, branches, maps and calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for value in jax.tree.leaves(list(equation.params.values())):
            if hasattr(value, "eqns"):
                yield from precisions(value)


@pytest.mark.parametrize("name", CASES)
def test_products_of_features_are_exact_where_all_others_are_rounded(name):
    function, *inputs = CASES[name]
    with jax.default_matmul_precision("bfloat16"):
        found = list(precisions(jax.make_jaxpr(function)(*inputs)))
    assert bool(found) == (name not in WITHOUT)
    assert set(found) <= {(jax.lax.Precision.HIGHEST,) * 2}, found


def test_a_rounded_product_would_be_found_however_deep():
    def deep(x):
        inner = jax.checkpoint(jax.vmap(jax.jit(lambda row: row @ x)))
        looped = jax.lax.fori_loop(0, 3, lambda _, y: jax.lax.cond(y[0, 0] > 0, inner, inner, y), x)
        return jnp.sum(looped)

    with jax.default_matmul_precision("bfloat16"):
        found = list(precisions(jax.make_jaxpr(deep)(some(2, 2))))
    assert found and (jax.lax.Precision.HIGHEST,) * 2 not in found
