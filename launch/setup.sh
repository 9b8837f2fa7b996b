#!/usr/bin/env bash
# Makes .venv in the repository root with the pinned requirements; does nothing where it is right.
#
#   bash launch/setup.sh              install, or say that all is in place
#   bash launch/setup.sh --dry-run    only print what would be used and done
#
#   PYTHON=/path/to/python3.12        which interpreter (default: the newest of 3.13, 3.12, 3.11)
#   CLDM_DEVICE=auto|cpu|cuda12       default auto: cuda12 where `nvidia-smi -L` succeeds, else cpu
#   CLDM_MIN_FREE_GB=2                free disk asked for (default: 2 for cpu, 8 for cuda12)
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

STAMP=.venv/cldm_jax.stamp # written last: a folder without it is an interrupted install
MIN_MINOR=11               # Python 3.11
UV="uv==0.13.9"
NAME_ONE="name one: PYTHON=/path/to/python3.12 bash launch/setup.sh"

# Prints "<version> <yes|no: can make a venv> <path>" of an interpreter; fails if it does not run.
# The path is that of the base interpreter: .venv may be active, and is about to be replaced.
probe() {
  local found
  found=$("$1" -c '
import importlib.util, sys
venv = all(importlib.util.find_spec(name) for name in ("venv", "ensurepip"))
path = getattr(sys, "_base_executable", sys.executable)
sys.stdout.write("%d.%d.%d %s %s" % (sys.version_info[:3] + ("yes" if venv else "no", path)))
' 2>/dev/null) || return 1
  case $found in
    [0-9]*.[0-9]*.[0-9]*" "*" "*) printf '%s\n' "$found" ;;
    *) return 1 ;;
  esac
}

is_new_enough() {
  local minor=${1#*.}
  [ "${1%%.*}" -eq 3 ] && [ "${minor%%.*}" -ge "$MIN_MINOR" ]
}

# Sets PY_VERSION and PY_PATH, or ends with one line. A name on PATH may be a shim that only prints
# an error, so each candidate is run; one that will not do gives way to the next. The Python of an
# environment that is made anew comes first: whoever chose it keeps it.
choose_python() {
  local candidates=("$VENV_PYTHON" python3.13 python3.12 python3.11 python3)
  local candidate found version can_venv path too_old="" no_venv=""
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    found=$(probe "$candidate") || continue
    read -r version can_venv path <<<"$found"
    if ! is_new_enough "$version"; then
      too_old=${too_old:-"$version ($path)"}
    elif [ "$can_venv" = no ]; then
      no_venv=${no_venv:-"$version ($path)"}
    else
      PY_VERSION=$version PY_PATH=$path
      return
    fi
  done
  [ -z "$no_venv" ] || die "Python $no_venv has no venv module." \
    "Install it (Debian, Ubuntu: apt-get install python3-venv), or $NAME_ONE"
  [ -z "$too_old" ] || die "Python $too_old is too old: 3.$MIN_MINOR or newer is needed." \
    "Install one, or $NAME_ONE"
  [ -z "${PYTHON:-}" ] || die "PYTHON=$PYTHON does not run. Correct it, or unset it."
  die "no working Python found: 3.$MIN_MINOR or newer is needed. Install one, or $NAME_ONE"
}

# Sets DEVICE. A CUDA environment also runs where there is no GPU (a cluster's login node shares it
# with the compute nodes), so auto never replaces one by a CPU environment.
choose_device() {
  DEVICE=${CLDM_DEVICE:-auto}
  case $DEVICE in
    cpu | cuda12) ;;
    auto)
      if has_gpu || grep -qs "device=cuda12" "$STAMP"; then DEVICE=cuda12; else DEVICE=cpu; fi
      ;;
    *) die "CLDM_DEVICE=$DEVICE is not known. Set it to auto, cpu or cuda12." ;;
  esac
}

requirements_hash() {
  local tool=(shasum -a 256)
  command -v sha256sum >/dev/null 2>&1 && tool=(sha256sum)
  cat requirements.txt requirements-dev.txt requirements-cuda.txt | "${tool[@]}" | cut -c1-64
}

stamp_text() { # of an environment with Python version $1
  printf 'python=%s device=%s requirements=%s\n' "$1" "$DEVICE" "$(requirements_hash)"
}

