"""Published weights into our layout, and ours into the published one.

    python -m cosdiff_jax.convert --from=fuse_dit --input=PUBLISHED --output=OURS
    python -m cosdiff_jax.convert --to=fuse_dit --input=OURS --output=PUBLISHED

A published folder holds config.json and model.safetensors. Ours holds a folder per network
(``backbone``, ``language_model``), each with the same two files, which any recipe can name:
``--config.backbone.asset.path=OURS/backbone``. Layouts: ``fuse_dit`` (FuseDiT and the shallow
DiT of tang-bd/fuse-dit), ``gemma`` (Gemma and Gemma 2 of Hugging Face transformers) and ``vgg``
(the trunk of torchvision's VGG, which needs no config.json).
"""

import dataclasses
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

import flax.linen as nn
import jax.numpy as jnp
from absl import app, flags

from cosdiff_jax import modules, tables, weights
from cosdiff_jax.models.convert import fuse_dit, gemma, layout, vgg

FLAGS = flags.FLAGS

LAYOUTS = {"fuse_dit": fuse_dit, "gemma": gemma, "vgg": vgg}
# The networks that a published folder holds.
ROLES = {
    "fuse_dit": ("backbone", "language_model"),
    "gemma": ("language_model",),
    "vgg": ("vgg",),
}
# Knobs of the backbone that are choices themselves, and their tables.
CHOICES = {
    "position": tables.POSITIONS,
    "modulation": tables.MODULATIONS,
    "attention": tables.FUSIONS,
}
NAMES = {"backbone": "fuse_dit", "language_model": "gemma", "vgg": "vgg"}

Published = fuse_dit.Published | gemma.Published | vgg.Published


@overload
def load(layout_name: Literal["fuse_dit"], folder: str | Path) -> fuse_dit.Published: ...
@overload
def load(layout_name: str, folder: str | Path) -> Published: ...
def load(layout_name: str, folder: str | Path) -> Published:
    """Read a published folder.

    Args:
      layout_name: one of LAYOUTS.
      folder: holds model.safetensors, and config.json where the layout has one.

    Returns:
      Modules and float32 parameters (``.backbone``, ``.language_model`` or ``.vgg``, and
      ``.params``); for a layout with a backbone also ``velocity(z, t, tokens, mask)``.

    Raises:
      ValueError: no such layout; a file is missing or broken; a tensor is missing, unknown or of
        the wrong shape.
    """
    if layout_name not in LAYOUTS:
        raise ValueError(f"layout {layout_name!r} is not one of {', '.join(LAYOUTS)}")
    return LAYOUTS[layout_name].load(folder)


def describe(module: nn.Module) -> dict[str, Any]:
    """The knobs of a module as a menu entry writes them."""
    knobs: dict[str, Any] = {}
    for field in dataclasses.fields(module):
        if field.name in ("parent", "name") or not field.init:
            continue
        value: Any = getattr(module, field.name)
        if field.name in CHOICES:
            table = CHOICES[field.name]
            name = next(key for key, made in table.items() if made is type(value))
            inner = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
            value = {"name": name, name: inner}
        elif field.name == "dtype":
            value = jnp.dtype(value).name
        knobs[field.name] = value
    return knobs


def import_folder(layout_name: str, source: Path, target: Path) -> list[Path]:
    """Published -> ours; returns the folders written.

    Raises:
      ValueError: see ``load``; or the target holds something already.
    """
    model = load(layout_name, source)
    _claim(target)
    written = []
    for role, params in model.params.items():
        entry = {"name": NAMES[role], NAMES[role]: describe(getattr(model, role))}
        weights.save(target / role, entry, params, dtype="float32")
        written.append(target / role)
    return written


def export_folder(layout_name: str, source: Path, target: Path) -> list[Path]:
    """Ours -> published; returns the folder written.

    Raises:
      ValueError: no such layout; a network is missing or is not what the layout can say; or the
        target holds something already.
    """
    if layout_name not in LAYOUTS:
        raise ValueError(f"layout {layout_name!r} is not one of {', '.join(LAYOUTS)}")
    made, params = {}, {}
    for role in ROLES[layout_name]:
        folder = source / role
        entry = weights.entry(str(folder))
        if entry.get("name") != NAMES[role]:
            raise ValueError(f"{folder} holds a {entry.get('name')!r}, not a {NAMES[role]}")
        made[role] = modules.model(role, entry)
        params[role] = weights.load(str(folder))
    config, tensors = LAYOUTS[layout_name].export(made, params)
    _claim(target)
    layout.save_folder(target, config, tensors)
    return [target]


def _claim(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"--output={target} is there already; nothing was written over it")


def define() -> None:
    """Define the flags; not at import, for several entry points share names."""
    flags.DEFINE_enum("from", None, list(LAYOUTS), "Published layout to read")
    flags.DEFINE_enum("to", None, list(LAYOUTS), "Published layout to write")
    flags.DEFINE_string("input", None, "Folder to read")
    flags.DEFINE_string("output", None, "Folder to write; must be new or empty")


def main(argv: list[str]) -> None:
    """Parse flags, convert, and turn errors a user can mend into one line."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", force=True)
    options: Mapping[str, Any] = {n: FLAGS[n].value for n in ("from", "to", "input", "output")}
    if len(argv) > 1:
        sys.exit(f"unexpected argument {argv[1]!r}; options are written --name=value")
    if (options["from"] is None) == (options["to"] is None):
        sys.exit("error: say either --from=LAYOUT or --to=LAYOUT")
    if not options["input"] or not options["output"]:
        sys.exit("error: --input=FOLDER and --output=FOLDER are needed")
    convert = import_folder if options["from"] else export_folder
    try:
        written = convert(
            options["from"] or options["to"], Path(options["input"]), Path(options["output"])
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print("\n".join(f"wrote {path}" for path in written))


if __name__ == "__main__":
    define()
    app.run(main)
