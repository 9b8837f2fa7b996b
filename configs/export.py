"""Export: a training's weights as a folder to hand on, which `predict` and `evaluate` take like a run.

    .venv/bin/python -m cldm_jax.main --config=configs/export.py --config.run=runs/quickstart/ldm \\
        --workdir=model
    .venv/bin/python -m cldm_jax.predict -i pet.nii.gz -o out --checkpoint model

Writes model.safetensors, model.json (the card: read it first) and metrics.jsonl (validation scores);
with --config.stablehlo="('onestep',)" read-outs as portable programs too (pip install flatbuffers). A
preset changes nothing. Time: 3 to 4 s for a model of preset quick on 2 CPU cores, a program included.

--config.format=monai writes the networks of a run with architecture monai as MONAI loads them:
autoencoder.safetensors, unet.safetensors and monai.json.
"""

from configs import common


def get_config(preset: str = "a6000"):
    c = common.base("export", "export", preset)
    c.run = ""  # workdir of a training, or an exported folder
    c.format = "cldm_jax"  # cldm_jax | monai (state dicts under MONAI's names)
    c.dtype = "float32"  # float32 (predictions keep every bit) | float16 (half the size)
    c.stablehlo = ()  # read-outs to write as StableHLO programs for CPU and CUDA: onestep, sample, ...
    c.batch_size = 0  # slices the programs take at once; 0 = any number
    c.overwrite = False  # replace a model that the workdir holds already
    return c
