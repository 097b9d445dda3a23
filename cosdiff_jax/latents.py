"""Encode a whole data set once: training then reads latents and the autoencoder stays idle."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from cosdiff_jax.data.groups import Source, to_float
from cosdiff_jax.shapes import Params


def encode(
    source: Source, vae: Any, params: Params, folder: str | Path, *, rows: int = 128
) -> Float[np.ndarray, "groups K h w c"]:
    """Normalised latents (means) of every picture of a source, kept in a file and mapped.

    The file's name carries a digest of the weights and of the source's size, so another
    autoencoder gets another file. A half-written file has another name and is begun anew.

    Args:
      source: groups with "images", uint8 [K X Y C].
      vae: the autoencoder.
      params: its weights.
      folder: where the file goes.
      rows: pictures per call.
    """
    first = source[0]["images"]
    place = Path(folder) / f"latents-{_digest(params, len(source), first.shape)}.npy"
    if place.exists():
        return np.load(place, mmap_mode="r")
    to_latents = jax.jit(lambda p, x: vae.apply({"params": p}, x, method="to_latents"))
    chunk = max(1, rows // len(first))
    half = place.with_suffix(".part")
    shape = jax.eval_shape(to_latents, params, to_float(first)).shape
    kept = np.lib.format.open_memmap(half, "w+", np.float16, (len(source), *shape))
    for start in tqdm(range(0, len(source), chunk), desc="Encoding", unit=" chunks"):
        stop = min(start + chunk, len(source))
        # The last chunk repeats its end: one shape, one program.
        places = np.minimum(np.arange(start, start + chunk), stop - 1)
        images = np.concatenate([source[int(index)]["images"] for index in places])
        z = np.asarray(to_latents(params, to_float(images)))
        kept[start:stop] = z.reshape(chunk, *shape)[: stop - start]
    kept.flush()
    half.rename(place)
    return np.load(place, mmap_mode="r")


def _digest(params: Params, *more: Any) -> str:
    found = hashlib.sha256(repr(more).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:12]
