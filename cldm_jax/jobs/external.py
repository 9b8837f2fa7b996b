"""A test set from elsewhere: on the grid, with the constants of the data that a model was trained on."""

import dataclasses
import pathlib
from typing import NamedTuple

from cldm_jax import files
from cldm_jax.data import shards
from cldm_jax.data.index import Modality
from cldm_jax.data.intensity import Normaliser
from cldm_jax.errors import UserError
from cldm_jax.runs import manifest

# Where a training and an exported model tell of their data, and the key to it.
RECORDS = (("run.json", None), ("model.json", "training"))


class Home(NamedTuple):
    """Data of a training. images: {SHA-256 of a file or of its voxels: (which of both, whose)}, None
    where only the model is at hand.
    """

    grid: dict
    modalities: dict[str, Modality]
    images: dict[str, tuple[str, str]] | None


def open_home(folder: str) -> Home:
    """Of a prepared folder, a training's workdir or an exported model. UserError where it is none."""
    for name, key in RECORDS:
        path = pathlib.Path(folder) / name
        if path.is_file():
            data = _record(path, key).data
            return Home(data.grid.to_index(data.center), data.modalities, None)
    prepared = shards.Prepared(folder)
    return Home(prepared.json["grid"], prepared.index.modalities, _images(prepared.json))


def _record(path: pathlib.Path, key: str | None) -> manifest.Manifest:
    # Not by runs/inputs.py or runtime/weights.py, which load jax; whoever scores the model verifies it.
    try:
        value = files.read_json(path)
        return manifest.parse(path, value[key] if key else value)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(path, f"not readable ({error})", "Restore it from a copy.") from error


def _images(index: dict) -> dict[str, tuple[str, str]]:
    seen = {}
    for s in index["subjects"]:
        for name, volume in s["volumes"].items():
            if not name.startswith("mask"):
                whose = f"{s['id']} {name} ({s['split']})"
                seen[volume["sha256"]] = ("file", whose)
                # Saved again, a file has other bytes and the same voxels. Older folders do not say.
                seen[index.get("pixels", {}).get(s["id"], {}).get(name)] = ("image", whose)
    return seen


def normalisers(home: Home) -> dict[str, Normaliser]:
    """What brings images from elsewhere to the model's range: its own, but for the one scale that a
    training may give all its MR. Another scanner's has another unit: there each MR's own percentile.
    """
    found = {name: m.normaliser for name, m in home.modalities.items()}
    if "mr" in found and found["mr"].rule == "train_percentile":
        found["mr"] = dataclasses.replace(found["mr"], rule="volume_percentile")
    return found


def check_grid(home: Home, folder: str, asked: dict) -> None:
    """UserError where `asked`, a grid as index.json tells it, is not the model's."""
    if asked != home.grid:
        reason = f"{asked} is not the grid of {folder}"
        raise UserError("size, spacing_mm, slice_spacing_mm, center", reason, f"Use {home.grid}")


def check_people(home: Home, folder: str, subjects, facts) -> None:
    """UserError where somebody's image is one of the model's data; says so where that cannot be known."""
    if home.images is None:
        print(f"prepare: {folder} does not list its people: make sure that none of them is here")
        return
    for subject in subjects:
        fact = facts[subject.id]
        for name in fact.sha256:
            for digest in (fact.sha256[name], fact.pixels[name]):
                if digest in home.images:
                    what, whose = home.images[digest]
                    reason = f"the same {what} as {whose} of {folder}"
                    remedy = "An external set needs other people"
                    raise UserError(subject.files[name], reason, remedy)
