"""A published checkpoint as a table: which of our arrays is made of which published tensors.

Each ``Entry`` can be read in both directions, so one table serves import and export. torch keeps
a linear weight as [out, in], we keep kernels as [in, out]; layers are numbered there, stacked here.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

Arrays = dict[str, np.ndarray]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our arrays.

    Attributes:
      path: its path in the parameter tree, joined by "/".
      tensors: the published tensors it is made of, name -> shape.
      pack: those tensors, in order -> our array.
      unpack: the way back.
      layer: index on the leading axis of a stack of layers; None for an array of its own.
    """

    path: str
    tensors: Mapping[str, Shape]
    pack: Callable[[list[np.ndarray]], np.ndarray]
    unpack: Callable[[np.ndarray], list[np.ndarray]]
    layer: int | None = None


def vector(path: str, name: str, size: int) -> Entry:
    """A vector as it is."""
    return Entry(path, {name: (size,)}, lambda a: a[0], lambda x: [x])


def linear(path: str, name: str, inputs: int, outputs: int) -> Entry:
    """[out, in] <-> [in, out]."""
    return Entry(path, {name: (outputs, inputs)}, lambda a: a[0].T, lambda x: [x.T])


def chunks(path: str, name: str, shape: Shape, order: Sequence[int]) -> Entry:
    """[parts * D, ...] <-> [..., parts, D], the parts taken in ``order``; a vector or a weight."""
    parts = len(order)
    back = np.argsort(order)
    width = shape[0] // parts

    def pack(a: list[np.ndarray]) -> np.ndarray:
        x = a[0].reshape(parts, width, *shape[1:])[list(order)]
        return np.moveaxis(x, -1, 0) if len(shape) == 2 else x

    def unpack(x: np.ndarray) -> list[np.ndarray]:
        x = np.moveaxis(x, 0, -1) if len(shape) == 2 else x
        return [x[back].reshape(shape)]

    return Entry(path, {name: shape}, pack, unpack)


def side_by_side(path: str, names: Mapping[str, int], inputs: int, axis: tuple[int, int]) -> Entry:
    """Several [out_i, in] <-> one [in, sum(out_i)], its last axis split in two as ``axis`` says."""
    cuts = np.cumsum(list(names.values()))[:-1]

    def pack(a: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([x.T for x in a], axis=1).reshape(inputs, *axis)

    def unpack(x: np.ndarray) -> list[np.ndarray]:
        return [part.T for part in np.split(x.reshape(inputs, -1), cuts, axis=1)]

    return Entry(path, {n: (size, inputs) for n, size in names.items()}, pack, unpack)


def heads_out(path: str, name: str, heads: int, head_size: int, outputs: int) -> Entry:
    """[out, H E] <-> [H, E, out]."""
    size = heads * head_size
    return Entry(
        path,
        {name: (outputs, size)},
        lambda a: a[0].T.reshape(heads, head_size, outputs),
        lambda x: [x.reshape(size, outputs).T],
    )


def patches(path: str, name: str, patch: int, channels: int, outputs: int) -> Entry:
    """A convolution over squares [out, c, p, p] <-> a kernel on flattened patches [p p c, out]."""
    return Entry(
        path,
        {name: (outputs, channels, patch, patch)},
        lambda a: a[0].transpose(2, 3, 1, 0).reshape(-1, outputs),
        lambda x: [x.reshape(patch, patch, channels, outputs).transpose(3, 2, 0, 1)],
    )


def convolution(path: str, name: str, size: int, inputs: int, outputs: int) -> Entry:
    """[out, in, size, size] <-> [size, size, in, out]."""
    return Entry(
        path,
        {name: (outputs, inputs, size, size)},
        lambda a: a[0].transpose(2, 3, 1, 0),
        lambda x: [x.transpose(3, 2, 0, 1)],
    )


def stack(entries: Callable[[int], Sequence[Entry]], depth: int) -> list[Entry]:
    """The entries of ``depth`` equal layers, on a leading axis of ours."""
    return [dataclasses.replace(e, layer=i) for i in range(depth) for e in entries(i)]


def read(table: Sequence[Entry], published: Arrays, ignored: Sequence[str] = ()) -> dict[str, Any]:
    """Published tensors -> our nested parameters, float32.

    Raises:
      ValueError: a tensor is missing, unknown or of another shape; the first few are named.
    """
    wanted = {name: shape for e in table for name, shape in e.tensors.items()}
    missing = sorted(set(wanted) - set(published))
    unknown = sorted(set(published) - set(wanted) - set(ignored))
    wrong = [
        f"{name} is {list(published[name].shape)}, expected {list(shape)}"
        for name, shape in wanted.items()
        if name in published and published[name].shape != shape
    ]
    for what, names in (("missing", missing), ("unknown", unknown), ("of a wrong shape", wrong)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"tensors {what}: {'; '.join(names[:3])}{more}")
    parts: dict[str, list[np.ndarray]] = {}
    for e in table:
        array = e.pack([published[name].astype(np.float32) for name in e.tensors])
        parts.setdefault(e.path, []).append(array)
    stacked = {e.path for e in table if e.layer is not None}
    # Row by row in memory: a file writer that copies bytes would shuffle a transposed view.
    return nest(
        {
            path: np.ascontiguousarray(np.stack(arrays) if path in stacked else arrays[0])
            for path, arrays in parts.items()
        }
    )


def write(table: Sequence[Entry], params: Mapping[str, Any]) -> Arrays:
    """Our nested parameters -> published tensors.

    Raises:
      ValueError: a parameter is missing or unknown.
    """
    flat = flatten(params)
    paths = {e.path for e in table}
    if paths != set(flat):
        raise ValueError(f"parameters do not fit: {', '.join(sorted(paths ^ set(flat))[:3])}")
    out: Arrays = {}
    for e in table:
        array = flat[e.path] if e.layer is None else flat[e.path][e.layer]
        for name, tensor in zip(e.tensors, e.unpack(np.asarray(array)), strict=True):
            out[name] = np.ascontiguousarray(tensor)
    return out


def nest(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Arrays:
    """{"a": {"b": x}} -> {"a/b": x}."""
    flat: Arrays = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = np.asarray(value)
    return flat


def load_folder(folder: str | Path) -> tuple[dict[str, Any], Arrays]:
    """config.json and model.safetensors of a folder.

    Raises:
      ValueError: the folder or one of the files is missing or cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no such folder: {folder}")
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"no {name} in {folder}")
    try:
        config = json.loads((folder / "config.json").read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder}/config.json is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{folder}/config.json does not hold an object")
    return config, load_tensors(folder)


def load_tensors(folder: str | Path) -> Arrays:
    """model.safetensors of a folder, for layouts that need no config.json.

    Raises:
      ValueError: the folder or the file is missing or cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no such folder: {folder}")
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"no model.safetensors in {folder}")
    try:
        return load_file(folder / "model.safetensors")
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}/model.safetensors cannot be read: {error}") from None


def save_folder(folder: str | Path, config: Mapping[str, Any], tensors: Arrays) -> None:
    """Write config.json and model.safetensors."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(config), indent=1) + "\n")


def field(
    config: Mapping[str, Any], name: str, kind: type | tuple[type, ...], *default: Any
) -> Any:
    """One entry of a published configuration.

    Raises:
      ValueError: it is absent without a default, or of another type.
    """
    if name not in config and default:
        return default[0]
    value = config.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(k.__name__ for k in kinds)
        raise ValueError(f"config.json: {name} should be {names}, is {value!r}")
    return value
