"""Weights in a folder: what is saved is found, and what is broken is said in one line."""

import numpy as np
import pytest

from cosdiff_jax import diverse, networks, trained, weights
from cosdiff_jax.data.scenes import grammar
from cosdiff_jax.metrics import scenes

TREE = {"a": {"kernel": np.array([[0.5, -2.0]], np.float32)}, "count": np.array(3, np.int32)}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_round_trip(tmp_path, dtype):
    weights.save(tmp_path, {"name": "x", "x": {"width": 2}}, TREE, dtype=dtype)
    assert weights.entry(str(tmp_path)) == {"name": "x", "x": {"width": 2}}
    found = weights.load(str(tmp_path))
    assert found["a"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(found["a"]["kernel"], TREE["a"]["kernel"])
    assert found["count"] == 3 and found["count"].dtype == np.int32


def test_missing_and_broken_files_are_said(tmp_path):
    with pytest.raises(ValueError, match="no model in 'nowhere'"):
        weights.load("nowhere")
    weights.save(tmp_path, {"name": "x", "x": {}}, TREE, dtype="float32")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match="cannot be read"):
        weights.load(str(tmp_path))


def test_a_missing_run_is_told_with_the_recipe_that_makes_it(tmp_path):
    with pytest.raises(ValueError, match=r"config=configs/fusion_few.py --workdir=.*/fusion_few "):
        weights.folder(str(tmp_path / "fusion_few" / "model"))
    for other in ("unheard_of/model", "fusion_few/other"):
        with pytest.raises(ValueError, match=r"model\.safetensors$"):
            weights.folder(str(tmp_path / other))


def test_embedded_weights_fit_the_size_they_were_given():
    files = list(weights.EMBEDDED.glob("*/model.safetensors"))
    assert sum(file.stat().st_size for file in files) <= 40e6
    for file in files:
        assert (file.parent / "MODEL_CARD.md").is_file(), file


# The embedded networks as they were when they were put in place, less a margin: weights that were
# damaged, replaced, or are read by a network that has changed fall below.


def test_the_embedded_autoencoder_gives_pictures_back():
    found = networks.restored("scenes_vae", prompts=32, seed=0)
    assert found["psnr"] >= 30


@pytest.mark.parametrize("role", ["clip", "latent_clip"])
def test_the_embedded_clips_find_the_caption_of_a_picture(role):
    found = networks.retrieved(networks.ASSETS[role], prompts=64, seed=0, role=role)
    assert found["retrieval@1"] >= 0.85


def test_the_embedded_base_draws_the_shape_and_colour_that_is_asked_for():
    names = list(grammar.COLOURS)
    specs = [
        grammar.Spec((grammar.Group(shape=shape, colour=names[(3 * i + j) % len(names)]),))
        for i, shape in enumerate(grammar.SHAPES)
        for j in range(3)
    ][:16]
    captions = [
        grammar.caption(spec, grammar.LANGUAGES[i % len(grammar.LANGUAGES)])
        for i, spec in enumerate(specs)
    ]
    model = trained.load("fusion_base")
    drawn = diverse.diverse_samples(model, captions, num=1, steps=8, guidance=5.0)
    found = scenes.result(scenes.update(scenes.init(), drawn.images, specs))
    assert min(found["colour"], found["shape"], found["single_object"]) >= 0.8
