"""The menu and the switchboard agree, and every recipe at every size can be built."""

import dataclasses
import importlib
import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, presets
from cosdiff_jax import build, checks, modules, optimizer, tables, trained
from cosdiff_jax.diversity import alignment
from cosdiff_jax.flow import composed, timestep, trajectory
from cosdiff_jax.shapes import Batch

ROOT = pathlib.Path(__file__).parent.parent
RECIPES = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if path.stem not in ("__init__", "base", "formulations", "networks", "presets")
)
# Menu path -> table of constructors; "asset" and "none" are handled beside the tables.
TABLES = {
    "optimizer": tables.OPTIMIZERS,
    "language_model": tables.MODELS["language_model"],
    "vae": tables.MODELS["vae"],
    "clip": tables.MODELS["clip"],
    "latent_clip": tables.MODELS["latent_clip"],
    "vgg": tables.MODELS["vgg"],
    "backbone": tables.MODELS["backbone"],
    "backbone.fuse_dit.position": tables.POSITIONS,
    "backbone.fuse_dit.modulation": tables.MODULATIONS,
    "backbone.fuse_dit.attention": tables.FUSIONS,
    "objective": build.OBJECTIVES,
    "objective.flow_matching.trajectory": tables.TRAJECTORIES,
    "objective.flow_matching.parameterization": tables.PARAMETERIZATIONS,
    "objective.flow_matching.times": tables.TIMES,
    "objective.flow_matching.spread": tables.SPREADS,
    "objective.flow_matching.weighting": tables.WEIGHTINGS,
    "objective.flow_matching.diversity": tables.DIVERSITIES,
    "objective.flow_matching.diversity.cosine.schedule": tables.SCHEDULES,
    "objective.flow_matching.diversity.cosine.measure": tables.MEASURES,
    "objective.flow_matching.diversity.cosine.target": tables.TARGETS,
    "objective.flow_matching.diversity.cosine.bank": tables.BANKS,
    "objective.flow_matching.alignment": tables.ALIGNMENTS,
    "objective.flow_matching.alignment.clip.schedule": tables.BY_STEP,
    "objective.flow_matching.alignment.clip.form": tables.FORMS,
    "objective.flow_matching.alignment.latent_clip.schedule": tables.BY_STEP,
    "objective.flow_matching.alignment.latent_clip.form": tables.FORMS,
    "objective.flow_matching.alignment.llm.schedule": tables.BY_STEP,
    "objective.flow_matching.alignment.llm.form": tables.FORMS,
    "objective.flow_matching.prediction": tables.PREDICTIONS,
    "objective.flow_matching.prediction.rollout.guidance": tables.GUIDANCES,
    "sample.solver": tables.SOLVERS,
    "sample.grid": tables.GRIDS,
    "sample.guidance": tables.GUIDANCES,
    "sample.guidance.composed.weaker": tables.WEAKER,
    "sample.noise": tables.NOISES,
    "sample.descent": tables.DESCENTS,
    "sample.condition": tables.CONDITIONS,
    "sample.repulsion": tables.REPULSIONS,
    "sample.selection": tables.SELECTIONS,
    "sample.noise.low_frequency.base": {
        name: tables.NOISES[name] for name in ("orthogonal", "antithetic")
    },
}


def at(config, path):
    for part in path.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize("path", TABLES)
def test_menu_equals_table(path):
    entry = at(base.menu(), path)
    beside = {key for key, value in entry.items() if hasattr(value, "items")} - {"asset", "ema"}
    if path == "objective":
        assert beside == set(TABLES[path])
    else:
        assert beside == set(TABLES[path]), path


@pytest.mark.parametrize("path", TABLES)
def test_menu_has_every_knob(path):
    entry, made_elsewhere = (
        at(base.menu(), path),
        {
            *("parent", "name", "feature"),
            # The path that is trained, and fields that are no numbers.
            *("trajectory", "grid", "weaker"),
            # Left to code: what no recipe has changed.
            *("feature_layer", "pooled", "eps", "projection", "solver"),
        },
    )
    for name, maker in TABLES[path].items():
        constructor = inspect.unwrap(maker)
        if dataclasses.is_dataclass(constructor):
            fields = {field.name for field in dataclasses.fields(constructor) if field.init}
            assert fields - made_elsewhere <= set(entry.get(name, {})), name


