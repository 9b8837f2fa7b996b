"""Evaluation: score trainings on the test people and write the report.

    .venv/bin/python -m cldm_jax.main --config=configs/eval.py:quick \\
        --config.runs=runs/unet-quick,runs/ldm-quick

Writes <workdir>/index.html, summary.json, scores.csv, figures/. The first run's dataset is used unless
--config.data.prepared names another. Other read-outs from the same checkpoints:
--config.replace_sampling=True --config.sampling.num_sampling_steps=50
"""

from configs import common, ldm


def get_config(preset: str = "a6000"):
    c = common.base("evaluate", "eval", preset)
    c.title = ""  # of the report; empty: what was made of PET
    c.runs = f"runs/unet-{preset},runs/ldm-{preset}"  # workdirs, comma-separated
    c.data = common.data(preset)
    c.other_data = False  # allow runs that were trained on another dataset (out of domain)
    c.protocol = "cldm"  # metrics/protocol.py
    c.split = "test"
    c.targets = ()  # () = all that the runs make and the people have
    c.slice_stride = common.pick(preset, tiny=1, quick=4, cpu=20, a6000=1)  # every n-th slice
    c.slice_run = 2  # neighbours scored together, for the slice-to-slice score
    # first so many of each group (virtual people of one head); 0 = all
    c.people_per_group = common.pick(preset, cpu1mm=2, a6000=0)
    c.batch_size = common.pick(preset, tiny=8, cpu=16, a6000=64)
    c.replace_sampling = False  # use `sampling` below instead of each run's own
    c.sampling = ldm.sampling(preset)
    # Display windows in metric units: CT in HU, MR as fraction of the volume's percentile.
    c.windows = {
        "ct": {"units": "HU", "window": (-200.0, 1300.0), "error_window": 500.0},
        "mr": {"units": "fraction", "window": (0.0, 1.0), "error_window": 0.4},
    }
    c.notes = ()  # sentences to print in the report
    return c
