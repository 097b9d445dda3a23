import dataclasses
import functools
import pathlib
import re
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from cosdiff_jax.flow import grid, timestep, trajectory

PLAIN = [
    timestep.Uniform(),
    timestep.LogitNormal(),
    timestep.LogitNormal(mean=-0.5, std=0.7),
    timestep.LogitNormal(mean=0.8, std=1.6),
    timestep.Mode(scale=-1.0),
    timestep.Mode(scale=0.0),
    timestep.Mode(scale=1.29),
    timestep.CosMap(),
    timestep.LogNormalSigma(),
    timestep.LogNormalSigma(mean=0.6, std=1.8, trajectory=trajectory.Cosine()),
    # This path ends at sigma = 14.6, the published noise levels do not.
    timestep.LogNormalSigma(mean=1.5, std=1.5, trajectory=trajectory.LdmLinear()),
]
SHIFTED = [
    timestep.Shifted(times=timestep.LogitNormal(), alpha=3.0),
    timestep.Shifted(times=timestep.Mode(scale=0.5), alpha=0.4),
    timestep.Shifted(times=timestep.Uniform(), alpha=3.0, double=True),
    timestep.Shifted(times=timestep.Uniform(), alpha=3.0, trajectory=trajectory.Cosine()),
    timestep.Shifted(times=timestep.LogitNormal(), alpha=0.5, trajectory=trajectory.Cosine()),
]
BASES = [*PLAIN[:2], timestep.Mode(scale=1.29), timestep.CosMap(), PLAIN[-1], SHIFTED[0]]
TIMES = PLAIN + SHIFTED + [timestep.Stratified(times=times) for times in BASES]
TIMES += [timestep.Stratified(times=times, lattice=True) for times in BASES]
each = pytest.mark.parametrize("times", TIMES, ids=repr)


def below(times, t):
    """The share of times below t, by formula and in double precision, without their code."""
    t = np.asarray(t, np.float64)
    match times:
        case timestep.Uniform():
            return t
        case timestep.LogitNormal(mean=mean, std=std):
            return special.ndtr((special.logit(t) - mean) / std)
        case timestep.Mode(scale=scale):
            # t falls with u; nodes are denser at both ends, where t may hardly move.
            u = np.sin(np.linspace(0, np.pi / 2, 1_000_001)) ** 2
            falling = 1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
            return np.interp(t, falling[::-1], 1 - u[::-1])
        case timestep.CosMap():
            return 2 / np.pi * np.arctan2(t, 1 - t)
        case timestep.LogNormalSigma(mean=mean, std=std, trajectory=path):
            with jax.enable_x64(True):
                log_sigma = -0.5 * np.asarray(path.log_snr(jnp.append(t.ravel(), jnp.arange(2.0))))
            share = special.ndtr((log_sigma - mean) / std)
            return ((share[:-2] - share[-2]) / (share[-1] - share[-2])).reshape(t.shape)
        case timestep.Shifted(times=inner, alpha=alpha, trajectory=trajectory.Cosine()):
            return below(inner, 2 / np.pi * np.arctan(np.tan(np.pi / 2 * t) / alpha))
        case timestep.Shifted(times=inner, alpha=alpha, double=double):
            s = t / (t + alpha * (1 - t))
            if double:
                least = alpha / (999 + alpha)
                s = (s - least) / (1 - least)
            return below(inner, np.clip(s, 0, 1))
        case timestep.Stratified(times=inner):
            return below(inner, t)


# The steepest of SD3's study is drawn right; its density and quantiles are single precision's.
@pytest.mark.parametrize("times", [*TIMES, timestep.Mode(scale=1.75)], ids=repr)
def test_a_million_draws_follow_the_distribution(times):
    t = np.asarray(times(jax.random.key(1), 1_000_000), np.float64)
    assert t.min() >= 0 and t.max() <= 1
    found = stats.kstest(t, lambda t: below(times, t))
    if isinstance(times, timestep.Stratified):
        # One draw in each millionth, up to the rounding of t.
        assert found.statistic < 3e-6
    else:
        assert found.pvalue > 1e-3


