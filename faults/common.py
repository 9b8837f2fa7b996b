"""What every promise hands in, and what several of them need: configs, hashes, the bits of a curve."""

import hashlib
import pathlib
from collections.abc import Callable
from typing import NamedTuple


class Outcome(NamedTuple):
    """Counts of one promise. It is kept where all injected survived, nothing was lost and the negative
    control (the same check with the protection taken away) saw the fault.
    """

    injected: int
    survived: int
    lost: int  # steps, files or values that are gone or silently wrong
    negative_control: bool | None  # True: it failed as it should; None: the promise has none
    notes: list[str]


class Promise(NamedTuple):
    """run(folder, quick) -> Outcome; `folder` exists, is empty and is the promise's own."""

    id: int
    name: str
    run: Callable[[pathlib.Path, bool], Outcome]


def make_config(shared: pathlib.Path, name: str = "ae", **train):
    """Preset tiny of a method on the data and the autoencoder that all promises share in a folder,
    for `Promise.run(folder, quick)` that is `folder.parent`.
    """
    from configs import ae, ldm, unet

    config = {"ae": ae, "ldm": ldm, "unet": unet}[name].get_config("tiny")
    config.data.root = str(shared / "data")
    if name == "ldm":
        config.autoencoder.workdir = str(shared / "ae")
    config.train.update(train)
    return config


def hash_tree(tree) -> str:
    """SHA-256 over every array of a tree: names, types, bits."""
    import jax
    import numpy as np

    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def loss_bits(workdir) -> dict[int, dict[str, str]]:
    """{step: {metric: float as hex}} of a run's training lines; a second line of a step is a fault."""
    from cldm_jax.runtime.writers import read_rows

    rows = {}
    for row in read_rows(workdir):
        kind = "train" if "train/loss" in row else "val"
        key = (row["step"], kind)
        if key in rows:
            raise ValueError(f"step {row['step']} has two {kind} lines")
        rows[key] = {k: v.hex() for k, v in row.items() if isinstance(v, float)}
    return rows
