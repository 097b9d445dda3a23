"""Scenes on disk: a TFDS builder that writes ArrayRecord, one record per prompt.

A record holds the prompt in every language, its spec, and K pictures of *different* scenes drawn
from the true conditional distribution of that prompt. Pictures are stored as encoded PNG: that is
the form TFDS reads and writes without TensorFlow.

The split is one of specs, not of pictures: what is asked for in "test" was never said in "train".
"""

import contextlib
import fcntl
import io
import logging
import multiprocessing
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from cosdiff_jax.data.scenes import grammar, renderer

VERSION = "1.0.0"
"""Changes whenever the same seed gives other records."""


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Captioned 64x64 scenes, grouped by prompt. Use `prepare`, which also decides what is kept.

    Args:
      prompts: number of records by split.
      samples: K, pictures per record.
      seed: everything follows from it.
      focus: as for `prepare`.
      processes: how many processes draw pictures.
      progress: whether to show a progress line.
      **options: TFDS's own, such as ``data_dir``.
    """

    VERSION = tfds.core.Version(VERSION)
    # TFDS would look beside the source for checksums of downloads, of which there are none, and
    # for that look it imports a package that it does not require.
    code_path = None

    def __init__(
        self,
        *,
        prompts: dict[grammar.Split, int],
        samples: int,
        seed: int,
        focus: float = 0.0,
        processes: int = 1,
        progress: bool = True,
        **options: Any,
    ):
        self._prompts = prompts
        self._samples = samples
        self._seed = seed
        self._focus = focus
        self._processes = processes
        self._progress = progress
        super().__init__(file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        picture = tfds.features.Image(
            shape=(grammar.SIDE, grammar.SIDE, 3), dtype=np.uint8, encoding_format="png"
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Captioned scenes of simple objects, several pictures per prompt.",
            features=tfds.features.FeaturesDict(
                {
                    "captions": {language: text() for language in grammar.LANGUAGES},
                    "spec": text(),
                    "scenes": text(),
                    "images": tfds.features.Sequence(picture),
                }
            ),
            # Records are independent draws: there is nothing to shuffle.
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(
                _facts(self._prompts, self._samples, self._seed, self._focus)
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
        return {split: self._generate_examples(split) for split in self._prompts}

    def _generate_examples(self, split: grammar.Split) -> Iterator[tuple[int, dict[str, Any]]]:
        specs = _specs(self._seed, split, self._prompts[split], self._focus)
        jobs = ((self._seed, split, index, self._samples, spec) for index, spec in enumerate(specs))
        bar = tqdm(
            total=self._prompts[split] * self._samples,
            desc=f"Drawing Scenes ({split})",
            unit=" pictures",
            disable=not self._progress,
            mininterval=0.5,
            dynamic_ncols=True,
        )
        with bar:
            for index, record in enumerate(self._records(jobs)):
                yield index, record
                bar.update(self._samples)

    def _records(self, jobs: Iterator[tuple]) -> Iterator[dict[str, Any]]:
        if self._processes < 2:
            yield from map(record, jobs)
            return
        # Spawned, not forked: a fork of a process in which JAX runs threads may hang.
        with multiprocessing.get_context("spawn").Pool(self._processes) as pool:
            yield from pool.imap(record, jobs, chunksize=16)


def record(job: tuple[int, grammar.Split, int, int, grammar.Spec]) -> dict[str, Any]:
    """Draws one record: (seed, split, index, samples, spec) to what the builder stores."""
    seed, split, index, samples, spec = job
    rng = np.random.default_rng([seed, _NUMBER[split], index])
    scenes = [grammar.sample_scene(spec, rng) for _ in range(samples)]
    return {
        "captions": {name: grammar.caption(spec, name, rng) for name in grammar.LANGUAGES},
        "spec": grammar.spec_to_json(spec),
        "scenes": grammar.scenes_to_json(scenes),
        "images": [_png(renderer.render(scene)) for scene in scenes],
    }


def prepare(
    folder: str | Path,
    train: int = 2000,
    test: int = 512,
    samples: int = 8,
    seed: int = 0,
    focus: float = 0.0,
    processes: int = 1,
    progress: bool = True,
) -> Path:
    """Builds the dataset in a folder, unless it is there, and returns where it lies.

    A build that was killed leaves nothing that looks finished: TFDS writes into a folder of
    another name and renames it at the end. What such a build left behind is cleared here.

    Args:
      folder: where datasets are kept.
      train: number of training prompts (records).
      test: number of held-out prompts, distinct in meaning.
      samples: K, pictures per prompt.
      seed: everything follows from it.
      focus: share of the training prompts that are drawn until they name different things: which
        colour belongs to which shape is learnt from those alone. Given its caption a picture is
        distributed as ever, and held-out prompts are never focused.
      processes: how many processes draw pictures; with more than one, the calling script needs
        the usual ``if __name__ == "__main__"``.
      progress: whether to show a progress line.

    Raises:
      ValueError: a number below 1, a share outside [0, 1], or the folder holds another Scenes
        than the one asked for.
    """
    wanted = _facts({"train": train, "test": test}, samples, seed, focus)
    if min(train, test, samples) < 1:
        raise ValueError(f"Scenes needs at least one prompt and one sample, not {wanted}")
    if not 0 <= focus <= 1:
        raise ValueError(f"focus = {focus} is no share: take a number from 0 to 1")
    root = Path(folder).expanduser().resolve()
    place = root / "scenes" / VERSION
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(root / "scenes" / ".lock", "w") as lock:
        # Of two runs that start at once, one builds and the other waits.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.exists():
            found = dict(tfds.builder_from_directory(place).info.metadata or {})
            if found != wanted:
                raise ValueError(f"{place} holds {found}, not {wanted}: choose another folder")
            return place
        for left in place.parent.glob("incomplete.*"):
            shutil.rmtree(left)
        with _quiet():
            Scenes(
                prompts=wanted["prompts"],
                samples=samples,
                seed=seed,
                focus=focus,
                processes=processes,
                progress=progress,
                data_dir=root,
            ).download_and_prepare()
        # TFDS makes room for downloads, of which there are none.
        shutil.rmtree(root / "downloads", ignore_errors=True)
    return place


_NUMBER = {"train": 0, "test": 1}


def _facts(
    prompts: Mapping[grammar.Split, int], samples: int, seed: int, focus: float
) -> dict[str, Any]:
    """What a data set is known by; without focus as it was before there was any."""
    found = {"prompts": dict(prompts), "samples": samples, "seed": seed}
    return {**found, "focus": focus} if focus else found


def _specs(
    seed: int, split: grammar.Split, number: int, focus: float = 0.0
) -> Iterator[grammar.Spec]:
    """Draws specs; held-out ones without repetition, so that each test prompt is a new one."""
    rng = np.random.default_rng([seed, _NUMBER[split]])
    seen = set()
    for _ in range(number):
        spec = grammar.sample_spec(rng, split)
        if focus and split == "train" and rng.random() < focus:
            while len(spec.groups) < 2:
                spec = grammar.sample_spec(rng, split)
        for _ in range(200):
            if split == "train" or spec not in seen:
                break
            spec = grammar.sample_spec(rng, split)
        seen.add(spec)
        yield spec


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """One progress line is enough: TFDS's own bars and notes say nothing a user can act on."""

    def severe(line: logging.LogRecord) -> bool:
        return line.levelno >= logging.ERROR

    log = logging.getLogger("absl")
    log.addFilter(severe)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        log.removeFilter(severe)
