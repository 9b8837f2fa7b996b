"""The door: one flag file, one job looked up by name. A notebook needs nothing from here.

python -m cldm_jax.main --config=configs/ae.py:quick
python -m cldm_jax.main --config=configs/ldm.py:quick --config.train.batch_size=16
"""

import importlib
import logging
import os
import pathlib
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from cldm_jax.errors import UserError
from cldm_jax.runtime import device

# Job -> whether it computes with JAX (the others never import it).
JOBS = {
    "simulate": False,
    "prepare": False,
    "train": True,
    "encode": True,
    "evaluate": True,
    "predict": True,
    "reproduce": True,
    "sweep": True,
    "export": True,
}

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file and preset, e.g. configs/ldm.py:quick.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    "",
    "Folder of this run; default runs/<config>-<preset>. The same command resumes it.",
)
_CACHE = flags.DEFINE_bool(
    "cache", True, "Keep compiled programs and kernels in the user's cache folder (at most 2 GB)."
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of a user error.")


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; settings look like --config.seed=1")
    absl_logging.use_absl_handler()
    logging.getLogger().setLevel(logging.WARNING)
    config = _CONFIG.value
    stem = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = _WORKDIR.value or os.path.join("runs", f"{stem}-{config.preset}")
    try:
        if config.job not in JOBS:
            known = ", ".join(JOBS)
            raise UserError(f"config.job={config.job!r}", "not a job", f"Choose one of: {known}.")
        if JOBS[config.job]:
            device.use_huge_pages()
            device.enable_compilation_cache(_CACHE.value)
            device.choose_kernels(config.kernels)
        importlib.import_module(f"cldm_jax.jobs.{config.job}").run(config, workdir)
    except UserError as error:
        if _DEBUG.value:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