@each
def test_the_density_is_the_slope_of_the_distribution(times):
    # Denser towards both ends, where a density may be infinite.
    edges = np.sin(np.linspace(0, np.pi / 2, 100_001)) ** 2
    middle = np.sin((np.arange(100_000) + 0.5) * np.pi / 200_000) ** 2
    density = np.asarray(times.density(jnp.asarray(middle, jnp.float32)), np.float64)
    total = np.concatenate([[0.0], np.cumsum(density * np.diff(edges))])
    assert total[-1] == pytest.approx(1, abs=5e-4)
    np.testing.assert_allclose(total, below(times, edges), atol=5e-4)


@each
def test_the_quantile_function_is_the_inverse_of_the_distribution(times):
    u = np.linspace(0.001, 0.999, 500)
    t = np.asarray(times.quantile(jnp.asarray(u, jnp.float32)))
    assert (np.diff(t) > 0).all()
    np.testing.assert_allclose(below(times, t), u, atol=1e-5)


@each
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_nothing_is_nan_at_the_ends(times, dtype):
    ends = jnp.array([0.0, 1e-30, 1e-7, 1.0 - 2.0**-24, 1.0], dtype)
    t, density = times.quantile(ends), times.density(ends)
    assert t.dtype == density.dtype == dtype
    assert jnp.isfinite(t).all() and t.min() >= 0 and t.max() <= 1
    assert jnp.isfinite(density).all()


@pytest.mark.parametrize("lattice", [False, True])
@pytest.mark.parametrize("times", PLAIN[1:2] + PLAIN[6:9], ids=repr)
def test_stratified_batches_are_spread_more_evenly(times, lattice):
    def discrepancy(times, key):
        u = below(times, times(key, 64))
        return stats.qmc.discrepancy(u[:, None], method="L2-star")

    keys = jax.random.split(jax.random.key(2), 5)
    even = timestep.Stratified(times=times, lattice=lattice)
    free = np.mean([discrepancy(times, key) for key in keys])
    spread = np.mean([discrepancy(even, key) for key in keys])
    assert spread < free / 4
    # One row in each of the 64 parts, and not the same part for the first row every time.
    drawn = np.stack([below(times, even(key, 64)) for key in keys])
    parts = np.sort(np.floor(64 * drawn), axis=1)
    assert (np.abs(parts - np.arange(64)) <= 1).all()
    assert np.ptp(drawn[:, 0]) > 0.05
    if lattice:
        assert np.diff(np.sort(drawn, axis=1)).std() < 1e-3


@pytest.mark.parametrize("lattice", [False, True])
def test_a_row_of_a_stratified_batch_follows_the_distribution(lattice):
    even = timestep.Stratified(times=timestep.CosMap(), lattice=lattice)
    keys = jax.random.split(jax.random.key(4), 100_000)
    for row in jax.vmap(lambda key: even(key, 3))(keys).T[:2]:
        assert stats.kstest(np.asarray(row), lambda t: below(even, t)).pvalue > 1e-3


def test_a_stratified_batch_never_reaches_one():
    # With this key the last part's u is so near to 1 that adding 65,535 rounds it up.
    key = jax.random.key(1142)
    even = timestep.Stratified(times=timestep.Uniform(), lattice=True)
    offset = jax.random.uniform(jax.random.split(key)[0], (1,))
    assert (65_535 + float(offset[0])) / 65_536 < 1 == float((65_535 + offset[0]) / 65_536)
    assert float(even(key, 65_536).max()) < 1


def test_logit_normal_leans_to_noise_where_its_mean_is_above_zero():
    key = jax.random.key(0)
    assert timestep.LogitNormal(mean=1.0)(key, 999).mean() > 0.6
    assert timestep.LogitNormal(mean=-1.0)(key, 999).mean() < 0.4


def test_a_wide_logit_normal_has_two_peaks():
    t = jnp.array([0.02, 0.5, 0.98])
    low, middle, high = timestep.LogitNormal(std=2.0).density(t)
    assert low > middle < high
    low, middle, high = timestep.LogitNormal(std=1.4).density(t)
    assert low < middle > high


def test_mode_has_the_published_densities_in_the_middle():
    middle = jnp.array([0.5])
    for scale, density in ((0.0, 1.0), (0.81, 1.86), (1.29, 3.79)):
        got = float(timestep.Mode(scale=scale).density(middle)[0])
        assert got == pytest.approx(density, abs=5e-3)


