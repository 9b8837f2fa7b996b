"""The reader against the training step that it feeds, and how it grows with the cohort."""

import pathlib
import shutil
import statistics

from benchmarks import stats
from benchmarks.race import Settings, Worker, is_met, side_values, take
from benchmarks.tasks import DATA_BOUND, RACES

STEP = "ldm_train_b8"
COHORTS = (1_000, 10_000, 100_000)  # slices
COHORT_SIZE = 32  # pixels: small slices, so that the index and the shuffling are what grows


def step_seconds(summary, threads: int, settings: Settings) -> float:
    """Seconds of the training step: of its row, or measured now."""
    for row in summary.data["rows"]:
        if row["name"] == STEP and row["threads"] == threads:
            return row["ours_s"]
    with Worker("flax", threads) as worker:
        worker.ask("setup", spec=list(RACES[STEP]))
        samples = [take(worker, settings)[0] for _ in range(settings.rounds)]
    return statistics.median(stats.seconds(s, threads) for s in samples)


def data_rows(summary, folder: pathlib.Path, threads: int, settings: Settings) -> list[dict]:
    """A row each for images of 128 x 128 and for latents of 32 x 32; seconds are those of one slice."""
    needed = step_seconds(summary, threads, settings) / RACES[STEP].batch
    rows = []
    for kind in ("images", "latents"):
        with Worker("reader", threads) as worker:
            facts = worker.ask(
                "setup", folder=str(folder), kind=kind, slices=2000, size=128, batch=8
            )
            facts["disturbed"] = 0
            samples = []
            for _ in range(settings.rounds):
                sample, disturbed = take(worker, settings)
                samples.append(sample)
                facts["disturbed"] += disturbed
            facts |= worker.ask("rss")
        rows.append(_row(f"data_{kind}", threads, samples, facts, needed))
    shutil.rmtree(folder, ignore_errors=True)
    return rows


def _row(name: str, threads: int, samples, facts: dict, needed: float) -> dict:
    n = facts["slices"]
    per_slice = [s._replace(wall_s=s.wall_s / n, cpu_s=s.cpu_s / n) for s in samples]
    times = [stats.seconds(s, threads) for s in per_slice]
    ours, ratios = statistics.median(times), [t / needed for t in times]
    return {
        "name": name,
        "threads": threads,
        "peer": f"our {STEP} step",
        "ours_s": ours,
        "peer_s": needed,
        "ratio": ours / needed,
        "ratio_range": [min(ratios), max(ratios)],
        "mfu": None,
        "compared": "cpu" if threads == 1 else "wall",
        "peer_variant": "",
        "ours_slices_per_s": 1 / ours,
        "peer_slices_per_s": 1 / needed,
        "peer_rss_mb": None,
        "peer_cores": None,
        **side_values("ours", per_slice, facts, times),
        "bound": DATA_BOUND,
        "met": is_met(ours / needed, DATA_BOUND),
    }


def cohort_growth(folder: pathlib.Path, settings: Settings, cohorts=COHORTS) -> list[dict]:
    """Seconds to open the reader and seconds per slice against slices in the cohort; one thread."""
    opened, read = [], []
    for slices in cohorts:
        with Worker("reader", 1) as worker:
            facts = worker.ask(
                "setup",
                folder=str(folder),
                kind="images",
                slices=slices,
                size=COHORT_SIZE,
                batch=8,
            )
            samples = [take(worker, settings)[0] for _ in range(settings.rounds)]
        opened.append(facts["open_s"])
        read.append(statistics.median(s.cpu_s for s in samples) / facts["slices"])
        shutil.rmtree(folder, ignore_errors=True)
    arithmetic = {"reader open": 1.0, "reader per slice": 0.0}  # exponents of the work itself
    return [
        {
            "name": name,
            "threads": 1,
            "against": "slices in the cohort",
            "sizes": list(cohorts),
            "seconds": values,
            "flops": None,
            "flops_exponent_upper": arithmetic[name],
            **stats.growth(cohorts, values),
        }
        for name, values in (("reader open", opened), ("reader per slice", read))
    ]
