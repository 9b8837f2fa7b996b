"""The data worker: batches of the project's own reader; never imports JAX."""

import pathlib
import time

from benchmarks import datasets
from configs import common

BATCHES = 50  # per timed call


def setup(folder: str, kind: str, slices: int, size: int, batch: int):
    """kind "images" or "latents" (a quarter of the size). Facts: seconds to open and read one batch."""
    root = pathlib.Path(folder)
    images = datasets.write_dataset(root / "images", slices=slices, size=size)
    latents = None
    if kind == "latents":
        latents = datasets.write_dataset(
            root / "latents", slices=slices, size=size // 4, kind="latents", images=images
        )
    began = time.perf_counter()
    images, latents = (p and type(p)(p.folder) for p in (images, latents))  # opened anew
    threads = common.train("cpu").num_threads
    batches = datasets.open_batches(images, latents, batch_size=batch, num_threads=threads)
    next(batches)
    open_s = time.perf_counter() - began

    def call():
        for _ in range(BATCHES):
            next(batches)

    return call, {"open_s": open_s, "slices": BATCHES * batch}
