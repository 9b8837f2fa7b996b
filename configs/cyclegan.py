"""Baseline: CycleGAN (Zhu 2017) from PET to one target; slices are not paired.

    .venv/bin/python -m cldm_jax.main --config=configs/cyclegan.py:quick \\
        --config.data.targets="('ct',)" --workdir=runs/cyclegan-ct-quick
    .venv/bin/python -m cldm_jax.main --config=configs/cyclegan.py:quick \\
        --config.data.targets="('mr',)" --workdir=runs/cyclegan-mr-quick

One target a training; without a name the first that the data hold (CT, else MR). Evaluation takes both
as one method. Reference: ResNet-9 generators of 64 channels, 70 x 70 PatchGAN,
LSGAN, cycle 10, identity 0.5, pools of 50, Adam 2e-4 (b1 0.5), batch 1, constant then linear decay.
Deviations: one slice of one channel, resize-convolutions for the steps up, averaged parameters, smaller
networks in the presets for CPUs. Scores: docs/results.md; a6000: not measured.
"""

from configs import common


def get_config(preset: str = "a6000"):
    c = common.base("train", "cyclegan", preset)
    c.method = "cyclegan"
    c.data = common.data(preset)
    c.data.context = 1
    c.data.paired = False
    c.train = common.train(preset)
    c.train.batch_size = common.pick(preset, tiny=4, a6000=1, multi=8)
    c.train.num_train_steps = common.pick(preset, tiny=20, quick=600, cpu=6000, a6000=200_000)
    dtype = common.dtype(preset)
    c.recipe = {
        "generator": {
            "base_channels": common.pick(preset, tiny=4, quick=16, cpu=32, cpu1mm=16, a6000=64),
            "num_blocks": common.pick(preset, tiny=1, cpu=6, a6000=9),
            "dtype": dtype,
        },
        "discriminator": discriminator(preset, dtype),
        "loss": {"cycle_weight": 10.0, "identity_weight": 0.5},
        "pool_size": common.pick(preset, tiny=4, a6000=50),
        "optim": adversarial_optim(preset),
    }
    return c


def discriminator(preset: str, dtype: str) -> dict:
    return {
        "base_channels": common.pick(preset, tiny=4, quick=16, cpu=32, cpu1mm=16, a6000=64),
        "num_layers": common.pick(preset, tiny=1, a6000=3),
        "dtype": dtype,
    }


def adversarial_optim(preset: str):
    c = common.optim(
        learning_rate=2e-4,
        ema_decay=common.pick(preset, tiny=0.9, quick=0.99, cpu=0.998, a6000=0.9999),
    )
    c.optimizer = "adamw"  # the published one
    c.b1, c.b2 = 0.5, 0.999
    c.decay, c.weight_decay = "second_half", 0.0
    c.clip_norm = 1e9  # none in the reference
    return c
