#!/usr/bin/env bash
# Faults injected into every promise this package makes, and what survived them: kills, damage,
# full disks, NaN, bad volumes, names that lead elsewhere. Linux, CPU. 38 minutes on 2 cores
# with other work beside it.
#
#   bash launch/faults.sh                    all promises; into runs/faults/summary.json
#   bash launch/faults.sh --quick            low counts, minutes
#   bash launch/faults.sh --only 1,3 --out DIR
#
# Exit status 1 where a promise fell short. A few faults need the right to mount a small disk; without it
# they are left out, and the summary says so.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case " $* " in
  *" --help "* | *" -h "*) usage && exit ;;
esac
bash launch/setup.sh
export JAX_PLATFORMS=cpu
"$VENV_PYTHON" -m faults "$@"
