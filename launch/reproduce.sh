#!/usr/bin/env bash
# The paper's comparison: every method trained with the same CPU time on the same people, one report.
#
#   bash launch/reproduce.sh --preset quick          simulated people; into runs/reproduce-quick
#   bash launch/reproduce.sh --preset cpu1mm --labels DIR --folds 3     virtual people from label volumes
#   bash launch/reproduce.sh --preset cpu --bids DIR       your own people (or --manifest CSV)
#   --methods unet,ldm   some of: unet unet-1slice attention_unet cyclegan-ct cyclegan-mr pix2pix
#                        unet-cells latent_regression energy-cells gaussian-cells ldm ldm-plain
#                        sdedit bridge (quick: all but the last three)
#   --seeds N            trainings of the U-Net and of the CLDM
#   --folds K            cross-validation: everyone is tested once; --fold k: this one only
#   --budget-minutes M   process CPU minutes of each training
#   --name NAME          runs/NAME
#
# Interrupted, the same command goes on where it was.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

main() {
  local preset=quick name="" flags=()
  while [ $# -gt 0 ]; do
    case $1 in
      --help | -h) usage && return ;;
      --preset | --name | --labels | --bids | --manifest | --methods | --seeds | --budget-minutes | --folds | --fold)
        [ $# -ge 2 ] || die "$1 needs a value. See --help."
        ;;
      *) die "unknown argument $1. See --help." ;;
    esac
    case $1 in
      --preset) preset=$2 ;;
      --name) name=$2 ;;
      --labels) flags+=("--config.simulate.labels=$2" "--config.simulate.name=labels") ;;
      --bids | --manifest) flags+=("--config.cohort=$2") ;;
      --methods) flags+=("--config.methods=$2") ;;
      --seeds) flags+=("--config.seeds=$2") ;;
      --folds) flags+=("--config.folds=$2") ;;
      --fold) flags+=("--config.fold=$2") ;;
      --budget-minutes) flags+=("--config.budget_minutes=$2") ;;
    esac
    shift 2
  done
  bash launch/setup.sh
  has_gpu || export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
  "$VENV_PYTHON" -m cldm_jax.main "--config=configs/reproduce.py:$preset" \
    "--workdir=runs/${name:-reproduce-$preset}" ${flags[@]+"${flags[@]}"} ||
    ended $? ""
}

main "$@"
