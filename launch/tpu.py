#!/usr/bin/env python3
"""Train on a Cloud TPU slice: create, install, run, resume, stop, status, delete.

    python launch/tpu.py resume --name=cosdiff --zone=europe-west4-b --accelerator=v5litepod-16 \\
        --spot --config=configs/fusion_div.py:fusion_2b --workdir=gs://bucket/fusion_div

Prints every gcloud line before running it; ``--dry_run`` only prints. Needs Python 3.11 or newer
and the Google Cloud CLI on this computer, nothing else. See launch/README.md.
"""

import argparse
import pathlib
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = "cosdiff_jax"  # in the home folder of every worker
BUNDLE = f"{FOLDER}.tar.gz"

# Software of the TPU's virtual machines, by the beginning of the accelerator's name.
RUNTIMES = {
    "v2-": "tpu-ubuntu2204-base",
    "v3-": "tpu-ubuntu2204-base",
    "v4-": "tpu-ubuntu2204-base",
    "v5litepod-": "v2-alpha-tpuv5-lite",
    "v5p-": "v2-alpha-tpuv5",
    "v6e-": "v2-alpha-tpuv6e",
}

ABSENT = "ABSENT"  # our word for a request that gcloud does not know
READY = "ACTIVE"
GONE = ("FAILED", "SUSPENDED")  # for good: only a new request brings machines
GOING = ("SUSPENDING", "DELETING")

UNPACK = f"mkdir -p {FOLDER} && tar -xzf {BUNDLE} -C {FOLDER}"
WORKER = f"bash {FOLDER}/launch/worker.sh"


class Failure(Exception):
    """One line for the user."""


class Cloud:
    """gcloud for one slice: prints each line, runs it unless it is a dry run."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        if not options.dry_run and shutil.which("gcloud") is None:
            raise Failure(
                "gcloud is not on PATH; install the Google Cloud CLI "
                "(https://cloud.google.com/sdk/docs/install) and run `gcloud init`"
            )

    def __call__(self, *words: str, read: bool = False) -> subprocess.CompletedProcess:
        """Run ``gcloud compute tpus ...``; with ``read`` its output is kept, not shown."""
        line = ["gcloud", "compute", "tpus", *words, f"--zone={self.options.zone}"]
        if self.options.project:
            line.append(f"--project={self.options.project}")
        print("+ " + shlex.join(line), flush=True)
        if self.options.dry_run:
            return subprocess.CompletedProcess(line, 0, READY + "\n", "")
        return subprocess.run(line, text=True, capture_output=read, check=False)

    def must(self, what: str, *words: str) -> None:
        """Run, and end the launcher where gcloud reports failure."""
        code = self(*words).returncode
        if code:
            raise Failure(f"{what} failed: gcloud ended with status {code} (its message is above)")

    def state(self) -> str:
        """The queued resource's state, or ABSENT."""
        name = self.options.name
        answer = self(
            "queued-resources", "describe", name, "--format=value(state.state)", read=True
        )
        if answer.returncode == 0:
            return answer.stdout.strip() or "UNKNOWN"
        if "NOT_FOUND" in answer.stderr or "not found" in answer.stderr.lower():
            return ABSENT
        lines = answer.stderr.strip().splitlines() or [f"status {answer.returncode}"]
        raise Failure(f"gcloud cannot describe {name}: {lines[0]}")

    def ssh(self, command: str) -> int:
        """Run a shell command on all workers at once; its status."""
        return self._all("ssh", self.options.name, f"--command={command}")

    def scp(self, source: str, target: str) -> int:
        """Copy a file into the home folder of all workers; gcloud's status."""
        return self._all("scp", source, f"{self.options.name}:{target}")

    def _all(self, *words: str) -> int:
        inside = ["--internal-ip"] * self.options.internal_ip
        return self("tpu-vm", *words, "--worker=all", *inside).returncode


