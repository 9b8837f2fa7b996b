"""Phase two: the class-conditioned latent diffusion model (CLDM).

    .venv/bin/python -m cldm_jax.main --config=configs/ldm.py:quick

Trains the autoencoder and encodes the latents first where they are missing. Hardware, time and scores
to expect: docs/results.md. a6000, multi: not measured.

Overrides people want:
  the abstract's plain recipe    --config.data.source_kind=latent --config.data.context=1
                                 --config.recipe.diffusion.source_encoding=latent
                                 --config.recipe.diffusion.target=v
                                 --config.recipe.diffusion.gaussian_denoiser=False
                                 --config.recipe.diffusion.onestep_share='(0.0, 0.0)'
                                 --config.recipe.diffusion.noisy_weight_power=0.0
                                 --config.recipe.diffusion.noise_weight_power=0.0
                                 --config.recipe.sampling.autoguidance_scale=1.0
                                 --config.recipe.sampling.jump_from=0.0
                                 --config.autoencoder.train.recipe.patch_skip=False
  noise the source, then denoise the above, and --config.recipe.diffusion.conditioning=sdedit
                                 --config.data.targets="('pet','ct','mr')"
  Brownian bridge                --config.data.source_kind=latent
                                 --config.recipe.diffusion.conditioning=bridge
                                 --config.recipe.diffusion.source_encoding=latent
                                 --config.recipe.diffusion.onestep_share='(0.0, 0.0)'
                                 --config.recipe.diffusion.noise_weight_power=0.0
                                 --config.recipe.diffusion.gaussian_denoiser=False
"""

from configs import ae, common


def get_config(preset: str = "a6000"):
    c = common.base("train", "ldm", preset)
    c.method = "ldm"
    c.data = common.data(preset)
    c.data.kind = "latents"
    c.autoencoder = {
        "workdir": "",  # "" = runs/ae-<preset>; trained with the recipe below if nothing is there
        "train": ae.get_config(preset),
        # MONAI's one factor on all latents, of a U-Net that was trained with it; 0 = standardised by
        # channel and class
        "scale_factor": 0.0,
    }
    c.init = common.init()
    c.encode_batch_size = common.pick(preset, tiny=8, cpu=16, a6000=64)  # slices
    c.train = common.train(preset)
    c.train.num_train_steps = common.pick(
        preset, tiny=20, quick=1050, cpu=7000, cpu1mm=4000, a6000=150_000
    )
    c.train.cpu_step_seconds = common.pick(preset, cpu=0.0, a6000=53.0)
    c.recipe = {
        "model": {
            "num_classes": ae.NUM_CLASSES,
            "unet": {
                "base_channels": common.pick(
                    preset, tiny=8, quick=24, cpu=32, cpu1mm=16, a6000=128
                ),
                "channel_mult": common.pick(preset, tiny=(1, 2), a6000=(1, 2, 4)),
                "num_res_blocks": common.pick(preset, cpu=1, a6000=2),
                "attn_levels": common.pick(preset, tiny=(), cpu=(2,), a6000=(1, 2)),
                "groups": 8,
                "attention": "xla",  # | cudnn: fused, bfloat16 on NVIDIA GPUs
                "remat": False,
                "dtype": common.dtype(preset),
            },
        },
        "diffusion": {
            "conditioning": "concat",  # concat | sdedit | bridge
            "source_encoding": "s2d",  # s2d: PET pixels, space-to-depth (lossless) | latent
            # cosine | scaled_linear, both with zero terminal SNR | scaled_linear_plain, without, for
            # networks trained so elsewhere
            "schedule": "cosine",
            "num_timesteps": 1000,
            "target": "x0",  # x0 | v | eps
            # The network tells mean and variance of every latent, for target x0: clean where it is sure
            "gaussian_denoiser": True,
            "class_dropout_prob": 0.1,  # of the noisy rows, for guidance
            # Share of each batch at t = T with zero input (the one-step read-out), first and last; linear
            # between these shares of training, at once where they are one. A short training learns the
            # mean first, or it costs the mean 0.2 dB.
            "onestep_share": common.pick(preset, quick=(1.0, 0.5), a6000=(0.5, 0.5)),
            "onestep_ramp": (0.5, 0.5),
            "onestep_weight_power": 2.0,  # loss weight std^p per latent channel: 2 = image-space error
            "noisy_weight_power": 2.0,
            # Loss weight sigma^-p of noisy rows, for target x0: 0 its own loss (clean samples, too sure),
            # 2 that of v (more spread, and speckle at small budgets)
            "noise_weight_power": 1.0,
            "min_snr_gamma": 0.0,  # 0 = off
            "bridge_variance": 1.0,
            # Share of training at which the average is kept as the younger self; 0: none is
            "young_at": common.pick(preset, quick=0.65, a6000=0.22),
            "source_code": 0,  # PET
            "null_code": ae.NUM_CLASSES - 1,
        },
        "sampling": sampling(preset),
        "optim": common.optim(
            learning_rate=common.pick(preset, tiny=1e-3, cpu=3e-3, a6000=2e-4),
            ema_decay=common.pick(preset, tiny=0.9, quick=0.99, cpu=0.998, a6000=0.9999),
        ),
    }
    return c


def plain(preset: str):
    """The abstract's plain recipe but for its autoencoder: docs/method.md, "What differs"."""
    c = with_latent_source(preset)
    c.data.context = 1
    c.recipe.diffusion.target, c.recipe.diffusion.gaussian_denoiser = "v", False
    c.recipe.diffusion.noisy_weight_power = c.recipe.diffusion.noise_weight_power = 0.0
    return c


def with_latent_source(preset: str):
    """The CLDM whose source is a latent too, without one-step rows."""
    c = get_config(preset)
    c.data.source_kind = c.recipe.diffusion.source_encoding = "latent"
    c.recipe.diffusion.onestep_share = (0.0, 0.0)
    without_guidance(c)
    return c


def without_guidance(config) -> None:
    """No younger self and no early jump: the CLDM's own levers."""
    config.recipe.sampling.jump_from = 0.0
    config.recipe.diffusion.young_at, config.recipe.sampling.autoguidance_scale = 0.0, 1.0


def on_cells(config, preset: str):
    """`config`, of a U-Net on pixels, on the latent network's grid and with its blocks."""
    config.recipe.model.unet = get_config(preset).recipe.model.unet
    config.recipe.model.stem_block = common.pick(preset, cpu=2, cpu1mm=4, a6000=4)
    return config


def sampling(preset: str) -> dict:
    return {
        # DDIM
        "num_sampling_steps": common.pick(preset, tiny=4, quick=5, cpu=10, a6000=50),
        "num_samples": (1, 4),  # K of the read-outs: sample (K = 1) and mean4
        "eta": 0.0,
        # Share of the diffusion from where the last step jumps to the clean image: what less noise than
        # that decides is grain (docs/results/levers.md). 0: as the steps fall (trailing)
        "jump_from": 0.5,
        "guidance_scale": 1.0,  # more lowers PSNR
        # w of ẑ0_young + w (ẑ0 - ẑ0_young): more is sharper and farther; 1 = off, 2 evaluations else
        "autoguidance_scale": common.pick(preset, quick=2.0, a6000=1.75),
        "sdedit_strength": 0.6,  # t0 / T, for conditioning sdedit
        # SD in slices of the filter that correlates a patient's noise through plane; 0 = independent
        "noise_slices": 1.5,
    }
