"""Phase one: the KL autoencoder shared by PET, CT and MR.

    .venv/bin/python -m cldm_jax.main --config=configs/ae.py:quick

Hardware, time and the reconstruction to expect: docs/results.md. a6000, multi: not measured.
The abstract's plain recipe (no linear skip): --config.recipe.patch_skip=False
"""

from configs import common

NUM_CLASSES = 4  # 0 PET, 1 CT, 2 MR, 3 no class (guidance)


def get_config(preset: str = "a6000"):
    c = common.base("train", "ae", preset)
    c.method = "autoencoder"
    c.data = common.data(preset)
    c.data.context = 1
    c.init = common.init()
    c.train = common.train(preset)
    c.train.num_train_steps = common.pick(
        preset, tiny=20, quick=60, cpu=300, cpu1mm=40, a6000=15_000
    )
    c.train.cpu_step_seconds = common.pick(preset, cpu=0.0, a6000=43.0)
    c.recipe = {
        "model": {
            # A latent cell of about 4 mm, the resolution of PET, chosen in millimetres: factor 2 at
            # 2 mm pixels, 4 at 1 mm. Factor = stem_block * 2^(levels - 1).
            "stem_block": common.pick(preset, cpu1mm=4, a6000=2),
            "channel_mult": common.pick(preset, cpu=(1,), a6000=(1, 2)),
            "base_channels": common.pick(preset, tiny=8, quick=24, cpu=32, cpu1mm=48, a6000=64),
            "latent_channels": common.pick(preset, cpu=3, cpu1mm=10, a6000=10),
            "num_res_blocks": common.pick(preset, cpu=1, a6000=2),
            "middle_attention": common.pick(preset, cpu=False, a6000=True),
            "num_classes": NUM_CLASSES,
            "linear": False,  # True: the patch transform alone; nothing to train, and nothing is
            "lapped": True,  # the transform's waves overlap: no borders of cells in what is predicted
            "init_logvar": -8.0,
            "groups": 8,
            "attention": "xla",  # | cudnn: fused, bfloat16 on NVIDIA GPUs
            "remat": False,
            "dtype": common.dtype(preset),
        },
        "patch_skip": True,
        "loss": {
            "l1_weight": 1.0,
            "l2_weight": 5.0,
            "kl_weight": 1e-7,  # on the KL summed over the latent, averaged over the batch
        },
        "optim": common.optim(
            # 3e-3 leaves a grid of the latent's cells in images after few steps (docs/results/levers.md).
            learning_rate=common.pick(
                preset, tiny=1e-3, quick=1e-3, cpu=3e-3, cpu1mm=3e-4, a6000=2e-4
            ),
            ema_decay=common.pick(preset, tiny=0.9, quick=0.99, cpu=0.995, a6000=0.999),
        ),
    }
    # Attention over 64 x 64 positions holds 4096 x 4096 weights a head and image: a batch of 32 in one
    # part would not fit 48 GB by the compiler's account (77 GB).
    c.recipe.optim.accumulate = common.pick(preset, cpu=1, a6000=2)
    return c
