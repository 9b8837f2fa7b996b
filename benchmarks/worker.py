"""A process of one side that answers JSON lines: `python -m benchmarks.worker flax|torch|numpy`.

    {"op": "setup", "warm": true, ...}   makes the task and calls it a few times if "warm"
    {"op": "time", "wall": 1.0}          calls it for about that long: a Sample
    {"op": "save", "path": "x.npy"}      keeps what its last call returned, an array
    {"op": "rss"}                        peak resident memory so far, MB

The parent sets threads and CPUs before Python starts (`race.Worker`).
"""

import itertools
import os
import resource
import statistics
import sys
import time
from typing import NamedTuple

import numpy as np

from benchmarks.gpu import lines
from benchmarks.proc import busy_seconds
from benchmarks.tasks import Spec

MIN_CALLS = 3  # of a sample, where they fit into PATIENCE times its wall seconds
PATIENCE = 6
LONG = 20.0  # seconds: a first call that takes longer counts
WARM_CALLS, WARM_SECONDS = 3, 6.0  # the heap grows to its size over the first calls


class Sample(NamedTuple):
    """Calls of one worker for about a second; the medians over them."""

    wall_s: float  # of a call
    cpu_s: float  # of the worker, per call
    cores: float  # CPU seconds / wall seconds
    others: float  # cores' worth of other processes on the worker's CPUs meanwhile

    def scaled(self, factor: float) -> "Sample":
        return self._replace(wall_s=self.wall_s * factor, cpu_s=self.cpu_s * factor)


def flax_side(spec=None, gemm=None, volume=None):
    """A task of `tasks_flax` (`spec`: its fields), a matrix product (`gemm`: size, dtype) or a read-out
    of the volume (`volume`: keywords of `volume_sides.flax_setup`).
    """
    import jax

    from benchmarks import tasks_flax, volume_sides

    if gemm is not None:
        a = jax.random.normal(jax.random.key(0), (gemm[0], gemm[0])).astype(gemm[1])
        product = jax.jit(jax.numpy.matmul).lower(a, a).compile()
        return lambda: product(a, a).block_until_ready(), {}
    if volume is not None:
        return volume_sides.flax_setup(**volume)
    return tasks_flax.make_task(Spec(*spec))


def torch_side(spec=None, gemm=None, volume=None, **variant):
    """As `flax_side`, for PyTorch; variant: one of tasks.VARIANTS."""
    import torch

    from benchmarks import tasks_torch, volume_sides

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if gemm is not None:
        a = torch.randn(gemm[0], gemm[0]).to(getattr(torch, gemm[1]))
        out = torch.empty_like(a)
        return lambda: torch.mm(a, a, out=out), {}
    if volume is not None:
        return volume_sides.torch_setup(**volume)
    return tasks_torch.make_task(Spec(*spec), **variant)


def numpy_side(gemm):
    a = np.random.default_rng(0).standard_normal((gemm[0], gemm[0])).astype(gemm[1])
    out = np.empty_like(a)
    return lambda: np.matmul(a, a, out=out), {}


SIDES = {"flax": flax_side, "torch": torch_side, "numpy": numpy_side}


def measure(call, wall: float) -> Sample:
    """Medians over the calls made in `wall` seconds; of three at least, unless that takes too long.

    A first call does not count, unless it is long: a virtual machine may have given memory that lay free
    while the worker waited for its turn back to its host, and faulting it in again cost 1.3 s of a 3 s
    training step.
    """
    cpus = os.sched_getaffinity(0)
    before, ticks = busy_seconds(cpus), [clocks()]
    call()
    ticks.append(clocks())
    if ticks[1][0] - ticks[0][0] <= LONG:
        before, ticks = busy_seconds(cpus), [clocks()]
        while not is_enough(ticks, wall):
            call()
            ticks.append(clocks())
    elapsed = ticks[-1][0] - ticks[0][0]
    others = max(0.0, busy_seconds(cpus) - before - (ticks[-1][1] - ticks[0][1])) / elapsed
    wall_s, cpu_s = (
        statistics.median(b - a for a, b in itertools.pairwise(times))
        for times in zip(*ticks, strict=True)
    )
    return Sample(wall_s, cpu_s, cpu_s / wall_s, others)


def is_enough(ticks: list, wall: float) -> bool:
    elapsed, calls = ticks[-1][0] - ticks[0][0], len(ticks) - 1
    patient = calls < MIN_CALLS and elapsed < PATIENCE * wall
    return calls > 0 and elapsed >= wall and not patient


def warm_up(call) -> None:
    """A few calls whose time does not count."""
    began = time.perf_counter()
    for _ in range(WARM_CALLS):
        call()
        if time.perf_counter() - began > WARM_SECONDS:
            break


def clocks() -> tuple[float, float]:
    """Wall and CPU seconds of this process so far."""
    return time.perf_counter(), time.process_time()


class Side:
    """A side and the task it holds. setup(**request) -> (call, facts)."""

    def __init__(self, setup):
        self._make, self._call, self._last = setup, None, None

    def setup(self, warm: bool = True, **request) -> dict:
        self._call, facts = self._make(**request)
        if warm:
            warm_up(self._call)
        return facts

    def time(self, wall: float) -> dict:
        def call():
            self._last = self._call()

        return measure(call, wall)._asdict()

    def save(self, path: str) -> dict:
        np.save(path, self._last)
        return {}

    def rss(self) -> dict:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"peak_mb": peak / 1024}  # Linux counts in KB


def operations(setup) -> dict:
    """What a worker answers to."""
    side = Side(setup)
    return {"setup": side.setup, "time": side.time, "save": side.save, "rss": side.rss}


if __name__ == "__main__":
    lines.serve(operations(SIDES[sys.argv[1]]))
