"""Trainings side by side on one page, from what each left in its folder; nothing is computed again."""

import pathlib

from cldm_jax import files
from cldm_jax.errors import UserError
from cldm_jax.report import runs_page
from cldm_jax.runs import record
from cldm_jax.runs.inputs import read_manifest, read_run_config
from cldm_jax.runtime import device
from cldm_jax.runtime.writers import read_rows


def run(config, workdir: str) -> None:
    """Compares `config.runs` (comma-separated workdirs) on <workdir>/index.html.

    UserError for a folder that holds no training.
    """
    workdirs = [w.strip() for w in config.runs.split(",") if w.strip()]
    if not workdirs:
        raise UserError("config.runs", "empty", "Give the workdirs of trainings, comma-separated.")
    trainings = [_read(w) for w in workdirs]
    page = runs_page.make_page(trainings, title=config.title, command=device.command_line())
    path = pathlib.Path(workdir) / "index.html"
    files.write_text(path, page)
    print(f"report of {len(trainings)} trainings: {path}")


def _read(workdir: str) -> runs_page.Training:
    manifest, config = read_manifest(workdir), read_run_config(workdir)
    settings = {k: v for k, v in record.flatten(config).items() if k not in record.MUTABLE}
    return runs_page.Training(workdir, manifest, settings, read_rows(workdir))
