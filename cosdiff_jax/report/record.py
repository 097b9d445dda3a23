"""What a run writes down while it goes on, and how fast it goes."""

import json
import time

import numpy as np
from etils import epath
from jaxtyping import UInt8
from tensorboardX import SummaryWriter

from cosdiff_jax.report import grid


class Meter:
    """Images per second since the last reading; the first step compiles and is not counted."""

    def __init__(self, rows: int):
        self._rows, self._step, self._time = rows, None, 0.0

    def rate(self, step: int) -> float:
        """Images per second up to ``step``."""
        now = time.monotonic()
        since, self._step = self._step, step
        elapsed, self._time = now - self._time, now
        return 0.0 if since is None else self._rows * (step - since) / elapsed


class Record:
    """metrics.jsonl and TensorBoard events.

    Args:
      workdir: the run's folder.
      step: the step the run goes on from; what a killed run wrote after it is taken out.
      write: False makes every call do nothing: one host of a pod keeps the record.
    """

    def __init__(self, workdir: str, step: int, *, write: bool = True):
        self._host = write
        if not self._host:
            return
        self._path = epath.Path(workdir) / "metrics.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A bucket's files cannot be appended to: there the whole file is written now and then.
        self._append = "://" not in workdir
        self._lines: list[str] = []
        if self._path.exists():
            # A line cut short by kill -9 is dropped with them.
            whole = [line for line in self._path.read_text().split("\n") if line.endswith("}")]
            self._lines = [line for line in whole if json.loads(line)["step"] <= step]
        self._flush()
        self._events = SummaryWriter(f"{workdir}/events", purge_step=step + 1)

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

    def look(
        self, step: int, table: dict[str, float], images: UInt8[np.ndarray, "P K X Y C"] | None
    ) -> None:
        """What was seen at a step, for TensorBoard: measures as ``held_out/...``, and the grid."""
        if not self._host:
            return
        for name, value in table.items():
            self._events.add_scalar(f"held_out/{name}", value, step)
        if images is not None:
            sheet = np.asarray(grid.grid(images, scale=1))
            self._events.add_image("samples", sheet, step, dataformats="HWC")

    def close(self) -> None:
        """Flush what is buffered."""
        if self._host:
            self._flush()
            self._events.close()

    def _flush(self) -> None:
        self._path.write_text("".join(line + "\n" for line in self._lines))
