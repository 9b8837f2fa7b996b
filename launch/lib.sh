# Shared by the scripts of this folder: sourced, never run. Works with bash 3.2 (macOS) and newer.
# shellcheck shell=bash

# Every script works from the repository root, wherever it was called from.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# shellcheck disable=SC2034  # used by the scripts that source this file
VENV_PYTHON=.venv/bin/python

# Each argument on a line of its own.
say() { printf '%s\n' "$@"; }

# The lines at the head of the script that was called: for them nothing is installed.
usage() { sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "launch/$(basename "$0")"; }

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

# second_venv <folder> <variable> <modules> <requirements files>: an environment beside .venv, for what users of the
# package do not need. One that the variable names is used as it is. With $dry_run nothing is installed.
second_venv() {
  local venv=$1 variable=$2 modules=$3 flags=() file
  shift 3
  if [ -n "${!variable:-}" ]; then
    "$venv/bin/python" -c "import importlib.util as i; assert all(map(i.find_spec, '$modules'.split()))" 2>/dev/null ||
      die "$variable=$venv is no environment with $modules. Correct it, or unset it."
    return
  fi
  # The stamp is written last: a folder without it is an interrupted install.
  ! cat "$@" | cmp -s - "$venv/cldm_jax.stamp" || return 0
  say "making $venv (needs the network)"
  [ -z "$dry_run" ] || return 0
  bash launch/setup.sh # its interpreter makes the second environment
  rm -rf "$venv"
  "$VENV_PYTHON" -m venv "$venv" || die "python -m venv $venv failed: see above."
  printf '*\n' >"$venv/.gitignore"
  for file in "$@"; do flags+=(-r "$file"); done
  "$venv/bin/python" -m pip install --disable-pip-version-check -q "${flags[@]}" ||
    die "the installation failed: see above. Run the same command to start it again."
  cat "$@" >"$venv/cldm_jax.stamp"
}

has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; }
