"""The reader against the training step that it feeds, and how it grows with the cohort."""

import json
import pathlib
import shutil
import statistics
import subprocess
import sys

from benchmarks import proc, reader, stats
from benchmarks.race import Settings, Taken, alone, grown, judged, side_values
from benchmarks.tasks import DATA_BOUND, RACES

STEP = "ldm_train_b8"
SLICES, SIZE = 2000, 128  # of the dataset that is read beside the step
COHORTS = (1_000, 10_000, 100_000)  # slices
WIDTH = 128  # pixels of a cohort's


def step_seconds(summary, threads: int, settings: Settings) -> float:
    """Seconds of the training step: of its row, or measured now."""
    for row in summary.data["rows"]:
        if row["name"] == STEP and row["threads"] == threads:
            return row["ours_s"]
    taken = alone("flax", threads, settings, spec=list(RACES[STEP]))
    return statistics.median(taken.times(threads))


def data_rows(summary, folder: pathlib.Path, threads: int, settings: Settings) -> list[dict]:
    """A row each for images and latents; seconds are those of one slice."""
    needed = step_seconds(summary, threads, settings) / RACES[STEP].batch
    request, rows = {"folder": str(folder), "slices": SLICES, "size": SIZE, "batch": 8}, []
    for kind in ("images", "latents"):
        taken = alone("reader", threads, settings, kind=kind, **request)
        rows.append(data_row(f"data_{kind}", threads, taken, needed))
    shutil.rmtree(folder, ignore_errors=True)
    return rows


def data_row(name: str, threads: int, taken: Taken, needed: float) -> dict:
    """needed: seconds of the step for one slice."""
    n = taken.facts["slices"]
    taken = taken._replace(samples=[s.scaled(1 / n) for s in taken.samples])
    ours, ratios = (
        statistics.median(taken.times(threads)),
        [t / needed for t in taken.times(threads)],
    )
    row = {
        "name": name,
        "threads": threads,
        "peer": f"our {STEP} step",
        "peer_variant": "",
        "ours_s": ours,
        "peer_s": needed,
        "ratio": ours / needed,
        "ratio_range": [min(ratios), max(ratios)],
        "compared": "cpu" if threads == 1 else "wall",
        "ours_slices_per_s": 1 / ours,
        "peer_slices_per_s": 1 / needed,
        **dict.fromkeys(("mfu", "peer_rss_mb", "peer_cores")),
        **side_values("ours", taken, threads),
    }
    return judged(row, DATA_BOUND)


def cohort_facts(folder: pathlib.Path, counts, rounds: int) -> dict[int, dict[str, float]]:
    """Medians of `reader.measure` by slices in the cohort, each time in a process of its own; the sizes
    take turns.
    """
    samples = {count: [] for count in counts}
    try:
        for count in counts:
            reader.generate(folder / str(count), count, WIDTH)
        for _ in range(rounds):
            for count, found in samples.items():
                found.append(measured(folder / str(count)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        count: {name: statistics.median(s[name] for s in found) for name in reader.FACTS}
        for count, found in samples.items()
    }


def measured(folder: pathlib.Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.reader", str(folder)]
    done = subprocess.run(command, cwd=proc.ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def cohort_growth(folder: pathlib.Path, settings: Settings, cohorts=COHORTS) -> list[dict]:
    """Seconds to open the reader and seconds per slice against slices in the cohort."""
    facts = cohort_facts(folder, cohorts, settings.rounds).values()
    opened = [f["open_s"] + f["source_s"] for f in facts]
    read = [1 / f["slices_per_s"] for f in facts]
    rows = []
    for name, seconds, power in (("reader open", opened, 1), ("reader per slice", read, 0)):
        arithmetic = stats.growth(cohorts, [n**power for n in cohorts])
        what = "slices in the cohort"
        rows.append(grown(name, 1, what, cohorts, seconds, arithmetic))
    return rows
