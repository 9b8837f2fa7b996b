"""Baseline: pix2pix (Isola 2017) with the U-Net of configs/unet.py as class-conditioned generator.

    .venv/bin/python -m cldm_jax.main --config=configs/pix2pix.py:quick

L1 with weight 100 and a conditional 70 x 70 PatchGAN (cross-entropy); Adam 2e-4 (b1 0.5), constant then
linear decay. Deviations: GroupNorm and residual blocks of the U-Net baseline, no dropout, batch of the
other methods (a6000: half of it), averaged parameters. Scores: docs/results.md; a6000: not
measured.
"""

from configs import common, cyclegan, unet


def get_config(preset: str = "a6000"):
    c = common.base("train", "pix2pix", preset)
    c.method = "pix2pix"
    c.data = common.data(preset)
    c.train = common.train(preset)
    c.train.num_train_steps = common.pick(preset, tiny=20, quick=250, cpu=2300, a6000=100_000)
    # The whole batch would not fit 48 GB, and two players take none in parts.
    c.train.batch_size //= common.pick(preset, cpu=1, a6000=2)
    model = unet.get_config(preset).recipe.model.to_dict()
    c.recipe = {
        "generator": model,
        "discriminator": cyclegan.discriminator(preset, model["unet"]["dtype"]),
        "loss": {"l1_weight": 100.0},
        "optim": cyclegan.adversarial_optim(preset),
    }
    return c
