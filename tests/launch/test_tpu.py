"""The launcher against a stand-in for gcloud: it records what it is asked, answers by script."""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import tarfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent

# States are handed out one a look, the last for ever; statuses of the other verbs likewise.
STAND_IN = """#!{python}
import json, pathlib, shutil, subprocess, sys
here = pathlib.Path(__file__).parent
words = sys.argv[1:]
with open(here / "calls.jsonl", "a") as file:
    file.write(json.dumps(words) + "\\n")
script = json.loads((here / "script.json").read_text())
verb = words[3]
answers = script.get(verb, [0])
answer = answers.pop(0) if len(answers) > 1 else answers[0]
(here / "script.json").write_text(json.dumps(script))
if verb == "describe":
    if answer == "NOT_FOUND":
        sys.exit("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: no such")
    if answer == "DENIED":
        sys.exit("ERROR: PERMISSION_DENIED: who are you?\\nmore lines")
    print(answer)
    sys.exit(0)
if verb == "scp" and answer == 0:
    shutil.copy(words[4], here / "bundle.tar.gz")
if verb == "ssh" and script.get("home"):
    command = next(w for w in words if w.startswith("--command=")).removeprefix("--command=")
    sys.exit(subprocess.run(["bash", "-c", command], cwd=script["home"]).returncode)
sys.exit(answer)
"""


