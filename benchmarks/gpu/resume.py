"""A training that is stopped and resumed against two that were not, in this process: the tiny CLDM."""

import os
import pathlib
import signal
import threading

import jax
import numpy as np

from cldm_jax.jobs import make
from cldm_jax.runtime.checkpoint import restore_for_inference

STEPS, SAVE_EVERY = 400, 40
POLL = 0.01  # seconds


def train(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Data, autoencoder and latents are made once. SystemExit where a signal stops it."""
    from configs import ldm

    config, workdir = ldm.get_config("tiny"), folder / name
    with config.unlocked():
        config.kernels, config.data.root = "xla", str(folder / "data")
        config.autoencoder.workdir = str(folder / "ae")
        config.train.num_train_steps = config.train.val_every = STEPS
        config.train.save_every = SAVE_EVERY
    make.run(config, str(workdir))
    return workdir


def stop_midway(workdir: pathlib.Path, over: threading.Event) -> None:
    """SIGTERM to this process, which saves and ends the training, once some steps are saved."""
    while not over.wait(POLL):
        saved = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
        if saved and max(saved) >= 2 * SAVE_EVERY:
            os.kill(os.getpid(), signal.SIGTERM)
            return


def weights_of(workdir: pathlib.Path) -> list[np.ndarray]:
    """The averaged parameters of the last step."""
    step, params, _ = restore_for_inference(workdir / "checkpoints")
    if step != STEPS:
        raise RuntimeError(f"{workdir.name} ended at step {step}, not {STEPS}")
    return [np.asarray(x) for x in jax.tree.leaves(params)]


def gap(one: list[np.ndarray], other: list[np.ndarray]) -> dict:
    largest = max(float(np.abs(a).max()) for a in one)
    gaps = [float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True)]
    same = all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    return {"same bits": same, "largest difference": max(gaps) / largest}


def compare(folder: pathlib.Path) -> dict:
    """Differences of the weights: stopped and resumed against whole, and whole against whole (what the
    card's own order of sums does, without any interruption). In the main thread: it takes a signal.
    """
    folder.mkdir()
    whole = weights_of(train(folder, "whole"))
    over, stopped = threading.Event(), False
    threading.Thread(target=stop_midway, args=(folder / "halves", over), daemon=True).start()
    try:
        train(folder, "halves")
    except SystemExit:
        stopped = True
        train(folder, "halves")
    finally:
        over.set()
    halves, again = weights_of(folder / "halves"), weights_of(train(folder, "again"))
    resumed = gap(whole, halves)
    return {
        "steps": STEPS,
        "was stopped": stopped,
        "resumed against whole": resumed,
        "whole against whole": gap(whole, again),
        "ok": stopped and np.isfinite(resumed["largest difference"]),
    }