@pytest.mark.parametrize("scale", [-1.01, 1.76])
def test_a_mode_that_folds_back_is_refused(scale):
    with pytest.raises(ValueError, match=r"times\.mode\.scale must lie in -1"):
        timestep.Mode(scale=scale)


def test_cos_map_gives_rectified_flow_the_log_snrs_of_the_cosine_path():
    u = jnp.linspace(0.01, 0.99, 50)
    straight = trajectory.RectifiedFlow().log_snr(timestep.CosMap().quantile(u))
    np.testing.assert_allclose(straight, trajectory.Cosine().log_snr(u), rtol=1e-4, atol=1e-5)


def test_log_normal_noise_levels_have_the_normal_log_snr_of_edm():
    """lambda ~ N(-2 mean, (2 std)^2), and on EDM's path t is logit-normal."""
    t = timestep.LogNormalSigma(mean=-0.7, std=0.9)(jax.random.key(0), 100_000)
    log_snr = np.asarray(trajectory.Edm().log_snr(t), np.float64)
    assert stats.kstest(log_snr, stats.norm(1.4, 1.8).cdf).pvalue > 1e-3
    u = jnp.linspace(0.01, 0.99, 50)
    same = timestep.LogitNormal(mean=-1.2, std=1.2)
    np.testing.assert_allclose(timestep.LogNormalSigma().quantile(u), same.quantile(u), rtol=1e-4)
    np.testing.assert_allclose(timestep.LogNormalSigma().density(u), same.density(u), rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 3.0])
def test_shift_keeps_the_ends_has_an_inverse_and_moves_the_log_snr(alpha):
    t, flow = jnp.linspace(0, 1, 65), trajectory.RectifiedFlow()
    moved = timestep.shift(t, alpha)
    assert moved[0] == 0 and moved[-1] == pytest.approx(1, abs=1e-7)
    np.testing.assert_allclose(timestep.shift(moved, 1 / alpha), t, atol=1e-6)
    change = flow.log_snr(moved[1:-1]) - flow.log_snr(t[1:-1])
    np.testing.assert_allclose(change, np.full(63, -2 * np.log(alpha)), atol=1e-5)


@pytest.mark.parametrize(
    "path", [trajectory.RectifiedFlow(), trajectory.Edm(), trajectory.Cosine()]
)
def test_on_every_path_with_open_ends_a_shift_moves_the_log_snr_alike(path):
    u = jnp.linspace(0.05, 0.95, 19)
    made = timestep.Shifted(times=timestep.Uniform(), alpha=3.0, trajectory=path)
    change = path.log_snr(made.quantile(u)) - path.log_snr(u)
    np.testing.assert_allclose(change, np.full(19, -2 * np.log(3.0)), atol=2e-5)
    steps = jnp.asarray(grid.Uniform()(20)[1:-1], jnp.float32)
    spread = jnp.asarray(grid.Shifted(alpha=3.0, trajectory=path)(20)[1:-1], jnp.float32)
    change = path.log_snr(spread) - path.log_snr(steps)
    np.testing.assert_allclose(change, np.full(19, -2 * np.log(3.0)), atol=2e-5)


@pytest.mark.parametrize("path", [trajectory.DdpmLinear(), trajectory.LdmLinear()])
def test_times_of_a_chain_that_does_not_end_in_noise_are_not_shifted(path):
    name = type(path).__name__
    for owner, make in (
        (
            "objective.flow_matching.shift",
            functools.partial(timestep.Shifted, times=timestep.Uniform()),
        ),
        ("sample.grid.shifted", grid.Shifted),
    ):
        make(alpha=1.0, trajectory=path)
        with pytest.raises(ValueError, match=rf"^{owner}\.alpha=3: {name} .* cannot be shifted"):
            make(alpha=3.0, trajectory=path)
        with pytest.raises(ValueError, match=rf"^{owner}\.double .* Cosine"):
            make(alpha=3.0, double=True, trajectory=trajectory.Cosine())


