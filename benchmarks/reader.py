"""The project's own reader over generated datasets: what opening, memory and a slice cost.

`setup` is the worker's side; `python -m benchmarks.reader FOLDER` prints `measure(FOLDER)` as one JSON
line, for a process of its own. Never imports JAX.
"""

import json
import os
import pathlib
import sys
import time

import numpy as np

from cldm_jax.data import pipeline, shards
from configs import common

CODES = {"pet": 0, "ct": 1, "mr": 2}
SLICES, SHARD = 100, 4000  # of a person, of a file
BATCHES = 50  # per timed call
SECONDS = 2.0  # of reading in `measure`
FACTS = {"open_s": "s", "open_mb": "MB", "source_s": "s", "source_mb": "MB", "slices_per_s": ""}


def generate(folder, slices: int, size: int, images=None) -> shards.Prepared:
    """A prepared dataset of about so many slices of PET, CT and MR, all alike and zero: images [size,
    size], or latents [size, size, 4] of the people of the dataset `images`. Kept if it is there already.

    Its shards share their disk blocks (hard links): a million slices of their own would be 115 GB, and
    what is asked here is not the disk's pace.
    """
    folder = pathlib.Path(folder)
    if (folder / shards.INDEX).is_file():
        return shards.Prepared(folder)
    folder.mkdir(parents=True, exist_ok=True)
    people, per_shard = max(1, slices // SLICES), SHARD // SLICES
    kind, dtype, item = ("images", "uint16", (size, size))
    if images is not None:
        kind, dtype, item = ("latents", "float16", (size, size, 4))
    types = dict.fromkeys(CODES, dtype) | ({"mask": "uint8"} if images is None else {})
    entries, alike = {}, {}
    for number in range(-(-people // per_shard)):
        length = min(per_shard, people - number * per_shard) * SLICES
        for name, stored in types.items():
            file = f"{name}-{number:05d}.npy"
            first = alike.setdefault((name, length), file)
            if first == file:
                np.save(folder / file, np.zeros((length, *item), stored))
            else:
                os.link(folder / first, folder / file)
            entries[file] = {"sha256": "", "shape": [length, *item], "dtype": stored}
    subjects = []
    for i in range(people):
        shard, offset = f"{i // per_shard:05d}.npy", i % per_shard * SLICES
        place = {"offset": offset, "scale": 1.0}
        volumes = {name: {"shard": f"{name}-{shard}", **place} for name in types}
        person = {"id": f"sub-{i:06d}", "group": f"g{i}", "n_slices": SLICES}
        subjects.append({**person, "keep": [z > 4 for z in range(SLICES)], "volumes": volumes})
    index = {
        "kind": kind,
        "name": "generated",
        "modalities": {name: {"code": code} for name, code in CODES.items()},
        "encoding": shards.ENCODINGS[dtype],
        "subjects": subjects,
        "splits": {"train": [s["id"] for s in subjects], "val": [], "test": [], "hash": ""},
        "shards": entries,
    }
    if images is not None:
        index["images_fingerprint"] = images.index["fingerprint"]
    shards.write_index(folder, index)
    return shards.Prepared(folder)


def open_source(images, latents=None, targets=("ct",)):
    """Training items: three PET slices to an image, or PET latents to latents."""
    context, kind = (3, "image") if latents is None else (1, "latent")
    options = dict(split="train", targets=targets, context=context, source_kind=kind)
    return pipeline.make_source(images, latents=latents, **options)


def open_batches(source, batch_size: int, num_threads: int):
    """Endless training batches."""
    options = dict(seed=0, start_step=0, num_threads=num_threads, num_workers=0)
    return pipeline.make_train_iterator(source, batch_size=batch_size, **options)


def setup(folder: str, kind: str, slices: int, size: int, batch: int):
    """kind "images" or "latents" (a quarter of the size). Facts: slices of a call."""
    root = pathlib.Path(folder)
    images, latents = generate(root / "images", slices, size), None
    if kind == "latents":
        latents = generate(root / "latents", slices, size // 4, images)
    batches = open_batches(open_source(images, latents), batch, common.train("cpu").num_threads)

    def call():
        for _ in range(BATCHES):
            next(batches)

    return call, {"slices": BATCHES * batch}


def resident_mb() -> float:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def measure(folder, batch: int = 32) -> dict[str, float]:
    """FACTS: seconds and MB of opening and of locating the training items, slices a second."""
    marks = [(time.perf_counter(), resident_mb())]
    prepared = shards.Prepared(folder)
    marks.append((time.perf_counter(), resident_mb()))
    source = open_source(prepared, targets=("ct", "mr"))
    marks.append((time.perf_counter(), resident_mb()))
    with open_batches(source, batch, 2) as batches:
        for _ in range(BATCHES):  # shards are mapped, threads are there
            next(batches)
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            next(batches)
            count += batch
        rate = count / (time.perf_counter() - began)
    (began, before), (opened, held), (made, whole) = marks
    values = (opened - began, held - before, made - opened, whole - held, rate)
    return dict(zip(FACTS, values, strict=True))


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])), flush=True)
