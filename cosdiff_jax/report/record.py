"""What a run writes down while it goes on, and how fast it goes."""

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm

from cosdiff_jax.report import grid


class Meter:
    """Images per second of the steps alone.

    The first step, which compiles, and looks and saves in between are no part of it: the clock
    runs from ``run`` to ``pause``.

    Args:
      rows: pictures of a step, over all devices.
    """

    def __init__(self, rows: int):
        self._rows, self._steps, self._seconds = rows, 0, 0.0
        self._since: tuple[int, float] | None = None

    def run(self, step: int) -> None:
        """The steps after ``step`` count from now on; nothing new where the clock runs."""
        if self._since is None:
            self._since = step, time.monotonic()

    def pause(self, step: int) -> None:
        """All up to ``step`` is done, and what follows is no step."""
        if self._since is not None:
            first, began = self._since
            self._steps += step - first
            self._seconds += time.monotonic() - began
            self._since = None

    def rate(self, step: int) -> dict[str, float]:
        """``images_per_second`` up to ``step`` since the last reading; {} where no step counts."""
        runs = self._since is not None
        self.pause(step)
        images, seconds = self._rows * self._steps, self._seconds
        self._steps, self._seconds = 0, 0.0
        if runs:
            self.run(step)
        return {"images_per_second": images / seconds} if images else {}


# What the progress bar has room for, of what the objective logs.
SHOWN = {
    **{name: name for name in ("loss", "flow", "diversity", "alignment", "anchor", "lambda")},
    **{"mean_cosine": "cosine", "psnr": "psnr", "accuracy": "accuracy"},
    "images_per_second": "images/s",
}


def bar(step: int, steps: int) -> tqdm:
    """The progress bar of a run that stands at ``step``; in a file it moves on less often."""
    return tqdm(
        total=steps,
        initial=step,
        unit="step",
        disable=None if os.isatty(2) else False,
        mininterval=1.0 if os.isatty(2) else 10.0,
        dynamic_ncols=True,
    )


def brief(values: Mapping[str, float]) -> str:
    """The few numbers that fit beside the progress bar."""
    return " ".join(f"{SHOWN[n]} {values[n]:.3g}" for n in SHOWN if n in values)


WANDB_MODES = ("online", "offline", "disabled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wandb:
    """Whether a run is recorded at Weights & Biases as well, and where.

    Attributes:
      project: it belongs to; "" records nothing there.
      mode: "online" sends, "offline" writes what ``wandb sync`` sends later, "disabled" does
        neither.
      run: its name there; "" leaves the choice to Weights & Biases.

    Raises:
      ValueError: an unknown mode, or the package is missing.
    """

    project: str = ""
    mode: str = "offline"
    run: str = ""

    def __post_init__(self):
        if self.mode not in WANDB_MODES:
            raise ValueError(f"wandb.mode={self.mode!r} is not one of {', '.join(WANDB_MODES)}")
        if self.project:
            _wandb()

    def open(self, workdir: str, config: Mapping[str, Any]) -> "WandbRun | None":
        """Begin the run of a workdir, or go on with it; None where there is no project.

        Args:
          workdir: keeps the run's id in ``wandb_id.txt``, and its files unless it is in a bucket.
          config: the recipe.

        Raises:
          ValueError: Weights & Biases refused, in its own words.
        """
        if not self.project:
            return None
        wandb, place = _wandb(), epath.Path(workdir) / "wandb_id.txt"
        try:
            run = wandb.init(
                project=self.project,
                name=self.run or None,
                mode=self.mode,
                id=place.read_text().strip() if place.exists() else None,
                resume="allow",
                dir=None if "://" in workdir else workdir,
                config=dict(config),
                # The fields that may differ between two parts of a run.
                allow_val_change=True,
            )
        except wandb.Error as error:
            raise ValueError(f"wandb: {' '.join(str(error).split())}") from None
        place.write_text(f"{run.id}\n")
        # Its own count of calls only grows, and what a killed run did twice would be thrown away.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return WandbRun(run=run, picture=wandb.Image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WandbRun:
    """A run that is open.

    Attributes:
      run: what ``wandb.init`` returned.
      picture: ``wandb.Image``.
    """

    run: Any
    picture: Any

    def log(self, step: int, values: Mapping[str, float], sheet: Image.Image | None = None) -> None:
        """Numbers of a step, and the grid beside them."""
        shown = {} if sheet is None else {"samples": self.picture(sheet)}
        self.run.log({"step": step, **values, **shown})


def _wandb() -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            'wandb.project needs the package wandb: pip install "cosdiff_jax[wandb]"'
        ) from None
    return wandb


