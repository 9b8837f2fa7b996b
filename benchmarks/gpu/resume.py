"""A training that is killed and resumed against two that were not, as processes of the product."""

import os
import pathlib
import subprocess
import sys
import time

import numpy as np

from benchmarks.gpu import part

STEPS, SAVE_EVERY = 400, 40
PATIENCE = 240.0  # seconds for any of the processes, at most


def command(folder: pathlib.Path, name: str, steps: int = STEPS) -> list[str]:
    """The tiny CLDM on its phantom, all below `folder`."""
    cadence = {"num_train_steps": steps, "save_every": SAVE_EVERY, "val_every": steps}
    return [
        sys.executable,
        "-m",
        "cldm_jax.main",
        "--config=configs/ldm.py:tiny",
        f"--workdir={folder / name}",
        f"--config.data.root={folder / 'data'}",
        f"--config.autoencoder.workdir={folder / 'ae'}",
        "--config.kernels=xla",
        *(f"--config.train.{k}={v}" for k, v in cadence.items()),
    ]


def begin(folder: pathlib.Path, name: str, steps: int = STEPS) -> subprocess.Popen:
    log = open(folder / f"{name}.log", "ab")
    return subprocess.Popen(
        command(folder, name, steps),
        cwd=part.ROOT,
        env={**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", str(part.ROOT))},
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen, folder: pathlib.Path, name: str, seconds: float) -> None:
    """Raises RuntimeError where it fails or takes longer."""
    try:
        status = process.wait(max(1.0, seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        status = "too slow"
    if status != 0:
        last = (folder / f"{name}.log").read_text(errors="replace").strip().splitlines()[-3:]
        raise RuntimeError(f"{name} ended with {status}: {' / '.join(last)}")


def kill_midway(process: subprocess.Popen, workdir: pathlib.Path, seconds: float) -> int:
    """SIGKILL once a step is saved; the newest step then. RuntimeError where it was too fast or slow."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        saved = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
        if saved and max(saved) >= 2 * SAVE_EVERY:
            process.kill()
            process.wait()
            return max(saved)
        time.sleep(0.01)
    process.kill()
    process.wait()
    raise RuntimeError("it ended before it could be killed, or saved nothing in time")


def weights_of(workdir: pathlib.Path) -> list[np.ndarray]:
    """The averaged parameters of the last step."""
    import jax

    from cldm_jax.runtime.checkpoint import restore_for_inference

    step, params, _ = restore_for_inference(workdir / "checkpoints")
    if step != STEPS:
        raise RuntimeError(f"{workdir.name} ended at step {step}, not {STEPS}")
    return [np.asarray(x) for x in jax.tree.leaves(params)]


def gap(one: list[np.ndarray], other: list[np.ndarray]) -> dict:
    largest = max(float(np.abs(a).max()) for a in one)
    gaps = [float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True)]
    same = all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    return {"same bits": same, "largest difference": max(gaps) / largest}


def compare(folder: pathlib.Path, own: part.Part) -> dict:
    """Differences of the weights: killed and resumed against whole, and whole against whole (what the
    card's own order of sums does, without any interruption).
    """
    folder.mkdir()

    def seconds() -> float:
        return min(PATIENCE, own.left())

    # Data, autoencoder and latents once, so that the others start alike.
    finish(begin(folder, "first", SAVE_EVERY), folder, "first", seconds())
    runs = {name: begin(folder, name) for name in ("whole", "again", "killed")}
    try:
        at = kill_midway(runs["killed"], folder / "killed", seconds())
        runs["killed"] = begin(folder, "killed")
        for name, process in runs.items():
            finish(process, folder, name, seconds())
    finally:
        for process in runs.values():
            process.kill()
            process.wait()
    whole, again, killed = (weights_of(folder / n) for n in ("whole", "again", "killed"))
    resumed = "resuming" in (folder / "killed.log").read_text(errors="replace")
    return {
        "steps": STEPS,
        "killed at step": at,
        "resumed": resumed,
        "resumed against whole": gap(whole, killed),
        "whole against whole": gap(whole, again),
        "ok": resumed and np.isfinite(gap(whole, killed)["largest difference"]),
    }
