"""torchvision's names in safetensors; where torch is there, its numbers too."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cosdiff_jax import convert, modules
from cosdiff_jax.models.convert import vgg

WIDTHS, CONVOLUTIONS = (4, 6, 5), (1, 2, 3)
# Where torchvision's list of layers has convolutions: after each a ReLU, after a level a pooling.
PLACES = {0: (3, 4), 3: (4, 6), 5: (6, 6), 8: (6, 5), 10: (5, 5), 12: (5, 5)}


def tensors():
    rng = np.random.default_rng(0)
    made = {}
    for place, (inputs, outputs) in PLACES.items():
        weight = rng.normal(size=(outputs, inputs, 3, 3)) / np.sqrt(9 * inputs)
        made[f"features.{place}.weight"] = weight.astype(np.float32)
        made[f"features.{place}.bias"] = rng.normal(size=outputs).astype(np.float32)
    return made


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    classifier = {"classifier.0.weight": np.ones((2, 5), np.float32)}
    save_file(tensors() | classifier, folder / "model.safetensors")
    return folder


def test_ours_and_back(published, tmp_path):
    (folder,) = convert.import_folder("vgg", published, tmp_path / "ours")
    assert folder.name == "vgg"
    entry = {"name": "asset", "asset": {"path": str(folder)}}
    model = convert.load("vgg", published)
    assert modules.model("vgg", entry) == model.vgg
    assert (model.vgg.widths, model.vgg.convolutions) == (WIDTHS, CONVOLUTIONS)
    jax.tree.map(np.testing.assert_array_equal, modules.parameters(entry), model.params["vgg"])

    convert.export_folder("vgg", tmp_path / "ours", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == tensors().keys()
    jax.tree.map(np.testing.assert_array_equal, back, tensors())
    assert json.loads((tmp_path / "back" / "config.json").read_text())["widths"] == [4, 6, 5]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"features.0.weight": None}, "not the names of torchvision"),
        ({"features.3.bias": None}, "missing: features.3.bias"),
        ({"features.1.weight": np.ones(4, np.float32)}, "batch normalisation"),
        ({"features.16.weight": np.ones((5, 5, 3, 3), np.float32)}, "features.16.weight stands"),
        ({"features.5.weight": np.ones((6, 7, 3, 3), np.float32)}, "wrong shape: features.5"),
        ({"features.2.mean": np.ones(4, np.float32)}, "unknown: features.2.mean"),
    ],
)
def test_other_layouts_are_one_line(published, change, said):
    changed = {k: v for k, v in (tensors() | change).items() if v is not None}
    save_file(changed, published / "model.safetensors")
    with pytest.raises(ValueError, match=said):
        vgg.load(published)


def test_a_folder_without_weights_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        vgg.load(tmp_path)


def test_numbers_are_those_of_torch(published):
    torch = pytest.importorskip("torch")
    layers, inputs = [], 3
    for width, number in zip(WIDTHS, CONVOLUTIONS, strict=True):
        for _ in range(number):
            layers += [torch.nn.Conv2d(inputs, width, 3, padding=1), torch.nn.ReLU()]
            inputs = width
        layers.append(torch.nn.MaxPool2d(2, 2))
    trunk = torch.nn.Sequential(*layers)
    named = {k.removeprefix("features."): torch.from_numpy(v) for k, v in tensors().items()}
    trunk.load_state_dict(named)

    images = np.random.default_rng(1).uniform(-1, 1, (2, 21, 14, 3)).astype(np.float32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((torch.from_numpy(images) + 1) / 2 - mean) / std
    x, want = x.permute(0, 3, 1, 2), []
    with torch.no_grad():
        for layer in trunk:
            x = layer(x)
            if isinstance(layer, torch.nn.ReLU):
                want.append(x.permute(0, 2, 3, 1).numpy().copy())

    model = vgg.load(published)
    found = model.vgg.apply({"params": model.params["vgg"]}, jnp.asarray(images), model.vgg.layers)
    errors = {
        name: float(np.linalg.norm(got - y) / np.linalg.norm(y))
        for (name, got), y in zip(found.items(), want, strict=True)
    }
    print({name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) < 1e-5