def create(cloud: Cloud) -> None:
    """Ask for the slice unless it is asked for already, and wait until it is there."""
    options = cloud.options
    state = ABSENT if options.dry_run else cloud.state()
    if state in GONE + GOING:
        raise Failure(
            f"{options.name} is {state}: run `delete` first, or `resume`, which creates it anew"
        )
    if state == ABSENT:
        _request(cloud)
    _wait(cloud)


def install(cloud: Cloud) -> None:
    """Copy the repository (without what git ignores) to all workers and install it there."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = pathlib.Path("" if cloud.options.dry_run else folder) / BUNDLE
        if not cloud.options.dry_run:
            _pack(bundle)
        code = 0
        for attempt in range(3):
            if attempt:  # a new slice does not always let one in at once
                time.sleep(cloud.options.poll)
            code = cloud.scp(str(bundle), BUNDLE)
            if code == 0:
                break
        else:
            raise Failure(f"the copy failed with status {code} (gcloud's message is above)")
    code = cloud.ssh(f"{UNPACK} && {WORKER} install")
    if code:
        raise Failure(f"the installation failed with status {code} (its message is above)")


def run(cloud: Cloud) -> None:
    """Train on all workers and follow the log."""
    code = cloud.ssh(_remote(cloud.options))
    if code:
        state = cloud.state()
        hint = "`run` again attaches again" if state == READY else "`resume` goes on from there"
        raise Failure(f"the run ended with status {code}; {cloud.options.name} is {state}: {hint}")


def resume(cloud: Cloud) -> None:
    """Create what is missing, install, run; after each preemption once more, until it is done."""
    options = cloud.options
    for attempt in range(options.attempts):
        state = ABSENT if options.dry_run else cloud.state()
        while state in GOING:
            time.sleep(options.poll)
            state = cloud.state()
        if state in GONE:
            print(f"{options.name} is {state}: asking for it anew", flush=True)
            delete(cloud)
            state = ABSENT
        if state == ABSENT:
            _request(cloud)
        try:
            _wait(cloud)
            install(cloud)
            code = cloud.ssh(_remote(options))
        except Failure as failure:
            code = failure
        if not code:
            return
        # The cloud tells of a preemption a little after the connection broke.
        for _ in range(3):
            state = cloud.state()
            if state != READY:
                break
            time.sleep(options.poll)
        else:
            if isinstance(code, Failure):
                raise code
            raise Failure(f"the run ended with status {code}, and {options.name} is still {READY}")
        print(f"attempt {attempt + 1} was cut short: {options.name} is {state}", flush=True)
    raise Failure(f"gave up after {options.attempts} attempts; `resume` goes on from there")


def stop(cloud: Cloud) -> None:
    """Ask the job to save and end; the slice stays."""
    if cloud.ssh(f"{WORKER} stop"):
        raise Failure("no job could be stopped")


def status(cloud: Cloud) -> None:
    """Print the slice's state."""
    state = cloud.state()
    if not cloud.options.dry_run:
        print(f"{cloud.options.name} is {state}")


def delete(cloud: Cloud) -> None:
    """Give the slice back, running or not; what the workdir holds stays."""
    name = cloud.options.name
    cloud.must("the deletion", "queued-resources", "delete", name, "--force", "--quiet")


def _request(cloud: Cloud) -> None:
    options = cloud.options
    if not options.accelerator:
        raise Failure("--accelerator is needed to create a slice, e.g. --accelerator=v5litepod-16")
    runtime = options.runtime or next(
        (value for key, value in RUNTIMES.items() if options.accelerator.startswith(key)), None
    )
    if runtime is None:
        raise Failure(
            f"--runtime is needed, since the accelerator {options.accelerator} begins with none of "
            + " ".join(RUNTIMES)
        )
    words = ["queued-resources", "create", options.name, f"--node-id={options.name}"]
    words += [f"--accelerator-type={options.accelerator}", f"--runtime-version={runtime}"]
    words += ["--spot"] * options.spot + ["--reserved"] * options.reserved
    words += ["--internal-ips"] * options.internal_ip
    if options.service_account:
        words.append(f"--service-account={options.service_account}")
    if options.valid_until:
        words.append(f"--valid-until-duration={options.valid_until}")
    cloud.must("the request", *words)


