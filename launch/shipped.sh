#!/usr/bin/env bash
# The model that comes along, made again: virtual people of label volumes with randomised tissues and
# scanners, the autoencoder, the latent diffusion model, the export. Hours on 2 CPU cores.
#
#   bash launch/shipped.sh LABELS     LABELS: folder of */label.nii.gz, docs/phantom.md; into runs/shipped
#
# Interrupted, the same command goes on where it was. The export replaces cldm_jax/weights/heads.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ $# -eq 1 ] && [ -d "$1" ] || die "usage: bash launch/shipped.sh LABELS"
runs=runs/shipped
out=cldm_jax/weights/heads

# job <config> <workdir> <flags...>
job() {
  local config=$1 workdir=$2
  shift 2
  "$VENV_PYTHON" -m cldm_jax.main "--config=configs/$config.py:cpu" "--workdir=$workdir" "$@" ||
    ended $? ""
}

bash launch/setup.sh
has_gpu || export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

job randomised "$runs/cohort" "--config.labels=$1" --config.variants_per_head=96 --config.seed=11
# White matter of the canonical MR at .24 of [-1, 1], fat cut off; a head for validation, one for tests.
job prepare "$runs/prepared" "--config.cohort=$runs/cohort" \
  --config.mr_rule=train_percentile --config.mr_high=0.72 --config.split_fractions='(0.85,0.08,0.07)' \
  --config.train_min_head_fraction=0.0  # whole heads are asked for: it must know where they end
job ae "$runs/ae" "--config.data.prepared=$runs/prepared" --config.recipe.model.base_channels=24
job ldm "$runs/ldm" "--config.data.prepared=$runs/prepared" "--config.autoencoder.workdir=$runs/ae" \
  --config.data.context=5 --config.recipe.model.unet.base_channels=24 \
  --config.recipe.diffusion.young_at=0.0 --config.recipe.sampling.autoguidance_scale=1.0 \
  --config.recipe.sampling.jump_from=0.0 \
  --config.train.num_train_steps=36000 --config.recipe.optim.ema_decay=0.999 \
  --config.train.val_every=36000 --config.train.log_every=200  # the last step is the one exported
job calibrate "$runs/ldm" "--config.run=$runs/ldm" --config.people=20
job export "$out" "--config.run=$runs/ldm" --config.dtype=float16 --config.steps=3 \
  --config.overwrite=True
say "" "Finished in $(clock $SECONDS): $out"
