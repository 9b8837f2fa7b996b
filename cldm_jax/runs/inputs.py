"""What a training or evaluation run reads: prepared slices, latents, and earlier phases' constants.

It opens, or refuses with the command to run; `jobs/make.py` makes what a training lacks.
"""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from cldm_jax import console, files
from cldm_jax.data import pipeline
from cldm_jax.data.intensity import SOURCES
from cldm_jax.data.shards import Prepared
from cldm_jax.errors import UserError
from cldm_jax.runs import fit
from cldm_jax.runs import manifest as manifest_lib
from cldm_jax.runs.manifest import Manifest
from cldm_jax.runtime.checkpoint import restore_for_inference

TARGETS = ("ct", "mr")


class Inputs(NamedTuple):
    prepared: Prepared
    latents: Prepared | None
    frozen: dict[str, Any]  # constants for `Method.init`
    recipe: dict[str, Any]  # keywords of the method's `make`


def source_of(data) -> str:
    """The PET that the `data` block of a training reads, "pet" or "nac"; older ones do not say."""
    return data.get("source", "pet")


def needed_modalities(data) -> tuple[str, ...]:
    """What a training with this `data` block reads as latents; its targets are named."""
    source = (source_of(data),) if data.source_kind == "latent" else ()
    return (*source, *(t for t in data.targets if t not in source))


def prepared_folder(data) -> pathlib.Path:
    """Where the prepared dataset of a config's `data` block is: as named, else that of the phantom."""
    return pathlib.Path(data["prepared"] or pathlib.Path(data["root"]) / "prepared")


def open_prepared(data) -> Prepared:
    """The prepared dataset of a config's `data` block. Raises UserError."""
    folder = prepared_folder(data)
    if (folder / "index.json").is_file():
        return Prepared(folder)
    words = ("--config=configs/prepare.py", "--config.cohort=FOLDER_OR_CSV", f"--workdir={folder}")
    remedy = "Make one: " + console.command("cldm_jax.main", *words)
    if not data.prepared:
        remedy = "It is the phantom's, made by the training that reads it. Train first."
    raise UserError(folder, "no prepared dataset here (index.json is missing)", remedy)


def data_of(config, trained: Mapping[str, Any]) -> Prepared:
    """The prepared dataset that `config.data` names, else that of a training with config `trained`."""
    data = config.data.copy_and_resolve_references()  # the caller's stays as it was
    if not data.prepared:
        data.update({k: trained["data"][k] for k in ("prepared", "root")})
    return open_prepared(data)


def settled(config, *, say: bool = False):
    """(a copy of a training config that names its targets, the prepared data).

    Those it names must be there; where it names none, they are what the training people have, for an
    autoencoder with the PET. `say` what they lack. Raises UserError.
    """
    prepared = open_prepared(config.data)
    config = config.copy_and_resolve_references()
    config.data.targets = choose_targets(config, prepared)
    if "autoencoder" in config:
        own = config.autoencoder.train
        own.data.targets = choose_targets(own, prepared)
    missing = [t for t in TARGETS if t not in prepared.held("train")]
    if say and missing:
        trained = ", ".join(config.data.targets)
        print(f"{config.name}: trains {trained}; no training person has {missing[0]}", flush=True)
    return config, prepared


def choose_targets(config, prepared: Prepared) -> tuple[str, ...]:
    """The targets of a training config on these data: see `settled`."""
    held, source = prepared.held("train"), source_of(config.data)
    asked = tuple(config.data.targets)
    if not any(prepared.has(s, source) for s in prepared.subjects("train")):
        reason = f"no training person of {prepared.folder} has {source}"
        raise UserError(f"config.data.source={source}", reason, "Give one that they have")
    for target in asked:
        if target not in held:
            there = ", ".join(t for t in held if t not in SOURCES) or "no target"
            reason = f"no training person of {prepared.folder} has {target} (they have {there})"
            raise UserError(
                f"config.data.targets={asked}",
                reason,
                "Leave it out, or leave targets empty",
            )
    if asked:
        return asked
    found = tuple(t for t in TARGETS if t in held)
    if not found:
        reason = "no training person has a CT or an MR slice that counts"
        raise UserError(prepared.folder, reason, "Look at its audit.json, or change the split")
    if config.method == "autoencoder":
        return (source, *found)
    return found[:1] if config.method == "cyclegan" else found


def read_run_config(workdir) -> dict:
    """The resolved config a finished or running training left in its workdir."""
    return read_run_json(workdir, "config.json")


