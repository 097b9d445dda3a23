"""A key depends on its name alone."""

import jax

from cosdiff_jax import rng


def test_adding_a_name_leaves_the_others():
    key = jax.random.key(0)
    few, many = rng.named(key, "a", "b"), rng.named(key, "b", "c", "a")
    for name in few:
        assert (jax.random.key_data(few[name]) == jax.random.key_data(many[name])).all()
    data = [jax.random.key_data(k).tolist() for k in many.values()]
    assert len({tuple(d) for d in data}) == 3
