"""Pictures that a flow draws, each kept with the noise it was drawn from: what straightens a flow.

    x0 = eps - integral from 0 to 1 of v(z_t, t) dt,    z_1 = eps

Trained on such pairs instead of independent ones, a rectified flow's paths become straighter (Liu
et al. 2022, arXiv 2209.03003, section 2.2), and what is drawn in a few steps comes close to what is
drawn in many: the velocity at t = 1 already points at the picture. Guidance that the pairs are
drawn with is learnt with them, and drawing needs none any more.
"""

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from cosdiff_jax import sharding
from cosdiff_jax.sampler import Sampler
from cosdiff_jax.shapes import Frozen, Params
from cosdiff_jax.weights import digest


def pairs(
    sampler: Sampler,
    params: Params,
    frozen: Frozen,
    tokens: Int[np.ndarray, "P T"],
    mask: Bool[np.ndarray, "P T"],
    folder: str | Path,
    *,
    samples: int,
    seed: int,
) -> Float[np.ndarray, "P K 2 h w c"]:
    """Noise and what is drawn from it, K times of every prompt, kept in a file and mapped.

    The file's name carries a digest of all that decides what is in it. What a stop left of it is
    gone on with. Of several hosts each draws on its own devices, into a file of its own until all
    of it is there.

    Args:
      sampler: draws, without its autoencoder; a descent would move the noise and is refused.
      params: of the backbone.
      frozen: "llm".
      tokens: right-padded, bos first.
      mask: True at real tokens.
      folder: where the file goes.
      samples: K.
      seed: of the noise.

    Returns:
      [..., 0, :, :, :] the noise and [..., 1, :, :, :] the latents, float32.

    Raises:
      ValueError: a file there is broken, another run is drawing it, or there is a descent.
    """
    if sampler.descent is not None:
        raise ValueError("reflow keeps the noise that a flow starts from: a descent moves it")
    how = repr((dataclasses.replace(sampler, vae=None, rows=1), samples, seed))
    name = digest([params, frozen["llm"], tokens, mask, np.frombuffer(how.encode(), np.uint8)])
    place = Path(folder) / f"pairs-{name}.npy"
    if place.exists():
        return _mapped(place, "r")
    place.parent.mkdir(parents=True, exist_ok=True)
    half = place.with_suffix(f".{jax.process_index()}.part")
    local = sharding.local()
    with _alone(half), jax.set_mesh(local):
        kept = _begun(half, (len(tokens), samples, 2, *sampler.shape))
        # What is not drawn yet is 0 all over, as a file is that was just made.
        drawn = np.any(kept[:, :, 1], axis=(2, 3, 4)).all(axis=1)
        done = len(drawn) if drawn.all() else int(np.argmin(drawn))
        # What was made under a mesh of all hosts is whole on each of them.
        here = jax.tree.map(np.asarray, (params, {"llm": frozen["llm"]}))
        params, frozen = sharding.replicate(here, local)
        chunk = max(1, sampler.rows // samples)
        draw = jax.jit(sampler.latents)
        bar = tqdm(total=len(tokens), initial=done, desc="Drawing pairs", unit=" prompts")
        for start in range(done, len(tokens), chunk):
            stop = min(start + chunk, len(tokens))
            # The last chunk repeats its end: one shape, one program.
            places = np.minimum(np.arange(start, start + chunk), stop - 1)
            noise, keys = sampler.start(jax.random.key(seed), jnp.asarray(places), samples)
            text, empty = sampler.read(frozen, tokens[places], mask[places])
            latents: Any = draw(params, frozen, text, empty, noise, keys)
            both = np.stack([np.asarray(noise), np.asarray(latents)], axis=2)
            kept[start:stop] = both[: stop - start]
            bar.update(stop - start)
        bar.close()
        kept.flush()
        half.replace(place)
    return _mapped(place, "r")


@contextlib.contextmanager
def _alone(half: Path) -> Iterator[None]:
    """Keep every other run from drawing into the same file meanwhile."""
    with half.with_suffix(".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run is drawing {half}: wait for it or stop it") from None
        yield


def _begun(half: Path, shape: tuple[int, ...]) -> np.memmap:
    if not half.exists():
        made = np.lib.format.open_memmap(half, "w+", np.float32, shape)
        with half.open("r+b") as file:
            # A full disk is told now; later it would be the end of the process.
            os.posix_fallocate(file.fileno(), 0, half.stat().st_size)
        return made
    kept = _mapped(half, "r+")
    if kept.shape != shape:
        raise ValueError(f"{half} is of another shape: delete it")
    return kept


def _mapped(file: Path, mode: Any) -> np.memmap:
    try:
        return np.lib.format.open_memmap(file, mode)
    except ValueError as error:
        raise ValueError(f"{file} is broken ({error}): delete it") from None