@pytest.fixture
def gcloud(tmp_path):
    """A launcher: set the script, run the launcher, get (status, stdout, stderr, calls)."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "gcloud").write_text(STAND_IN.format(python=sys.executable))
    (folder / "gcloud").chmod(0o755)

    def launch(*words, **script):
        (folder / "script.json").write_text(json.dumps(script))
        (folder / "calls.jsonl").write_text("")
        action, *rest = words
        done = subprocess.run(
            [sys.executable, ROOT / "launch" / "tpu.py", action, "--name=job", "--zone=z-1", *rest],
            env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        calls = [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]
        return done.returncode, done.stdout, done.stderr, calls

    return launch


def verbs(calls):
    return [words[3] for words in calls]


ASK = ("--accelerator=v5litepod-16", "--poll=0")
TRAIN = ("--workdir=gs://b/w", "--config=configs/base.py")


def test_create_asks_and_waits_until_active(gcloud):
    states = ["NOT_FOUND", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    status, out, _, calls = gcloud("create", *ASK, "--spot", "--project=p", describe=states)
    assert status == 0
    assert verbs(calls) == ["describe", "create", "describe", "describe", "describe"]
    assert calls[1] == [
        *("compute", "tpus", "queued-resources", "create", "job", "--node-id=job"),
        *("--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"),
        *("--zone=z-1", "--project=p"),
    ]
    assert calls[0] == [
        *("compute", "tpus", "queued-resources", "describe", "job"),
        *("--format=value(state.state)", "--zone=z-1", "--project=p"),
    ]
    # Every line is printed as one could type it.
    printed = [shlex.split(line[2:]) for line in out.splitlines() if line.startswith("+ ")]
    assert printed == [["gcloud", *words] for words in calls]
    assert "job is PROVISIONING" in out


def test_create_goes_on_waiting_for_what_was_asked_for(gcloud):
    status, _, _, calls = gcloud("create", *ASK, describe=["PROVISIONING", "ACTIVE"])
    assert status == 0
    assert "create" not in verbs(calls)


@pytest.mark.parametrize(
    ("words", "script", "message"),
    [
        (("create", *ASK), {"describe": ["NOT_FOUND", "FAILED"]}, "job is FAILED and will not"),
        (("create", *ASK), {"describe": ["SUSPENDED"]}, "job is SUSPENDED: run `delete` first"),
        (("create", *ASK), {"describe": ["NOT_FOUND"], "create": [2]}, "request failed: gcloud"),
        (("create", "--poll=0"), {"describe": ["NOT_FOUND"]}, "--accelerator is needed"),
        (("create", "--accelerator=x-8"), {"describe": ["NOT_FOUND"]}, "--runtime is needed"),
        (("status",), {"describe": ["DENIED"]}, "ERROR: PERMISSION_DENIED: who are you?"),
        (("run",), {}, "--workdir must be gs://"),
        (("run", "--workdir=runs/x"), {}, "not runs/x"),
        (("run", "--workdir=gs://b/w", "--config=no.py:tiny"), {}, "there is no no.py in"),
        (("delete",), {"delete": [1]}, "the deletion failed"),
        (("install", "--poll=0"), {"scp": [5]}, "the copy failed with status 5"),
        (("install", "--poll=0"), {"ssh": [6]}, "the installation failed with status 6"),
        (("run", *TRAIN), {"ssh": [7], "describe": ["ACTIVE"]}, "`run` again attaches again"),
        (("run", *TRAIN), {"ssh": [7], "describe": ["SUSPENDED"]}, "`resume` goes on from there"),
        (("stop",), {"ssh": [1]}, "no job could be stopped"),
    ],
)
def test_failures_are_one_line(gcloud, words, script, message):
    status, _, err, _ = gcloud(*words, **script)
    assert status == 1
    lines = [line for line in err.splitlines() if line.startswith("tpu.py: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err


def test_without_gcloud_one_line_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "launch" / "tpu.py", "status", "--name=a", "--zone=b"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("tpu.py: gcloud is not on PATH")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (("resume", *ASK, *TRAIN), ["create", "describe", "scp", "ssh", "ssh"]),
        (("create", *ASK, "--spot"), ["create", "describe"]),
        (("install",), ["scp", "ssh"]),
        (("run", *TRAIN), ["ssh"]),
        (("stop",), ["ssh"]),
        (("status",), ["describe"]),
        (("delete",), ["delete"]),
    ],
    ids=lambda words: words[0],
)
def test_a_dry_run_prints_everything_and_runs_nothing(gcloud, words, printed):
    status, out, err, calls = gcloud(*words, "--dry_run")
    assert (status, err) == (0, "")
    assert calls == []
    assert "ACTIVE" not in out  # nobody has said so
    lines = [shlex.split(line[2:]) for line in out.splitlines() if line.startswith("+ ")]
    assert [line[4] for line in lines] == printed
    # What is printed is what would be run.
    _, _, _, calls = gcloud(*words, describe=["NOT_FOUND", "ACTIVE"])
    done = [_alike(["gcloud", *call]) for call in calls]
    assert [_alike(line) for line in lines] == done[-len(lines) :]


def _alike(line):
    """The bundle is copied from a temporary folder."""
    return [word.rpartition("/")[2] if word.endswith(".tar.gz") else word for word in line]


def test_delete_gives_the_slice_back(gcloud):
    status, out, err, calls = gcloud("delete", "--project=p")
    assert (status, err) == (0, "")
    assert [call[2:] for call in calls] == [
        ["queued-resources", "delete", "job", "--force", "--quiet", "--zone=z-1", "--project=p"]
    ]
    assert out == "+ " + shlex.join(["gcloud", *calls[0]]) + "\n"


@pytest.mark.parametrize("words", [("install", "--poll=0"), ("run", *TRAIN), ("stop",)])
def test_every_worker_is_spoken_to(gcloud, words):
    status, _, _, calls = gcloud(*words, "--internal_ip", describe=["ACTIVE"])
    assert status == 0
    told = [call for call in calls if call[2] == "tpu-vm"]
    assert [call[3] for call in told] == [*["scp"] * (words[0] == "install"), "ssh"]
    for call in told:
        assert call[-3:] == ["--worker=all", "--internal-ip", "--zone=z-1"]


def test_install_copies_what_git_knows(gcloud, tmp_path):
    status, _, _, calls = gcloud("install", "--poll=0", scp=[255, 0])
    assert status == 0
    assert verbs(calls) == ["scp", "scp", "ssh"]  # the first try of a new slice may fail
    assert calls[0][5:] == ["job:cosdiff_jax.tar.gz", "--worker=all", "--zone=z-1"]
    assert calls[2][4:] == [
        "job",
        "--command=mkdir -p cosdiff_jax && tar -xzf cosdiff_jax.tar.gz -C cosdiff_jax "
        "&& bash cosdiff_jax/launch/worker.sh install",
        *("--worker=all", "--zone=z-1"),
    ]
    with tarfile.open(tmp_path / "bin" / "bundle.tar.gz") as tar:
        names = set(tar.getnames())
    assert {"pyproject.toml", "launch/worker.sh", "cosdiff_jax/shapes.py"} <= names
    assert not any(name.startswith((".venv", ".git/", "runs/", "datasets/")) for name in names)


def test_resume_begins_again_after_each_preemption(gcloud):
    status, out, _, calls = gcloud(
        "resume",
        *ASK,
        *TRAIN,
        # found lost, asked for anew, preempted while training, asked for anew, done
        describe=[
            "SUSPENDED",
            "ACTIVE",
            "ACTIVE",
            "SUSPENDING",
            "SUSPENDING",
            "SUSPENDED",
            "ACTIVE",
        ],
        ssh=[0, 255, 0, 0],
    )
    assert status == 0
    assert verbs(calls) == [
        *("describe", "delete", "create", "describe", "scp", "ssh", "ssh"),
        *("describe", "describe", "describe", "describe", "delete", "create"),
        *("describe", "scp", "ssh", "ssh"),
    ]
    assert calls[1][3:] == ["delete", "job", "--force", "--quiet", "--zone=z-1"]
    assert "attempt 1 was cut short: job is SUSPENDING" in out
    trainings = [words for words in calls if any("worker.sh run" in word for word in words)]
    assert len(trainings) == 2
    assert trainings[0] == trainings[1]


def test_resume_ends_when_the_run_itself_fails(gcloud):
    status, _, err, calls = gcloud("resume", *ASK, *TRAIN, describe=["ACTIVE"], ssh=[0, 3])
    assert status == 1
    assert "the run ended with status 3, and job is still ACTIVE" in err
    assert verbs(calls).count("scp") == 1


def test_resume_gives_up_after_its_attempts(gcloud):
    status, _, err, calls = gcloud(
        "resume", *ASK, *TRAIN, "--attempts=2", describe=["NOT_FOUND", "FAILED", "FAILED"]
    )
    assert status == 1
    assert "gave up after 2 attempts" in err
    assert verbs(calls).count("create") == 2


def worker(tmp_path):
    """A worker's home folder, its Python a script that tells its arguments."""
    home = tmp_path / "home"
    (home / "cosdiff_jax" / "launch").mkdir(parents=True)
    script = (ROOT / "launch" / "worker.sh").read_text()
    (home / "cosdiff_jax" / "launch" / "worker.sh").write_text(script)
    python = home / "cosdiff_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/bash\n"
        "trap 'echo saved; exit 0' TERM\n"
        'printf "<%s>" "$@"; echo\n'
        'while [ -e wait ]; do sleep 0.05; done; exit "$(cat code)"\n'
    )
    python.chmod(0o755)
    (home / "cosdiff_jax" / "code").write_text("0")
    return home


