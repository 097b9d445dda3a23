"""Numbers of the official fuse-dit with random weights; see tests/fixtures/fuse_dit/README.md.

COSDIFF_FUSE_DIT_CASES=FOLDER runs the cases of that folder, as they were recorded, instead of those
kept here: they have gradients of more models.
"""

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cosdiff_jax import convert
from cosdiff_jax.models.convert import fuse_dit, gemma, layout

KEPT = Path(__file__).parents[2] / "fixtures" / "fuse_dit"
GIVEN = os.environ.get("COSDIFF_FUSE_DIT_CASES")
FOLDER = Path(GIVEN or KEPT)
PACKED = {} if GIVEN else dict(np.load(KEPT / "cases.npz"))
SAID = json.loads(PACKED.pop("cases").tobytes()) if PACKED else {}
CASES = sorted([*(path.parent.name for path in FOLDER.glob("*/config.json")), *SAID])
SMALLEST = "gemma2_2d-rope_None_sandwich"


@functools.cache
def unpacked():
    return tempfile.TemporaryDirectory()  # goes with this process


@functools.cache
def place(name):
    """A case's folder in the published layout; of a packed one it is written first."""
    if name not in SAID:
        return FOLDER / name
    arrays = PACKED | load_file(FOLDER / SMALLEST / "model.safetensors")
    tensors = {theirs: arrays[kept] for theirs, kept in SAID[name]["tensors"].items()}
    own = {key.removeprefix(f"{name}/"): x for key, x in PACKED.items() if key.startswith(name)}
    outputs = {key: own.pop(key) for key in list(own) if key.startswith("output")}
    inputs = load_file(FOLDER / SMALLEST / "inputs.safetensors") | own
    folder = Path(unpacked().name) / name
    layout.save_folder(folder, SAID[name]["config"], tensors)
    save_file(inputs, folder / "inputs.safetensors")
    save_file(outputs, folder / "outputs.safetensors")
    return folder


@functools.cache
def case(name):
    inputs = load_file(place(name) / "inputs.safetensors")
    outputs = load_file(place(name) / "outputs.safetensors")
    return convert.load("fuse_dit", place(name)), inputs, outputs


def nhwc(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def error(got, want):
    return float(np.linalg.norm(np.asarray(got) - want) / np.linalg.norm(want))


def arguments(inputs, step=""):
    return (
        nhwc(inputs["hidden_states" + step]),
        inputs["timestep" + step] / 1000,
        inputs["input_ids"],
        inputs["attention_mask"],
        inputs.get("text_modulation_embeds"),
    )


def test_every_choice_of_the_official_code_has_a_case():
    configs = {name: json.loads((place(name) / "config.json").read_text()) for name in CASES}

    def seen(field):
        return {config.get(field) for config in configs.values()}

    assert seen("timestep_conditioning") == {"adaln-zero", "adaln-single", "addition", None}
    assert seen("pos_embed") == {"ape", "1d-rope", "2d-rope", "m-rope"}
    assert seen("attention") == {"self", "cross"} and seen("model_type") == {"FuseDiT", "DiT"}
    assert {True, False} == seen("qk_norm") == seen("sandwich_norm")
    assert {0, 1} <= seen("initial_layers") and {-1, -2} <= seen("text_hidden_states_index")
    groups = {config["base_config"]["num_key_value_heads"] for config in configs.values()}
    widths = {(c["dit_hidden_size"], c["base_config"]["hidden_size"]) for c in configs.values()}
    assert groups == {1, 2} and {(48, 64), (64, 64)} <= widths


@pytest.mark.parametrize("name", CASES)
def test_velocity_is_the_official_one(name):
    model, inputs, outputs = case(name)
    for step in ("", "_2"):
        if "output" + step in outputs:
            got = model.velocity(*arguments(inputs, step))
            wrong = error(got, nhwc(outputs["output" + step]))
            print(f"{name} output{step}: relative error {wrong:.1e}")
            assert wrong < 1e-4


@pytest.mark.parametrize("name", [n for n in CASES if (FOLDER / n / "grads.safetensors").exists()])
def test_gradients_are_the_official_ones(name):
    model, inputs, outputs = case(name)
    z, t, tokens, mask, pooled = arguments(inputs)
    z, t, target = (jnp.asarray(x) for x in (z, t, nhwc(inputs["target"])))
    pooled = None if pooled is None else jnp.asarray(pooled)
    text = jax.jit(model.text)(jnp.asarray(tokens, jnp.int32), jnp.asarray(mask).astype(bool))

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        v = model.backbone.apply({"params": params}, z, t, text, pooled=pooled)
        return jnp.mean((v - target) ** 2)

    value, gradient = loss(model.params["backbone"])
    np.testing.assert_allclose(value, outputs["loss"][0], rtol=1e-4)
    entries = fuse_dit.table(model.backbone, model.language_model.width)
    got = layout.write(entries, jax.tree.map(np.asarray, gradient))
    want = load_file(FOLDER / name / "grads.safetensors")
    # Gradients of the shallow baseline were recorded on its transformer alone, without the prefix.
    want = {key if key in got else f"dit.{key}": value for key, value in want.items()}
    assert want and set(want) <= set(got)
    worst = max(error(got[key], want[key]) for key in want)
    print(f"{name} gradients: relative error {worst:.1e}")
    assert worst < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name):
    model, _, _ = case(name)
    roles = ("backbone", "language_model")
    modules = {role: getattr(model, role) for role in roles}
    config, tensors = fuse_dit.export(modules, model.params)
    backbone, llm = fuse_dit.modules(config)
    assert fuse_dit._essence(backbone, llm) == fuse_dit._essence(*modules.values())
    published = load_file(place(name) / "model.safetensors")
    published.pop("dit.patch_embed.pos_embed", None)
    assert set(tensors) == set(published)
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, published[key])


