"""Start-up, memory and throughput of the reader over one prepared folder, as one JSON line (scale.py)."""

import json
import pathlib
import sys
import time

from cldm_jax.data import pipeline
from cldm_jax.data.shards import Prepared

BATCH, SECONDS = 32, 2.0


def resident_mb() -> float:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def main(folder: str) -> None:
    before, began = resident_mb(), time.perf_counter()
    prepared = Prepared(folder)
    opened, held = time.perf_counter(), resident_mb()
    source = pipeline.make_source(
        prepared, split="train", targets=("ct", "mr"), context=3, latents=None, source_kind="image"
    )
    made, whole = time.perf_counter(), resident_mb()
    options = dict(batch_size=BATCH, seed=0, start_step=0, num_threads=2, num_workers=0)
    with pipeline.make_train_iterator(source, **options) as batches:
        for _ in range(50):  # shards are mapped, threads are there
            next(batches)
        count, first = 0, time.perf_counter()
        while time.perf_counter() - first < SECONDS:
            next(batches)
            count += BATCH
        rate = count / (time.perf_counter() - first)
    facts = {
        "items": len(source),
        "open_seconds": opened - began,
        "open_mb": held - before,
        "source_seconds": made - opened,
        "source_mb": whole - held,
        "slices_per_second": rate,
    }
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