def choices(config, path=""):
    """Every dictionary in the menu that has a name."""
    for key, value in config.items():
        if hasattr(value, "items"):
            inside = f"{path}.{key}".strip(".")
            if "name" in value:
                yield inside
            yield from choices(value, inside)


def test_every_choice_of_the_menu_is_held_to_a_table():
    known = set(TABLES) | {"data", "tokenizer", "objective.flow_matching.feature", "sample.view"}
    assert set(choices(base.menu())) == known


@pytest.mark.parametrize(
    "path",
    [p for p in TABLES if p not in ("objective", "backbone", "objective.flow_matching.spread")],
)
def test_every_alternative_can_be_made_with_its_menu_knobs(path):
    entry = at(base.menu(), path).to_dict()
    for name, maker in TABLES[path].items():
        made = tables.make(TABLES[path], {**entry, "name": name})
        made = made[0] if isinstance(made, tuple) and made else made
        constructor = inspect.unwrap(maker)
        if isinstance(constructor, type):
            assert isinstance(made, constructor)
        for knob, value in entry.get(name, {}).items():
            # A knob that is a choice itself has its own row here.
            if hasattr(made, knob) and not isinstance(value, dict):
                assert getattr(made, knob) == value, f"{path}.{name}.{knob}"


def test_times_are_spread_as_the_menu_says():
    kinds = {}
    for name, constructor in tables.SPREADS.items():
        kinds[name] = constructor(times=timestep.LogitNormal())
    assert kinds["independent"] == timestep.LogitNormal()
    assert not kinds["stratified"].lattice and kinds["lattice"].lattice


def test_unknown_choice_lists_the_choices():
    with pytest.raises(ValueError, match=r"^optimizer\.name='adam' is not one of adamw, muon"):
        tables.make(tables.OPTIMIZERS, {"name": "adam"}, "optimizer")


