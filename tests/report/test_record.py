"""What a run writes down goes to Weights & Biases as well, if it is asked to."""

import json
import sys
import types

import numpy as np
import pytest

from cosdiff_jax.report import curves, record

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)


class StandIn(types.SimpleNamespace):
    """Instead of the package: keeps what it was told."""

    class Error(Exception):
        """As the package's own."""

    def __init__(self):
        super().__init__(asked=[], defined=[], logged=[], finished=0, refuse="")

    def init(self, **asked):
        if self.refuse:
            raise self.Error(self.refuse)
        self.asked.append(asked)
        self.id = asked["id"] or "made-up"
        return self

    def define_metric(self, name, **knobs):
        self.defined.append((name, knobs))

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished += 1

    def Image(self, picture):
        return picture


@pytest.fixture
def package(monkeypatch):
    made = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", made)
    return made


def recorded(workdir, step=0, **more):
    """A record of one training step and one look, closed."""
    wandb = more.pop("wandb") if "wandb" in more else record.Wandb(project="flows")
    log = record.Record(str(workdir), step, wandb=wandb, config={"seed": 3}, **more)
    log.write(step + 1, {"loss": 0.5, "flow": 0.25})
    log.look(step + 1, {"clip_score": 0.75}, IMAGES)
    log.look(step + 1, {}, None)
    log.close()


def test_everything_is_sent_with_its_step(package, tmp_path):
    recorded(tmp_path)
    numbers, seen = package.logged
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert numbers == json.loads(line) == {"step": 1, "loss": 0.5, "flow": 0.25}
    sheet = seen.pop("samples")
    assert seen == {"step": 1, "held_out/clip_score": 0.75}
    # Two rows of three pictures of 8 pixels, 2 pixels apart.
    assert sheet.size == (32, 22)
    assert np.array_equal(np.asarray(sheet)[2:10, 2:10], IMAGES[0, 0])
    (asked,) = package.asked
    assert asked["project"] == "flows" and asked["mode"] == "offline" and asked["name"] is None
    assert asked["config"] == {"seed": 3} and asked["dir"] == str(tmp_path)
    # Steps are the run's own: the package's count of calls would refuse a step that comes again.
    assert ("*", {"step_metric": "step"}) in package.defined
    assert package.finished == 1


def test_a_resumed_run_goes_on_in_the_same_run(package, tmp_path):
    recorded(tmp_path)
    recorded(tmp_path, step=1)
    first, second = package.asked
    assert first["id"] is None and second["id"] == "made-up"
    assert first["resume"] == second["resume"] == "allow"
    recorded(tmp_path / "other")
    assert package.asked[-1]["id"] is None


def test_what_is_seen_on_the_way_is_kept_beside(tmp_path):
    def kept(name):
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    log = record.Record(str(tmp_path), 0)
    assert kept("held_out.jsonl") == []
    for step in (0, 2, 4):
        log.look(step, {"all": step / 8, "vendi": 1.5}, None)
        log.look(step + 1, {}, IMAGES)
        log.write(step + 1, {"loss": 1.0})
    log.close()
    assert kept("held_out.jsonl") == [
        {"step": n, "held_out/all": n / 8, "held_out/vendi": 1.5} for n in (0, 2, 4)
    ]
    # Gone on with from step 2, where it had looked before it was killed: it looks again.
    with (tmp_path / "held_out.jsonl").open("a") as file:
        file.write('{"step": 1, "held_out/all": 0.')
    again = record.Record(str(tmp_path), 2)
    again.look(2, {"all": 0.75}, None)
    again.close()
    assert [(line["step"], line["held_out/all"]) for line in kept("held_out.jsonl")] == [
        (0, 0.0),
        (2, 0.75),
    ]
    # Training's own lines are one a step.
    assert [line["step"] for line in kept("metrics.jsonl")] == [1]
    assert list(curves.read(tmp_path / "held_out.jsonl")["held_out/all"][1]) == [0.0, 0.75]
    assert not list(tmp_path.glob("*.part"))


def test_one_host_keeps_the_record(package, tmp_path):
    recorded(tmp_path / "run", write=False)
    assert not package.asked and not package.logged and not (tmp_path / "run").exists()


def test_nothing_is_imported_where_nothing_is_asked(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    recorded(tmp_path, wandb=record.Wandb())
    recorded(tmp_path, wandb=None, step=1)
    with pytest.raises(ValueError, match=r'pip install "cosdiff_jax\[wandb\]"') as said:
        record.Wandb(project="flows")
    assert "\n" not in str(said.value)


def test_what_cannot_be_is_one_line(package, tmp_path):
    with pytest.raises(ValueError, match=r"wandb\.mode='on' is not one of online, offline"):
        record.Wandb(mode="on")
    package.refuse = "no key\n  configured"
    with pytest.raises(ValueError, match=r"^wandb: no key configured$"):
        recorded(tmp_path)


def test_the_package_itself_takes_it(tmp_path):
    """Offline: nothing leaves the machine."""
    import wandb

    recorded(tmp_path)
    recorded(tmp_path, step=1)
    wandb.teardown()  # its own process writes on after a run has finished
    identity = (tmp_path / "wandb_id.txt").read_text().strip()
    first, second = sorted(tmp_path.glob("wandb/offline-run-*"))
    assert identity and first.name.endswith(identity) and second.name.endswith(identity)
    for part in (first, second):
        (kept,) = part.glob("*.wandb")
        content = kept.read_bytes()
        assert b"held_out/clip_score" in content and b"loss" in content and b"seed" in content
        (picture,) = part.glob("files/media/images/samples*.png")
        assert picture.stat().st_size > 0
