"""A trained run as a folder to hand on: weights, a card, and the sampler as portable programs.

`predict` and `evaluate` take the folder in place of the training's (see `readouts.open_run`). It holds
nothing about single people, and no paths, commands or host names: the card is made of listed fields.
"""

import dataclasses
import importlib.util
import json
import pathlib
import time

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from cldm_jax import __version__, console, files
from cldm_jax.data import pet_ranges, shards
from cldm_jax.errors import UserError
from cldm_jax.methods.base import Method
from cldm_jax.runs import calibration, monai_export
from cldm_jax.runs.latents import source_of
from cldm_jax.runs.readouts import Stored, read_stored, stored_calibration, stored_method
from cldm_jax.runtime import device, weights
from cldm_jax.runtime.train_state import TrainState

PLATFORMS = ("cpu", "cuda")
FORMATS = ("cldm_jax", "monai")
CURVE = "metrics.jsonl"  # named as in a training's workdir, where reports look for it
LIMITATIONS = (
    "Images are synthetic: structures can be missing, displaced or invented, lesions above all.",
    "Made for PET like the training people's (see training: data, contrast); elsewhere unknown.",
    "CT is in HU; MR is in arbitrary units of a typical training scan (see the normalisers).",
)
# What goes into the card, field by field: whatever is not listed here stays with the training.
CONFIG_FIELDS = {
    "": ("name", "method", "preset", "seed", "recipe"),
    "data": ("kind", "targets", "source", "source_kind", "context", "train_slice_stride", "paired"),
    "train": ("batch_size", "num_train_steps"),
}


def run(config, workdir: str) -> None:
    """Exports `config.run` into `workdir`: model.safetensors, model.json, metrics.jsonl, and
    <mode>.stablehlo for each of `config.stablehlo`; or, with format "monai", what
    `monai_export.write` says.
    The card is written last: an interrupted export leaves none.
    """
    began = time.monotonic()
    if not config.run:
        raise UserError("config.run", "empty", "Give --config.run=<workdir of a training>.")
    folder = pathlib.Path(workdir)
    if config.format not in FORMATS:
        raise UserError(
            f"config.format={config.format}", "not known", f"Known: {', '.join(FORMATS)}."
        )
    _check_folder(folder, config.overwrite)
    stored = read_stored(config.run)
    if config.format == "monai":
        monai_export.write(config, folder, stored)
        return
    if stored.config["method"] == "autoencoder":
        remedy = "Export the latent method trained on it: the autoencoder travels inside."
        raise UserError(config.run, "is an autoencoder, which predicts nothing by itself", remedy)
    method, _ = stored_method(stored)
    _check_modes(config, method)
    stored = _with_pet_ranges(config.run, stored)
    (folder / weights.CARD).unlink(missing_ok=True)  # from here on, nothing that looks whole
    for old in folder.glob("*.stablehlo"):
        old.unlink()
    tree = jax.tree.map(np.asarray, {"params": stored.params, "frozen": stored.frozen})
    facts = weights.save(folder, tree, config.dtype)
    files.write_text(folder / CURVE, _validation_curve(config.run))
    names = [weights.WEIGHTS, CURVE, *_carry_calibration(config.run, folder, stored)]
    programs = {}
    for mode in config.stablehlo:
        names.append(f"{mode}.stablehlo")
        programs[mode] = _write_program(folder / names[-1], config, stored, method, mode, tree)
    card = weights.write_card(folder, make_card(stored, method, facts, programs), names)
    for name, entry in card["files"].items():
        print(f"wrote {folder / name} ({entry['bytes'] / 1e6:.2f} MB)")
    print(f"exported {card['name']}, step {card['step']}, in {time.monotonic() - began:.1f} s")


def _with_pet_ranges(run: str, stored: Stored) -> Stored:
    """`stored` with the ranges of its training people's PETs: of a run that was made before there were
    any, measured now where its prepared data still lie where it read them.
    """
    if stored.manifest.pet_ranges:
        return stored
    data = stored.config["data"]
    folder = pathlib.Path(data["prepared"] or f"{data['root']}/prepared")
    ranges, why = None, f"{folder} is not there"
    if (folder / shards.INDEX).is_file():
        prepared, why = shards.Prepared(folder), f"{folder} holds other data now"
        if prepared.index.fingerprint == stored.manifest.data.fingerprint:
            ranges, why = pet_ranges.of_people(prepared, source_of(data)), "too few training people"
    if ranges is None:
        print(f"{run}: PETs unlike the training people's will not be flagged: {why}", flush=True)
    return stored._replace(manifest=dataclasses.replace(stored.manifest, pet_ranges=ranges))


def _carry_calibration(run: str, folder: pathlib.Path, stored: Stored) -> list[str]:
    """Writes the run's calibration beside the weights, where it has one that is theirs; its name or none.

    One that is another step's is left behind, and said.
    """
    path = folder / calibration.FILE
    path.unlink(missing_ok=True)
    found, why = stored_calibration(run, stored)
    if found is not None:
        calibration.write(folder, found)
        return [path.name]
    if calibration.read_bytes(run) is not None:
        print(f"calibration left behind: {why}")
    return []


def make_card(stored: Stored, method: Method, facts: dict, programs: dict) -> dict:
    """The card, but for the hashes. facts: of `weights.save`. programs: {mode: facts}.

    Raises UserError where a text in it is an absolute path.
    """
    config, training = stored.config, stored.manifest.to_json()
    del training["command"]  # it names folders of the machine
    kept = {k: config[k] for k in CONFIG_FIELDS[""]}
    for section in ("data", "train"):
        kept[section] = {
            k: config[section][k] for k in CONFIG_FIELDS[section] if k in config[section]
        }
    card = {
        "name": config["name"],
        "method": config["method"],
        "intended_use": weights.INTENDED_USE,
        "limitations": list(LIMITATIONS),
        "exported_by": {"name": "cldm_jax", "version": __version__},
        "step": int(stored.step),
        "read_outs": dict(method.evaluations),  # network evaluations per slice; the first: default
        "config": kept,
        "training": training,
        "weights": facts,
        "programs": programs,
    }
    weights.refuse_paths(card)
    return card


