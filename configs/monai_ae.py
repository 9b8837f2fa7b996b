"""MONAI's 2-D AutoencoderKL: import its weights, fine-tune them, or train it here (docs/publishing.md).

    .venv/bin/python -m cldm_jax.main --config=configs/monai_ae.py:quick --config.init.weights=ae.pt

fine-tunes them; with --config.train.num_train_steps=0 they are imported only. `recipe.model` must be the
network that was trained: names are MONAI's constructor keywords. Times and scores: not measured.
"""

import ml_collections

from configs import ae, common


def get_config(preset: str = "a6000"):
    c = ae.get_config(preset)
    c.name = "monai_ae"
    c.recipe.patch_skip = False  # MONAI's network has no linear skip
    channels = common.pick(
        preset, tiny=(4, 8), cpu=(32, 64), cpu1mm=(16, 32, 64), a6000=(64, 128, 256)
    )
    blocks = common.pick(preset, cpu=1, a6000=2)
    nonlocal_attn = common.pick(preset, cpu=False, a6000=True)
    c.recipe.model = ml_collections.ConfigDict(
        {
            "architecture": "monai",
            "channels": channels,  # factor = 2^(levels - 1)
            "latent_channels": common.pick(preset, cpu=3, cpu1mm=10, a6000=10),
            "num_res_blocks": (blocks,) * len(channels),  # of each level
            "attention_levels": (False,) * len(channels),
            "norm_num_groups": common.pick(preset, tiny=4, cpu=16, a6000=32),
            "with_encoder_nonlocal_attn": nonlocal_attn,
            "with_decoder_nonlocal_attn": nonlocal_attn,
            "num_classes": ae.NUM_CLASSES,  # modalities' codes; the network itself ignores them
            "attention": "xla",  # | cudnn: fused, bfloat16 on NVIDIA GPUs
            "remat": False,
            "dtype": c.recipe.model.dtype,
        }
    )
    return c
