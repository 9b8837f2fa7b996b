"""Latents on disk: just another prepared dataset, beside the autoencoder that made them."""

import hashlib
import pathlib

import jax
import numpy as np

from cldm_jax import console
from cldm_jax.data.shards import Prepared
from cldm_jax.errors import UserError


def source_of(data) -> str:
    """The PET that the `data` block of a training reads, "pet" or "nac"; older ones do not say."""
    return data.get("source", "pet")


def needed_modalities(data) -> tuple[str, ...]:
    """What a training with this `data` block reads as latents; its targets are named."""
    source = (source_of(data),) if data.source_kind == "latent" else ()
    return (*source, *(t for t in data.targets if t not in source))


def latents_folder(
    prepared: Prepared, ae_workdir: str, autoencoder: tuple, modalities: tuple[str, ...]
) -> pathlib.Path:
    """One folder per dataset, autoencoder (model, variables, step) and set of modalities. The autoencoder
    is its weights: one that was trained again to the same step is another.
    """
    _, variables, step = autoencoder
    weights = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        weights.update(np.ascontiguousarray(leaf).tobytes())
    data = prepared.index.fingerprint[:12]
    name = "-".join((data, str(step), weights.hexdigest()[:8], *modalities))
    return pathlib.Path(ae_workdir) / "latents" / name


def open_latents(
    prepared: Prepared, ae_workdir: str, autoencoder: tuple, modalities: tuple[str, ...]
) -> Prepared:
    """The latents of the training people of `prepared` under this autoencoder. Raises UserError."""
    folder = latents_folder(prepared, ae_workdir, autoencoder, modalities)
    if not (folder / "index.json").is_file():
        words = ("--config=configs/ldm.py", "--config.job=encode")
        words += (f"--config.autoencoder.workdir={ae_workdir}",)
        words += (f"--config.data.prepared={prepared.folder}",)
        remedy = "Encode them, with the other settings of the training: "
        remedy += console.command("cldm_jax.main", *words)
        raise UserError(folder, "no latents here (index.json is missing)", remedy)
    return Prepared(folder)
