#!/usr/bin/env bash
# This project against PyTorch and MONAI on this machine: training steps, sampling, reading, a volume.
# PyTorch lives in an environment of its own, .venv-benchmark (about 6 GB; pip's settings are heeded,
# so an index of CPU-only wheels makes it smaller). Linux only.
#
#   bash launch/benchmark.sh                     everything, hours; into runs/benchmark
#   bash launch/benchmark.sh --quick             a subset with few samples, about 12 minutes
#   bash launch/benchmark.sh --only ddim_b8,ae_decode_b8 --threads 2 --out DIR
#   bash launch/benchmark.sh --dry-run [...]     only print what would be done
#   --only takes rows: ldm_train_b8 ae_train_b8 ddim_b8 ddim_b1 ae_encode_b8 ae_decode_b8 volume_150.
#   --fresh measures again; --rounds N and --volume-minutes M set the effort. The same command goes on
#   with what is there.
#
#   CLDM_BENCHMARK_VENV=DIR   an environment that has both sides already: nothing is installed
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VENV=${CLDM_BENCHMARK_VENV:-.venv-benchmark}
STAMP=$VENV/cldm_jax.stamp # written last: a folder without it is an interrupted install
FILES=(requirements.txt benchmarks/requirements.txt)

is_in_place() { [ -f "$STAMP" ] && cat "${FILES[@]}" | cmp -s - "$STAMP"; }

# An environment that was named is used as it is; it must have both sides.
check_named() {
  [ -x "$VENV/bin/python" ] || die "CLDM_BENCHMARK_VENV=$VENV has no bin/python. Correct it, or unset it."
  "$VENV/bin/python" -c '
import importlib.util, sys
sys.exit(not all(importlib.util.find_spec(name) for name in ("jax", "flax", "torch", "monai")))
' || die "$VENV lacks jax, flax, torch or monai. Install benchmarks/requirements.txt, or unset it."
}

install() {
  local flags=()
  for file in "${FILES[@]}"; do flags+=(-r "$file"); done
  bash launch/setup.sh # its interpreter makes the second environment
  say "benchmark: making $VENV (PyTorch and MONAI; several GB to download)"
  rm -rf "$VENV"
  "$VENV_PYTHON" -m venv "$VENV" || die "python -m venv $VENV failed: see above."
  printf '*\n' >"$VENV/.gitignore"
  "$VENV/bin/python" -m pip install --disable-pip-version-check -q "${flags[@]}" ||
    die "the installation failed: see above. Run the same command to start it again."
  cat "${FILES[@]}" >"$STAMP"
}

main() {
  local dry_run="" flags=() flag
  for flag in "$@"; do
    case $flag in
      --dry-run) dry_run=yes ;;
      --help | -h) # the first lines of this file: nothing is installed for them
        sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
        return
        ;;
      *) flags+=("$flag") ;;
    esac
  done
  if [ -n "${CLDM_BENCHMARK_VENV:-}" ]; then
    check_named
  elif ! is_in_place; then
    if [ -n "$dry_run" ]; then say "benchmark: would make $VENV"; else install; fi
  fi
  if [ -n "$dry_run" ]; then
    say "benchmark: would run $VENV/bin/python -m benchmarks.run${flags[*]+ ${flags[*]}}"
    return
  fi
  "$VENV/bin/python" -m benchmarks.run ${flags[@]+"${flags[@]}"}
}

main "$@"
