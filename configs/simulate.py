"""Simulated cohort of PET, CT and T1w MR volumes (NIfTI) with truth.

Command:  .venv/bin/python -m cldm_jax.main --config=configs/simulate.py:quick --workdir=runs/cohort
          .venv/bin/python -m cldm_jax.main --config=configs/simulate.py:cpu --workdir=runs/heads \
              --config.labels=LABELS --config.variants_per_head=8
Hardware: CPU only.
Time:     CPU seconds per person: tiny 0.3, quick 1, cpu 2, a6000 and multi 12 (measured on a shared
          two-core machine, table in docs/phantom.md; whole a6000 and multi cohorts: not measured).
"""

import ml_collections

# What a preset changes; everything else is in get_config.
PRESETS = {
    "tiny": dict(n_subjects=8, shape=(32, 40, 6), spacing_mm=(6.0, 6.0, 8.0), workers=0),
    "quick": dict(n_subjects=40, shape=(96, 112, 24), spacing_mm=(2.0, 2.0, 4.0), workers=2),
    "cpu": dict(n_subjects=60, shape=(96, 112, 48), spacing_mm=(2.0, 2.0, 2.0), workers=2),
    "cpu1mm": dict(n_subjects=60, shape=(192, 224, 48), spacing_mm=(1.0, 1.0, 2.0), workers=2),
    "a6000": dict(n_subjects=200, shape=(256, 256, 120), spacing_mm=(1.0, 1.0, 1.2), workers=8),
    "multi": dict(n_subjects=200, shape=(256, 256, 120), spacing_mm=(1.0, 1.0, 1.2), workers=16),
}


def get_config(preset: str = "a6000") -> ml_collections.ConfigDict:
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
    config = ml_collections.ConfigDict()
    config.job = "simulate"
    config.preset = preset
    config.name = "phantom"  # of the cohort, in its manifest
    config.seed = 0
    config.mode = (
        "paired3"  # paired3 | abstract (CT or MR) | easy (no noise, healthy) | adversarial
    )
    config.labels = ""  # folder of */label.nii.gz (BrainWeb codes); "" = the embedded head
    config.variants_per_head = 8  # virtual people per label volume; they share a group
    config.vary_first = True  # False: variant 0 keeps the label volume's own pose and shape
    config.n_subjects = 40  # people with the embedded head; ignored with labels
    config.shape = (96, 112, 24)  # voxels x, y, z; ignored with labels (their whole field of view)
    config.spacing_mm = (2.0, 2.0, 4.0)  # x, y, z
    config.pet_model = "fast"  # fast (blur + noise law) | osem (counts and reconstruction, slow)
    config.reacquire = (
        True  # a second CT and MR of the same person: the noise ceiling of the scores
    )
    config.workers = 2  # processes; 0 = none; changes no voxel
    config.update(PRESETS[preset])
    config.lock()
    return config
