"""Cosines of a prompt's pictures in other views than CLIP's."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax import build, evaluate, networks, trained, views, weights
from cosdiff_jax.data.groups import to_float
from cosdiff_jax.data.scenes.held_out import held_out
from cosdiff_jax.models.vgg import VGG
from cosdiff_jax.report.measures import ROWS

GROUP = held_out(1, 4, 0)[0]
IMAGES = jnp.asarray(to_float(GROUP["images"]))
SMALL = {"name": "vgg", "vgg": {"widths": [4, 6], "convolutions": [2, 1]}}


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    network, place = VGG(widths=(4, 6), convolutions=(2, 1)), tmp_path_factory.mktemp("vgg")
    params = jax.jit(network.init)(jax.random.key(0), to_float(GROUP["images"]))["params"]
    weights.save(place / "vgg", SMALL, params, dtype="float32")
    return network, params, str(place)


def told(name, f):
    """Mean, mean of the highest half, of the cosines of all pairs one by one; and Vendi score."""
    f = np.asarray(f, np.float64).reshape(len(f), -1)
    unit = f / np.linalg.norm(f, axis=1, keepdims=True)
    found = sorted(a @ b for a, b in itertools.combinations(unit, 2))
    shares = np.linalg.eigvalsh(unit @ unit.T / len(f))
    shares = shares[shares > 1e-12]
    numbers = {
        f"mean_cosine_{name}": np.mean(found),
        f"top_cosine_{name}": np.mean(found[-3:]),
        f"vendi_{name}": np.exp(-np.sum(shares * np.log(shares))),
    }
    return pytest.approx(numbers, abs=1e-4, rel=1e-3)


def latents():
    vae, params, _ = networks.network("vae", "scenes_vae")
    return vae.apply({"params": params}, IMAGES, method="to_latents")


def test_latents_are_compared_without_their_mean_colour():
    (view,) = views.load(["latent"], None, 64, 50.0)
    z = np.asarray(latents())
    wanted = told("latent", z - z.mean(axis=(1, 2), keepdims=True))
    assert view(GROUP["images"], GROUP) == wanted
    assert view(GROUP["images"][:1], GROUP) == {}
    same = view(np.repeat(GROUP["images"][:1], 3, axis=0), GROUP)
    assert same["mean_cosine_latent"] == pytest.approx(1, abs=1e-5)


def test_a_clip_of_latents_sees_those_of_its_own_autoencoder():
    (view,) = views.load(["latent_clip"], None, 64, 50.0)
    clip, params, _ = networks.network("latent_clip", "scenes_clip_latents")
    f = clip.apply({"params": params}, latents(), method="image")
    assert view(GROUP["images"], GROUP) == told("latent_clip", f)


def test_a_flow_model_sees_pictures_beside_their_caption():
    """Its middle state at t = 0.1, shown a_t x0 = 0.9 x0 and no noise."""
    (view,) = views.load(["hidden"], None, 64, 50.0)
    model = trained.load("fusion_base", ("llm", "vae"))
    sampler = build.sampler(model.config, model.shape)
    z, t = 0.9 * latents(), jnp.full((4,), 0.1)

    def seen(caption):
        text, _ = sampler.read(model.frozen, *model.read([caption])[:2])
        return sampler.backbone.apply({"params": model.params}, z, t, text, features=True)[1]

    assert view(GROUP["images"], GROUP) == told("hidden", seen(GROUP["caption"]))
    other = {"caption": "four large red rings"}
    assert view(GROUP["images"], other) != told("hidden", seen(GROUP["caption"]))
    # The digest is of all that is looked through.
    assert view.frozen.keys() == {"anchor", "llm", "vae"}
    for role, params in view.frozen.items():
        other = jax.tree.map(lambda x: x + 1, params)
        changed = dataclasses.replace(view, frozen={**view.frozen, role: other})
        assert changed.digest != view.digest, role


def test_a_caption_that_a_flow_model_cannot_read_is_told_of_once(caplog):
    (view,) = views.load(["hidden"], None, 64, 50.0)
    for _ in range(2):
        assert view(GROUP["images"], {"caption": "a red ring " * 200}) == {}
    (said,) = caplog.messages
    assert "--view=hidden passes over what fusion_base cannot read: " in said


def test_a_flow_model_of_ones_own_is_seen_through(folder, tmp_path):
    (view,) = views.load([f"hidden={folder}"], None, 64, 50.0)
    assert view.frozen.keys() == {"anchor", "llm"}  # it has no latents
    assert set(view(GROUP["images"], GROUP)) == {
        f"{which}_hidden" for which in ("mean_cosine", "top_cosine", "vendi")
    }
    grey = tmp_path / "grey"
    shutil.copytree(Path(folder) / "model", grey)
    recipe = json.loads((grey / "recipe.json").read_text())
    recipe["data"]["name"] = "digits"
    (grey / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match=r"^--view=hidden: .* draws 1 channels, not colours"):
        views.load([f"hidden={grey}"], None, 64, 50.0)


def test_vgg_compares_place_by_place(vgg):
    network, params, folder = vgg
    (view,) = views.load(["vgg"], folder, 64, 50.0)
    seen = network.apply({"params": params}, IMAGES, ("relu1_2", "relu2_1"))
    parts = []
    for a in seen.values():
        u = np.asarray(a, np.float64)
        norm = np.linalg.norm(u, axis=-1, keepdims=True)
        u = np.divide(u, norm, out=np.zeros_like(u), where=norm > 0).reshape(4, -1)
        parts.append(u / np.linalg.norm(u, axis=1, keepdims=True))
    assert view(GROUP["images"], GROUP) == told("vgg", np.concatenate(parts, axis=1))


def test_every_view_has_its_rows():
    for name in views.NAMES:
        assert {
            f"{which}_{name}" for which in ("mean_cosine", "top_cosine", "vendi")
        } <= ROWS.keys()


def test_the_evaluation_has_them_as_rows_and_keeps_them_apart(folder, tmp_path):
    asked = evaluate.Asked(models=(folder,), num=2, steps=2, prompts="4", views=("latent_clip",))
    found = evaluate.pictures(asked, tmp_path)
    for column in found["columns"].values():
        assert -1 <= column["mean_cosine_latent_clip"]["mean"] <= 1
    page = (tmp_path / "report.html").read_text()
    assert "Intra-prompt mean cosine, latent_clip" in page
    assert json.loads((tmp_path / "metrics.json").read_text())["facts"]["views"] == ["latent_clip"]
    with pytest.raises(ValueError, match="views differ"):
        evaluate.pictures(dataclasses.replace(asked, views=("latent",)), tmp_path)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (["clip"], "--view=clip: there are latent, latent_clip, hidden, vgg"),
        (["vgg=folder"], "--view=vgg=folder: there are"),
        (["latent", "latent=scenes_vae"], "latent is named twice"),
        (["vgg"], "name its folder with --vgg"),
        (["latent=nowhere"], "no model in 'nowhere'"),
        (["hidden=nowhere"], "no model in 'nowhere'"),
        (["latent_clip=scenes_clip"], "scenes_clip reads 3 channels, and latents have 16"),
    ],
)
def test_what_cannot_be_seen_is_one_line(said, error):
    with pytest.raises(ValueError, match=error):
        views.load(said, None, 64, 20.0)


def test_a_view_has_the_size_that_its_networks_read():
    latent, clip = views.load(["latent", "latent_clip"], None, 230, 20.0)
    assert (latent.side, clip.side) == (224, 64)
    assert latent(GROUP["images"], {}).keys() == {
        *("mean_cosine_latent", "top_cosine_latent", "vendi_latent"),
    }
    alone = views.load(["latent_clip"], None, 64, 20.0)[0](GROUP["images"], {})
    assert clip(GROUP["images"], {}) == alone


def test_pictures_without_colours_are_refused():
    (view,) = views.load(["latent"], None, 8, 20.0)
    with pytest.raises(ValueError, match="--view=latent sees colours"):
        view(np.zeros((2, 8, 8, 1), np.uint8), {})
