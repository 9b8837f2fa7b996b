"""Prediction: one PET (NIfTI, DICOM) or a BIDS dataset of them to CT and MR volumes on its own grid.

    .venv/bin/python -m cldm_jax.main --config=configs/predict.py --config.input=pet.nii.gz \
        --config.checkpoint=runs/quickstart/ldm --workdir=out

The same as
`.venv/bin/python -m cldm_jax.predict -i pet.nii.gz -o out --checkpoint runs/quickstart/ldm`, whose
--help says what every field means. Presets change nothing. Time: docs/predict.md.
"""

from configs import common


def get_config(preset: str = "a6000"):
    c = common.base("predict", "predict", preset)
    c.input = ""  # NIfTI file, DICOM folder or zip, BIDS dataset
    # workdir of a training, or an exported folder; "" = the model that is shipped
    c.checkpoint = ""
    c.targets = ()  # () = all that the model makes
    c.mode = ""  # onestep, mirror, sample, mean, recentred, predict; "" = mirror where there is one
    c.samples = 0  # K of mean, recentred and the uncertainty; 0 = as calibrated, else 4
    c.sharpness = 1.0  # of recentred: 0 is the point image, 1 as sharp as one sample
    c.steps = 0  # DDIM steps; 0 = the model's own
    c.uncertainty = False
    c.batch_size = 0  # slices; 0 = by the device
    c.report = False
    c.overwrite = False
    c.series = ""  # number of the DICOM series, where a folder holds several
    c.part = ""  # "3/10": of several images every tenth, from the third on (a task of a job array)
    return c