def test_arguments_and_status_survive_all_the_shells(gcloud, tmp_path):
    home = worker(tmp_path)
    nasty = ["--config.a=x y", "--config.b=it's", '--config.c="$HOME" `id` \\ * ; & |', "--d=값"]
    words = ["run", *TRAIN, "--", *nasty]
    status, out, _, _ = gcloud(*words, home=str(home), describe=["ACTIVE"])
    assert status == 0
    told = "".join(
        f"<{word}>"
        for word in ["-m", "cosdiff_jax.train", "--distributed", TRAIN[1], TRAIN[0], *nasty]
    )
    assert told in out.splitlines()
    (home / "cosdiff_jax" / "code").write_text("4")
    status, _, err, _ = gcloud(*words, home=str(home), describe=["ACTIVE"])
    assert status == 1
    assert "ended with status 4" in err


@pytest.fixture
def waiting(tmp_path):
    """A worker whose job goes on until it is told to stop, or the test is over."""
    home = worker(tmp_path)
    (home / "cosdiff_jax" / "wait").touch()
    yield home
    (home / "cosdiff_jax" / "wait").unlink()


def test_a_job_outlives_its_connection_and_stops_when_told(waiting):
    line = ["bash", "cosdiff_jax/launch/worker.sh"]
    job = [*line, "run", ".venv/bin/python", "same job"]
    first = subprocess.Popen(job, cwd=waiting, stdout=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stdout.readline() == b"<same job>\n"
    first.kill()  # the connection breaks
    first.wait()
    first.stdout.close()
    other = subprocess.run([*line, "run", "true"], cwd=waiting, capture_output=True, check=False)
    assert other.returncode == 1
    assert b"another job runs here" in other.stderr
    again = subprocess.Popen(job, cwd=waiting, stdout=subprocess.PIPE)
    assert again.stdout is not None
    assert again.stdout.readline() == b"<same job>\n"  # attached: the log from its beginning
    assert subprocess.run([*line, "stop"], cwd=waiting, check=False).returncode == 0
    rest, _ = again.communicate(timeout=60)
    # The job's shell may first tell of the sleep that was ended with it.
    assert rest.endswith(b"saved\n")
    assert again.returncode == 0
    nothing = subprocess.run([*line, "stop"], cwd=waiting, capture_output=True, check=False)
    assert nothing.returncode == 1
