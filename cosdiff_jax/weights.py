"""Weights in a folder: model.safetensors beside the config.json that says what they fit.

The folder is one that ships inside the package (``scenes_llm`` ...) or one that a run left
(``runs/x/model``). config.json is an entry of the menu: ``{"name": "gemma", "gemma": {...}}``.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

from cosdiff_jax.shapes import Params

EMBEDDED = Path(__file__).parent / "assets"


def folder(path: str) -> Path:
    """The folder of an asset, by embedded name or by path.

    Raises:
      ValueError: there is neither.
    """
    for candidate in (EMBEDDED / path, Path(path)):
        if path and (candidate / "config.json").is_file():
            return candidate
    known = sorted(p.parent.name for p in EMBEDDED.glob("*/config.json"))
    raise ValueError(
        f"no model in {path!r}: it is neither an embedded one ({', '.join(known) or 'none'}) "
        f"nor a folder with config.json and model.safetensors{_made_by(Path(path))}"
    )


def _made_by(place: Path) -> str:
    """Which command leaves a model there, where a recipe of this project has the run's name."""
    recipe = Path("configs", f"{place.parent.name}.py")
    if place.name != "model" or not recipe.is_file():
        return ""
    return f"; python -m cosdiff_jax.train --config={recipe} --workdir={place.parent} makes one"


def entry(path: str) -> dict[str, Any]:
    """The menu entry that the weights fit.

    Raises:
      ValueError: the folder's config.json is not ours.
    """
    file = folder(path) / "config.json"
    found = json.loads(file.read_text())
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        raise ValueError(f"{file} names no network of ours: published weights are converted first")
    return found


def load(path: str) -> Params:
    """The weights, as float32 numpy arrays in a nested dictionary.

    Raises:
      ValueError: the file is missing or broken.
    """
    file = folder(path) / "model.safetensors"
    try:
        flat = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value.astype(np.float32) if value.dtype == np.float16 else value
    return tree


def digest(params: Params) -> str:
    """Sixteen letters that tell one set of weights from another."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:16]


def save(path: epath.PathLike, entry: dict[str, Any], params: Params, *, dtype: str) -> None:
    """Write weights and entry so that ``load`` finds them.

    Args:
      path: the folder, made if missing.
      entry: the menu entry.
      params: nested dictionary of arrays.
      dtype: what floating-point weights are stored as, "float32" or "float16".
    """
    place = epath.Path(path)
    place.mkdir(parents=True, exist_ok=True)
    flat = {}
    for keys, value in jax.tree_util.tree_leaves_with_path(params):
        value = np.asarray(value)
        name = "/".join(str(getattr(key, "key", key)) for key in keys)
        flat[name] = value.astype(dtype) if np.issubdtype(value.dtype, np.floating) else value
    (place / "model.safetensors").write_bytes(to_bytes(flat))
    (place / "config.json").write_text(json.dumps(entry, indent=1) + "\n")
