#!/usr/bin/env bash
# The whole study in small, with no data and no network: a simulated cohort, the autoencoder, the
# latent diffusion model, the U-Net it is compared with, and a report. Running it again reuses what
# is done and resumes what is not.
#
#   bash launch/quickstart.sh         preset quick, into runs/quickstart
#   bash launch/quickstart.sh tiny    another preset, into runs/quickstart-tiny
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1:-} in
  -* | */* | *[[:space:]]*) die "usage: bash launch/quickstart.sh [preset]" ;;
esac
[ $# -le 1 ] || die "usage: bash launch/quickstart.sh [preset]"
preset=${1:-quick}
runs=runs/quickstart
[ "$preset" = quick ] || runs=runs/quickstart-$preset

# step <number> <headline> <config> <flags...>
step() {
  local number=$1 headline=$2 config=$3 started=$SECONDS
  shift 3
  say "" "[$number/4] $headline (at $(clock $SECONDS))"
  "$VENV_PYTHON" -m cldm_jax.main --config="configs/$config.py:$preset" "$@" ||
    ended $? "step $number of 4 "
  say "[$number/4] done in $(clock $((SECONDS - started)))"
}

bash launch/setup.sh
# A CUDA environment on a machine without a GPU works, but complains at length.
has_gpu || export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

step 1 "simulated cohort, then the autoencoder" ae "--workdir=$runs/ae"
step 2 "latent diffusion model" ldm "--workdir=$runs/ldm" "--config.autoencoder.workdir=$runs/ae"
step 3 "U-Net, the baseline" unet "--workdir=$runs/unet"
step 4 "evaluation on the test subjects" eval \
  "--workdir=$runs/report" "--config.runs=$runs/unet,$runs/ldm"

say "" "Finished in $(clock $SECONDS). Report: $PWD/$runs/report/index.html"
