import chex
import jax
import jax.numpy as jnp
import pytest

from cosdiff_jax.flow import prediction, trajectory

FLOW = trajectory.RectifiedFlow()


def predict(predictor, scales, t=None):
    """The field v = s(t) z with one parameter s per step of a grid of four."""

    def velocity(z, t):
        index = jnp.round((1 - t[0]) * 4).astype(int)
        return scales[index] * z

    z = jnp.ones((3, 2))
    t = jnp.array([0.1, 0.5, 0.9]) if t is None else t
    return predictor(trajectory=FLOW, guided=lambda _: velocity, z_t=z, t=t, v=2 * z, noise=z)


def test_one_step_is_the_trajectorys_clean_estimate_inside_the_window():
    x0, counts = predict(prediction.OneStep(window=(0.4, 1.0)), jnp.zeros(4))
    chex.assert_trees_all_close(x0[:, 0], jnp.array([0.8, 0.0, -0.8]), atol=1e-6)
    chex.assert_trees_all_equal(counts, jnp.array([False, True, True]))


def test_rollout_solves_the_field_from_noise():
    scales = jnp.array([1.0, 2.0, 3.0, 0.5])
    x0, counts = predict(prediction.Rollout(steps=4, gradient_steps=2), scales)
    chex.assert_trees_all_close(x0, jnp.prod(1 - scales / 4) * jnp.ones((3, 2)), rtol=1e-6)
    chex.assert_trees_all_equal(counts, jnp.ones(3, bool))


@pytest.mark.parametrize("m", [1, 2, 4])
def test_the_gradient_passes_through_the_last_steps_only(m):
    rollout = prediction.Rollout(steps=4, gradient_steps=m)
    gradient = jax.grad(lambda s: predict(rollout, s)[0].sum())(jnp.ones(4))
    chex.assert_trees_all_equal(gradient != 0, jnp.arange(4) >= 4 - m)


def test_detached_steps_answer_for_what_they_add_themselves():
    scales = jnp.array([1.0, 2.0, 3.0, 0.5])
    rollout = prediction.Rollout(steps=4, gradient_steps=3, detached=True)
    whole = prediction.Rollout(steps=4, gradient_steps=3)
    chex.assert_trees_all_equal(predict(rollout, scales)[0], predict(whole, scales)[0])
    gradient = jax.grad(lambda s: predict(rollout, s)[0][0, 0])(scales)
    # x0_hat = z - sum_i s_i z_i / 4 with every z_i held fixed.
    seen = jnp.cumprod(jnp.concatenate([jnp.ones(1), 1 - scales / 4]))[:4]
    chex.assert_trees_all_close(gradient, -seen / 4 * (jnp.arange(4) > 0), rtol=1e-6)


def test_steps_are_computed_again_on_the_way_back():
    """Else the activations of all of them would be kept beside the training pass's own."""

    def backward(predictor):
        slope = jax.grad(lambda s: predict(predictor, s)[0].sum())
        return str(jax.make_jaxpr(slope)(jnp.ones(4)))

    for detached in (False, True):
        rollout = prediction.Rollout(steps=4, gradient_steps=2, detached=detached)
        assert "checkpoint[" in backward(rollout) or "remat" in backward(rollout)
    assert not any(word in backward(prediction.OneStep()) for word in ("checkpoint[", "remat"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: prediction.Rollout(steps=3, gradient_steps=4), "gradient_steps must lie in 1"),
        (lambda: prediction.OneStep(window=(0.7, 0.3)), "window must satisfy"),
    ],
)
def test_impossible_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
