"""Promise 15: long runs stay as they are; and what all the protections cost (`overhead`).

A child trains for thousands of steps and looks at its own memory and files now and then, while its log
is renamed, its clock jumps and summer time begins and ends.
"""

import contextlib
import gc
import json
import os
import pathlib
import statistics
import sys
import time

import numpy as np

from cldm_jax import files
from cldm_jax.runtime import device
from faults import hurt
from faults.common import Outcome, Promise, tally

# In 2,000 steps there are ten saves and six validations, in which the allocator still settles: +1.8 MB
# per 1,000 steps were fitted there, +0.35 over 6,000.
STEPS, QUICK_STEPS = 6000, 200
# Preset quick's.
CADENCE = {"train.val_every": 300, "train.save_every": 200}
EVERY = 10  # steps between looks
WARM_UP = 0.25  # share of the looks that are not counted: caches fill, the allocator settles
LIMIT = 1 << 20  # bytes per 1,000 steps
LEAK = 10 << 10  # bytes a step that the negative control loses
SPRING = 1743296398  # two seconds before summer time begins in Berlin, 2025-03-30


def _rss() -> int:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def looked_at(what):
    """Notes memory and open files every EVERY steps into a file: [[step, bytes, files]]; does what
    `events` says ({step: name}) on the way; `leak` bytes are lost every step.
    """
    path, events, leak, workdir = what
    looks, lost = [], []

    def look(state) -> None:
        step = int(state.step)
        lost.append(os.urandom(leak))
        if str(step) in events:
            EVENTS[events[str(step)]](pathlib.Path(workdir))
        if step % EVERY == 0:
            gc.collect()
            device.trim_heap()
            looks.append([step, _rss(), len(os.listdir("/proc/self/fd"))])

    try:
        with hurt.after_steps(look):
            yield
    finally:
        files.write_json(path, looks)


def _rotate(workdir: pathlib.Path) -> None:
    (workdir / "metrics.jsonl").rename(workdir / "metrics.jsonl.1")


_real_time = time.time


def _clock(*, ahead: float | None = None, at: float | None = None, zone: str = ""):
    """The clock `ahead` by so many seconds or put to a time; what is not said stays."""

    def change(_) -> None:
        if zone:
            os.environ["TZ"] = zone
            time.tzset()
        if ahead is not None or at is not None:
            offset = ahead if at is None else at - _real_time()
            time.time = lambda: _real_time() + offset

    return change


EVENTS = {
    "log rotation": _rotate,
    "clock an hour on": _clock(ahead=3600),
    "clock a day back": _clock(ahead=-86400),
    "summer time": _clock(at=SPRING, zone="Europe/Berlin"),
    "another time zone": _clock(zone="Pacific/Kiritimati"),
}


def slope(looks: list) -> float:
    """Bytes of memory gained per 1,000 steps, least squares after the warm-up."""
    kept = looks[int(WARM_UP * len(looks)) :]
    steps, memory = (np.array([look[i] for look in kept], float) for i in (0, 1))
    return float(np.polyfit(steps, memory, 1)[0]) * 1000


def _soak(folder: pathlib.Path, name: str, steps: int, events: dict, leak: int = 0):
    """(looks, how it ended) of a training in a child."""
    train = {**CADENCE, "train.num_train_steps": steps}
    words = hurt.arguments(folder.parent, folder / name, train, "ae")
    looks = folder / f"{name}.json"
    hooks = {"faults.soak:looked_at": [str(looks), events, leak, str(folder / name)]}
    process = hurt.start(words, hooks)
    said = process.communicate(timeout=3600)[0]
    if not looks.exists():
        raise RuntimeError(said[-2000:])
    return files.read_json(looks), f"{process.returncode}: {said[-300:]}"


def _rows(folder: pathlib.Path) -> list[int]:
    """Steps of the training lines of the log and of what was renamed."""
    paths = sorted(folder.glob("metrics.jsonl*"))
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return sorted(row["step"] for row in rows if "train/loss" in row)


def long_runs(folder: pathlib.Path, quick: bool) -> Outcome:
    steps = QUICK_STEPS if quick else STEPS
    events = {str(int(steps * (i + 2) / 8)): name for i, name in enumerate(EVENTS)}
    began = time.monotonic()
    looks, ended = _soak(folder, "run", steps, events)
    took = time.monotonic() - began
    open_files = [look[2] for look in looks[int(WARM_UP * len(looks)) :]]
    run = files.read_json(folder / "run" / "run.json")
    gained = slope(looks)
    checks = {
        f"ended with {ended}": ended.startswith("0:"),
        "memory": quick or gained < LIMIT,  # too few steps to tell
        "open files": max(open_files) - min(open_files) <= 1 and open_files[-1] <= open_files[0],
        "every step once in the log": _rows(folder / "run") == list(range(1, steps + 1)),
        "times": 0 < run["train_seconds"] < took and run["finished"] and run["step"] == steps,
    }
    leaky = [] if quick else _soak(folder, "leak", 2 * QUICK_STEPS, {}, LEAK)[0]
    control = slope(leaky) > LIMIT if leaky else None
    notes = [
        f"{steps} steps of ae tiny, {took:.0f} s: {gained / 1e6:+.2f} MB per 1,000 steps",
        f"open files {min(open_files)} to {max(open_files)}; meanwhile {', '.join(events.values())}",
    ]
    if leaky:
        notes.append(f"a leak of {LEAK} bytes a step is seen as {slope(leaky) / 1e6:+.1f} MB")
    return tally({k: "" if ok else "not so" for k, ok in checks.items()}, control, *notes)


PROMISES = [Promise(15, "long runs stay as they are", long_runs)]


# ---- what it costs ----


def overhead(folder: pathlib.Path, quick: bool) -> dict:
    """Share of a training's time that goes into guard, saves and their hashes: preset quick of the
    U-Net with its own cadence, on noise of its shapes. Guarded and bare steps take turns.
    """
    from cldm_jax.jobs import budget, dry_run
    from configs import unet

    config = unet.get_config("quick")
    with hurt.hooked({"unguarded": 1}):
        steps = [budget.open_step(config)]
    steps.append(budget.open_step(config))
    seconds = [[], []]
    for number in range(4 if quick else 44):
        for which in (0, 1) if number % 2 else (1, 0):
            began = time.perf_counter()
            steps[which]()
            if number > 1:  # the first steps
                seconds[which].append(time.perf_counter() - began)
    plain, guarded = (statistics.median(s) for s in seconds)
    ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
    saving = _save_seconds(folder, dry_run.example(config)[1], 2 if quick else 6)
    save_share = saving / (config.train.save_every * plain)
    return {
        "preset": "unet quick",
        "step_seconds": plain,
        "guarded_step_seconds": guarded,
        "guard_percent": 100 * (ratio - 1),
        "save_seconds": saving,
        "save_every": config.train.save_every,
        "save_percent": 100 * save_share,
        "percent": 100 * (ratio - 1 + save_share),
        "rounds": len(seconds[0]),
    }


def _save_seconds(folder: pathlib.Path, state, count: int) -> float:
    """Median seconds of a save with its hashes; the first is not counted."""
    from cldm_jax.runtime.checkpoint import Checkpoints

    checkpoints, seconds = Checkpoints(folder / "saves"), []
    for step in range(1, count + 2):
        began = time.perf_counter()
        checkpoints.save(step, state)
        seconds.append(time.perf_counter() - began)
    checkpoints.close()
    return statistics.median(seconds[1:])


if __name__ == "__main__":  # docs/results/fault-overhead.json
    print(json.dumps(overhead(pathlib.Path(sys.argv[1]), False), indent=1))
