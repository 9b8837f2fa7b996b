"""What a user waits for before anything is computed: fresh processes, wall and CPU seconds."""

import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

from benchmarks import proc

REPEATS = 3
CACHE_ENV = "CLDM_CACHE_DIR"  # where compiled programs and kernels are kept
HELP_STATUS = 1  # absl's answer to --help
PARAMETERS = """
import jax, numpy as np
from cldm_jax.models.init import init_params
from cldm_jax.models.latent_unet import LatentUNet
from configs import ae, ldm
recipe, codec = ldm.get_config("a6000").recipe, ae.get_config("a6000").recipe.model
z = np.zeros((1, 64, 64, codec.latent_channels), np.float32)
source, code = np.zeros((1, 64, 64, 48), np.float32), np.zeros(1, np.int32)
net = LatentUNet(latent_channels=codec.latent_channels, **recipe.model.to_dict())
params = init_params(net, jax.random.key(0), z, code, code, source)
print(sum(p.size for p in jax.tree.leaves(params)))
"""
SNIPPETS = {
    "import jax": "import jax",
    "import the training job": "import cldm_jax.jobs.train",
    "import the prediction job": "import cldm_jax.jobs.predict",
    "import torch": "import torch",
    "import torch and MONAI's networks": (
        "import torch; from monai.networks.nets import AutoencoderKL, DiffusionModelUNet"
    ),
    "parameters of the largest network": PARAMETERS,
}


class Timing(NamedTuple):
    wall_s: float
    cpu_s: float  # of the process and its children


def timed(command: list[str], status: int = 0, **environment: str) -> Timing:
    """Runs a command to its end; RuntimeError with its last line if it ends with another status."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    began, before = time.perf_counter(), os.times()
    done = subprocess.run(command, cwd=proc.ROOT, env=env, capture_output=True, text=True)
    wall, after = time.perf_counter() - began, os.times()
    if done.returncode != status:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise RuntimeError(f"{' '.join(command[:4])}: status {done.returncode}: {last}")
    children = (after.children_user, after.children_system)
    return Timing(wall, sum(children) - before.children_user - before.children_system)


def main_command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "cldm_jax.main", *flags]


def prepare_run(folder: pathlib.Path) -> list[str]:
    """Trains preset tiny on the phantom in `folder`; returns the command that predicts with it."""
    data, run = folder / "data", folder / "ldm"
    timed(
        main_command(
            "--config=configs/ldm.py:tiny",
            f"--config.data.root={data}",
            f"--config.autoencoder.workdir={folder / 'ae'}",
            f"--workdir={run}",
        )
    )
    pet = sorted((data / "cohort").rglob("*pet.nii.gz"))[0]
    return main_command(
        "--config=configs/predict.py:tiny",
        f"--config.input={pet}",
        f"--config.checkpoint={run}",
        "--config.overwrite=True",
        f"--workdir={folder / 'out'}",
    )


def row(name: str, timings: list[Timing]) -> dict:
    """Medians over the repeats, and the fastest wall time."""
    walls = [t.wall_s for t in timings]
    cpu = statistics.median(t.cpu_s for t in timings)
    return {"name": name, "wall_s": statistics.median(walls), "cpu_s": cpu, "best_s": min(walls)}


def repeat(name: str, command: list[str], repeats: int, **environment: str) -> dict:
    return row(name, [timed(command, **environment) for _ in range(repeats)])


def startup_rows(folder: pathlib.Path, repeats: int = REPEATS) -> list[dict]:
    """Rows {name, wall_s, cpu_s, best_s}. Uses `folder` for a tiny run and empties it afterwards.

    "cold" has neither compiled programs nor compiled kernels; "warm" has those of the cold runs.
    """
    folder = folder.absolute()
    rows = [row("--help", [timed(main_command("--help"), HELP_STATUS) for _ in range(repeats)])]
    for name, code in SNIPPETS.items():
        rows.append(repeat(name, [sys.executable, "-c", code], repeats))
    command, cold = prepare_run(folder), []
    for number in range(repeats):
        cold.append(timed(command, **{CACHE_ENV: str(folder / f"cache-{number}")}))
    rows.append(row("predict, tiny, cold", cold))
    warm = {CACHE_ENV: str(folder / "cache-0")}
    rows.append(repeat("predict, tiny, warm", command, repeats, **warm))
    shutil.rmtree(folder)
    return rows
