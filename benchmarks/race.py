"""Workers of both sides taking turns on the same processors, and the row that comes out of it."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from benchmarks import proc, stats
from benchmarks.stats import Sample
from benchmarks.tasks import VARIANTS, Spec, bound
from cldm_jax.runtime.device import HUGE_PAGES

OURS = "ours"
DISTURBED = 0.15  # cores' worth of other processes on our CPUs above which a sample is taken again


class WorkerError(Exception):
    """A worker could not do what it was asked; one line."""


class Settings(NamedTuple):
    rounds: int
    wall: float  # seconds of calls per sample, at least
    tries: int  # samples per round and worker, at most
    compiled: bool  # race torch.compile as well


class Worker:
    """A process of one side, confined to `threads` processors. Use as a context manager."""

    def __init__(self, side: str, threads: int):
        cpus = proc.pick_cpus(threads)
        counts = (
            "OMP_NUM_THREADS",
            "MKL_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "NPROC",
            "PJRT_NPROC",
        )
        env = {**os.environ, **dict.fromkeys(counts, str(threads))}
        env |= {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
        if side == "flax":  # as cldm_jax.main starts itself
            env["GLIBC_TUNABLES"] = HUGE_PAGES
        self.side, self.cpus = side, cpus
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", "benchmarks.worker", side],
            cwd=proc.ROOT,
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )

    def ask(self, op: str, **request) -> dict:
        """The worker's answer; WorkerError if it reports an error or has died."""
        try:
            self._process.stdin.write(json.dumps({"op": op, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the {self.side} worker died: {self._last_words()}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def sample(self, wall: float) -> Sample:
        return Sample(**self.ask("time", wall=wall))

    def _last_words(self) -> str:
        self._log.seek(0)
        return " ".join(self._log.read().split()[-30:]) or f"status {self._process.poll()}"

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


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


def take(worker: Worker, settings: Settings) -> tuple[Sample, int]:
    """A sample and how many disturbed ones were seen on the way."""

    def measure():
        wait_quiet(worker.cpus)
        return worker.sample(settings.wall)

    return stats.take_clean(measure, DISTURBED, settings.tries)


def race(spec: Spec, threads: int, settings: Settings) -> tuple[dict, dict, dict]:
    """(samples by worker and round, facts by worker, errors by worker) of ours and every variant."""
    variants = {
        name: variant
        for name, variant in VARIANTS.items()
        if (settings.compiled or "compiled" not in variant)
        and (proc.has_bf16() or "bf16" not in variant)
    }
    sides = {OURS: ("flax", {}), **{name: ("torch", kw) for name, kw in variants.items()}}
    workers, facts, failed = {}, {}, {}
    try:
        for name, (side, variant) in sides.items():
            workers[name] = Worker(side, threads)
            try:
                facts[name] = workers[name].ask("setup", spec=list(spec), **variant)
            except WorkerError as error:
                failed[name] = str(error)
                workers.pop(name).close()
        if OURS in failed:
            raise WorkerError(failed[OURS])
        samples = {name: [] for name in workers}
        for fact in facts.values():
            fact["disturbed"] = 0
        for _ in range(settings.rounds):
            for name, worker in workers.items():
                sample, disturbed = take(worker, settings)
                samples[name].append(sample)
                facts[name]["disturbed"] += disturbed
        for name, worker in workers.items():
            facts[name] |= worker.ask("rss")
    finally:
        for worker in workers.values():
            worker.close()
    return samples, facts, failed


def make_rows(name: str, threads: int, samples, facts, failed, limit_gflops: float) -> list[dict]:
    """One row per peer: ours against its best variant."""
    rows = []
    for peer in dict.fromkeys(key.split("/")[0] for key in VARIANTS):
        times = {
            key: [stats.seconds(s, threads) for s in values]
            for key, values in samples.items()
            if key.split("/")[0] in (peer, OURS)
        }
        ours = times.pop(OURS)
        if not times:
            continue
        best = stats.best_variant(times)
        ratios = stats.round_ratios(ours, times[best])
        row = {
            "name": name,
            "threads": threads,
            "peer": peer,
            "ours_s": statistics.median(ours),
            "peer_s": statistics.median(times[best]),
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "mfu": facts[OURS]["flops"] / statistics.median(ours) / (limit_gflops * 1e9),
            "compared": "cpu" if threads == 1 else "wall",
            "peer_variant": best.split("/")[1],
            "flops": facts[OURS]["flops"],
            "params": facts[OURS]["params"],
            "ours_compile_s": facts[OURS]["compile_s"],
            "peer_compile_s": facts[best]["compile_s"],
            **side_values("ours", samples[OURS], facts[OURS], ours),
            **side_values("peer", samples[best], facts[best], times[best]),
            "peer_variants_s": {k: statistics.median(v) for k, v in times.items()},
            "failed": {k: v for k, v in failed.items() if k.startswith(peer)},
            "bound": bound(name, threads, peer),
        }
        rows.append({**row, "met": is_met(row["ratio"], row["bound"])})
    return rows


def side_values(side: str, samples: list[Sample], facts: dict, times: list[float]) -> dict:
    """The keys of one side in a row."""
    middle = Sample(*(statistics.median(values) for values in zip(*samples, strict=True)))
    return {
        f"{side}_samples": times,
        f"{side}_wall_s": middle.wall_s,
        f"{side}_cpu_s": middle.cpu_s,
        f"{side}_cores": middle.cores,
        f"{side}_rss_mb": round(facts["peak_mb"], 1),
        f"{side}_disturbed": facts["disturbed"],
    }


def is_met(ratio: float, highest: float | None) -> bool | None:
    """Whether the ratio keeps its bound; None where there is none."""
    return None if highest is None else ratio <= highest