def _wait(cloud: Cloud) -> None:
    """Until the slice is ACTIVE."""
    name, before = cloud.options.name, None
    while True:
        state = cloud.state()
        if state != before and not cloud.options.dry_run:
            print(f"{name} is {state}", flush=True)
        if state == READY:
            return
        if state in (*GONE, *GOING, ABSENT):
            raise Failure(f"{name} is {state} and will not come up; `resume` asks for it anew")
        before = state
        time.sleep(cloud.options.poll)


def _remote(options: argparse.Namespace) -> str:
    """The line that runs the training on a worker."""
    words = [".venv/bin/python", "-m", "cosdiff_jax.train", "--distributed"]
    words += [f"--config={options.config}", f"--workdir={options.workdir}", *options.rest]
    return f"{WORKER} run {shlex.join(words)}"


def _pack(bundle: pathlib.Path) -> None:
    """Tar what git knows or would add; without git, all but what is made by running."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        names = [name for name in listed.stdout.split("\0") if name]
    else:
        made = {".venv", "runs", "datasets", "build", "__pycache__", ".git"}
        paths = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        names = [str(path) for path in paths if not made & set(path.parts)]
    with tarfile.open(bundle, "w:gz", compresslevel=1) as tar:
        for name in sorted(names):
            if (ROOT / name).is_file():  # a deleted file is still listed until it is committed
                tar.add(ROOT / name, arcname=name)


ACTIONS = {
    "create": create,
    "install": install,
    "run": run,
    "resume": resume,
    "stop": stop,
    "status": status,
    "delete": delete,
}


def parse(words: list[str]) -> argparse.Namespace:
    """Command line -> options; what follows ``--`` goes to the training as it is."""
    parser = argparse.ArgumentParser(
        prog="launch/tpu.py",
        description="Train on a Cloud TPU slice. "
        + " ".join(
            f"{name}: {(action.__doc__ or '').splitlines()[0]}" for name, action in ACTIONS.items()
        ),
        epilog="Arguments after -- go to cosdiff_jax.train, e.g. -- --config.steps=1000",
    )
    add = parser.add_argument
    add("action", choices=ACTIONS)
    add("--name", required=True, help="of the queued resource and of its node")
    add("--zone", required=True, help="e.g. europe-west4-b")
    add("--project", help="default: gcloud's own")
    add("--accelerator", help="e.g. v5litepod-16, v6e-8, v4-32")
    add("--runtime", help="software version; default: the accelerator's usual one")
    add("--spot", action="store_true", help="cheap and preemptible")
    add("--reserved", action="store_true", help="from the project's reservation")
    add("--valid_until", help="give up the place in the queue after, e.g. 6h")
    add("--service_account", help="the slice's identity; it must be able to write to the bucket")
    add("--internal_ip", action="store_true", help="machines without a public address")
    add("--config", default="configs/fusion_div.py", help="recipe[:preset], in the repository")
    add("--workdir", help="gs://bucket/folder: it has to outlive the slice")
    add("--poll", type=float, default=20.0, help="seconds between two looks at the state")
    add("--attempts", type=int, default=100, help="resume: how often to begin again")
    add("--dry_run", action="store_true", help="print the gcloud lines only")
    split = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:split])
    options.rest = words[split + 1 :]
    if options.action in ("run", "resume"):
        if not (options.workdir or "").startswith("gs://"):
            raise Failure(
                f"--workdir must be gs://bucket/folder, not {options.workdir}: the slice's own "
                "disk goes away with it"
            )
        if not (ROOT / options.config.split(":")[0]).is_file():
            raise Failure(f"--config: there is no {options.config.split(':')[0]} in {ROOT}")
    return options


def main(words: list[str]) -> int:
    """Run one action; the process's exit status."""
    try:
        options = parse(words)
        ACTIONS[options.action](Cloud(options))
    except Failure as failure:
        print(f"tpu.py: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\ntpu.py: interrupted here only; the slice and a job on it go on "
            "(`status`, `stop`, `delete`)",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
