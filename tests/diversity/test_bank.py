import jax
import jax.numpy as jnp
import numpy as np

from cosdiff_jax.diversity.bank import Bank


def rows(*values):
    """One prompt's vectors, told apart by the angle at which they stand."""
    angle = jnp.asarray(values, jnp.float32)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)[None]


def angles(contents, prompt):
    number = int(contents["bank_count"][prompt])
    f = contents["bank"][prompt, :number]
    return [round(float(angle), 4) for angle in np.arctan2(f[:, 1], f[:, 0])]


def test_first_in_first_out_per_prompt():
    bank = Bank(slots=3)
    after, all_of_them = jax.jit(bank.after), jnp.ones((1, 2), bool)
    contents = bank.start(4, 2)
    contents = after(contents, jnp.array([1]), rows(0.1, 0.2), all_of_them)
    assert angles(contents, 1) == [0.1, 0.2] and angles(contents, 0) == []
    contents = after(contents, jnp.array([1]), rows(0.3, 0.4), all_of_them)
    assert angles(contents, 1) == [0.3, 0.4, 0.1]
    contents = after(contents, jnp.array([3]), rows(0.9, 1.0), all_of_them)
    assert angles(contents, 1) == [0.3, 0.4, 0.1] and angles(contents, 3) == [0.9, 1.0]


def test_what_does_not_count_is_not_kept():
    bank = Bank(slots=3)
    contents = bank.after(
        bank.start(2, 2), jnp.array([0]), rows(0.1, 0.2), jnp.array([[False, True]])
    )
    assert angles(contents, 0) == [0.2]
    f, counts = bank.beside(contents, jnp.array([0]), rows(0.5, 0.6), jnp.array([[True, False]]))
    assert f.shape == (1, 5, 2)
    np.testing.assert_array_equal(counts, [[True, False, True, False, False]])


def test_unit_vectors_are_kept():
    bank = Bank(slots=1)
    contents = bank.after(bank.start(1, 2), jnp.array([0]), 7 * rows(0.5), jnp.ones((1, 1), bool))
    np.testing.assert_allclose(jnp.linalg.norm(contents["bank"][0, 0]), 1, rtol=1e-6)
