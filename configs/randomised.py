"""People and PET scanners as wide as real PETs differ: what to train on for scans from elsewhere.

    .venv/bin/python -m cldm_jax.main --config=configs/randomised.py:cpu --workdir=COHORT \
        --config.labels=LABELS --config.variants_per_head=40
    .venv/bin/python -m cldm_jax.main --config=configs/prepare.py:cpu --workdir=PREPARED \
        --config.cohort=COHORT --config.mr_rule=train_percentile --config.mr_high=0.72 \\
        --config.train_min_head_fraction=0.0
    .venv/bin/python -m cldm_jax.main --config=configs/unet.py:cpu --config.data.prepared=PREPARED

Without `labels`: the embedded head. The ranges, each with its source, are in configs/simulate.py.
`mr_high`: the canonical MR in [-1, 1] with white matter at 0.24, and fat cut off.
`train_min_head_fraction`: slices with little head, above the vertex, are learned from as well.
Hardware: CPU only. Time: docs/phantom.md.
"""

from configs import simulate


def get_config(preset: str = "a6000"):
    config = simulate.get_config(preset)
    config.name = "randomised"
    config.mode = "randomised"
    config.mr_target = config.ct_target = "canonical"
    config.reacquire = False
    return config
