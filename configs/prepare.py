"""A cohort (folder or manifest .csv) into audited, split, normalised slices on one grid.

    .venv/bin/python -m cldm_jax.main --config=configs/prepare.py:cpu --config.cohort=COHORT \\
        --workdir=PREPARED

Hardware: CPU only; `workers` processes.
Time:     one process: tiny under 1 s, quick 0.2-0.4 s and cpu 1 s a person; a6000, multi: not
          measured.
"""

import ml_collections
from ml_collections import config_dict

from configs import common

# What a preset changes; everything else is in get_config. size: rows, columns. spacing_mm: row,
# column. slice_spacing_mm None: slices as scanned.
PRESETS = {
    "tiny": dict(size=(40, 32), spacing_mm=(6.0, 6.0), slice_spacing_mm=None, workers=0),
    "quick": dict(size=(112, 96), spacing_mm=(2.0, 2.0), slice_spacing_mm=None, workers=0),
    "cpu": dict(size=(112, 96), spacing_mm=(2.0, 2.0), slice_spacing_mm=2.0, workers=2),
    "cpu1mm": dict(size=(224, 192), spacing_mm=(1.0, 1.0), slice_spacing_mm=2.0, workers=2),
    "a6000": dict(size=(256, 256), spacing_mm=(1.0, 1.0), slice_spacing_mm=None, workers=8),
    "multi": dict(size=(256, 256), spacing_mm=(1.0, 1.0), slice_spacing_mm=None, workers=16),
}


def get_config(preset: str = "a6000") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.job = "prepare"
    config.preset = preset
    config.cohort = ""  # folder (BIDS, or with manifest.csv) or a manifest .csv
    config.size = (256, 256)  # voxels: rows, columns
    config.spacing_mm = (1.0, 1.0)  # row, column
    config.slice_spacing_mm = config_dict.placeholder(float)  # mm; None = as scanned
    config.center = "pet"  # in-plane centre: pet (centre of PET intensity) | fov
    config.min_head_fraction = 0.08  # of a slice's area; slices with less head are not scored
    # the same for training: with 0 a model also learns where the head ends, above the vertex
    config.train_min_head_fraction = 0.08
    # default | fold (cross-validation) | abstract (50 train, the rest val AND test) | manifest |
    # external (all test)
    config.split_mode = "default"
    config.split_fractions = (0.7, 0.1, 0.2)  # of people (groups): train, val, test
    config.split_seed = 0
    config.fold = (0, 1)  # split_mode fold: number of this fold, number of folds
    config.abstract_train_groups = 50  # split_mode abstract only
    # Intensities, docs/data.md. volume_minmax_oracle is the abstract's min-max: it needs the unseen
    # target's range to be inverted, and labels everything made from it "abstract-oracle".
    config.pet_rule = "volume_percentile"  # | train_percentile | volume_minmax_oracle
    config.pet_percentile = 99.0  # of the foreground
    config.pet_high = 1.5  # times the percentile; brighter is clipped
    config.ct_rule = "window"  # | volume_minmax_oracle
    config.ct_window = (-1024.0, 3071.0)  # HU
    config.mr_rule = "volume_percentile"  # | train_percentile | volume_minmax_oracle
    config.mr_percentile = 99.5
    config.mr_high = 1.0
    # Prepared folder, run or exported model whose constants to use, with split_mode external: a test set
    # from elsewhere.
    config.normalisers_from = ""
    config.allow_misaligned = False  # True: resample CT and MR to the PET through the affines
    # "" refuses targets that are not on the PET's voxels | rigid registers every target to its PET
    config.register = ""
    config.mi_threshold = 0.05  # normalised mutual information of PET and target, at least
    config.shard_items = 2048  # slices per shard file; one shard per modality is held in memory
    config.workers = 2  # processes; 0 = none; changes no number
    config.update(common.pick(preset, **PRESETS))
    config.lock()
    return config