def test_a_shifted_time_hides_a_constant_picture_as_well_at_more_pixels():
    """The standard error of the estimate of c from z = (1 - t) c + t eps is the same."""
    n, m, t = 64, 256, 0.3
    alpha = timestep.resolution_shift(m, n)
    assert alpha == 2.0
    noise = np.random.default_rng(0).normal(size=(20_000, m))

    def error(t, pixels):
        return (t * noise[:, :pixels]).mean(axis=1).std() / (1 - t)

    moved = float(timestep.shift(jnp.array([t]), alpha)[0])
    assert error(moved, m) == pytest.approx(error(t, n), rel=0.03)
    assert error(t, m) == pytest.approx(error(t, n) / 2, rel=0.03)


@pytest.mark.parametrize(
    "shifted", [timestep.Shifted(times=timestep.Uniform(), alpha=3.0), grid.Shifted(alpha=3.0)]
)
def test_a_shift_for_one_size_is_another_at_another_size(shifted):
    assert timestep.resized(shifted, 0, ()) is shifted
    assert timestep.resized(shifted, 8, (8, 8, 4)) == shifted
    for shape, alpha in (((16, 16, 4), 6.0), ((4, 4), 1.5), ((16, 4), 3.0)):
        assert timestep.resized(shifted, 8, shape) == dataclasses.replace(shifted, alpha=alpha)


def test_the_double_shift_is_that_of_the_published_grid():
    # 1,000 shifted times; the sampler's even grid lies between their ends and is shifted again.
    table = 3 * np.arange(1, 1001) / 1000 / (1 + 2 * np.arange(1, 1001) / 1000)
    even = np.linspace(table[-1], table[0], 28)
    got = timestep.shift(jnp.linspace(1, 0, 28), 3.0, double=True)
    np.testing.assert_allclose(got, 3 * even / (1 + 2 * even), rtol=1e-5)
    assert float(got[-1]) == pytest.approx(0.0089, abs=1e-4)


def test_numbers_that_mean_nothing_are_refused():
    for alpha in (0.0, -3.0):
        with pytest.raises(ValueError, match="alpha above 0"):
            timestep.shift(jnp.zeros(1), alpha)
        with pytest.raises(
            ValueError, match=r"objective\.flow_matching\.shift\.alpha must be above"
        ):
            timestep.Shifted(times=timestep.Uniform(), alpha=alpha)
    with pytest.raises(ValueError, match="std must be above 0"):
        timestep.LogitNormal(std=0.0)
    with pytest.raises(ValueError, match="std"):
        timestep.LogitNormal(std=float("nan"))
    with pytest.raises(ValueError, match="std must be above 0"):
        timestep.LogNormalSigma(std=-1.0)
    with pytest.raises(ValueError, match="std"):
        timestep.LogNormalSigma(std=float("nan"))
    with pytest.raises(ValueError, match="at least one pixel"):
        timestep.resolution_shift(0, 4)
    with pytest.raises(ValueError, match=r"shift\.reference .* not -8"):
        timestep.resized(timestep.Shifted(times=timestep.Uniform()), -8, (8, 8))


def test_the_example_of_the_readme_is_a_distribution(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    blocks = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    (example,) = (block for block in blocks if "class Power" in block)
    added = example[example.index("@dataclass") :]
    assert sum(bool(line) for line in added.splitlines()) < 15
    # On its own, and where it goes, by the imports that stand there.
    home = (root / "cosdiff_jax/flow/timestep.py").read_text()
    for name, code in (("power.py", example), ("timestep.py", f"{home}\n\n{added}")):
        file = tmp_path / name
        file.write_text(code)
        for command in (["check"], ["format", "--check"]):
            ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", file]
            done = subprocess.run(
                [*ruff, "--config", root / "pyproject.toml"], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
        times = runpy.run_path(str(file))["Power"](power=2.0)
        assert isinstance(times, timestep.Times)
        u = jnp.linspace(0.01, 0.99, 99)
        # The density is the quantile function's slope, upside down.
        slope = jax.vmap(jax.grad(times.quantile))(u)
        np.testing.assert_allclose(times.density(times.quantile(u)), 1 / slope, rtol=1e-5)
        drawn = np.asarray(times(jax.random.key(0), 100_000), np.float64)
        assert stats.kstest(drawn, np.sqrt).pvalue > 1e-3
