"""A process of one side that answers JSON lines: `python -m benchmarks.worker flax|torch|numpy|reader`.

    {"op": "setup", "warm": true, ...}   makes the task and calls it a few times if "warm"
    {"op": "time", "wall": 1.0}          calls it for about that long: a Sample
    {"op": "save", "path": "x.npy"}      keeps what its last call returned, an array
    {"op": "rss"}                        peak resident memory so far, MB

The parent sets threads and CPUs before Python starts (`race.Worker`).
"""

import importlib
import itertools
import json
import os
import resource
import statistics
import sys
import time
import traceback

import numpy as np

from benchmarks.proc import busy_seconds
from benchmarks.stats import Sample

MIN_CALLS = 3  # of a sample, where they fit into PATIENCE times its wall seconds
PATIENCE = 6
LONG = 20.0  # seconds: a first call that takes longer counts
WARM_CALLS, WARM_SECONDS = 3, 6.0  # the heap grows to its size over the first calls
SIDES = {
    "flax": "benchmarks.side_flax",
    "torch": "benchmarks.side_torch",
    "numpy": "benchmarks.side_numpy",
    "reader": "benchmarks.side_reader",
}


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


def serve(setup, lines, answer) -> None:
    """Answers every line until there are no more. setup(**request) -> (call, facts)."""
    call, last = None, None

    def timed():
        nonlocal last
        last = call()

    for line in lines:
        request = json.loads(line)
        try:
            op = request.pop("op")
            if op == "setup":
                warm = request.pop("warm", True)
                call, reply = setup(**request)
                if warm:
                    warm_up(call)
            elif op == "time":
                reply = measure(timed, request["wall"])._asdict()
            elif op == "save":
                np.save(request["path"], last)
                reply = {}
            else:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                reply = {"peak_mb": peak / 1024}  # Linux counts in KB
        except Exception as error:  # told to the parent, which goes on without this task
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}
        answer(json.dumps(reply))


def main() -> None:
    # What libraries print must not get between the answers: stdout becomes stderr for them.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    side = importlib.import_module(SIDES[sys.argv[1]])
    serve(side.setup, sys.stdin, lambda text: print(text, file=replies))


if __name__ == "__main__":
    main()