def load_program(folder, mode: str):
    """The exported read-out `mode` as a function of arrays, without this package's networks.

    (source [B, H, W, S] float32 in model range, label [B], subject [B], slice [B], seed) -> {"image":
    [B, H, W, 1], and "sd" where there are samples}, as jax arrays in model range; the noise of a row
    depends on (seed, subject, slice) only. Raises UserError for a damaged folder or an unknown mode. JAX
    promises to read such programs for six months after the version that wrote them.
    """
    _require_flatbuffers()
    card = weights.read_card(folder)
    if mode not in card["programs"]:
        known = ", ".join(card["programs"]) or "none"
        raise UserError(
            folder, f"holds no program {mode!r} (programs: {known})", "Export it again."
        )
    blob = weights.read_file(folder, card, f"{mode}.stablehlo")
    call = jax.jit(jax.export.deserialize(bytearray(blob)).call)
    flat = weights.flatten(weights.load(folder, card))

    def predict(source, label, subject, slice_, seed: int):
        codes = (np.asarray(v, np.int32) for v in (label, subject, slice_))
        return call(flat, np.asarray(source, np.float32), *codes, np.uint32(seed))

    return predict


def _check_folder(folder: pathlib.Path, overwrite: bool) -> None:
    if (folder / "config.json").exists() or (folder / "checkpoints").exists():
        raise UserError(folder, "is the folder of a training", "Give another --workdir.")
    is_exported = weights.is_exported(folder) or (folder / monai_export.CARD).is_file()
    if is_exported and not overwrite:
        remedy = "Give another --workdir, or say --config.overwrite=True."
        raise UserError(folder, "holds an exported model already", remedy)


def _check_modes(config, method: Method) -> None:
    for mode in config.stablehlo:
        if mode not in method.predict:
            known = ", ".join(method.predict)
            raise UserError(f"config.stablehlo: {mode!r}", "not a read-out", f"Known: {known}.")
    if config.batch_size < 0:
        raise UserError("config.batch_size", "negative", "Give 0 (any) or a number of slices.")
    if config.stablehlo:
        _require_flatbuffers()


def _require_flatbuffers() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        install = console.command("pip", "install", "flatbuffers")
        raise UserError("StableHLO", "needs a package", f"Run: {install}.")


def _validation_curve(workdir: str) -> str:
    """The lines of a run's metrics with its validation scores, and only those."""
    lines = []
    for line in (pathlib.Path(workdir) / CURVE).read_text().splitlines():
        row = json.loads(line)
        scores = {k: v for k, v in row.items() if k.startswith("val/psnr_")}
        if scores:
            lines.append(json.dumps({"step": row["step"], **scores}) + "\n")
    return "".join(lines)


def _write_program(path, config, stored: Stored, method: Method, mode: str, tree: dict) -> dict:
    """Writes the read-out as serialised StableHLO; returns the card's facts about it.

    The weights are arguments, in the order of their names, and not constants: they are stored once
    however many programs there are, as float16 if so wished, and a compiler need not fold them.
    """
    h, w = stored.manifest.data.grid.size
    slices = stored.config["data"]["context"]
    any_batch = jax.export.symbolic_shape("b")[0]
    batch = config.batch_size or any_batch
    row = jax.ShapeDtypeStruct((batch,), jnp.int32)
    arguments = (
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), weights.flatten(tree)),
        jax.ShapeDtypeStruct((batch, h, w, slices), jnp.float32),
        *(row, row, row),
        jax.ShapeDtypeStruct((), jnp.uint32),
    )
    jitted = jax.jit(_program(method, mode, int(stored.step)), keep_unused=True)
    device.choose_kernels("xla")  # a call into our own kernels would mean nothing elsewhere
    try:
        exported = jax.export.export(jitted, platforms=PLATFORMS)(*arguments)
    finally:
        device.choose_kernels(config.kernels)
    with files.atomic_path(path) as tmp:
        tmp.write_bytes(exported.serialize())
    return {
        "platforms": list(exported.platforms),
        "jax": jax.__version__,
        "calling_convention": exported.calling_convention_version,
        "arguments": {
            "weights": "float32, in the order of weights.tensors",
            "source": f"float32 [{batch}, {h}, {w}, {slices}], model range",
            **{name: f"int32 [{batch}]" for name in ("label", "subject", "slice")},
            "seed": "uint32 []",
        },
    }


def _program(method: Method, mode: str, step: int):
    """`method.predict[mode]` as a function of plain arrays: a typed key cannot cross the border.

    One row at a time under `vmap`, which is one batch again when compiled, because the networks' code
    compares the batch with numbers, and a batch of any size has no answer.
    """

    def program(flat, source, label, subject, slice_, seed):
        tree = weights.unflatten(flat)
        state = TrainState(np.int32(step), (), tree["params"], (), (), tree.get("frozen", {}))
        rng = jax.random.key(seed)

        def one(source, label, subject, slice_):
            row = {"source": source, "label": label, "subject": subject, "slice": slice_}
            prediction = method.predict[mode](state, {k: v[None] for k, v in row.items()}, rng)
            return {k: v[0] for k, v in prediction._asdict().items() if v is not None}

        return jax.vmap(one)(source, label, subject, slice_)

    return program