@pytest.mark.parametrize("name", ["cross_m-rope_adaln-zero", "shallow_self_ape_gemma2_layer-2"])
def test_there_and_back_through_our_folders(tmp_path, name):
    convert.import_folder("fuse_dit", place(name), tmp_path / "ours")
    convert.export_folder("fuse_dit", tmp_path / "ours", tmp_path / "back")
    first, back = (load_file(x / "model.safetensors") for x in (place(name), tmp_path / "back"))
    assert set(first) - {"dit.patch_embed.pos_embed"} == set(back)
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, first[key])


def test_the_fixed_position_table_is_rebuilt():
    folder = FOLDER / "self_ape_adaln-zero"
    if not folder.is_dir():
        pytest.skip("only the full set keeps a table")
    table = load_file(folder / "model.safetensors")["dit.patch_embed.pos_embed"]
    ours = case(folder.name)[0].backbone.position.embedding(64, 64, table.shape[-1])
    np.testing.assert_allclose(ours, table[0], atol=1e-5)


def test_gemma_alone_there_and_back(tmp_path):
    model, _, _ = case(SMALLEST)
    llm = model.language_model.clone(attention_cap=50.0, final_cap=30.0, window=4096)
    params = {"language_model": model.params["language_model"]}
    config, tensors = gemma.export({"language_model": llm}, params)
    layout.save_folder(tmp_path / "gemma", config, tensors)
    back = convert.load("gemma", tmp_path / "gemma")
    assert back.language_model.clone(attention_scale=None) == llm
    jax.tree.map(np.testing.assert_array_equal, back.params, params)
    assert all(x.flags.c_contiguous for x in jax.tree.leaves(back.params))


def broken(tmp_path, change):
    folder = tmp_path / "model"
    shutil.copytree(FOLDER / SMALLEST, folder, copy_function=shutil.copyfile)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: t.pop("dit.proj_out.bias"), "missing: dit.proj_out.bias"),
        (lambda c, t: t.update(extra=np.zeros(2)), "unknown: extra"),
        (lambda c, t: t.update({"dit.extra": np.zeros(2)}), "unknown: dit.extra"),
        (lambda c, t: t.update({"llm.norm.weight": np.zeros(3)}), r"llm.norm.weight is \[3\]"),
        (lambda c, t: c.update(pos_embed="3d-rope"), "pos_embed is '3d-rope', not one of ape"),
        (lambda c, t: c.pop("dit_num_hidden_layers"), "dit_num_hidden_layers should be int"),
        (lambda c, t: c.update(base_config=[]), "base_config should be dict"),
        (lambda c, t: c["base_config"].update(model_type="llama"), "model_type should be gemma"),
        (lambda c, t: c.update(model_type="UNet"), "model_type is 'UNet'"),
    ],
)
def test_a_broken_folder_gets_one_clear_line(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        convert.load("fuse_dit", broken(tmp_path, change))
    assert "\n" not in str(caught.value)


def test_missing_and_truncated_files(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        convert.load("fuse_dit", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no config.json in"):
        convert.load("fuse_dit", tmp_path)
    folder = broken(tmp_path, lambda c, t: None)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read"):
        convert.load("fuse_dit", folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        convert.load("fuse_dit", folder)
    with pytest.raises(ValueError, match="layout 'diffusers' is not one of fuse_dit, gemma"):
        convert.load("diffusers", folder)
