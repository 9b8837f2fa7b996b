"""Baseline: Attention U-Net (Oktay 2018), the U-Net of configs/unet.py with gates on its skips.

    .venv/bin/python -m cldm_jax.main --config=configs/attention_unet.py:quick

The additive gates (all levels but the finest) are the only change. Deviations from the paper: GroupNorm
in place of BatchNorm, no deep supervision. Scores: docs/results.md; a6000: not measured.
"""

from configs import common, unet


def get_config(preset: str = "a6000"):
    c = unet.get_config(preset)
    c.name = "attention_unet"
    c.recipe.model.unet.attention_gates = True
    # Fewer than the U-Net's: a step is taken to cost a tenth more (not measured).
    c.train.num_train_steps = common.pick(preset, tiny=20, quick=290, cpu=2700, a6000=100_000)
    return c
