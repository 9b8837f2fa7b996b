#!/usr/bin/env bash
# Wheels for launch/gpu.sh --wheels, about 10 MiB, fetched on a machine with a network: what an image with JAX and
# PyTorch for Python 3.12 on Linux (x86-64) may lack. What the image has is never replaced.
#
#   bash launch/gpu_wheels.sh DIR
#   PYTHON=python3   whose pip fetches them (default: the one of .venv)
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1:-} in
  --help | -h | "") usage && exit ;;
esac
PYTHON=${PYTHON:-$VENV_PYTHON}
"$PYTHON" -m pip --version >/dev/null 2>&1 || die "$PYTHON has no pip. Name one that has: PYTHON=python3"
exec "$PYTHON" -m benchmarks.gpu.wheels "$1"
