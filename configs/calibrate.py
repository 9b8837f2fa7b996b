"""Calibrate: an honest spread for a CLDM's samples, measured on its validation people.

    .venv/bin/python -m cldm_jax.main --config=configs/calibrate.py:quick --config.run=runs/quickstart/ldm

Trainings do this at their end; this does it again, or for a run of before. Writes calibration.json into
the run's folder, where predict --uncertainty, evaluate and export find it.
"""

from configs import common


def get_config(preset: str = "a6000"):
    c = common.base("calibrate", "calibrate", preset)
    c.run = ""  # workdir of a training
    c.data = common.data(preset)
    train = common.train(preset)
    c.samples = max(2, train.calibrate_samples)  # K of each slice
    c.slice_stride = train.calibrate_slice_stride  # every n-th slice of a person
    c.steps = train.calibrate_steps  # of DDIM; 0: those of the run's own samples
    c.people = train.calibrate_people  # validation people, at most
    c.batch_size = train.batch_size  # slices
    return c
