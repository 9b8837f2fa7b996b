"""Export: a training's weights as a folder to hand on, which `predict` and `evaluate` take like a run.

    .venv/bin/python -m cldm_jax.main --config=configs/export.py --config.run=runs/quickstart/ldm \\
        --workdir=model
    .venv/bin/python -m cldm_jax.predict -i pet.nii.gz -o out --checkpoint model

Writes model.safetensors, model.json (the card: read it first) and metrics.jsonl (validation scores). A
preset changes nothing. Time: below 4 s for a model of preset quick on 2 CPU cores.

--config.format=monai writes the networks of a run with architecture monai as MONAI loads them:
autoencoder.safetensors, unet.safetensors and monai.json.
"""

from configs import common


def get_config(preset: str = "a6000"):
    c = common.base("export", "export", preset)
    c.run = ""  # workdir of a training, or an exported folder
    c.format = "cldm_jax"  # cldm_jax | monai (state dicts under MONAI's names)
    c.dtype = "float32"  # float32 (predictions keep every bit) | float16 (half the size)
    c.steps = 0  # DDIM steps of a sample, fewer: smoother; 0: the training's own
    c.overwrite = False  # replace a model that the workdir holds already
    return c
