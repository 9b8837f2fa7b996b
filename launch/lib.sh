# Shared by the scripts of this folder: sourced, never run. Works with bash 3.2 (macOS) and newer.
# shellcheck shell=bash

# Every script works from the repository root, wherever it was called from.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# shellcheck disable=SC2034  # used by the scripts that source this file
VENV_PYTHON=.venv/bin/python

# Each argument on a line of its own.
say() { printf '%s\n' "$@"; }

# One line on stderr, exit 1.
die() {
  printf '%s: %s\n' "launch/$(basename "$0")" "$*" >&2
  exit 1
}

# After a job that ended with status $1, in the step named $2. A refusal (2) has said what to do, and
# would be said again.
ended() {
  [ "$1" -ne 2 ] || exit 2
  die "$2ended early. The same command goes on from there."
}

# Seconds -> 1:02:03 or 2:03.
clock() {
  if [ "$1" -ge 3600 ]; then
    printf '%d:%02d:%02d' $(($1 / 3600)) $(($1 % 3600 / 60)) $(($1 % 60))
  else
    printf '%d:%02d' $(($1 / 60)) $(($1 % 60))
  fi
}

has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; }
