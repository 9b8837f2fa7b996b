"""Baseline: a class-conditioned U-Net, L2 regression, with the same source slices as the CLDM.

    .venv/bin/python -m cldm_jax.main --config=configs/unet.py:quick

Same blocks as the latent network plus one or two levels of finer pixels (GroupNorm in place of the
original BatchNorm). Hardware, time and scores: docs/results.md. a6000, multi: not measured.
One slice of context: --config.data.context=1; one target: --config.data.targets="('ct',)"
On the latent network's grid (space-to-depth cells): --config.recipe.model.stem_block=2
"""

from configs import ae, common


def get_config(preset: str = "a6000"):
    c = common.base("train", "unet", preset)
    c.method = "unet"
    c.data = common.data(preset)
    c.train = common.train(preset)
    c.train.num_train_steps = common.pick(
        preset, tiny=20, quick=320, cpu=3000, cpu1mm=800, a6000=100_000
    )
    c.train.cpu_step_seconds = common.pick(preset, cpu=0.0, a6000=490.0)
    c.recipe = {
        "model": {
            "num_classes": ae.NUM_CLASSES,
            "stem_block": 1,  # pixels of a cell each way
            "unet": {
                "base_channels": common.pick(preset, tiny=4, quick=12, cpu=16, cpu1mm=8, a6000=64),
                "channel_mult": common.pick(
                    preset,
                    tiny=(1, 2, 4),
                    cpu=(1, 2, 4, 8),
                    cpu1mm=(1, 2, 4, 8, 8),
                    a6000=(1, 2, 4, 8, 16),
                ),
                "num_res_blocks": common.pick(preset, cpu=1, a6000=2),
                "attn_levels": common.pick(preset, tiny=(), cpu=(3,), cpu1mm=(4,), a6000=(4,)),
                "groups": 8,
                "attention_gates": False,
                "attention": "xla",  # | cudnn: fused, bfloat16 on NVIDIA GPUs
                "remat": False,
                "dtype": common.dtype(preset),
            },
        },
        "loss": "l2",
        "optim": common.optim(
            learning_rate=common.pick(preset, tiny=1e-3, cpu=3e-3, a6000=4e-4),
            ema_decay=common.pick(preset, tiny=0.9, quick=0.99, cpu=0.998, a6000=0.9999),
        ),
    }
    # In one part it would not fit 48 GB (docs/performance.md).
    c.recipe.optim.accumulate = common.pick(preset, cpu=1, a6000=2)
    return c
