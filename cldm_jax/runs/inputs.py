"""What a training or evaluation run reads: prepared slices, latents, and earlier phases' constants.

It opens, or refuses with the command to run; `jobs/make.py` makes what a training lacks.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cldm_jax import console, files
from cldm_jax.data import pipeline
from cldm_jax.data.index import Index
from cldm_jax.data.intensity import SOURCES
from cldm_jax.data.shards import Prepared
from cldm_jax.errors import UserError
from cldm_jax.models import monai_names
from cldm_jax.runs import latents as latents_lib
from cldm_jax.runs import manifest as manifest_lib
from cldm_jax.runs.latents import source_of
from cldm_jax.runs.manifest import Manifest
from cldm_jax.runtime import foreign
from cldm_jax.runtime.checkpoint import restore_for_inference

TARGETS = ("ct", "mr")


class Inputs(NamedTuple):
    prepared: Prepared
    latents: Prepared | None
    frozen: dict[str, Any]  # constants for `Method.init`
    recipe: dict[str, Any]  # keywords of the method's `make`


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
    with config.unlocked():
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
    try:
        return files.read_json(path)
    except ValueError as e:
        remedy = "Restore it from a copy, or train again in another folder."
        raise UserError(path, f"not readable as JSON ({e})", remedy) from e


def read_manifest(workdir) -> Manifest:
    """run.json of a finished or running training."""
    return manifest_lib.parse(
        pathlib.Path(workdir) / "run.json", read_run_json(workdir, "run.json")
    )


def load_autoencoder(workdir) -> tuple[dict, dict, int]:
    """(model keywords, {"params", "patch"}, step) of a trained autoencoder."""
    is_run = (pathlib.Path(workdir) / "config.json").is_file()
    config = read_run_config(workdir) if is_run else {}
    if is_run and config["method"] != "autoencoder":
        reason = f"is a training of {config['name']}, not of an autoencoder"
        raise UserError(workdir, reason, "Give an autoencoder's as config.autoencoder.workdir")
    found = restore_for_inference(pathlib.Path(workdir) / "checkpoints") if is_run else None
    if found is None:
        words = ("--config=configs/ae.py:PRESET", f"--workdir={workdir}")
        remedy = "Train one, on the same data: " + console.command("cldm_jax.main", *words)
        raise UserError(workdir, "holds no trained autoencoder", remedy)
    step, params, frozen = found
    return config["recipe"]["model"], {"params": params, **frozen}, step


def autoencoder_workdir(config) -> str:
    """Of the autoencoder that a latent method's training reads."""
    return config.autoencoder.workdir or f"runs/ae-{config.preset}"


def method_recipe(config) -> dict[str, Any]:
    """Keywords of the method's `make` that the training config holds."""
    return scheduled(config.recipe.to_dict(), config.train.num_train_steps)


def scheduled(recipe: Mapping[str, Any], num_train_steps: int) -> dict[str, Any]:
    """`recipe` whose optimiser knows its steps; 1 of an import alone, as no schedule has 0."""
    return {**recipe, "optim": {**recipe["optim"], "num_train_steps": max(1, num_train_steps)}}


