"""A model folder to hand on: weights as safetensors, and a JSON card that says what they are.

    model.safetensors   arrays by name ("params/unet/stem/kernel"); no code inside, unlike a pickle
    model.json          the card: settings, facts, and the SHA-256 of every other file and of itself

The card is written last, so a folder that has one is whole, and nothing is read that does not match it.
The hashes find damage and edits made by mistake; they are no signature: whoever can write the card can
also renew them. The only module that imports safetensors.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from cldm_jax import files
from cldm_jax.errors import UserError

CARD = "model.json"
WEIGHTS = "model.safetensors"
FORMAT, VERSION = "cldm_jax-model", 1
DTYPES = ("float32", "float16")
# With dtype float16 only these are halved, by the last part of their name: nearly all of the bytes.
# Biases, gains, patch bases and latent statistics stay as they are.
HALVED = ("kernel", "embedding")
# Of foreign files, beside bfloat16; whatever has another type is no weight.
DECODED = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BOOL": np.bool_},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8},
}
MAX_CARD_BYTES = 4 << 20
FILE_NAME = re.compile(r"\w[\w.-]*")  # no folder, no "..", nothing hidden
PATH = re.compile(r"\s*(/|~|[A-Za-z]:[\\/]|\\\\)")  # how an absolute path begins
INTENDED_USE = "Research use only, not for clinical use."
SECTIONS = {"config": dict, "training": dict, "weights": dict, "files": dict, "step": int}
AGAIN = "Copy the folder again from where you got it, or export the run again."


def is_exported(folder) -> bool:
    """Whether the folder claims to hold an exported model."""
    return (pathlib.Path(folder) / CARD).is_file()


def flatten(tree: dict) -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}, sorted by name. Empty dicts vanish."""
    flat = traverse_util.flatten_dict(tree)
    return {"/".join(path): flat[path] for path in sorted(flat)}


