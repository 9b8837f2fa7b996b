#!/usr/bin/env bash
# What more devices, more processes and more slices change: order, noise, losses, checkpoints, kills, read-outs
# over simulated devices and real processes of this machine, and a dataset of a million slices. CPU.
#
#   bash launch/scale_check.sh                    into runs/scale/scale.json
#   bash launch/scale_check.sh --only million     one check; --out DIR; --help lists them
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

bash launch/setup.sh
"$VENV_PYTHON" -m benchmarks.scale "$@"
