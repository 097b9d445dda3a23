import jax
import jax.numpy as jnp
import numpy as np

from cosdiff_jax.models import modulation

D, C = 8, jax.random.normal(jax.random.key(0), (3, 8))


def filled(module, *inputs):
    params = module.init(jax.random.key(1), *inputs)
    return jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(x.size), x.shape), params)


def test_zero_starts_at_zero_and_projects_the_activated_condition():
    kind = modulation.AdaLnZero()
    layer, out, shared = (f(D, jnp.float32) for f in (kind.layer, kind.out, kind.shared))
    condition = shared.apply({}, C)
    np.testing.assert_allclose(condition, C * jax.nn.sigmoid(C), rtol=1e-6)
    for part in layer.apply(layer.init(jax.random.key(1), condition), condition):
        np.testing.assert_array_equal(part, jnp.zeros((3, D)))
    params = filled(layer, condition)
    kernel, bias = (params["params"]["linear"]["project"][k] for k in ("kernel", "bias"))
    for i, part in enumerate(layer.apply(params, condition)):
        np.testing.assert_allclose(part, condition @ kernel[:, i] + bias[i][None], rtol=2e-5)
    params = filled(out, C)
    shift, _ = out.apply(params, C)
    weights = params["params"]["linear"]["project"]
    want = condition @ weights["kernel"][:, 0] + weights["bias"][0][None]
    np.testing.assert_allclose(shift, want, rtol=2e-5)


def test_single_adds_a_table_per_layer_to_one_projection():
    kind = modulation.AdaLnSingle()
    layer, out, shared = (f(D, jnp.float32) for f in (kind.layer, kind.out, kind.shared))
    projected = shared.apply(filled(shared, C), C)
    assert projected.shape == (3, 6, D)
    params = filled(layer, projected)
    table = params["params"]["table"]
    for i, part in enumerate(layer.apply(params, projected)):
        np.testing.assert_allclose(part, projected[:, i] + table[i][None], rtol=1e-6)
    params = filled(out, C)
    shift, scale = out.apply(params, C)
    table = params["params"]["table"]
    for i, part in enumerate((shift, scale)):
        np.testing.assert_allclose(part, C + table[i][None], rtol=1e-6)


def test_time_embedding_tells_times_apart():
    module = modulation.TimeEmbedding(D)
    t = jnp.linspace(0, 1, 11)
    c = module.apply(filled(module, t), t)
    distance = jnp.linalg.norm(c[:, None] - c[None, :], axis=-1) + 10 * jnp.eye(11)
    assert float(distance.min()) > 1e-3
