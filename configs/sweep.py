"""Sampling of a trained CLDM: error and sharpness over K and steps, calibration, flicker of a volume.

    .venv/bin/python -m cldm_jax.main --config=configs/sweep.py:quick --config.run=runs/ldm-quick

Writes <workdir>/sweep.json and a figure per target. Hardware: that of the training; time: not measured.
"""

from configs import common
from configs import eval as evaluation


def get_config(preset: str = "a6000"):
    c = evaluation.get_config(preset)
    c.job, c.name = "sweep", "sweep"
    c.run = f"runs/ldm-{preset}"
    c.num_sampling_steps = common.pick(
        preset, tiny=(2, 4), quick=(2, 5, 25), cpu=(2, 5, 25, 50), a6000=(2, 5, 25, 50)
    )
    c.num_samples = common.pick(preset, tiny=2, a6000=4)  # draws at each of them
    c.main_steps = common.pick(preset, tiny=3, quick=10, cpu=10, a6000=10)
    c.main_samples = common.pick(preset, tiny=4, quick=8, cpu=16, a6000=32)  # draws here
    # SD in slices of the noise's filter through plane, for one person's whole volume
    c.noise_slices = common.pick(preset, tiny=(0.0, 2.0), a6000=(0.0, 1.0, 1.5, 2.0))
    c.slice_stride = common.pick(preset, tiny=2, quick=8, cpu=30, a6000=20)
    c.slice_run = 1
    c.people_per_group = 1
    return c
