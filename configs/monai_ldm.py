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
    c = ldm.get_config(preset)
    c.name = "monai_ldm"
    c.autoencoder.workdir = f"runs/monai_ae-{preset}"
    c.autoencoder.train = monai_ae.get_config(preset)
    c.data.source_kind = "latent"
    c.data.context = 1
    c.recipe.diffusion.source_encoding = "latent"
    c.recipe.diffusion.schedule = "scaled_linear_plain"
    c.recipe.diffusion.target, c.recipe.diffusion.gaussian_denoiser = "eps", False
    c.recipe.diffusion.onestep_share = (0.0, 0.0)
    c.recipe.diffusion.noisy_weight_power = c.recipe.diffusion.noise_weight_power = 0.0
    c.recipe.diffusion.young_at, c.recipe.sampling.autoguidance_scale = 0.0, 1.0
    c.recipe.sampling.jump_from = 0.0
    channels = common.pick(
        preset, tiny=(8, 16), quick=(32, 64, 128), cpu=(32, 64, 128), a6000=(128, 256, 512)
    )
    blocks = common.pick(preset, tiny=1, quick=1, cpu=1, a6000=2)
    c.recipe.model = ml_collections.ConfigDict(
        {
            "architecture": "monai",
            "channels": channels,
            "num_res_blocks": (blocks,) * len(channels),  # of each level
            "attention_levels": (False,) * (len(channels) - 1) + (True,),
            "norm_num_groups": common.pick(preset, tiny=4, quick=32, cpu=32, a6000=32),
            "num_head_channels": (channels[-1] // 2,) * len(channels),  # where there is attention
            "num_class_embeds": ae.NUM_CLASSES,  # 0 = MONAI's None: one target, its class is ignored
            "attention": "xla",  # | cudnn: fused, bfloat16 on NVIDIA GPUs
            "remat": False,
            "dtype": c.recipe.model.unet.dtype,
        }
    )
    return c
