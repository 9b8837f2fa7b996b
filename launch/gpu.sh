#!/usr/bin/env bash
# One NVIDIA GPU for some minutes: results checked against the CPU's, steps raced against PyTorch and MONAI on
# the same card, the comparison at 1 mm trained with about equal device seconds, memory of the a6000 presets.
# Ends in its time whatever happens. What a GPU has told so far: docs/performance.md.
#
#   bash launch/gpu.sh                              15 minutes, everything; into runs/gpu
#   bash launch/gpu.sh --minutes 6.5 --parts check,race --out DIR
#   --parts a,b     some of: check race train memory
#   --out DIR       results.json, the log, curves and exported models
#   --labels DIR    label volumes (DIR/*/label.nii.gz) that heads are simulated from; without: the phantom
#   --heads DIR     people that `python -m benchmarks.gpu.heads` simulates or has simulated there, in another process
#   --wheels DIR    packages that the interpreter lacks, from `bash launch/gpu_wheels.sh DIR`: no network needed
#   --rehearse      the same code at preset tiny on the CPU
#
#   PYTHON=python3  an interpreter that holds JAX for CUDA 12 or 13 already (PyTorch and MONAI too, to race):
#                   used as it is, with --wheels for the rest. Without, .venv (launch/setup.sh).
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

for flag in "$@"; do
  case $flag in
    --help | -h) usage && exit ;;
    --rehearse) rehearse=yes ;;
  esac
done
[ -n "${rehearse:-}" ] || has_gpu || die "no NVIDIA GPU was found (nvidia-smi -L). --rehearse does without."
if [ -n "${PYTHON:-}" ]; then
  "$PYTHON" -c 'import jax' || die "PYTHON=$PYTHON cannot import jax. Correct it, or unset it."
else
  bash launch/setup.sh
  PYTHON=$VENV_PYTHON
fi
exec "$PYTHON" -m benchmarks.gpu.run "$@"
