import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.models import position, rope

E = 16


def logits(angles_q, angles_k):
    q, k = (jax.random.normal(jax.random.key(i), (1, 6, 1, E)) for i in (0, 1))
    q, k = rope.rotate(q, angles_q), rope.rotate(k, angles_k)
    return jnp.einsum("bnge,bmge->bnm", q, k)


@pytest.mark.parametrize("kind", [position.Rope1D(), position.Rope2D(), position.MRope()])
def test_only_differences_of_positions_matter(kind):
    near, far = (kind.angles(2, 3, jnp.array([start]), E) for start in (0, 17))
    np.testing.assert_allclose(logits(near, near), logits(far, far), atol=1e-4)
    assert not np.allclose(logits(near, near), logits(near, far), atol=1e-2)


def test_rotation_keeps_lengths_and_starts_at_identity():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, E))
    angles = rope.angles_1d(jnp.arange(5)[None, :], E, 10000.0)
    turned = rope.rotate(x, angles)
    np.testing.assert_allclose(turned[:, 0], x[:, 0], atol=1e-6)
    norms = [jnp.linalg.norm(a, axis=-1) for a in (x, turned)]
    np.testing.assert_allclose(*norms, rtol=1e-5)


def test_m_rope_of_text_positions_is_1d():
    p = jnp.arange(7)[None, :]
    np.testing.assert_array_equal(rope.angles_m(p, p, E, 1e4), rope.angles_1d(p, E, 1e4))


def test_2d_tables_follow_rows_and_columns():
    angles = position.Rope2D().angles(2, 3, jnp.array([0, 5]), E)
    rows, columns = jnp.split(angles.reshape(2, 2, 3, E // 2), 2, axis=-1)
    np.testing.assert_array_equal(rows[:, :, 0], rows[:, :, 2])
    np.testing.assert_array_equal(columns[:, 0], columns[:, 1])
    np.testing.assert_allclose(rows[1, :, 0, 0] - rows[0, :, 0, 0], 5.0)


def test_absolute_table_is_cut_from_the_middle():
    ape = position.Ape(max_size=8, base_size=4)
    whole = ape.embedding(8, 8, 16).reshape(8, 8, 16)
    part = ape.embedding(4, 2, 16).reshape(4, 2, 16)
    np.testing.assert_array_equal(part, whole[2:6, 3:5])
    assert len(np.unique(np.round(np.asarray(whole).reshape(64, 16), 5), axis=0)) == 64
    with pytest.raises(ValueError, match="9 x 2 image tokens"):
        ape.embedding(9, 2, 16)
    with pytest.raises(ValueError, match="divisible by 4"):
        ape.embedding(2, 2, 18)
