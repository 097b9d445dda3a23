"""Step by step the same as diffusers' schedulers on random network outputs.

Where their timesteps are no times of a path here, the levels a and b at the grid points are taken
from the recording (they start just below pure noise; the last level is 0 noise in every case), and
the solver sees them as a path over a uniform grid. Where they are, which is with "trailing"
spacing on a published chain, the path, its times and what an output means are our own.
"""

import dataclasses
import pathlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax import tables
from cosdiff_jax.flow import grid, multistep, solver, stochastic
from cosdiff_jax.flow.trajectory import Trajectory

STEPS = 8
RECORDED = np.load(
    pathlib.Path(__file__).parent.parent / "fixtures" / "diffusers" / "steps.npz",
    allow_pickle=False,
)


@dataclass(frozen=True, kw_only=True)
class Tabled(Trajectory):
    """Levels at the points of a uniform grid; a "velocity" is whatever the network says."""

    a: Any
    b: Any
    says: str

    def coefficients(self, t):
        points = jnp.linspace(0, 1, STEPS + 1)
        a = jnp.interp(t, points, jnp.asarray(self.a[::-1]))
        # Straight in ln b but for the last step, so that churned levels lie on the path.
        log_b = jnp.interp(t, points[1:], jnp.log(jnp.asarray(self.b[-2::-1])))
        return a, jnp.where(t > 0, jnp.exp(log_b), 0.0)

    def rates(self, t):
        raise AssertionError("no step asks for it")

    def log_snr(self, t):
        raise AssertionError("no step asks for it")

    def time(self, log_snr):
        log_b = jnp.log(jnp.asarray(self.b[-2::-1]))
        return jnp.interp(-0.5 * log_snr, log_b, jnp.linspace(0, 1, STEPS + 1)[1:])

    def clean(self, z_t, v, t):
        a, b = (x.reshape(-1, 1, 1, 1) for x in self.coefficients(t))
        if self.says == "noise":
            return (z_t - b * v) / a
        if self.says == "flow":
            return z_t - b * v
        square = b**2 + 0.25  # EDM's preconditioned output, with a sigma_data of 0.5
        return 0.25 / square * z_t + 0.5 * b / jnp.sqrt(square) * v

    def noise(self, z_t, v, t):
        if self.says == "noise":
            return v
        a, b = (x.reshape(-1, 1, 1, 1) for x in self.coefficients(t))
        return (z_t - a * self.clean(z_t, v, t)) / b


CASES = {
    "ddim_0.0": ("noise", stochastic.Ddim()),
    "ddim_0.7": ("noise", stochastic.Ddim(eta=0.7)),
    "ddpm_fixed_small": ("noise", stochastic.Ddpm()),
    "ddpm_fixed_large": ("noise", stochastic.Ddpm(large=True)),
    "edm_euler_0": ("edm", stochastic.Edm(corrected=False)),
    "edm_euler_2": ("edm", stochastic.Edm(corrected=False, churn=2.0)),
    "dpm_2m_vp": ("noise", multistep.DpmSolver(order=2)),
    "dpm_2m_flow": ("flow", multistep.DpmSolver(order=2)),
    # Theirs takes half of the second difference: see test_multistep for what that costs.
    "dpm_3m_vp": ("noise", multistep.DpmSolver(order=3, published=True)),
    "unipc_vp": ("noise", multistep.UniPc()),
    "unipc_flow": ("flow", multistep.UniPc()),
}


def states(method, case, velocity=lambda output, z, t: output):
    """Every state a solver goes through when the network says what was recorded."""
    outputs, first = jnp.asarray(case["outputs"]), jnp.asarray(case["states"][0])
    # By the number of the call and not by the time, which churn moves.
    said = solver.Remembering(
        start=lambda z: jnp.zeros((), int),
        ask=lambda z, t, i: (velocity(outputs[i], z, t), i + 1),
    )
    found = {0: first}

    def between(z, t, index):
        jax.debug.callback(lambda z, i: found.update({int(i): z}), z, index + 1)
        return z

    method(said, first, STEPS, between=between, key=jax.random.key(0))
    jax.effects_barrier()
    return np.stack([found[i] for i in range(STEPS + 1)])


def recorded(name):
    return {key: RECORDED[f"{name}/{key}"] for key in ("a", "b", "outputs", "noise", "states")}


def error(found, case):
    """The largest of all steps, as a share of the state's size there."""
    size = np.abs(case["states"]).max(axis=(1, 2, 3, 4), keepdims=True)
    assert found.shape == case["states"].shape
    return np.abs((found - case["states"]) / size).max()


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_the_scheduler(name, monkeypatch):
    says, method = CASES[name]
    case = recorded(name)
    noise = jnp.asarray(case["noise"])
    monkeypatch.setattr(stochastic, "normal", lambda keys, z, index: noise[index])
    path = Tabled(a=case["a"], b=case["b"], says=says)
    method = dataclasses.replace(method, trajectory=path)
    assert error(states(method, case), case) < 1e-5


@pytest.mark.parametrize("shift", [1, 3])
def test_euler_on_the_published_grid_is_the_flow_match_scheduler(shift):
    case = recorded(f"flow_euler_{shift}")
    spread = grid.Shifted(alpha=float(shift), double=True)
    np.testing.assert_allclose(spread(STEPS), case["b"], atol=1e-6)
    assert error(states(solver.Euler(grid=spread), case), case) < 1e-5


@pytest.mark.parametrize("method", ["ddim", "dpm_2m"])
@pytest.mark.parametrize("says", ["eps", "v", "x0"])
@pytest.mark.parametrize("path", ["ddpm_linear", "ldm_linear"])
def test_on_the_published_chains_all_of_it_is_our_own(path, says, method):
    case = recorded(f"{path}/{method}_{says}")
    made, meaning = tables.TRAJECTORIES[path](), tables.PARAMETERIZATIONS[says]()
    times = jnp.asarray(grid.Uniform()(STEPS), jnp.float32)
    np.testing.assert_allclose(made.coefficients(times), (case["a"], case["b"]), atol=1e-6)
    method = {"ddim": stochastic.Ddim(), "dpm_2m": multistep.DpmSolver(order=2)}[method]
    method = dataclasses.replace(method, trajectory=made)
    found = states(method, case, lambda output, z, t: meaning.velocity(output, z, t, made))
    assert error(found, case) < 1e-5
