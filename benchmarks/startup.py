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
MAIN = [sys.executable, "-m", "cldm_jax.main"]


class Timing(NamedTuple):
    wall_s: float
    cpu_s: float  # of the process and its children


def timed(command: list[str], **environment: str) -> Timing:
    """Runs a command to its end; RuntimeError with its last line if it fails."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    began, before = time.perf_counter(), os.times()
    done = subprocess.run(command, cwd=proc.ROOT, env=env, capture_output=True, text=True)
    wall, after = time.perf_counter() - began, os.times()
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise RuntimeError(f"{' '.join(command[:4])}: status {done.returncode}: {last}")
    children = (after.children_user, after.children_system)
    return Timing(wall, sum(children) - before.children_user - before.children_system)


def training(folder: pathlib.Path) -> list[str]:
    """The command that trains preset tiny on the phantom in `folder`."""
    words = [f"--config.data.root={folder / 'data'}", f"--workdir={folder / 'ldm'}"]
    words += [f"--config.autoencoder.workdir={folder / 'ae'}"]
    return [*MAIN, "--config=configs/ldm.py:tiny", *words]


def prediction(folder: pathlib.Path) -> list[str]:
    """The command that predicts with it."""
    pet = sorted((folder / "data" / "cohort").rglob("*pet.nii.gz"))[0]
    words = [f"--config.input={pet}", f"--config.checkpoint={folder / 'ldm'}"]
    words += ["--config.overwrite=True", f"--workdir={folder / 'out'}"]
    return [*MAIN, "--config=configs/predict.py:tiny", *words]


def row(name: str, timings: list[Timing]) -> dict:
    """Medians over the repeats, and the fastest wall time."""
    walls, cpus = zip(*timings, strict=True)
    medians = {"wall_s": statistics.median(walls), "cpu_s": statistics.median(cpus)}
    return {"name": name, **medians, "best_s": min(walls)}


def startup_rows(folder: pathlib.Path, repeats: int = REPEATS) -> list[dict]:
    """Rows {name, wall_s, cpu_s, best_s}. Uses `folder` for a tiny run and empties it afterwards.

    "cold" has neither compiled programs nor compiled kernels; "warm" has those of the first cold run.
    """
    folder = folder.absolute()
    timings = {"--help": [timed([*MAIN, "--help"]) for _ in range(repeats)]}
    timed(training(folder))
    command = prediction(folder)
    for name, caches in (("cold", list(range(repeats))), ("warm", [0] * repeats)):
        timings[f"predict, tiny, {name}"] = [
            timed(command, **{CACHE_ENV: str(folder / f"cache-{i}")}) for i in caches
        ]
    shutil.rmtree(folder)
    return [row(name, found) for name, found in timings.items()]
