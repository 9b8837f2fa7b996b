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
dry_run="" flags=()
for flag in "$@"; do
  case $flag in
    --dry-run) dry_run=yes ;;
    --help | -h) usage && exit ;;
    *) flags+=("$flag") ;;
  esac
done
second_venv "$VENV" CLDM_BENCHMARK_VENV "jax flax torch monai" requirements.txt benchmarks/requirements.txt
if [ -n "$dry_run" ]; then
  say "benchmark: would run $VENV/bin/python -m benchmarks.run${flags[*]+ ${flags[*]}}"
else
  "$VENV/bin/python" -m benchmarks.run ${flags[@]+"${flags[@]}"}
fi
