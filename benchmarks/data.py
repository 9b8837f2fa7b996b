"""The reader against the training step that it feeds."""

import pathlib
import shutil
import statistics

from benchmarks.race import Settings, Taken, against, alone, judged
from benchmarks.tasks import DATA_BOUND, RACES

STEP = "ldm_train_b8"
SLICES, SIZE = 2000, 128  # of the dataset that is read beside the step


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
    ratios = [seconds / needed for seconds in taken.times(threads)]
    row = against(name, threads, f"our {STEP} step", taken, needed, ratios)
    row |= {"ours_slices_per_s": 1 / row["ours_s"], "peer_slices_per_s": 1 / needed}
    return judged(row | dict.fromkeys(("mfu", "peer_rss_mb", "peer_cores")), DATA_BOUND)
