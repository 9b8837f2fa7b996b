"""Prediction: one PET volume (NIfTI) to CT and MR volumes on its own grid.

    python -m cldm_jax.main --config=configs/predict.py --config.input=pet.nii.gz \
        --config.run=runs/quickstart/ldm --workdir=out

Preset names change the batch only. Time: README, "What to expect".
"""

from configs import common, ldm


def get_config(preset: str = "a6000"):
    c = common.base("predict", "predict", preset)
    c.input = ""  # PET, NIfTI
    c.run = ""  # workdir of a training
    c.targets = ("ct", "mr")
    c.mode = ""  # "" = the run's first read-out (onestep); sample, mean4, ...
    c.batch_size = common.pick(preset, tiny=8, quick=16, cpu=16, a6000=64)
    c.replace_sampling = False  # use `sampling` below instead of the run's own
    c.sampling = ldm.sampling(preset)
    return c
