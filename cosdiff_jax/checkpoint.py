"""Saving a run and finding it again: train state, averaged weights, data iterator, config.

Orbax writes each step into a temporary folder and renames it, so a killed save leaves no folder
that looks whole. A disk can still lose or garble bytes afterwards; therefore every finished step
is sealed with the size and CRC of each of its files, and a step whose seal does not match is
passed over in favour of the one before it. ``recipe.json`` in the run's own folder says whose it is
before there is a first step.
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from cosdiff_jax.shapes import Params, TrainState

_SEAL = "seal.json"
_UNFINISHED = ".orbax-checkpoint-tmp"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """What a checkpoint gave back."""

    state: TrainState
    data: dict[str, Any]
    step: int


@contextlib.contextmanager
def claim(workdir: str | Path) -> Iterator[None]:
    """Keep every other process from writing to a local folder meanwhile.

    A killed process leaves nothing behind: the lock is the operating system's. Buckets have none,
    and of several hosts the first one claims.

    Raises:
      ValueError: another process is at work there, or nothing can be written there.
    """
    if "://" in str(workdir) or jax.process_index():
        yield
        return
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        file = (Path(workdir) / ".lock").open("a")
    except OSError as error:
        raise ValueError(f"--workdir={workdir} cannot be written to: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            words = f"another run is writing to {workdir}: wait for it or stop it"
            raise ValueError(words) from None
        yield


class Checkpoints:
    """The checkpoints of one working directory.

    Args:
      workdir: the run's folder, local or on a bucket; checkpoints go to ``workdir/checkpoints``.
      keep: how many of the newest to keep; one more than one is what makes falling back possible.
      write: whether this process is the one that writes there. Only the writer takes away what a
        save that did not finish has left: to a reader it may be one that is going on.
    """

    def __init__(self, workdir: str | Path, *, keep: int = 2, write: bool = True):
        self.folder = epath.Path(workdir) / "checkpoints"
        remote = "://" in str(workdir)
        if not remote:
            # Orbax finds nothing, and says nothing, where a path is relative.
            self.folder = self.folder.resolve()
        unfinished = [] if remote else list(self.folder.glob(f"*{_UNFINISHED}*"))
        self._unfinished = {
            int(n) for path in unfinished if (n := path.name.split(".")[0]).isdigit()
        }
        if write and jax.process_index() == 0:
            # Orbax would do it in a thread, which complains where a program ends soon.
            for path in unfinished:
                path.rmtree()
        self._recipe = self.folder.parent / "recipe.json"
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=write,
                cleanup_tmp_directories=write and remote,
                enable_async_checkpointing=False,
            ),
            item_names=("state", "data", "config"),
        )

    def steps(self) -> list[int]:
        """The finished steps, newest first."""
        self._manager.reload()
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, state: TrainState, data: dict[str, Any], config: dict[str, Any]) -> None:
        """Write one step and seal it. Saving a step that is there already does nothing.

        Args:
          state: the train state; its ``step`` names the checkpoint.
          data: the data iterator's own state (JSON).
          config: the resolved config (JSON).
        """
        step = int(state.step)
        if step in self.steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave(data),
                config=ocp.args.JsonSave(config),
            ),
        )
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            folder = self.folder / str(step)
            (folder / _SEAL).write_text(json.dumps(_digest(folder)))

    def restore(self, like: TrainState, *, repair: bool = False) -> Restored | None:
        """The newest step that is whole, or None where there is none.

        Args:
          like: the state's shapes, dtypes and shardings (``jax.ShapeDtypeStruct`` leaves).
          repair: move damaged newer steps to ``workdir/damaged``: a run that goes on from an
            older step will come past them again and must be able to save them.

        Raises:
          ValueError: every checkpoint present is damaged; starting anew would bury the run.
        """
        steps, said = self.steps(), ""
        self._tell_unfinished(steps)
        for position, step in enumerate(steps):
            reason = self._damage(step)
            if reason is None:
                try:
                    items = self._manager.restore(
                        step,
                        args=ocp.args.Composite(
                            state=ocp.args.StandardRestore(like), data=ocp.args.JsonRestore()
                        ),
                    )
                    if repair:
                        self._set_aside(steps[:position])
                    return Restored(state=items["state"], data=items["data"], step=step)
                except Exception as error:  # Orbax and TensorStore raise many kinds
                    # Whole, but of another state: what a term remembers may change its shape.
                    said = reason = str(error).split("\n")[0].split(". ")[0][:200]
            self._tell(step, f"is damaged ({reason})", steps[position + 1 :])
        if steps:
            wrong = f"are damaged or of another state ({said})" if said else "are damaged"
            raise ValueError(
                f"all checkpoints in {self.folder} {wrong}; move that folder away to start the run "
                "anew"
            )
        return None

    def begin(self, config: dict[str, Any]) -> None:
        """Write down whose folder this is, before anything of the run is in it.

        Args:
          config: the resolved config (JSON).
        """
        if jax.process_index() == 0:
            # Whole or not at all: a run may be killed here.
            half = self._recipe.with_name(self._recipe.name + ".part")
            half.write_text(json.dumps(config, indent=1) + "\n")
            half.replace(self._recipe)

    def begun(self) -> dict[str, Any] | None:
        """The config that the run of this folder was last started with; None where there is none.

        A run that was killed before its first checkpoint has left no other.
        """
        if self._recipe.exists():
            try:
                return json.loads(self._recipe.read_text())
            except ValueError as error:
                _log.warning("%s cannot be read: %s", self._recipe, error)
        return self.config()

    def config(self) -> dict[str, Any] | None:
        """The config of the newest step whose config can be read."""
        for step in self.steps():
            try:
                return self._manager.restore(
                    step, args=ocp.args.Composite(config=ocp.args.JsonRestore())
                )["config"]
            except Exception as error:
                _log.warning("config of checkpoint %d cannot be read: %s", step, error)
        return None

    def weights(self, part: str) -> tuple[int, Params]:
        """Weights of the newest whole step, for inference: ``(step, params)``.

        Only they are read, onto one device, whatever devices the run was spread over.

        Args:
          part: of the train state: "ema", the averaged ones, or "params", those of the step.

        Raises:
          ValueError: there is no whole checkpoint.
        """
        steps = self.steps()
        self._tell_unfinished(steps)
        for position, step in enumerate(steps):
            reason = self._damage(step)
            if reason is not None:
                self._tell(step, f"is damaged ({reason})", steps[position + 1 :])
                continue
            reader, place = ocp.PyTreeCheckpointer(), self.folder / str(step) / "state"
            device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

            def wanted(leaf: Any, name: str, device: Any = device) -> Any:
                if name != part:
                    return ocp.PLACEHOLDER
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)

            stored: Any = reader.metadata(place).item_metadata
            like = {
                name: jax.tree.map(lambda leaf, name=name: wanted(leaf, name), tree)
                for name, tree in stored.tree.items()
            }
            arguments = ocp.checkpoint_utils.construct_restore_args(like)
            restored = reader.restore(
                place, args=ocp.args.PyTreeRestore(item=like, restore_args=arguments)
            )
            return step, restored[part]
        raise ValueError(f"no whole checkpoint in {self.folder}")

    def __enter__(self) -> "Checkpoints":
        """As a context the folder is closed at the end, also where an error ends it."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Wait for what is being written."""
        self._manager.close()

    def _tell_unfinished(self, steps: list[int]) -> None:
        """Newer steps whose save was cut short; to a reader it may be one that is going on."""
        for step in sorted(self._unfinished, reverse=True):
            if not steps or step > steps[0]:
                self._tell(step, "is unfinished (its save did not come to its end)", steps)

    def _tell(self, step: int, what: str, older: list[int]) -> None:
        instead = f"using step {older[0]} instead" if older else "no older one is left"
        _log.warning("checkpoint %d %s; %s", step, what, instead)

    def _damage(self, step: int) -> str | None:
        folder = self.folder / str(step)
        try:
            seal = json.loads((folder / _SEAL).read_text())
        except (OSError, ValueError):
            return "it was never sealed: the save did not finish"
        now = _digest(folder)
        for name, expected in seal.items():
            if name not in now:
                return f"{name} is missing"
            if now[name] != expected:
                return f"{name} has changed since it was written"
        return None

    def _set_aside(self, steps: list[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                target = self.folder.parent / "damaged" / str(step)
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    target.rmtree()
                (self.folder / str(step)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._manager.reload()


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays: what ``restore`` wants to know."""
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            yield from _files(entry)
        elif entry.name != _SEAL:
            yield entry


def _digest(folder: epath.Path) -> dict[str, list[int]]:
    """Size and CRC-32 by relative path; on a bucket, which checks its bytes itself, sizes only."""
    remote = "://" in str(folder)
    found = {}
    for path in _files(folder):
        name = str(path.relative_to(folder))
        if remote:
            found[name] = [path.stat().length, 0]
            continue
        crc, size = 0, 0
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                crc, size = zlib.crc32(chunk, crc), size + len(chunk)
        found[name] = [size, crc]
    return found
