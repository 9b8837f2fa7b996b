"""Does the image do the job? Scores of what synthetic CT and MR are used for, on whole volumes.

    .venv/bin/python -m cldm_jax.main --config=configs/tasks.py:quick \\
        --config.runs=runs/unet-quick,runs/ldm-quick --workdir=runs/tasks

Writes <workdir>/index.html, tasks.json, tasks.csv. The first run's dataset is used unless
--config.data.prepared names another. Exit status 2 where something could not be scored; the rest is.
"""

from configs import common
from configs import eval as evaluation


def get_config(preset: str = "a6000"):
    c = evaluation.get_config(preset)
    c.job, c.name = "tasks", "tasks"
    c.title = "Does the image do the job?"
    c.pool = ""  # workdirs of this job for every fold, comma-separated: pooled, nothing scored anew
    c.uses = "normalisation,tissue,bone"  # comma-separated, of jobs/tasks.py, USES
    c.modes = ""  # read-outs, comma-separated; "" = all of every method
    c.max_people = 0  # so many of the split, of as many groups as can be; 0 = all
    c.template = ""  # NIfTI of a T1 to normalise to; "" = the mean of the training people's MR
    c.template_pet = ""  # NIfTI of a PET in its space; "" = the mean of the training people's PET
    c.template_people = common.pick(preset, tiny=3, quick=10, a6000=20)  # in that mean, at most
    c.slice_stride, c.slice_run = 1, 1  # whole volumes
    return c
