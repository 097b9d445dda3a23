"""LPIPS among a prompt's pictures, with weights of our own making."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from cosdiff_jax import evaluate, perceptual, weights
from cosdiff_jax.data.groups import to_float
from cosdiff_jax.metrics import lpips
from cosdiff_jax.models.vgg import VGG

SMALL = VGG(widths=(4, 6), convolutions=(2, 1))
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("networks")
    params = jax.jit(SMALL.init)(jax.random.key(0), to_float(IMAGES[:1]))["params"]
    entry = {"name": "vgg", "vgg": {"widths": [4, 6], "convolutions": [2, 1]}}
    weights.save(place / "out" / "vgg", entry, params, dtype="float32")
    fitted = {"lin0.model.1.weight": RNG.random((1, 4, 1, 1), np.float32)}
    fitted["lin1.model.1.weight"] = RNG.random((1, 6, 1, 1), np.float32)
    (place / "lin").mkdir()
    save_file(fitted, place / "lin" / "model.safetensors")
    return place


@pytest.mark.parametrize("fitted", [False, True])
def test_numbers_are_those_of_all_pairs(folders, fitted):
    measure = perceptual.load(str(folders / "out"), str(folders / "lin") if fitted else None, 16)
    found = measure(IMAGES, {"caption": "noise"})
    view = lpips.Lpips(vgg=SMALL, layers=("relu1_2", "relu2_1"))
    numbers = lpips.load(folders / "lin") if fitted else None
    x, frozen = jnp.asarray(to_float(IMAGES)), {"vgg": measure.params}
    apart = np.array(
        [
            float(view(frozen, x[i : i + 1], x[j : j + 1], numbers)[0])
            for i, j in itertools.combinations(range(4), 2)
        ]
    )
    name = "lpips" if fitted else "lpips_unweighted"
    assert set(found) == {f"{name}_mean", f"{name}_variance"}
    np.testing.assert_allclose(found[f"{name}_mean"], apart.mean(), rtol=1e-4)
    np.testing.assert_allclose(found[f"{name}_variance"], apart.var(), rtol=1e-2)
    assert measure(IMAGES[:1], {}) == {}
    same = measure(np.repeat(IMAGES[:1], 3, axis=0), {})
    assert same[f"{name}_mean"] == pytest.approx(0, abs=1e-6)
    # Pictures of another size are brought to the same one first.
    large = IMAGES.repeat(2, axis=1).repeat(2, axis=2)
    assert measure(large, {})[f"{name}_mean"] == pytest.approx(apart.mean(), rel=0.3)


def test_the_evaluation_has_it_as_a_row_and_keeps_it_apart_by_its_weights(
    folders, folder, tmp_path
):
    asked = evaluate.Asked(
        models=(folder,), num=2, steps=2, prompts="4", vgg=str(folders / "out" / "vgg")
    )
    found = evaluate.pictures(asked, tmp_path)["columns"]
    for column in found.values():
        assert column["lpips_unweighted_mean"]["mean"] > 0
    weighted = dataclasses.replace(asked, lpips=str(folders / "lin"))
    with pytest.raises(ValueError, match="distances differ"):
        evaluate.pictures(weighted, tmp_path)


@pytest.mark.parametrize(
    ("vgg", "fitted", "said"),
    [
        ("nowhere", None, "there is no such folder"),
        ("clip", None, "holds a 'clip', not a vgg"),
        ("out", "wide", "and --vgg's are of"),
        ("raw", None, "names no network of ours"),
    ],
)
def test_what_does_not_fit_is_one_line(folders, vgg, fitted, said):
    if vgg == "clip" and not (folders / "clip").exists():
        weights.save(
            folders / "clip", {"name": "clip", "clip": {}}, {"x": np.ones(1)}, dtype="float32"
        )
    if vgg == "raw":
        (folders / "raw").mkdir()
        (folders / "raw" / "config.json").write_text('{"architecture": "vgg16"}')
    if fitted and not (folders / fitted).exists():
        (folders / fitted).mkdir()
        wide = {"lin0.model.1.weight": np.ones((1, 9, 1, 1), np.float32)}
        save_file(wide, folders / fitted / "model.safetensors")
    with pytest.raises(ValueError, match=said):
        perceptual.load(str(folders / vgg), fitted and str(folders / fitted), 16)


def test_fitted_weights_need_a_network():
    with pytest.raises(ValueError, match="--lpips weighs what --vgg sees"):
        evaluate.Asked(models=("x",), lpips="somewhere")
