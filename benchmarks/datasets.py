"""A prepared dataset of random numbers, written through the project's own shards, for the reader rows."""

import numpy as np

from cldm_jax.data import pipeline, shards

CODES = {"pet": 0, "ct": 1}
SLICES = 50  # of a subject


def write_dataset(folder, *, slices: int, size: int, kind: str = "images", images=None):
    """A `Prepared` of about `slices` slices, PET and CT: images [size, size], or latents [size, size, 4]
    of the same people as the dataset `images`. Kept if it is there already.
    """
    if not (folder / shards.INDEX).is_file():
        _write(folder, max(1, slices // SLICES), size, kind, images)
    return shards.Prepared(folder)


def _write(folder, subjects: int, size: int, kind: str, images) -> None:
    dtype, item = {"images": ("uint16", (size, size)), "latents": ("float16", (size, size, 4))}[
        kind
    ]
    rng = np.random.default_rng(0)
    contents = {name: rng.uniform(-1, 1, (SLICES, *item)).astype(np.float32) for name in CODES}
    stored = {name: shards.encode(values, dtype) for name, values in contents.items()}
    writers = {name: shards.ShardWriter(folder, name, dtype, item, 4096) for name in CODES}
    if kind == "images":
        stored["mask"] = np.ones((SLICES, *item), np.uint8)
        writers["mask"] = shards.ShardWriter(folder, "mask", "uint8", item, 4096)
    people = []
    for number in range(subjects):
        volumes = {}
        for name, writer in writers.items():
            shard, offset = writer.add(stored[name])
            volumes[name] = {"shard": shard, "offset": offset, "scale": 1.0}
        name = f"s{number:05d}"
        people.append(
            {
                "id": name,
                "group": name,
                "split": "train",
                "n_slices": SLICES,
                "keep": [True] * SLICES,
                "volumes": volumes,
            }
        )
    index = {
        "kind": kind,
        "modalities": {name: {"code": code} for name, code in CODES.items()},
        "encoding": shards.ENCODINGS[dtype],
        "subjects": people,
        "splits": {"train": [p["id"] for p in people], "val": [], "test": []},
        "shards": {k: v for w in writers.values() for k, v in w.close().items()},
    }
    if images is not None:
        index["images_fingerprint"] = images.index["fingerprint"]
    shards.write_index(folder, index)


def open_batches(images, latents, *, batch_size: int, num_threads: int):
    """Endless training batches of CT: three PET slices to an image, or PET latents to latents."""
    source = pipeline.make_source(
        images,
        split="train",
        targets=("ct",),
        context=3 if latents is None else 1,
        latents=latents,
        source_kind="image" if latents is None else "latent",
    )
    return pipeline.make_train_iterator(
        source,
        batch_size=batch_size,
        seed=0,
        start_step=0,
        num_threads=num_threads,
        num_workers=0,
    )
