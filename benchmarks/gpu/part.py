"""What every part does: knows how long it may still take, measures, and writes what it has at once."""

import argparse
import contextlib
import math
import pathlib
import threading
import time
import traceback
from collections.abc import Callable

from cldm_jax import files

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MARGIN = 1.15  # a task is begun where this many times its expected seconds are left
REPEATS = 5  # of a measurement


def arguments(argv=None) -> argparse.Namespace:
    """--work DIR --seconds S [--rehearse] [--labels DIR] [--heads DIR], as `run` gives them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--labels", type=pathlib.Path)
    parser.add_argument("--heads", type=pathlib.Path)
    return parser.parse_args(argv)


class Part:
    """One part's clock and result.json, rewritten whole whenever something is added."""

    def __init__(self, work: pathlib.Path, seconds: float):
        self.work, self.out = work, work / "out"
        self.out.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        self._end = self._began + seconds
        self.failed: list[str] = []
        self.result: dict = {}
        self._lock = threading.Lock()

    def left(self) -> float:
        """Seconds until this part should be done."""
        return self._end - time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def put(self, path: str, value) -> None:
        """Adds `value` under "section/name" and writes."""
        *sections, name = path.split("/")
        with self._lock:
            where = self.result
            for section in sections:
                where = where.setdefault(section, {})
            where[name] = plain(value)
            files.write_json(self.work / "result.json", self.result)

    def attempt(self, path: str, function, needs: float = 0.0):
        """Puts what function() returns, and returns it. A task that fails is recorded, and makes the part
        fail in the end; one for which too little time is left is not begun. None for both.
        """
        if self.left() < MARGIN * needs:
            self.put(
                path, {"skipped": f"needs about {needs:.0f} s, {max(0, self.left()):.0f} left"}
            )
            return None
        began = time.monotonic()
        try:
            value = function()
        except Exception as error:  # the other tasks go on
            traceback.print_exc()
            self.failed.append(path)
            self.put(path, {"failed": reason(error)})
            return None
        if isinstance(value, dict):
            value = {**value, "took_s": round(time.monotonic() - began, 2)}
        self.put(path, value)
        return value

    def status(self) -> int:
        """Exit status: 1 where a task failed."""
        if self.failed:
            print(f"failed: {', '.join(dict.fromkeys(self.failed))}", flush=True)
        return 1 if self.failed else 0


def timed(call: Callable, wait: Callable, seconds: float) -> dict:
    """Seconds of a call when calls follow each other as fast as they can be handed over: {"seconds"
    (median), "fastest", "slowest", "calls"} of REPEATS rows of calls. wait(last result) ends a row.
    """
    wait(call())
    began = time.perf_counter()
    wait(call())
    one = time.perf_counter() - began
    count = max(1, round(seconds / REPEATS / max(one, 1e-6)))
    found = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for _ in range(count):
            last = call()
        wait(last)
        found.append((time.perf_counter() - began) / count)
    found.sort()
    return {
        "seconds": found[REPEATS // 2],
        "fastest": found[0],
        "slowest": found[-1],
        "calls": count * REPEATS,
    }


def reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def plain(value):
    """As JSON: NumPy's numbers as Python's, what is not finite as text."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    with contextlib.suppress(AttributeError, ValueError):  # no scalar of NumPy or JAX
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def need_gpu(rehearse: bool) -> None:
    """RuntimeError where JAX found no GPU: it goes on with the CPU without a word."""
    import jax

    if not rehearse and jax.default_backend() != "gpu":
        raise RuntimeError(f"JAX found no GPU: it would use {jax.default_backend()}")
