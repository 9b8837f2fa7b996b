"""MONAI's 2-D DiffusionModelUNet on latents of configs/monai_ae.py: import, fine-tune, or train it here.

    .venv/bin/python -m cldm_jax.main --config=configs/monai_ldm.py:quick --config.init.weights=unet.pt

with --config.autoencoder.workdir=DIR and --config.autoencoder.scale_factor=FACTOR of that training.
Noise, target and scaling are those of MONAI's tutorials (scaled linear betas from 0.0015 to 0.0195, eps),
the condition is the PET's latent, concatenated; the one-step read-out needs zero terminal SNR and is off.
`recipe.model` must be the network that was trained. Times and scores: not measured.
"""

import ml_collections

from configs import ae, common, ldm, monai_ae


def get_config(preset: str = "a6000"):
    c = ldm.plain(preset)
    c.name = "monai_ldm"
    c.autoencoder.workdir = f"runs/monai_ae-{preset}"
    c.autoencoder.train = monai_ae.get_config(preset)
    c.recipe.diffusion.schedule, c.recipe.diffusion.target = "scaled_linear_plain", "eps"
    channels = common.pick(preset, tiny=(8, 16), cpu=(32, 64, 128), a6000=(128, 256, 512))
    blocks = common.pick(preset, cpu=1, a6000=2)
    c.recipe.model = ml_collections.ConfigDict(
        {
            "architecture": "monai",
            "channels": channels,
            "num_res_blocks": (blocks,) * len(channels),  # of each level
            "attention_levels": (False,) * (len(channels) - 1) + (True,),
            "norm_num_groups": common.pick(preset, tiny=4, a6000=32),
            "num_head_channels": (channels[-1] // 2,) * len(channels),  # where there is attention
            "num_class_embeds": ae.NUM_CLASSES,  # 0 = MONAI's None: one target, its class is ignored
            "attention": "xla",  # | cudnn: fused, bfloat16 on NVIDIA GPUs
            "remat": False,
            "dtype": c.recipe.model.unet.dtype,
        }
    )
    return c
