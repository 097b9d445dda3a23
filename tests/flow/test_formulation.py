import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.flow import formulation, parameterization, timestep, trajectory, weighting
from cosdiff_jax.flow.formulation import FORMULATIONS, named

T = jnp.linspace(0.02, 0.98, 49)


def test_the_study_has_61_different_formulations():
    assert len(FORMULATIONS) == 61
    assert len(set(FORMULATIONS.values())) == 61
    families = {name.split("(")[0] for name in FORMULATIONS}
    assert families == {
        *("eps/linear", "v/linear", "eps/cos", "v/cos", "rf", "rf/cosmap"),
        *("rf/lognorm", "rf/mode", "edm", "edm/rf", "edm/cos"),
    }
    for name in ("rf/lognorm(0.00,1.00)", "rf/lognorm(0.50,0.60)", "edm(-1.20,1.20)"):
        assert name in FORMULATIONS


@pytest.mark.parametrize("name", FORMULATIONS)
def test_a_name_gives_its_formulation_and_every_loss_is_finite(name):
    made = named(name)
    assert made == FORMULATIONS[name]
    keys = jax.random.split(jax.random.key(0), 3)
    t = jnp.concatenate([made.times(keys[0], 14), jnp.array([0.0, 1.0])])
    x0, eps = (jax.random.normal(k, (16, 3)) for k in keys[1:])
    z_t, _ = made.trajectory.corrupt(x0, eps, t)
    target = made.parameterization.target(x0, eps, z_t, t, made.trajectory)
    factor = made.weighting(t, made.trajectory, made.parameterization)
    v = made.parameterization.velocity(target, z_t, t, made.trajectory)
    chex.assert_tree_all_finite((factor, target, v))


def test_names_carry_their_numbers():
    made = named("rf/lognorm( 0.25, 0.8 )")
    assert made.times == timestep.LogitNormal(mean=0.25, std=0.8)
    assert named("rf/mode(1.29)").times == timestep.Mode(scale=1.29)
    times = named("edm(0.60,1.20)").times
    assert times == timestep.LogNormalSigma(mean=0.6, std=1.2, trajectory=trajectory.Edm())


@pytest.mark.parametrize("name", ["rf/lognorm(1)", "ddpm", "edm(a,b)", "rf/mode()", "rf(1)", ""])
def test_a_name_that_is_none_lists_the_choices(name):
    with pytest.raises(ValueError, match=r"is not one of eps/linear, .*edm\(x,x\)"):
        named(name)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"mode\.scale"):
        named("rf/mode(1.80)")


def shape(name, log_snr):
    """The weight at these log-SNRs, free of the path's clock, up to a constant."""
    made = named(name)
    t = made.trajectory.time(log_snr)
    weight = np.asarray(made.weight(t), np.float64)
    return weight / weight[len(weight) // 2]


def test_weights_are_the_published_ones():
    """Esser et al. 2024, section 3, with t / (1 - t) for the sign lost in one copy."""
    ratio = np.asarray(T / (1 - T))
    np.testing.assert_allclose(named("rf").weight(T), ratio, rtol=1e-4)
    for name, times in (
        ("rf/lognorm(0.50,0.60)", timestep.LogitNormal(mean=0.5, std=0.6)),
        ("rf/mode(1.29)", timestep.Mode(scale=1.29)),
        ("rf/cosmap", timestep.CosMap()),
    ):
        np.testing.assert_allclose(named(name).weight(T), ratio * times.density(T), rtol=1e-4)
    half = np.asarray(trajectory.Cosine().log_snr(T)) / 2
    np.testing.assert_allclose(named("eps/cos").weight(T), 1 / np.cosh(half) / np.pi, rtol=1e-4)
    np.testing.assert_allclose(named("v/cos").weight(T), np.exp(-half) * 2 / np.pi, rtol=1e-4)


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.6, 1.8)])
def test_edm_weighs_by_the_normal_of_the_log_snr(mean, std):
    """w = N(lambda; -2 P_m, (2 P_s)^2) (exp(-lambda) + 0.5^2), on the path's uniform clock.

    The constant before it: 1 / 0.5^2, and 2 since ln sigma is half as wide as the log-SNR.
    """
    name = f"edm({mean:.2f},{std:.2f})"
    log_snr = trajectory.Edm().log_snr(T)
    uniform = weighting.Edm(mean=mean, std=std)
    made = named(name)
    factor = uniform(T, made.trajectory, made.parameterization)
    common = weighting.common_weight(factor, T, made.trajectory, made.parameterization)
    ratio = np.asarray(made.weight(T) / common)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    assert ratio[0] == pytest.approx(2 / 0.5**2, rel=1e-3)
    wanted = np.exp(-0.5 * ((np.asarray(log_snr) + 2 * mean) / (2 * std)) ** 2)
    wanted = wanted * (np.exp(-np.asarray(log_snr)) + 0.25)
    np.testing.assert_allclose(shape(name, log_snr), wanted / wanted[24], rtol=2e-3)


def test_edm_matched_to_another_has_its_weight_and_its_noise_levels():
    log_snr = jnp.linspace(-6, 6, 49)
    for matched, other in (("edm/rf", "rf"), ("edm/cos", "v/cos")):
        np.testing.assert_allclose(
            shape(matched, log_snr), shape(other, log_snr), rtol=1e-3, err_msg=matched
        )
        made, like = named(matched), named(other)
        u = jnp.linspace(0.05, 0.95, 19)
        drawn = made.trajectory.log_snr(made.times.quantile(u))
        wanted = like.trajectory.log_snr(like.times.quantile(u))
        np.testing.assert_allclose(drawn, wanted, rtol=1e-4, atol=1e-5)
        assert isinstance(made.parameterization, parameterization.Edm)


def test_a_formulation_of_ones_own_needs_no_name():
    own = formulation.Formulation(
        trajectory=trajectory.Cosine(),
        parameterization=parameterization.Clean(),
        weighting=weighting.Sigmoid(),
        times=timestep.Shifted(times=timestep.Uniform(), alpha=2.0),
    )
    chex.assert_tree_all_finite(own.weight(T))
