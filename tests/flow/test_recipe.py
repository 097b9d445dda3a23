"""What a recipe says of its flow, as the switchboard puts it together."""

import importlib
import math

import flax.linen as nn
import pytest

from configs import base
from cosdiff_jax import build
from cosdiff_jax.flow import composed, grid, solver, stochastic, timestep, trajectory, weaker
from cosdiff_jax.flow.prediction import Rollout
from cosdiff_jax.flow.trajectory import Cosine, Edm, RectifiedFlow
from cosdiff_jax.objectives.flow_matching import FlowMatching
from cosdiff_jax.sampler import Sampler

PICTURES = (64, 64, 3)


def tiny():
    config = importlib.import_module("configs.fusion_div").get_config("tiny")
    flow = config.objective.flow_matching
    flow.alignment.name, flow.feature.name, flow.times.name = "none", "latent", "uniform"
    return config, flow


def test_a_rollout_follows_the_path_that_is_trained():
    config, flow = tiny()
    flow.trajectory.name, flow.prediction.name = "cosine", "rollout"
    flow.prediction.rollout.guidance.name = "composed"
    made = build.objective(config)[0]
    assert made.trajectory == made.prediction.guidance.trajectory == Cosine()


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("solver", {"solver": stochastic.Ddim()}),
        (r"solver\.grid", {"solver": stochastic.Ddim(trajectory=Edm(), grid=grid.Karras())}),
        ("guidance", {"guidance": composed.Composed(scale=2.0)}),
    ],
)
def test_a_part_made_for_another_path_than_the_samplers_is_refused(part, fields):
    nets = dict(backbone=nn.Dense(1), language_model=nn.Dense(1), vae=None, shape=(2, 2, 1))
    with pytest.raises(ValueError, match=rf"^{part}\.trajectory is RectifiedFlow\(\), .* Edm\(\)"):
        Sampler(**nets, trajectory=Edm(), **fields)
    changes = {"trajectory": RectifiedFlow(), "solver": stochastic.Ddim()}
    Sampler(**nets, **changes, guidance=composed.Composed(scale=2.0))


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        (r"prediction\.solver", {"prediction": Rollout(solver=stochastic.Ddim())}),
        (r"prediction\.guidance", {"prediction": Rollout(guidance=composed.Composed())}),
        (
            r"prediction\.solver\.grid",
            {"prediction": Rollout(solver=solver.Euler(grid=grid.Karras()))},
        ),
        ("times", {"times": timestep.LogNormalSigma(trajectory=RectifiedFlow())}),
        (
            r"times\.times",
            {"times": timestep.Stratified(times=timestep.LogNormalSigma(trajectory=Cosine()))},
        ),
    ],
)
def test_a_part_made_for_another_path_than_the_trained_is_refused(part, fields):
    nets = dict(backbone=nn.Dense(1), language_model=nn.Dense(1))
    with pytest.raises(ValueError, match=rf"^{part}\.trajectory is .*\(\), the model's Edm\(\)"):
        FlowMatching(**nets, trajectory=Edm(), **fields)
    with pytest.raises(ValueError, match=r"^times\.trajectory is Edm\(\), the model's Cosine\(\)"):
        FlowMatching(**nets, trajectory=Cosine(), times=timestep.LogNormalSigma())
    own = Rollout(solver=stochastic.Ddim(trajectory=Edm()))
    FlowMatching(**nets, trajectory=Edm(), times=timestep.LogNormalSigma(), prediction=own)


@pytest.mark.parametrize(
    "knobs",
    [{"churn": -1.0}, {"churn": math.nan}, {"inflation": -0.1}, {"smallest": 2.0, "largest": 1.0}],
)
def test_noise_that_cannot_be_added_names_its_field(knobs):
    config, _ = tiny()
    config.sample.solver.name = "edm"
    config.sample.solver.edm.update(knobs)
    field = next(iter(knobs)) if len(knobs) == 1 else "must satisfy smallest <= largest"
    with pytest.raises(ValueError, match=rf"^solver\.edm.{field}"):
        build.sampler(config, PICTURES)
    with pytest.raises(ValueError, match=r"^solver\.flow_sde\.level must be above 0"):
        stochastic.FlowSde(level=math.nan)


def test_the_first_steps_without_guidance_are_counted_where_noise_is_raised():
    config, _ = tiny()
    config.sample.update(steps=25, unguided=4)
    config.sample.solver.name = "edm"
    ends = []
    for churn in (0.0, 5.0):
        config.sample.solver.edm.churn = churn
        ends.append(build.sampler(config, PICTURES).guidance.interval[1])
    assert 1 - 4 / 25 < ends[0] < ends[1] < 1 - 3 / 25


