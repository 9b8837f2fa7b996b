"""Encode every training slice once: latents are just another prepared dataset."""

import numpy as np

from cldm_jax.data.shards import Prepared, ShardWriter, write_index
from cldm_jax.data.shards import encode as to_stored
from cldm_jax.methods.codec import make_codec
from cldm_jax.runs.inputs import (
    autoencoder_workdir,
    latents_folder,
    load_autoencoder,
    needed_modalities,
    settled,
)
from cldm_jax.runtime import processes, sharding
from cldm_jax.runtime.progress import Progress

SHARD_ITEMS = 4096  # slices per shard file
STD_FLOOR = 1e-4  # a dead latent channel must not divide by zero


def run(config, workdir: str = "") -> None:
    """The latents that training `config` reads, encoded where they are not there yet: beside the
    autoencoder in `config.autoencoder.workdir`; `workdir` is not used.
    """
    config, prepared = settled(config)
    ensure_latents(
        prepared,
        autoencoder_workdir(config),
        config.encode_batch_size,
        needed_modalities(config.data),
    )


def ensure_latents(
    prepared: Prepared, ae_workdir: str, batch_size: int, modalities: tuple[str, ...]
) -> Prepared:
    """Opens the latents of `prepared` under this autoencoder, encoding them on first use.

    Training people only: prediction encodes for itself. All processes compute, process 0 writes.
    """
    autoencoder = load_autoencoder(ae_workdir)
    model, variables, step = autoencoder
    index = prepared.index
    folder = latents_folder(prepared, ae_workdir, autoencoder, modalities)
    if processes.decided((folder / "index.json").is_file):
        return Prepared(folder)
    codec = make_codec(model)
    encode = sharding.Divided(lambda constants, batch: codec.encode(constants, *batch))
    variables = sharding.replicate(variables)
    writers, subjects = {}, []
    sums = dict.fromkeys(index.modalities, 0.0)
    train = set(prepared.subjects("train"))
    with Progress(len(train), "encode latents", "subject") as progress:
        for i, subject in enumerate(prepared.json["subjects"]):
            volumes = {}
            for name in modalities if i in train else ():
                if name not in subject["volumes"]:
                    continue
                code = index.code(name)
                z = _encode_volume(encode, variables, prepared.read(i, name), code, batch_size)
                if not processes.is_main():
                    continue
                sums[name] = sums[name] + _sums(z[prepared.keep(i, name)])
                if name not in writers:
                    writers[name] = ShardWriter(folder, name, SHARD_ITEMS)
                shard, offset = writers[name].add(to_stored(z, "float16"))
                volumes[name] = {**subject["volumes"][name], "shard": shard, "offset": offset}
            subjects.append({**subject, "volumes": volumes})
            if i in train:
                progress.update()
    shards = {}
    for writer in writers.values():
        shards.update(writer.close())
    codes = {name: m.code for name, m in index.modalities.items()}
    latents = {
        **prepared.json,
        "kind": "latents",
        "encoding": {"dtype": "float16", "scale": 1.0, "offset": 0.0},
        "subjects": subjects,
        "shards": shards,
        "statistics": _statistics(sums, codes, model),
        "images_fingerprint": index.fingerprint,
        "autoencoder": {"step": step, "model": model},
    }
    if processes.is_main():
        write_index(folder, latents)
    processes.wait()
    return Prepared(folder)


def _encode_volume(encode, variables, images, code: int, batch_size: int) -> np.ndarray:
    """Posterior means [Z, h, w, C] of slices [Z, H, W]; padded so that one program serves all."""
    count = len(images)
    padded = np.zeros((-(-count // batch_size) * batch_size, *images.shape[1:], 1), np.float32)
    padded[:count, ..., 0] = images
    label = np.full((batch_size,), code, np.int32)
    parts = [
        np.asarray(encode(variables, (padded[i : i + batch_size], label)))
        for i in range(0, len(padded), batch_size)
    ]
    return np.concatenate(parts)[:count]


def _sums(z) -> np.ndarray:
    """[3, channels] float64 of latents [..., channels]: how many, their sum, the sum of their squares."""
    flat = z.reshape(-1, z.shape[-1]).astype(np.float64)
    return np.stack([np.full(z.shape[-1], len(flat)), flat.sum(0), np.square(flat).sum(0)])


def _statistics(sums: dict, codes: dict[str, int], model: dict) -> dict:
    """{"mean", "std"}: [num_classes][latent_channels]; (0, 1) for codes without training slices."""
    shape = (model["num_classes"], model["latent_channels"])
    mean, std = np.zeros(shape), np.ones(shape)
    for name, found in sums.items():
        if np.any(found):
            count, total, square = found
            mean[codes[name]] = total / count
            variance = square / count - mean[codes[name]] ** 2
            std[codes[name]] = np.sqrt(np.maximum(variance, STD_FLOOR**2))
    return {"mean": mean.tolist(), "std": std.tolist()}
