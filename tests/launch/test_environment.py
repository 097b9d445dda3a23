"""What is installed: the lock says all of it, and ``make`` installs it once."""

import os
import pathlib
import re
import shutil
import subprocess
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked():
    """Every line of the lock, by the package's canonical name."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    names = [canonicalize_name(pin.name) for pin in pins]
    assert len(set(names)) == len(names)
    return dict(zip(names, pins, strict=True))


def asked():
    """(requirement, who asks) of every extra, and of all that these need as far as it is here.

    A package that no environment of the tests has, such as a TPU's, is not read any further.
    """
    extras = PROJECT["optional-dependencies"]
    waiting = [(Requirement(x), "the project") for x in PROJECT["dependencies"]]
    waiting += [(Requirement(x), name) for name, group in extras.items() for x in group]
    seen = set()
    while waiting:
        requirement, who = waiting.pop()
        yield requirement, who
        for extra in ("", *requirement.extras):
            key = canonicalize_name(requirement.name), extra
            if key in seen:
                continue
            seen.add(key)
            try:
                needs = metadata.requires(requirement.name) or []
            except metadata.PackageNotFoundError:
                continue
            for need in map(Requirement, needs):
                if need.marker is None and not extra:
                    waiting.append((need, requirement.name))
                elif need.marker is not None:
                    here = need.marker.evaluate({"extra": extra})
                    if here and (not extra or not need.marker.evaluate({"extra": ""})):
                        waiting.append((need, f"{requirement.name}[{extra}]"))


def test_every_package_of_every_extra_is_in_the_lock():
    pins, missing = locked(), []
    for requirement, who in asked():
        pin = pins.get(canonicalize_name(requirement.name))
        if pin is None:
            missing.append(f"{requirement} of {who}")
            continue
        (clause,) = pin.specifier
        assert clause.operator == "==" and "*" not in clause.version, pin
        assert requirement.specifier.contains(clause.version, prereleases=True), (requirement, who)
    assert not missing
    # What no metadata here says: the accelerators' own.
    assert {"libtpu", "jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cudnn-cu13"} <= set(pins)


def test_the_launcher_installs_with_the_lock_alone():
    lines = re.findall(r"^ .*pip install.*$", (ROOT / "launch" / "worker.sh").read_text(), re.M)
    assert len(lines) == 2
    assert all(" -c requirements.lock " in line for line in lines)
    assert "uv" in locked()


# Answers as a Python of the right version, makes an environment of itself, tells what it was asked.
PYTHON = """#!/bin/sh
echo "$0 $*" >> {log}
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
"""


@pytest.fixture
def make(tmp_path):
    """A checkout whose Python only tells what it is asked: run make, get (the calls, output)."""
    place, tools, log = tmp_path / "checkout", tmp_path / "tools", tmp_path / "calls"
    for folder in (place, tools):
        folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copyfile(ROOT / name, place / name)
    (tools / "python3").write_text(PYTHON.format(log=log))
    (tools / "python3").chmod(0o755)
    # make test runs this file: what its make has told its children is not for this one.
    kept = {
        k: v for k, v in os.environ.items() if "MAKE" not in k and k not in ("MFLAGS", "PYTHON")
    }

    def run(*words):
        log.write_text("")
        done = subprocess.run(
            ["make", *words],
            cwd=place,
            env={**kept, "PATH": f"{tools}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        calls = [line.split(" ", 1) for line in log.read_text().splitlines()]
        return [f"{pathlib.Path(who).name} {words}" for who, words in calls], done.stdout

    return run


def installing(calls):
    return [call for call in calls if " pip " in call]


def test_make_env_installs_once_and_again_where_the_lock_changes(make, tmp_path):
    calls, _ = make("env")
    assert [call for call in calls if "venv" in call] == ["python3 -m venv .venv"]
    setup, rest = installing(calls)
    assert setup.startswith("python -m pip ") and setup.endswith(" setuptools")
    assert rest.endswith(" --editable .[dev]")
    assert all(" --constraint requirements.lock " in call for call in (setup, rest))

    assert installing(make("env")[0]) == []
    assert "pip" not in make("--dry-run", "env")[1]
    for name in ("requirements.lock", "pyproject.toml"):
        ready = (tmp_path / "checkout" / ".venv" / "ready").stat().st_mtime
        os.utime(tmp_path / "checkout" / name, (ready + 1, ready + 1))
        assert " --editable " in make("--dry-run", "env")[1]
        # Asked to do nothing it has done nothing, and says the same again.
        calls, _ = make("env")
        assert installing(calls) == [setup, rest]
        assert not [call for call in calls if "venv" in call]
        os.utime(tmp_path / "checkout" / name, (ready - 1, ready - 1))
        assert installing(make("env")[0]) == []


@pytest.mark.parametrize(
    ("target", "then"),
    [
        ("test", "-m pytest"),
        ("train", "-m cosdiff_jax.train --config=configs/fusion_div.py --workdir=runs/fusion_div"),
    ],
)
def test_targets_install_what_they_need_first(make, target, then):
    lines = make("--dry-run", target)[1].splitlines()
    installed = next(i for i, line in enumerate(lines) if " --editable " in line)
    assert installed < next(i for i, line in enumerate(lines) if then in line)
    make("env")
    lines = make("--dry-run", target)[1].splitlines()
    # The notebooks have packages of their own.
    assert not any('".[dev]"' in line for line in lines)
    assert any(then in line for line in lines)