def test_a_shift_below_zero_names_its_field():
    config, flow = tiny()
    flow.shift.alpha = -1.0
    with pytest.raises(ValueError, match=r"^objective\.flow_matching\.shift\.alpha must .* -1"):
        build.objective(config)
    config.sample.grid.name, config.sample.grid.shifted.alpha = "shifted", -1.0
    with pytest.raises(ValueError, match=r"^sample\.grid\.shifted\.alpha must .* -1"):
        build.sampler(config, PICTURES)


def shifts(config):
    """The times that are trained on and the grid that is drawn on."""
    return build.objective(config)[0].times, build.sampler(config, PICTURES).solver.grid


def test_a_shift_for_one_size_grows_with_the_latents():
    config, flow = tiny()
    side = build.latent_shape(config, PICTURES)[0]
    config.sample.grid.name, flow.shift.alpha = "shifted", 3.0
    for reference, alpha in ((0, 3.0), (side, 3.0), (side // 2, 6.0), (2 * side, 1.5)):
        flow.shift.reference = config.sample.grid.shifted.reference = reference
        times = timestep.Shifted(times=timestep.Uniform(), alpha=alpha)
        assert shifts(config) == (times, grid.Shifted(alpha=alpha))
    # Pictures of another size than the recipe's, as --size asks for.
    wide = build.sampler(config, (64, 128, 3)).solver.grid
    assert wide.alpha == pytest.approx(1.5 * math.sqrt(2))
    # SD3's twofold shift, in training and in sampling, as one flag in each says.
    flow.shift.double = config.sample.grid.shifted.double = True
    times = timestep.Shifted(times=timestep.Uniform(), alpha=1.5, double=True)
    assert shifts(config) == (times, grid.Shifted(alpha=1.5, double=True))
    flow.shift.double = config.sample.grid.shifted.double = False
    # An alpha of 1 is none at its own size alone.
    flow.shift.update(alpha=1.0, reference=side)
    assert shifts(config)[0] == timestep.Uniform()
    flow.shift.reference = side // 2
    assert shifts(config)[0].alpha == 2.0


def test_a_shift_is_of_the_path_that_is_trained():
    config, flow = tiny()
    config.sample.grid.name, config.sample.grid.shifted.alpha = "shifted", 3.0
    flow.shift.alpha, flow.trajectory.name = 3.0, "cosine"
    path = trajectory.Cosine()
    times = timestep.Shifted(times=timestep.Uniform(), alpha=3.0, trajectory=path)
    assert shifts(config) == (times, grid.Shifted(alpha=3.0, trajectory=path))
    flow.trajectory.name = "ddpm_linear"
    with pytest.raises(ValueError, match=r"^sample\.grid\.shifted\.alpha=3: DdpmLinear "):
        build.sampler(config, PICTURES)
    with pytest.raises(ValueError, match=r"^objective\.flow_matching\.shift\.alpha=3: Ddpm"):
        build.objective(config)


def test_a_recipe_that_knows_no_reference_is_as_it_was():
    config, flow = tiny()
    flow.shift.alpha, config.sample.grid.name = 2.0, "shifted"
    new = shifts(config)
    del flow.shift.reference, config.sample.grid.shifted.reference
    moved = timestep.Shifted(times=timestep.Uniform(), alpha=2.0)
    assert shifts(config) == new == (moved, grid.Shifted())
    del flow.shift
    assert shifts(config)[0] == timestep.Uniform()


def test_weaker_fields_joined_by_a_plus_act_together():
    config = base.menu()
    config.sample.guidance.name = "composed"
    entry = config.sample.guidance.composed.weaker
    entry.name = "skip_layer+perturbed_attention"
    entry.skip_layer.layers = (1,)
    made = build.sampler(config, PICTURES).guidance.weaker
    assert made == (weaker.SkipLayer(layers=(1,), scale=2.0), weaker.PerturbedAttention(scale=2.0))
    entry.name = "skip_layer+autoguidance"
    with pytest.raises(ValueError, match=r"autoguidance\.path is empty"):
        build.sampler(config, PICTURES)
    entry.name = "skip_layer+blur"
    with pytest.raises(
        ValueError, match=r"^guidance\.composed\.weaker\.name='blur' is not one of auto"
    ):
        build.sampler(config, PICTURES)