def save(folder, tree: dict, dtype: str) -> dict:
    """Writes <folder>/model.safetensors from nested dicts of float32 arrays; returns facts for the card.

    The same arrays give the same bytes. dtype: of the stored kernels, one of DTYPES. Raises UserError for
    values that are not finite, or would not be as float16.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}", "not known", f"Choose one of: {', '.join(DTYPES)}.")
    stored = {name: _stored(name, value, dtype) for name, value in flatten(tree).items()}
    with files.atomic_path(pathlib.Path(folder) / WEIGHTS) as tmp:
        tmp.write_bytes(safetensors.numpy.save(stored))
    return {
        "dtype": dtype,
        "parameters": sum(value.size for value in stored.values()),
        "tensors": {name: list(value.shape) for name, value in stored.items()},
    }


def _stored(name: str, value, dtype: str) -> np.ndarray:
    value = np.ascontiguousarray(value)
    if value.dtype != np.float32:
        raise UserError(name, f"is {value.dtype}, not float32", "Export a run of this package.")
    if not np.isfinite(value).all():
        raise UserError(name, "holds values that are not finite", "Train the run again.")
    if dtype == "float16" and name.rpartition("/")[2] in HALVED:
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if not np.isfinite(half).all():
            reason = f"holds {np.abs(value).max():g}, more than float16 can (65504)"
            raise UserError(name, reason, "Export with --config.dtype=float32.")
        return half
    return value


def load(folder, card: dict) -> dict:
    """The arrays of <folder>/model.safetensors as nested dicts of float32, exactly those of the card.

    Raises UserError for a file that is missing, damaged, or holds other names or shapes.
    """
    path = pathlib.Path(folder) / WEIGHTS
    data = read_file(folder, card, WEIGHTS)
    try:
        found = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
        raise UserError(path, f"not a safetensors file ({error})", AGAIN) from error
    expected = card["weights"]["tensors"]
    for problem, names in (
        ("lacks", expected.keys() - found.keys()),
        ("holds, against its card,", found.keys() - expected.keys()),
    ):
        if names:
            raise UserError(path, f"{problem} {min(names)} ({len(names)} in all)", AGAIN)
    for name, value in found.items():
        if list(value.shape) != expected[name] or value.dtype not in DTYPES:
            is_not = f"{value.dtype} {list(value.shape)}, not {expected[name]} as its card says"
            raise UserError(path, f"{name} is {is_not}", AGAIN)
        if not np.isfinite(value).all():
            raise UserError(path, f"{name} holds values that are not finite", AGAIN)
    arrays = {name: value.astype(np.float32, copy=False) for name, value in found.items()}
    return traverse_util.unflatten_dict(arrays, sep="/")


def read_tensors(path) -> dict[str, np.ndarray]:
    """The arrays of any safetensors file, bfloat16 as float32. Raises UserError for another file."""
    path = pathlib.Path(path)
    try:
        entries = safetensors.deserialize(path.read_bytes())
        return {name: _decoded(entry) for name, entry in entries}
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "Correct the path.") from error
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
        reason = f"not a safetensors file ({error})"
        raise UserError(
            path, reason, "Copy it again, or save it again where it was made."
        ) from error


def write_tensors(path, arrays: dict[str, np.ndarray]) -> None:
    """Any arrays as a safetensors file, whole or not at all."""
    with files.atomic_path(path) as tmp:
        tmp.write_bytes(safetensors.numpy.save(arrays))


def _decoded(entry: dict) -> np.ndarray:
    """One tensor of `safetensors.deserialize`. NumPy has no bfloat16: the upper half of a float32."""
    if entry["dtype"] == "BF16":
        flat = (np.frombuffer(entry["data"], np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        flat = np.frombuffer(entry["data"], DECODED[entry["dtype"]])
    return flat.reshape(entry["shape"])


def write_card(folder, card: dict, names: Sequence[str]) -> dict:
    """Completes `card` with the hashes of the files `names` and its own, and writes it: the last step."""
    folder = pathlib.Path(folder)
    facts = {
        n: {"sha256": files.sha256_file(folder / n), "bytes": (folder / n).stat().st_size}
        for n in names
    }
    identity = facts[WEIGHTS]["sha256"]  # the weights alone; results name `card_sha256`
    card = {"format": FORMAT, "format_version": VERSION, "sha256": identity, **card, "files": facts}
    card["card_sha256"] = files.sha256_json(card)
    files.write_json(folder / CARD, card)
    return card


def read_card(folder) -> dict:
    """The card of an exported model. Raises UserError for one that is damaged, edited or too new."""
    path = pathlib.Path(folder) / CARD
    try:
        with open(path, "rb") as f:
            data = f.read(MAX_CARD_BYTES + 1)
        if len(data) > MAX_CARD_BYTES:
            raise UserError(path, f"larger than {MAX_CARD_BYTES >> 20} MiB", AGAIN)
        card = json.loads(data)
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", AGAIN) from error
    except (ValueError, RecursionError) as error:
        raise UserError(path, f"not JSON ({error})", AGAIN) from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise UserError(path, "not the card of an exported model", "Give a folder made by export.")
    if card.get("format_version") != VERSION:
        reason = f"format version {card.get('format_version')!r}, this code reads {VERSION}"
        raise UserError(path, reason, "Use the cldm_jax that wrote it, or export the run again.")
    facts = {key: value for key, value in card.items() if key != "card_sha256"}
    if card.get("card_sha256") != files.sha256_json(facts):
        reason = "was changed after the export (its own SHA-256 does not match)"
        raise UserError(path, reason, AGAIN)
    for section, kind in SECTIONS.items():
        if not isinstance(card.get(section), kind):
            raise UserError(path, f"has no section {section!r}", AGAIN)
    if not isinstance(card["weights"].get("tensors"), dict):
        raise UserError(path, "does not list the arrays", AGAIN)
    for name, facts in card["files"].items():
        if not FILE_NAME.fullmatch(name):
            raise UserError(path, f"names a file outside its folder: {name!r}", "Do not use it.")
        if not isinstance(facts, dict) or not {"sha256", "bytes"} <= facts.keys():
            raise UserError(path, f"has no SHA-256 and size of {name}", AGAIN)
    return card


def read_file(folder, card: dict, name: str) -> bytes:
    """The bytes of a file of the folder, checked against the card before anything looks inside."""
    path = pathlib.Path(folder) / name
    if name not in card["files"]:
        raise UserError(path, "not listed in the card", AGAIN)
    expected = card["files"][name]
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise UserError(path, f"has {size} bytes, {expected['bytes']} expected", AGAIN)
        data = path.read_bytes()
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", AGAIN) from error
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise UserError(path, "damaged: its SHA-256 is not the card's", AGAIN)
    return data


def refuse_paths(value, where: str = "card") -> None:
    """UserError for a card with an absolute path in it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            refuse_paths(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            refuse_paths(inner, where)
    elif isinstance(value, str) and PATH.match(value):
        reason = f"is a path ({value}), which is not to be handed on"
        raise UserError(where, reason, "Correct it in the run's config.json or run.json.")
