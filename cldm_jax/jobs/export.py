"""A trained run as a folder to hand on: weights and a card.

`predict` and `evaluate` take the folder in place of the training's (see `stored.open_run`). It holds
nothing about single people, and no paths, commands or host names: the card is made of listed fields.
"""

import json
import pathlib
import time

import jax
import numpy as np

from cldm_jax import __version__, files
from cldm_jax.errors import UserError
from cldm_jax.methods.base import Method
from cldm_jax.runs import calibration, monai
from cldm_jax.runs.stored import Stored, read_stored, stored_calibration, stored_method
from cldm_jax.runtime import weights
from cldm_jax.runtime.writers import METRICS, read_rows

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
    """Exports `config.run` into `workdir`: model.safetensors, model.json and metrics.jsonl; or, with
    format "monai", what `monai.write` says. The card is written last: an interrupted export leaves
    none.
    """
    began = time.monotonic()
    if not config.run:
        raise UserError("config.run", "empty", "Give --config.run=<workdir of a training>.")
    folder = pathlib.Path(workdir)
    _check_folder(folder, config)
    stored = read_stored(config.run)
    if config.format == "monai":
        monai.write(config, folder, stored)
        return
    if stored.config["method"] == "autoencoder":
        remedy = "Export the latent method trained on it: the autoencoder travels inside."
        raise UserError(config.run, "is an autoencoder, which predicts nothing by itself", remedy)
    stored = _with_steps(config.run, stored, config.steps)
    method, _ = stored_method(stored)
    if not stored.manifest.pet_ranges:
        print(f"{config.run}: too few training people to flag PETs unlike theirs", flush=True)
    (folder / weights.CARD).unlink(missing_ok=True)  # from here on, nothing that looks whole
    tree = jax.tree.map(np.asarray, {"params": stored.params, "frozen": stored.frozen})
    facts = weights.save(folder, tree, config.dtype)
    files.write_text(folder / METRICS, _validation_curve(config.run))
    names = [weights.WEIGHTS, METRICS, *_carry_calibration(config.run, folder, stored)]
    card = weights.write_card(folder, make_card(stored, method, facts), names)
    for name, entry in card["files"].items():
        print(f"wrote {folder / name} ({entry['bytes'] / 1e6:.2f} MB)")
    print(f"exported {card['name']}, step {card['step']}, in {time.monotonic() - began:.1f} s")


def _with_steps(run: str, stored: Stored, steps: int) -> Stored:
    """`stored` with so many steps in its samplers; 0: as it is."""
    if not steps:
        return stored
    recipe = stored.config["recipe"]
    if "sampling" not in recipe:
        raise UserError(run, f"draws no samples, and config.steps is {steps}", "Leave it at 0.")
    sampling = {**recipe["sampling"], "num_sampling_steps": steps}
    return stored._replace(config={**stored.config, "recipe": {**recipe, "sampling": sampling}})


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


def make_card(stored: Stored, method: Method, facts: dict) -> dict:
    """The card, but for the hashes. facts: of `weights.save`.

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
        "programs": {},  # none any more; earlier versions look for it
    }
    weights.refuse_paths(card)
    return card


def _check_folder(folder: pathlib.Path, config) -> None:
    if (folder / "config.json").exists() or (folder / "checkpoints").exists():
        raise UserError(folder, "is the folder of a training", "Give another --workdir.")
    if folder.resolve() == pathlib.Path(config.run).resolve():
        # Its card goes first, and with that its calibration; a kill would leave no model at all.
        raise UserError(folder, "is the model to export itself", "Give another --workdir.")
    is_exported = weights.is_exported(folder) or (folder / monai.CARD).is_file()
    if is_exported and not config.overwrite:
        remedy = "Give another --workdir, or say --config.overwrite=True."
        raise UserError(folder, "holds an exported model already", remedy)


def _validation_curve(workdir: str) -> str:
    """The lines of a run's metrics with its validation scores, and only those."""
    lines = []
    for row in read_rows(workdir):
        scores = {k: v for k, v in row.items() if k.startswith("val/psnr_")}
        if scores:
            lines.append(json.dumps({"step": row["step"], **scores}) + "\n")
    return "".join(lines)