@pytest.mark.parametrize("preset", ["", *presets.PRESETS])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_at_every_size_builds(recipe, preset):
    config = importlib.import_module(f"configs.{recipe}").get_config(preset)
    if config.backbone.name == "asset" and not _has(config.backbone):
        pytest.skip("the asset is not embedded")
    checks.recipe(config)
    objective, _ = build.objective(config)
    p, k = config.data.prompts, config.data.samples
    side = {"digits": 8, "folder": config.data.folder.size}.get(config.data.name, 64)
    channels = 1 if config.data.name == "digits" else 3

    def init():
        tokens = jnp.zeros((p, config.data.context), jnp.int32)
        images = jnp.zeros((p * k, side, side, channels))
        if config.data.name == "captions":
            images = None
        batch = Batch(tokens=tokens, mask=tokens == 0, images=images)
        params = objective.init(jax.random.key(0), batch)
        rule = tables.make(tables.OPTIMIZERS, config.optimizer)
        return params, optimizer.chain(rule, lambda step: 1e-3).init(params)

    params, state = jax.eval_shape(init)
    number = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    if preset == "fusion_2b" and recipe.startswith("fusion_base"):
        assert 2.0e9 < number < 2.6e9
    # Placement knows every parameter and every moment, and nothing large is left whole everywhere.
    from cosdiff_jax import sharding

    mesh = jax.sharding.AbstractMesh((2, 4, 1), sharding.AXES)
    for path, leaf in jax.tree_util.tree_leaves_with_path((params, state)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        placement = sharding.spec(name, leaf.shape, mesh)
        if np.prod(leaf.shape) > 1e6:
            assert any(axis is not None for axis in placement), name


def _has(entry):
    return (build.weights.EMBEDDED / entry.asset.path / "config.json").exists()


def test_a_mix_of_features_is_made_of_the_weighted_ones():
    config = importlib.import_module("configs.fusion_div").get_config("tiny")
    knobs = config.objective.flow_matching.feature
    knobs.name = "mix"
    knobs.mix.update(clip=0.0, hidden=1.0, latent=3.0)
    knobs.hidden.time = 0.25
    if not _has(config.backbone):
        config.backbone.name = "fuse_dit"
    made, needs = build.objective(config)
    assert made.feature.weights == (1.0, 3.0)
    assert made.feature.parts[0].time == 0.25
    assert "anchor" in needs


def test_alignment_inside_the_language_model_is_made_with_its_knobs_and_needs_no_clip():
    config = importlib.import_module("configs.fusion_div").get_config("tiny")
    flow = config.objective.flow_matching
    assert build.objective(config)[0].alignment.projection is None
    flow.feature.name = "latent"
    flow.diversity.name = "none"
    flow.alignment.name = "llm"
    flow.alignment.llm.update(layer=1, ridge=0.5, decay=0.9)
    flow.alignment.llm.form.name = "contrastive"
    flow.alignment.llm.form.contrastive.temperature = 0.2
    flow.alignment.llm.schedule.name = "linear"
    flow.alignment.llm.schedule.linear.end = 0.3
    made, needs = build.objective(config)
    assert made.alignment.projection == alignment.Projection(layer=1, ridge=0.5, decay=0.9)
    assert made.alignment.form == alignment.Contrastive(temperature=0.2)
    assert float(made.alignment.weight(5)) == pytest.approx(0.3)
    assert made.reader is None and "clip" not in needs and made.feature is not None


def test_alignment_looks_through_the_network_that_it_names_and_through_no_other():
    config = importlib.import_module("configs.fusion_div").get_config("tiny")
    flow = config.objective.flow_matching
    flow.diversity.name, flow.feature.name = "none", "latent"
    made, needs = build.objective(config)
    assert type(made.reader).__name__ == "ClipFeature" and made.reader.vae == made.vae
    assert needs == ("llm", "vae", "clip")
    flow.alignment.name = "latent_clip"
    with pytest.raises(ValueError, match=r"latent_clip\.asset\.path"):
        build.objective(config)
    config.latent_clip.name = "clip"
    made, needs = build.objective(config)
    assert type(made.reader).__name__ == "LatentClipFeature" and made.reader.clip.channels == 16
    assert needs == ("llm", "vae", "latent_clip")


def diverse(**changes):
    config = importlib.import_module("configs.fusion_div").get_config("tiny")
    config.objective.flow_matching.update(changes)
    config.objective.flow_matching.alignment.name = "none"
    return config


@pytest.mark.parametrize("name", ["vgg", "latent_clip"])
def test_a_feature_without_weights_names_the_field(name):
    config = diverse(feature={"name": name})
    with pytest.raises(ValueError, match=rf"{name}\.name=asset and {name}\.asset\.path"):
        build.objective(config)
    config.objective.flow_matching.feature.name = "latent"
    config.sample.view.name = name
    with pytest.raises(ValueError, match=rf"{name}\.asset\.path"):
        build.sampler(config, (64, 64, 3))


def test_needs_are_what_the_loss_and_the_sampler_look_through():
    config = diverse(feature={"name": "vgg"})
    config.vgg.name, config.latent_clip.name = "vgg", "clip"
    made, needs = build.objective(config)
    assert needs == ("llm", "vae", "vgg")
    assert made.feature.layers == config.objective.flow_matching.feature.vgg.layers
    assert made.feature.vae == made.vae
    config.sample.view.name = "latent_clip"
    assert build.objective(config)[1] == ("llm", "vae", "latent_clip", "vgg")
    assert build.sampler(config, (64, 64, 3)).view.clip.channels == 16
    assert build.viewed(config.sample) == ("latent_clip",)


def test_a_mix_of_features_with_networks_of_their_own():
    config = diverse(feature={"name": "mix"})
    config.vgg.name, config.latent_clip.name = "vgg", "clip"
    flow = config.objective.flow_matching
    flow.feature.mix.update(clip=0.0, latent=0.0, vgg=1.0, latent_clip=2.0)
    flow.feature.vgg.update(layers=("relu2_2", "relu4_3"), pooled=True)
    made, needs = build.objective(config)
    assert needs == ("llm", "vae", "latent_clip", "vgg")
    parts = [type(part).__name__ for part in made.feature.parts]
    weights = dict(zip(parts, made.feature.weights, strict=True))
    assert weights == {"VggFeature": 1.0, "LatentClipFeature": 2.0}
    frozen = modules.frozen(config, needs[1:])
    f = jax.jit(lambda z: made.feature(frozen, z))(jnp.ones((2, 8, 8, 16)))
    assert f.shape == (2, 8 + 8 + 16)
    np.testing.assert_allclose(jnp.linalg.norm(f, axis=1), 1, atol=1e-5)


def test_solver_grid_and_guidance_follow_the_path_that_is_trained():
    config = base.menu()
    config.objective.flow_matching.trajectory.name = "cosine"
    config.sample.update(steps=4, unguided=2)
    config.sample.solver.name = "dpm_solver"
    config.sample.grid.name = "karras"
    config.sample.guidance.name = "composed"
    made = build.sampler(config, (64, 64, 3))
    path = trajectory.Cosine()
    assert made.trajectory == made.solver.trajectory == made.solver.grid.trajectory == path
    assert made.guidance.trajectory == path
    times = made.solver.grid(4)
    # The first two of the four steps are not guided, the third is.
    assert times[2] < made.guidance.interval[1] < times[1]
    assert build.sampler(base.menu(), (64, 64, 3)).guidance.interval == (0.0, 1.0)


def test_a_new_guidance_is_one_class_and_one_line_of_a_table(monkeypatch):
    """It has what its protocol asks for and no more: no interval, no scale."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Captioned:
        def __call__(self, backbone, text, empty):
            return lambda z, t: backbone(z, t, text)

    monkeypatch.setitem(tables.GUIDANCES, "captioned", Captioned)
    config = importlib.import_module("configs.fusion_base").get_config("tiny")
    config.sample.guidance = {"name": "captioned", "captioned": {}}
    made = build.sampler(config, (64, 64, 3))
    assert made.guidance == Captioned() and composed.scales(made.guidance) == ()
    tokenizer = build.tokenizer(config.tokenizer)
    model = trained.Trained(name="x", config=config, params={}, frozen={}, tokenizer=tokenizer)
    assert build.sampler(model.as_asked(2, None, None), (64, 64, 3)).guidance == Captioned()
    with pytest.raises(ValueError, match=r"guidance\.captioned has no scale that could be 5"):
        model.as_asked(None, 5.0, None)
    config.sample.unguided = 1
    with pytest.raises(ValueError, match="Captioned has no interval"):
        build.sampler(config, (64, 64, 3))


def test_autoguidance_brings_its_own_network_and_weights():
    config = importlib.import_module("configs.fusion_base").get_config("tiny")
    config.sample.guidance.name = "composed"
    weaker = config.sample.guidance.composed.weaker
    weaker.name = "autoguidance"
    with pytest.raises(ValueError, match=r"autoguidance\.path is empty"):
        build.sampler(config, (64, 64, 3))
    weaker.autoguidance.update(path="fusion_base", scale=1.5)
    made = build.sampler(config, (64, 64, 3))
    entry = {"name": "asset", "asset": {"path": "fusion_base"}}
    assert made.weaker == modules.model("backbone", entry)
    assert [each.scale for each in made.guidance.weaker] == [1.5]
    assert "weaker" in build.objective(config)[1]
    loaded = modules.frozen(config, ("weaker",))["weaker"]
    stored = modules.parameters(entry)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, stored))
    config.objective.flow_matching.parameterization.name = "eps"
    with pytest.raises(ValueError, match=r"parameterization\.name=velocity, the model with eps"):
        build.sampler(config, (64, 64, 3))
    config.backbone = {"name": "fuse_dit", "fuse_dit": base.menu().backbone.fuse_dit.to_dict()}
    config.backbone.fuse_dit.attention.name = "deep_self"
    with pytest.raises(ValueError, match=r"reads captions in another way than the model \(rotate"):
        build.sampler(config, (64, 64, 3))


def test_a_recipe_of_an_older_version_draws_as_it_did():
    config = base.menu()
    new = build.sampler(config, (64, 64, 3))
    for name in ("grid", "unguided"):
        del config.sample[name]
    del config.sample.guidance.composed
    del config.objective.flow_matching.parameterization
    assert build.sampler(config, (64, 64, 3)) == new
