"""The training loop against its own bare jitted step, in one process, taking turns.

`python -m benchmarks.loop FOLDER ROUNDS` prints one JSON line: seconds of a step by round. The loop is
`jobs.train` as a user runs it (reader, keys, logging; no validation, checkpoint only at the end); the
bare step is the same compiled program on a batch that lies ready.
"""

import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from unittest import mock

from benchmarks import proc
from benchmarks.race import judged
from cldm_jax.runtime.device import HUGE_PAGES

BOUND = 1.03  # loop / bare
SKIPPED, TIMED = 20, 60  # steps of a loop before and between the two readings of the clock


def make_config(folder: pathlib.Path, preset: str = "quick"):
    """The preset's latent model on its phantom, kept in `folder`."""
    from configs import ldm

    config = ldm.get_config(preset)
    config.data.root = str(folder / "data")
    config.autoencoder.workdir = str(folder / "ae")
    config.autoencoder.train.train.num_train_steps = 20  # its images do not matter here
    steps = SKIPPED + TIMED + 1
    cadence = dict(val_every=10 * steps, save_every=10 * steps, log_every=SKIPPED)
    config.train.update(num_train_steps=steps, **cadence)
    return config


def time_loop(config, workdir: pathlib.Path) -> float:
    """Seconds of a step of `jobs.train`."""
    from cldm_jax.jobs import make, train
    from cldm_jax.runs import validation
    from cldm_jax.runtime.writers import MetricWriter

    nothing = validation.Validation(lambda *_: ({}, {}), lambda *_: None)
    done = {}

    def write(writer, step, scalars):  # of fetched metrics: the device has finished this step
        original(writer, step, scalars)
        done[step] = time.perf_counter()

    # Steps are handed over ahead of the device, so only a fetched metric tells that one is finished.
    original = MetricWriter.write_scalars
    with contextlib.ExitStack() as during:
        during.callback(shutil.rmtree, workdir, ignore_errors=True)
        during.enter_context(mock.patch.object(MetricWriter, "write_scalars", write))
        during.enter_context(mock.patch.object(train, "make_validation", lambda *_: nothing))
        during.enter_context(contextlib.redirect_stdout(sys.stderr))
        make.run(config, str(workdir))
    return (done[SKIPPED + TIMED] - done[SKIPPED]) / TIMED


def make_bare(config):
    """() -> seconds of a compiled step on a batch that lies ready."""
    from cldm_jax.runs.steps import open_step

    step = open_step(config)

    def bare() -> float:
        for _ in range(SKIPPED):
            step()
        began = time.perf_counter()
        for _ in range(TIMED):
            step()
        return (time.perf_counter() - began) / TIMED

    return bare


def measure(config, workdir: pathlib.Path, rounds: int) -> dict[str, list[float]]:
    """{"loop", "bare"}: seconds of a step by round."""
    time_loop(config, workdir)  # makes the data and fills the compilation cache
    bare = make_bare(config)
    turns = [(time_loop(config, workdir), bare()) for _ in range(rounds)]
    return dict(zip(("loop", "bare"), zip(*turns, strict=True), strict=True))


def loop_rows(folder: pathlib.Path, threads: int, rounds: int) -> list[dict]:
    """One row {name, threads, loop_s, bare_s, ratio, ...}: medians over the rounds."""
    cpus = proc.pick_cpus(threads)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loop", str(folder.absolute()), str(rounds)],
        cwd=proc.ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": HUGE_PAGES},
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
    )
    if done.returncode:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise RuntimeError(f"benchmarks.loop: status {done.returncode}: {last}")
    return [loop_row(threads, **json.loads(done.stdout.splitlines()[-1]))]


def loop_row(threads: int, loop: list[float], bare: list[float]) -> dict:
    ratios = [a / b for a, b in zip(loop, bare, strict=True)]
    row = {
        "name": "training loop",
        "threads": threads,
        "loop_s": statistics.median(loop),
        "bare_s": statistics.median(bare),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }
    return judged(row, BOUND)


if __name__ == "__main__":
    from cldm_jax.runtime import device

    device.enable_compilation_cache()
    place = pathlib.Path(sys.argv[1])
    print(json.dumps(measure(make_config(place), place / "run", int(sys.argv[2]))))
