import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.models import vgg

SMALL = vgg.VGG(widths=(4, 6, 5), convolutions=(1, 2, 1))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(SMALL.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    drawn = [0.3 * draw(*leaf.shape, seed=seed) for seed, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, drawn)


def look(params, images, layers=SMALL.layers):
    return SMALL.apply({"params": params}, jnp.asarray(images), layers)


def by_hand(params, images):
    """The definition, one shift of the picture at a time, in float64."""
    x = (np.asarray(images, np.float64) + 1) / 2
    x = (x - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    found = {}
    for level, number in enumerate((1, 2, 1), start=1):
        if level > 1:
            h, w = x.shape[1] // 2, x.shape[2] // 2
            corners = [x[:, i : 2 * h : 2, j : 2 * w : 2] for i in (0, 1) for j in (0, 1)]
            x = np.max(corners, axis=0)
        for index in range(1, number + 1):
            layer = params[f"conv{level}_{index}"]
            h, w = x.shape[1:3]
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            x = layer["bias"] + sum(
                padded[:, i : i + h, j : j + w] @ layer["kernel"][i, j]
                for i in range(3)
                for j in range(3)
            )
            x = found[f"relu{level}_{index}"] = np.maximum(x, 0)
    return found


def test_every_layer_by_hand_on_pictures_with_odd_sides(params):
    images = draw(2, 11, 14, 3, seed=9)
    got, want = look(params, images), by_hand(params, images)
    assert tuple(got) == SMALL.layers == tuple(want)
    assert got["relu3_1"].shape == (2, 2, 3, 5)
    for name in want:
        assert want[name].any()
        np.testing.assert_allclose(got[name], want[name], atol=2e-5)


def test_published_depths():
    assert len(vgg.VGG().layers) == 13 and vgg.VGG().layers[-1] == "relu5_3"
    nineteen = vgg.VGG(convolutions=(2, 2, 4, 4, 4))
    assert len(nineteen.layers) == 16 and "relu3_4" in nineteen.layers


def test_nothing_above_the_highest_layer_is_computed(params):
    images = draw(1, 8, 8, 3)
    rest = {name: value for name, value in params.items() if name < "conv2_2"}
    got = look(rest, images, ("relu2_1", "relu1_1"))
    assert tuple(got) == ("relu2_1", "relu1_1")
    np.testing.assert_array_equal(got["relu2_1"], look(params, images)["relu2_1"])


def test_a_grey_picture_is_three_equal_channels(params):
    grey = draw(1, 8, 8, 1)
    want = look(params, grey.repeat(3, axis=-1))
    jax.tree.map(np.testing.assert_array_equal, look(params, grey), want)


def test_what_cannot_be_is_one_line(params):
    with pytest.raises(ValueError, match="'relu2_3' is not one of relu1_1, relu2_1"):
        look(params, draw(1, 8, 8, 3), ("relu2_3",))
    with pytest.raises(ValueError, match="3 x 8 pixels are too small for relu3_1"):
        look(params, draw(1, 3, 8, 3))
    with pytest.raises(ValueError, match=r"vgg\.widths has 2 levels and vgg\.convolutions 1"):
        vgg.VGG(widths=(4, 4), convolutions=(1,)).layers  # noqa: B018