class Record:
    """metrics.jsonl, held_out.jsonl, TensorBoard events and, if asked for, Weights & Biases.

    Args:
      workdir: the run's folder.
      step: the step the run goes on from; what a killed run wrote after it is taken out (at
        Weights & Biases it stays, and comes again).
      write: False makes every call do nothing: one host of a pod keeps the record.
      wandb: of Weights & Biases.
      config: the recipe, for Weights & Biases.

    Raises:
      ValueError: as ``Wandb.open``.
    """

    def __init__(
        self,
        workdir: str,
        step: int,
        *,
        write: bool = True,
        wandb: Wandb | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        self._host = write
        if not self._host:
            return
        self._path = epath.Path(workdir) / "metrics.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A bucket's files cannot be appended to: there the whole file is written now and then.
        self._append = "://" not in workdir
        self._lines = _until(self._path, step)
        self._seen_path = self._path.with_name("held_out.jsonl")
        self._seen = _until(self._seen_path, step)
        self._flush()
        _put(self._seen_path, self._seen)
        self._events = SummaryWriter(f"{workdir}/events", purge_step=step + 1)
        self._wandb = None if wandb is None else wandb.open(workdir, config or {})

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write down one step's scalars."""
        if not self._host:
            return
        self._lines.append(json.dumps({"step": step, **values}))
        if self._append:
            with self._path.open("a") as file:
                file.write(self._lines[-1] + "\n")
        elif len(self._lines) % 100 == 0:
            self._flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(step, values)

    def look(
        self, step: int, table: dict[str, float], images: UInt8[np.ndarray, "P K X Y C"] | None
    ) -> None:
        """What was seen at a step: measures as ``held_out/...``, and the grid."""
        if not self._host:
            return
        values = {f"held_out/{name}": value for name, value in table.items()}
        if values:
            # A run killed after a look and before its checkpoint looks again.
            self._seen = [line for line in self._seen if json.loads(line)["step"] != step]
            self._seen.append(json.dumps({"step": step, **values}))
            _put(self._seen_path, self._seen)
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        sheet = None if images is None else grid.grid(images, scale=1)
        if sheet is not None:
            self._events.add_image("samples", np.asarray(sheet), step, dataformats="HWC")
        if self._wandb is not None and (values or sheet is not None):
            self._wandb.log(step, values, sheet)

    def close(self) -> None:
        """Flush what is buffered."""
        if self._host:
            self._flush()
            self._events.close()
            if self._wandb is not None:
                self._wandb.run.finish()

    def _flush(self) -> None:
        _put(self._path, self._lines)


def _put(path: epath.Path, lines: Sequence[str]) -> None:
    # Whole or not at all: a run may be killed here.
    half = path.with_name(path.name + ".part")
    half.write_text("".join(line + "\n" for line in lines))
    half.replace(path)


def _until(path: epath.Path, step: int) -> list[str]:
    """The lines of a file up to a step; one cut short by kill -9 is dropped with the others."""
    if not path.exists():
        return []
    whole = [line for line in path.read_text().split("\n") if line.endswith("}")]
    return [line for line in whole if json.loads(line)["step"] <= step]
