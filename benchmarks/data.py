"""The reader against the training step that it feeds."""

import pathlib
import shutil
import statistics

from benchmarks.race import Settings, Taken, alone, judged, side_values
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
