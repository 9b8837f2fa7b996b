"""Workers of both sides taking turns on the same processors, and the rows that come out of it."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

from benchmarks import proc
from benchmarks.gpu import lines
from benchmarks.gpu.lines import WorkerError
from benchmarks.tasks import VARIANTS, Spec, bound
from benchmarks.worker import Sample
from cldm_jax.runtime.device import HUGE_PAGES

OURS = "ours"
DISTURBED = 0.15  # cores' worth of other processes on our CPUs above which a sample is taken again
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC", "PJRT_NPROC")
GEMM_SIZES = (1024, 2048, 4096)
GEMMS = (("torch", "float32"), ("numpy", "float32"), ("flax", "float32"), ("torch", "bfloat16"))


class Settings(NamedTuple):
    rounds: int
    wall: float  # seconds of calls per sample, at least
    tries: int  # samples per round and worker, at most


class Taken(NamedTuple):
    """What one worker was seen doing."""

    samples: list[Sample]
    facts: dict  # of its setup, peak_mb, disturbed

    def times(self, threads: int) -> list[float]:
        """What is compared: CPU time on one thread, where neighbours only cost wall time; else wall."""
        return [s.cpu_s if threads == 1 else s.wall_s for s in self.samples]


class Worker(lines.Worker):
    """A process of one side, confined to `threads` processors."""

    def __init__(self, side: str, threads: int):
        cpus = self.cpus = proc.pick_cpus(threads)
        env = {**dict.fromkeys(COUNTS, str(threads)), "JAX_PLATFORMS": "cpu"}
        env["TF_CPP_MIN_LOG_LEVEL"] = "3"
        if side == "flax":  # as cldm_jax.main starts itself
            env["GLIBC_TUNABLES"] = HUGE_PAGES
        self._log = tempfile.TemporaryFile("w+")
        options = {"stderr": self._log, "preexec_fn": lambda: os.sched_setaffinity(0, cpus)}
        super().__init__("benchmarks.worker", side, env=env, **options)

    def last_words(self) -> str:
        self._log.seek(0)
        return " ".join(self._log.read().split()[-30:]) or super().last_words()

    def take(self, settings: Settings) -> tuple[Sample, int]:
        """A sample and how many disturbed ones were seen on the way."""

        def measure():
            wait_quiet(self.cpus)
            return Sample(**self.ask("time", wall=settings.wall))

        return take_clean(measure, DISTURBED, settings.tries)


def take_clean(measure: Callable[[], Sample], limit: float, tries: int) -> tuple[Sample, int]:
    """The first sample with at most `limit` cores taken by others, or the least disturbed of `tries`.

    Returns it with the number of disturbed samples seen, a kept one included.
    """
    seen = []
    for _ in range(tries):
        seen.append(measure())
        if seen[-1].others <= limit:
            return seen[-1], len(seen) - 1
    return min(seen, key=lambda s: s.others), len(seen)


def wait_quiet(cpus, patience: float = 3.0) -> None:
    """Returns when these processors are idle but for others' `DISTURBED`, or after `patience` seconds.

    The workers wait while this runs, so whatever it sees is somebody else's.
    """
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = proc.busy_seconds(cpus)
        time.sleep(0.1)
        if (proc.busy_seconds(cpus) - before) / 0.1 <= DISTURBED:
            return


def take_turns(workers: dict[str, Worker], facts: dict[str, dict], settings) -> dict[str, Taken]:
    """`settings.rounds` samples of each worker, round by round."""
    taken = {name: Taken([], {**facts[name], "disturbed": 0}) for name in workers}
    for _ in range(settings.rounds):
        for name, worker in workers.items():
            sample, disturbed = worker.take(settings)
            taken[name].samples.append(sample)
            taken[name].facts["disturbed"] += disturbed
    for name, worker in workers.items():
        taken[name].facts.update(worker.ask("rss"))
    return taken


def alone(side: str, threads: int, settings: Settings, save: str = "", **request) -> Taken:
    """One worker and its task; its last result, an array, goes into the file `save`."""
    with Worker(side, threads) as worker:
        taken = take_turns({side: worker}, {side: worker.ask("setup", **request)}, settings)
        if save:
            worker.ask("save", path=save)
    return taken[side]


def race(spec: Spec, threads: int, settings: Settings) -> tuple[dict[str, Taken], dict[str, str]]:
    """({worker: what it was seen doing}, {worker: error}) of ours and every variant."""
    wanted = {
        name: ("torch", variant)
        for name, variant in VARIANTS.items()
        if proc.has_bf16() or "bf16" not in variant
    }
    workers, facts, failed = {}, {}, {}
    try:
        for name, (side, variant) in {OURS: ("flax", {}), **wanted}.items():
            workers[name] = Worker(side, threads)
            try:
                facts[name] = workers[name].ask("setup", spec=list(spec), **variant)
            except WorkerError as error:
                failed[name] = str(error)
                workers.pop(name).close()
        if OURS in failed:
            raise WorkerError(failed[OURS])
        return take_turns(workers, facts, settings), failed
    finally:
        for worker in workers.values():
            worker.close()


def race_rows(name: str, threads: int, taken: dict, failed: dict, limit: float) -> list[dict]:
    """One row per peer: ours against its best variant. limit: GFLOP/s of the machine."""
    rows = []
    for peer in dict.fromkeys(key.split("/")[0] for key in VARIANTS):
        variants = {
            k: statistics.median(t.times(threads)) for k, t in taken.items() if k.startswith(peer)
        }
        if not variants:
            continue
        best = min(variants, key=variants.get)
        ours, theirs = taken[OURS], taken[best]
        pairs = zip(ours.times(threads), theirs.times(threads), strict=True)
        row = {
            **versus(name, threads, best, ours, theirs, [a / b for a, b in pairs], limit),
            "params": ours.facts["params"],
            "ours_compile_s": ours.facts["compile_s"],
            "peer_variants_s": variants,
            "failed": {k: v for k, v in failed.items() if k.startswith(peer)},
        }
        rows.append(judged(row, bound(name, threads, peer)))
    return rows


def versus(name, threads: int, best: str, ours: Taken, theirs: Taken, ratios, limit) -> dict:
    """The keys of a row against the variant `best` of a peer; ratios: ours / theirs by round."""
    ours_s, peer_s = (statistics.median(taken.times(threads)) for taken in (ours, theirs))
    peer, variant = best.split("/")
    return {
        "name": name,
        "threads": threads,
        "peer": peer,
        "peer_variant": variant,
        "ours_s": ours_s,
        "peer_s": peer_s,
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "mfu": ours.facts["flops"] / ours_s / (limit * 1e9),
        "compared": "cpu" if threads == 1 else "wall",
        "flops": ours.facts["flops"],
        **side_values("ours", ours, threads),
        **side_values("peer", theirs, threads),
    }


def side_values(side: str, taken: Taken, threads: int) -> dict:
    """The keys of one side in a row."""
    columns = zip(*taken.samples, strict=True)
    middle = Sample(*(statistics.median(values) for values in columns))
    return {
        f"{side}_samples": taken.times(threads),
        f"{side}_wall_s": middle.wall_s,
        f"{side}_cpu_s": middle.cpu_s,
        f"{side}_cores": middle.cores,
        f"{side}_rss_mb": round(taken.facts["peak_mb"], 1),
        f"{side}_disturbed": taken.facts["disturbed"],
    }


def judged(row: dict, highest: float | None) -> dict:
    """The row with `bound` and `met`: whether its ratio keeps it; None where there is none."""
    return {**row, "bound": highest, "met": None if highest is None else row["ratio"] <= highest}


def measure_limit(threads: int, settings: Settings, sizes=GEMM_SIZES) -> dict:
    """The machine's limit, the fastest matrix product of any library: {"f32_gflops", "bf16_gflops",
    "by_case": {library/dtype/size: GFLOP/s}}, wall time.
    """
    by_case, best = {}, {"float32": 0.0, "bfloat16": 0.0}
    for side, dtype in GEMMS if proc.has_bf16() else GEMMS[:-1]:
        for size in sizes:
            try:
                taken = alone(side, threads, settings, gemm=[size, dtype])
            except WorkerError:
                continue  # a library without this type: the others set the limit
            fastest = min(sample.wall_s for sample in taken.samples)
            gflops = by_case[f"{side}/{dtype}/{size}"] = round(2 * size**3 / fastest / 1e9, 1)
            best[dtype] = max(best[dtype], gflops)
    return {"f32_gflops": best["float32"], "bf16_gflops": best["bfloat16"], "by_case": by_case}
