#!/bin/bash
# What launch/tpu.py runs on every worker: install | run COMMAND ... | stop
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# The machines' own Python is too old, so uv brings one; uv and the packages are the locked ones.
install() {
  set -e
  python3 -m pip install --quiet --user --upgrade -c requirements.lock uv
  test -x .venv/bin/python || python3 -m uv venv --quiet --python 3.12 .venv
  python3 -m uv pip install --quiet --python .venv/bin/python -c requirements.lock -e '.[tpu]'
}

# The job outlives the connection: it runs in the background, and this follows its log until it
# ends and passes on how it ended. Called again with the same command it attaches again.
run() {
  mkdir -p run
  if test -f run/pid && kill -0 "$(cat run/pid)" 2>/dev/null; then
    if test "$(cat run/command)" != "$*"; then
      echo "another job runs here; stop it first: $(cat run/command)" >&2
      exit 1
    fi
  else
    rm -f run/status
    : > run/log
    echo "$*" > run/command
    # `trap :` lets the shell outlive the signal with which the job is asked to save and stop.
    setsid nohup bash -c 'trap : TERM INT; "$@" > run/log 2>&1; echo $? > run/status' - "$@" \
      > /dev/null 2>&1 < /dev/null &
    echo $! > run/pid
  fi
  tail -n +1 -f run/log --pid="$(cat run/pid)"
  exit "$(cat run/status 2>/dev/null || echo 1)"
}

stop() {
  if ! test -f run/pid || ! kill -TERM -- -"$(cat run/pid)" 2>/dev/null; then
    echo "no job runs here" >&2
    exit 1
  fi
}

"$@"