# Prints why .venv must be made anew; prints nothing where it is right. An existing one is kept with
# the Python it was made with, unless PYTHON asks for another version.
why_rebuild() {
  local found version
  [ -d .venv ] || { say "there is none yet" && return; }
  found=$(probe "$VENV_PYTHON") || { say "its interpreter does not run" && return; }
  [ -f "$STAMP" ] || { say "its installation was not finished" && return; }
  version=${found%% *}
  if [ -n "${PYTHON:-}" ] && [ "$PY_VERSION" != "$version" ]; then
    say "it has Python $version, PYTHON asks for $PY_VERSION"
  elif [ "$(cat "$STAMP")" != "$(stamp_text "$version")" ]; then
    say "the requirements, the device or the interpreter changed"
  fi
}

check_disk() {
  local need=2 free_kb
  [ "$DEVICE" = cpu ] || need=8
  need=${CLDM_MIN_FREE_GB:-$need}
  free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
  [ "$free_kb" -ge $((need * 1024 * 1024)) ] || die "too little free disk in $PWD:" \
    "$((free_kb / 1024 / 1024)) GB, $need GB needed for $DEVICE. Free some, or clone elsewhere."
}

# uv does not read pip's configuration: hand it over, so that a mirror set there is used.
export_pip_settings() {
  local settings
  settings=$("$VENV_PYTHON" -m pip config list 2>/dev/null) || return 0
  pip_setting() { # the value of $1: an environment variable (listed first) wins over a file
    sed -n "s/^[^=]*\.$1='\(.*\)'\$/\1/p" <<<"$settings" | head -n 1 | sed 's/\\n/ /g'
  }
  handover() { # pip's $1 becomes uv's $2, unless that is set already
    local value
    value=$(pip_setting "$1")
    [ "$1" != find-links ] || value=${value// /,} # pip separates by spaces, uv here by commas
    [ -z "$value" ] || [ -n "${!2:-}" ] || export "$2=$value"
  }
  handover index-url UV_DEFAULT_INDEX
  handover extra-index-url UV_INDEX
  handover find-links UV_FIND_LINKS
  handover no-index UV_NO_INDEX
  handover trusted-host UV_INSECURE_HOST
  handover cert SSL_CERT_FILE
  handover proxy ALL_PROXY
  export UV_INDEX_STRATEGY=${UV_INDEX_STRATEGY:-unsafe-best-match} # pip's rule: best of all indexes
}

install() {
  local files=(-r requirements-dev.txt)
  [ "$DEVICE" = cpu ] || files+=(-r requirements-cuda.txt)
  export PIP_DISABLE_PIP_VERSION_CHECK=1
  rm -rf .venv
  "$PY_PATH" -m venv .venv || die "$PY_PATH -m venv .venv failed: see above."
  if "$VENV_PYTHON" -m pip install -q "$UV"; then
    if (
      export_pip_settings
      # Compiled as pip does: else the first start of each command is seconds slower, and every start
      # where PYTHONDONTWRITEBYTECODE is set, as in many containers.
      "$VENV_PYTHON" -m uv pip install --compile-bytecode --python "$VENV_PYTHON" "${files[@]}"
    ); then
      return
    fi
    say "setup: uv could not install the requirements; trying pip"
  else
    say "setup: uv could not be installed; going on with pip (slower)"
  fi
  "$VENV_PYTHON" -m pip install "${files[@]}" ||
    die "the installation failed: see above. Run the same command to start it again."
}

main() {
  local dry_run="" reason
  case ${1:-} in
    "") ;;
    --dry-run) dry_run=yes ;;
    *) die "unknown argument $1. Known: --dry-run. Settings are environment variables." ;;
  esac
  # Two scripts started at once must not install over each other; the second one waits here.
  if [ -z "$dry_run" ] && command -v flock >/dev/null 2>&1; then
    exec 9<launch
    flock 9 || true # not every network disk can lock
  fi
  choose_device
  [ -z "${PYTHON:-}" ] || choose_python
  reason=$(why_rebuild)
  if [ -z "$reason" ]; then
    say "setup: .venv is in place ($(cut -d' ' -f1,2 "$STAMP"))"
    return
  fi
  [ -n "${PY_PATH:-}" ] || choose_python
  say "setup: making .venv ($reason) with Python $PY_VERSION ($PY_PATH) for $DEVICE"
  check_disk
  [ -z "$dry_run" ] || return 0
  install
  stamp_text "$PY_VERSION" >"$STAMP"
  say "setup: done in $(clock $SECONDS)"
}

main "$@"
