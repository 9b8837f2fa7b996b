"""The slices of a training, as stored and each once, for those who hold all of them in one memory."""

import math
from typing import Any, NamedTuple

import numpy as np

from cldm_jax.data.shards import Prepared

IMAGES = ("source", "target")  # what is gathered from slices; the rest of a record are numbers


class Layout(NamedTuple):
    """Where everything lies: small, on the host.

    folders: name -> the folder whose slices they are. used: name -> the folder's slices that some record
    needs, counted through its shards, ascending. records: name -> int32 [N, K] places in the slices of
    `folder_of[name]` (source: K neighbours; target: 1), and the labels int32 [N].
    """

    folders: dict[str, Prepared]
    used: dict[str, np.ndarray]
    folder_of: dict[str, str]
    records: dict[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of slices and records together."""
        slices = 0
        for name, used in self.used.items():
            shape, dtype = _kind(self.folders[name], used)
            slices += len(used) * math.prod(shape) * dtype.itemsize
        return slices + sum(a.nbytes for a in self.records.values())

    def encoding(self, name: str) -> tuple[np.float32, np.float32]:
        """(scale, offset) of what is stored for "source" or "target"."""
        folder = self.folders[self.folder_of[name]]
        return folder.scale, folder.offset

    def tables(self) -> dict[str, Any]:
        """{"slices": folder name -> numbers as stored [M, ...], "records": as above}."""
        slices = {name: _slices(self.folders[name], used) for name, used in self.used.items()}
        return {"slices": slices, "records": self.records}


def lay_out(source, names) -> Layout:
    """What the items of a `pipeline.SliceSource` need of `names` ("source", "target", "label")."""
    parts = {name: source.places[name] for name in IMAGES if name in names}
    images = source.places["mask"].folder
    folder_of = {n: "images" if p.folder is images else "latents" for n, p in parts.items()}
    folders = {folder_of[n]: p.folder for n, p in parts.items()}
    numbers = {n: _starts(p.folder)[p.shards][:, None] + p.rows for n, p in parts.items()}
    used = {
        folder: np.unique(
            np.concatenate([numbers[n].ravel() for n in numbers if folder_of[n] == folder])
        )
        for folder in folders
    }
    records = {n: np.searchsorted(used[folder_of[n]], numbers[n]).astype(np.int32) for n in numbers}
    if "label" in names:
        records["label"] = source.keys["label"]
    return Layout(folders, used, folder_of, records)


def _starts(folder: Prepared) -> np.ndarray:
    """Number of the first slice of each shard, in the index's order, and of all of them at the end."""
    counts = [shard.shape[0] for shard in folder.index.shards.values()]
    return np.concatenate([[0], np.cumsum(counts)])


def _kind(folder: Prepared, used: np.ndarray) -> tuple[tuple[int, ...], np.dtype]:
    """(shape, type) of a slice as stored."""
    shards = list(folder.index.shards.values())
    shard = shards[int(np.searchsorted(_starts(folder), used[0], side="right")) - 1]
    return shard.shape[1:], np.dtype(shard.dtype)


def _slices(folder: Prepared, used: np.ndarray) -> np.ndarray:
    starts, (shape, dtype) = _starts(folder), _kind(folder, used)
    out = np.empty((len(used), *shape), dtype)
    cuts = np.searchsorted(used, starts)
    for i, name in enumerate(folder.index.shards):
        if cuts[i] < cuts[i + 1]:
            out[cuts[i] : cuts[i + 1]] = folder.shard(name)[used[cuts[i] : cuts[i + 1]] - starts[i]]
    return out
