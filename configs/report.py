"""Report: several trainings side by side, finished or running: curves, settings that differ, costs.

    .venv/bin/python -m cldm_jax.main --config=configs/report.py \\
        --config.runs=runs/ldm-quick,runs/unet-quick

Writes <workdir>/index.html, one self-contained page, in seconds. Nothing is predicted: for scores on test
people see configs/eval.py.
"""

from configs import common


def get_config(preset: str = "a6000"):
    c = common.base("report", "report", preset)
    c.runs = f"runs/unet-{preset},runs/ldm-{preset}"  # workdirs, comma-separated
    c.title = "Trainings"
    return c