def read_run_json(workdir, name: str) -> dict:
    """One of the JSON files of a training's workdir."""
    path = pathlib.Path(workdir) / name
    if not path.is_file():
        reason = f"not a run folder ({name} is missing)"
        raise UserError(workdir, reason, "Give the --workdir of a training.")
    remedy = "Restore it from a copy, or train again in another folder."
    try:
        found = files.read_json(path)
    except ValueError as e:
        raise UserError(path, f"not readable as JSON ({e})", remedy) from e
    if not isinstance(found, dict):
        raise UserError(path, "holds no settings by name", remedy)
    return found


def read_manifest(workdir) -> Manifest:
    """run.json of a finished or running training."""
    path = pathlib.Path(workdir) / "run.json"
    return manifest_lib.parse(path, read_run_json(workdir, path.name))


def load_autoencoder(workdir) -> tuple[dict, dict, int]:
    """(model keywords, {"params", "patch"}, step) of a trained autoencoder."""
    folder, found = pathlib.Path(workdir), None
    if (folder / "config.json").is_file():
        config = read_run_config(workdir)
        if config["method"] != "autoencoder":
            reason = f"is a training of {config['name']}, not of an autoencoder"
            raise UserError(workdir, reason, "Give an autoencoder's as config.autoencoder.workdir")
        found = restore_for_inference(folder / "checkpoints")
    if found is None:
        words = ("--config=configs/ae.py:PRESET", f"--workdir={workdir}")
        remedy = "Train one, on the same data: " + console.command("cldm_jax.main", *words)
        raise UserError(workdir, "holds no trained autoencoder", remedy)
    step, params, frozen = found
    return config["recipe"]["model"], {"params": params, **frozen}, step


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


def autoencoder_workdir(config) -> str:
    """Of the autoencoder that a latent method's training reads."""
    return config.autoencoder.workdir or f"runs/ae-{config.preset}"


def method_recipe(config) -> dict[str, Any]:
    """Keywords of the method's `make` that the training config holds."""
    return scheduled(config.recipe.to_dict(), config.train.num_train_steps)


def scheduled(recipe: Mapping[str, Any], num_train_steps: int) -> dict[str, Any]:
    """`recipe` whose optimiser knows its steps; 1 of an import alone, as no schedule has 0."""
    return {**recipe, "optim": {**recipe["optim"], "num_train_steps": max(1, num_train_steps)}}


def open_inputs(config) -> Inputs:
    """Everything that training `config` reads. UserError where something is missing or does not fit."""
    config, prepared = settled(config)
    fit.check(config, prepared)
    recipe = method_recipe(config)
    if config.data.kind == "images":
        return Inputs(prepared, None, {}, recipe)
    workdir = autoencoder_workdir(config)
    autoencoder = load_autoencoder(workdir)
    model, variables, _ = autoencoder
    latents = open_latents(prepared, workdir, autoencoder, needed_modalities(config.data))
    statistics = _latent_statistics(latents, config.autoencoder.scale_factor)
    frozen = {"autoencoder": variables, "statistics": statistics}
    return Inputs(prepared, latents, frozen, {"autoencoder": model, **recipe})


def _latent_statistics(latents: Prepared, scale_factor: float) -> dict[str, np.ndarray]:
    """{"mean", "std"} [classes, C] that latents are standardised by: each class's and channel's own, or
    MONAI's multiplication by one factor where that is not 0.
    """
    statistics = latents.index.statistics
    if scale_factor == 0:
        return statistics
    ones = np.ones_like(statistics["std"])
    return {"mean": 0 * ones, "std": ones / np.float32(scale_factor)}


def train_source(config, inputs: Inputs):
    """The training items of `config`, whether its targets are `settled` or not."""
    return pipeline.make_source(
        inputs.prepared,
        split="train",
        targets=choose_targets(config, inputs.prepared),
        context=config.data.context,
        latents=inputs.latents,
        source_kind=config.data.source_kind,
        source=source_of(config.data),
        slice_stride=config.data.train_slice_stride,
    )


def image_source(prepared: Prepared, split: str, targets: tuple, data, **options):
    """Source PET images with image targets, what `Method.predict` takes, as a training with this `data`
    block reads them. options: of `make_source`.
    """
    return pipeline.make_source(
        prepared,
        split=split,
        targets=targets,
        context=data["context"],
        latents=None,
        source_kind="image",
        source=source_of(data),
        **options,
    )