def check_size(config, size) -> None:
    """UserError where images of `size` (rows, columns) cannot be halved as often as the networks do."""
    recipe = config.recipe.to_dict()
    multiple = _multiple(recipe.get("model") or recipe["generator"])
    if config.data.kind == "latents":
        multiple *= _multiple(config.autoencoder.train.recipe.model.to_dict())
    if any(n % multiple for n in size):
        fitting = ",".join(str(-(-n // multiple) * multiple) for n in size)
        raise UserError(
            f"images of {size[0]} x {size[1]}",
            f"the networks of these settings need multiples of {multiple}",
            f'Prepare them with --config.size="({fitting})", or give fewer levels (channel_mult, of '
            "MONAI's networks channels).",
        )


def _check_codes(config, index: Index) -> None:
    """UserError where a class code that MONAI's U-Net is asked for has no row in its embedding: JAX would
    take the last one without a word.
    """
    recipe = config.recipe.to_dict()
    rows = recipe.get("model", {}).get("num_class_embeds")
    if rows is None:
        return
    asked = {name: index.code(name) for name in config.data.targets}
    if rows == 0 and len(asked) > 1:
        reason = f"cannot tell {' from '.join(asked)} without class embeddings"
        raise UserError("num_class_embeds=0", reason, "Give one of them as config.data.targets.")
    diffusion, scale = recipe["diffusion"], recipe["sampling"]["guidance_scale"]
    if diffusion["class_dropout_prob"] > 0 or scale != 1.0:
        asked["no class (null_code)"] = diffusion["null_code"]
    missing = [f"{name}: {code}" for name, code in asked.items() if code >= rows > 0]
    if missing:
        raise UserError(
            f"num_class_embeds={rows}",
            f"has no row for the class code of {', '.join(missing)}",
            "Give as many as the highest code and one; for no class, class_dropout_prob=0 will do.",
        )


def _multiple(model: dict) -> int:
    """Pixels that become one at the network's lowest level, along a side."""
    levels = model.get("channel_mult") or model.get("unet", {}).get("channel_mult")
    levels = levels or model.get("channels")  # MONAI's networks
    if levels is None:  # CycleGAN's generator
        return 4
    return model.get("stem_block", 1) * 2 ** (len(levels) - 1)


def open_inputs(config) -> Inputs:
    """Opens everything that training `config` reads. UserError where something is missing or does not
    fit: `jobs/make.py` makes what is missing.
    """
    config, prepared = settled(config)
    check_fit(config, prepared)
    recipe = method_recipe(config)
    if config.data.kind == "images":
        return Inputs(prepared, None, {}, recipe)
    workdir = autoencoder_workdir(config)
    autoencoder = load_autoencoder(workdir)
    model, variables, _ = autoencoder
    modalities = latents_lib.needed_modalities(config.data)
    latents = latents_lib.open_latents(prepared, workdir, autoencoder, modalities)
    statistics = _latent_statistics(latents, config.autoencoder.scale_factor)
    frozen = {"autoencoder": variables, "statistics": statistics}
    return Inputs(prepared, latents, frozen, {"autoencoder": model, **recipe})


def check_fit(config, prepared: Prepared) -> None:
    """UserError where the networks of training `config` cannot take these images or class codes."""
    check_size(config, prepared.index.grid.size)
    _check_codes(config, prepared.index)
    if "autoencoder" in config and config.autoencoder.scale_factor < 0:
        what = f"config.autoencoder.scale_factor={config.autoencoder.scale_factor:g}"
        raise UserError(what, "negative", "Give MONAI's scale_factor, or 0 for none.")


def _latent_statistics(latents: Prepared, scale_factor: float) -> dict[str, np.ndarray]:
    """{"mean", "std"} [classes, C] that latents are standardised by: each class's and channel's own, or
    MONAI's multiplication by one factor where that is not 0.
    """
    statistics = latents.index.statistics
    if scale_factor == 0:
        return statistics
    ones = np.ones_like(statistics["std"])
    return {"mean": 0 * ones, "std": ones / np.float32(scale_factor)}


def import_weights(config, params) -> tuple[dict, dict]:
    """(a tree like `params` with the weights of `config.init`, facts about the file for run.json).

    Raises UserError for networks that are not MONAI's, and a file that cannot be read or does not fit.
    """
    path, key = config.init.weights, config.init.key
    if config.recipe.model.to_dict().get("architecture") != "monai":
        raise UserError(
            f"config.init.weights={path}",
            "is for networks of MONAI's architecture, and these are cldm_jax's own",
            "Use configs/monai_ae.py or configs/monai_ldm.py.",
        )
    expected = monai_names.expected_shapes(params)
    states = {k: monai_names.split_qkv(s) for k, s in foreign.read_states(path).items()}
    key, state = _choose_state(path, key, states, expected)
    arrays = foreign.to_float32(path, state)
    facts = {"file": pathlib.Path(path).name, "sha256": files.sha256_file(path), "key": key}
    return monai_names.to_params(arrays, params), facts


def _choose_state(path, key: str, states: dict, expected: dict) -> tuple[str, dict]:
    """(key, state dict) of the one named or, without a name, of the only one that fits."""
    shapes = {k: {n: tuple(v.shape) for n, v in s.items()} for k, s in states.items()}
    listed = ", ".join(k or "(the file itself)" for k in states)
    if key and key not in states:
        raise UserError(path, f"holds no state dict {key!r}", f"It holds: {listed}.")
    candidates = [key] if key else list(states)
    fitting = [k for k in candidates if not monai_names.explain(shapes[k], expected)]
    if len(fitting) > 1:
        remedy = "Say which one: --config.init.key=NAME."
        raise UserError(path, f"holds several state dicts that fit ({', '.join(fitting)})", remedy)
    if fitting:
        return fitting[0], states[fitting[0]]
    nearest = max(candidates, key=lambda k: len(shapes[k].keys() & expected.keys()))
    reason = monai_names.explain(shapes[nearest], expected)
    if len(candidates) > 1:
        reason = f"holds the state dicts {listed}, and none fits; {nearest or 'the file itself'} {reason}"
    remedy = "Set config.recipe.model to the keywords it was trained with."
    if reason.endswith(monai_names.LEGACY):
        remedy = (
            "Where it was trained: net.load_old_state_dict(torch.load(OLD)), then "
            "torch.save(net.state_dict(), NEW)."
        )
    elif len(candidates) > 1:
        remedy = f"{remedy} If another one is meant: --config.init.key=NAME."
    raise UserError(path, reason, remedy)


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
