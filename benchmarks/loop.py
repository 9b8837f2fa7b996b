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
from benchmarks.race import is_met
from cldm_jax.runtime.device import HUGE_PAGES

BOUND = 1.03  # loop / bare
SKIPPED, TIMED = 20, 60  # steps of a loop before and between the two readings of the clock


def make_config(folder: pathlib.Path):
    """Preset quick's latent model on its phantom, kept in `folder`."""
    from configs import ldm

    config = ldm.get_config("quick")
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
    no_validation = mock.patch.object(train, "make_validation", lambda *_: nothing)
    try:
        with (
            mock.patch.object(MetricWriter, "write_scalars", write),
            no_validation,
            contextlib.redirect_stdout(sys.stderr),
        ):
            make.run(config, str(workdir))
    finally:
        shutil.rmtree(workdir, ignore_errors=True)
    return (done[SKIPPED + TIMED] - done[SKIPPED]) / TIMED


def make_bare(config):
    """() -> seconds of a compiled step on a batch that lies ready."""
    from cldm_jax.jobs import make
    from cldm_jax.runs.steps import open_step

    make.needs(config)
    step = open_step(config)

    def bare() -> float:
        for _ in range(SKIPPED):
            step()
        began = time.perf_counter()
        for _ in range(TIMED):
            step()
        return (time.perf_counter() - began) / TIMED

    return bare


def loop_rows(folder: pathlib.Path, threads: int, rounds: int) -> list[dict]:
    """One row {name, threads, loop_s, bare_s, ratio, ...}: medians over the rounds."""
    cpus = proc.pick_cpus(threads)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": HUGE_PAGES}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loop", str(folder.absolute()), str(rounds)],
        cwd=proc.ROOT,
        env=env,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
    )
    if done.returncode:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise RuntimeError(f"benchmarks.loop: status {done.returncode}: {last}")
    times = json.loads(done.stdout.splitlines()[-1])
    ratios = [a / b for a, b in zip(times["loop"], times["bare"], strict=True)]
    ratio = statistics.median(ratios)
    return [
        {
            "name": "training loop",
            "threads": threads,
            "loop_s": statistics.median(times["loop"]),
            "bare_s": statistics.median(times["bare"]),
            "ratio": ratio,
            "ratio_range": [min(ratios), max(ratios)],
            "bound": BOUND,
            "met": is_met(ratio, BOUND),
        }
    ]


def main(folder: pathlib.Path, rounds: int) -> None:
    from cldm_jax.runtime import device

    device.enable_compilation_cache()
    config, times = make_config(folder), {"loop": [], "bare": []}
    time_loop(config, folder / "run")  # makes the data and fills the compilation cache
    bare = make_bare(config)
    for _ in range(rounds):
        times["loop"].append(time_loop(config, folder / "run"))
        times["bare"].append(bare())
    print(json.dumps(times))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
