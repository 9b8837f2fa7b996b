"""The project's own reader over generated datasets: the worker's side. Never imports JAX."""

import pathlib

import numpy as np

from cldm_jax.data import intensity, pipeline, shards
from cldm_jax.data.grid import ModelGrid
from cldm_jax.data.index import Modality
from configs import common

CODES = {"pet": 0, "ct": 1, "mr": 2}
SPEC = intensity.fit(intensity.make("ct", "window", low=-1024, high=3071, percentile=None), [])
SLICES = 100  # of a person
BATCHES = 50  # per timed call


def generate(folder, slices: int, size: int, images=None) -> shards.Prepared:
    """A prepared dataset of about so many slices of PET, CT and MR, all zero: images [size, size], or
    latents [size, size, 4] of the people of the dataset `images`. Kept if it is there already.
    """
    folder = pathlib.Path(folder)
    if (folder / shards.INDEX).is_file():
        return shards.Prepared(folder)
    folder.mkdir(parents=True, exist_ok=True)
    people = max(1, slices // SLICES)
    kind, dtype, shape = "images", "uint16", (people * SLICES, size, size)
    types = {"mask": "uint8"}
    if images is not None:
        kind, dtype, shape, types = "latents", "float16", (*shape, 4), {}
    types |= dict.fromkeys(CODES, dtype)
    for name, stored in types.items():
        np.save(folder / f"{name}.npy", np.zeros(shape, stored))
    subjects = [
        {
            "id": f"sub-{i:06d}",
            "group": f"g{i}",
            "n_slices": SLICES,
            "grid_affine": np.eye(4).tolist(),
            "keep": [z > 4 for z in range(SLICES)],
            "volumes": {n: {"shard": f"{n}.npy", "offset": i * SLICES} for n in types},
        }
        for i in range(people)
    ]
    modalities = {name: Modality(code, "HU", SPEC) for name, code in CODES.items()}
    index = {
        "kind": kind,
        "name": "generated",
        "contrast": "simulated",
        "config": {},
        "grid": ModelGrid((size, size), (1.0, 1.0), 2.0).to_index("fov"),
        "modalities": {name: modality.to_json() for name, modality in modalities.items()},
        "encoding": shards.ENCODINGS[dtype],
        "subjects": subjects,
        "splits": {"train": [s["id"] for s in subjects], "val": [], "test": [], "hash": ""},
        "shards": {
            f"{n}.npy": {"sha256": "", "shape": [*shape], "dtype": t} for n, t in types.items()
        },
        "images_fingerprint": images.index.fingerprint if images is not None else "",
    }
    shards.write_index(folder, index)
    return shards.Prepared(folder)


def open_source(images, latents=None):
    """Training items: three PET slices to an image, or PET latents to latents."""
    context, kind = (3, "image") if latents is None else (1, "latent")
    options = dict(split="train", targets=("ct",), context=context, source_kind=kind)
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
