"""Prepared data on disk: numpy shards of axial slices and one index.json. Latents use it as well.

Volumes of one modality lie one after the other in `<modality>-00000.npy`, ...; a volume is never cut
across two shards. index.json is written last: a folder without it is unfinished. What readers look up
is stated by the records of `data/index.py`; further keys are

    format, version, kind      FORMAT, VERSION, "images" or "latents"
    protocol                   "cldm", or "abstract-oracle": scores are not comparable
    config, inputs             settings; hash of the source files, of which each volume has its sha256
    left_out                   where somebody was: [{id, person (or images), why, sha256 by volume}]
    autoencoder                of latents only

Beside a person's volumes lie their mask, and a mask_<target> where that one shows less of the head. The
fingerprint is a hash of subjects, shards and modalities.
"""

import os
import pathlib
import types

import numpy as np

from cldm_jax import files
from cldm_jax.data import index as index_lib
from cldm_jax.errors import UserError

FORMAT, VERSION = "cldm_jax-slices", 1
ENCODINGS = {
    "uint16": {"dtype": "uint16", "scale": 2 / 65535, "offset": -1.0},  # images in [-1, 1]
    "float16": {"dtype": "float16", "scale": 1.0, "offset": 0.0},  # latents
}
INDEX = "index.json"
_AGAIN = "Delete the folder and run the job that made it again"


def encode(array: np.ndarray, dtype: str) -> np.ndarray:
    """Model range -> stored numbers: "uint16" [-1, 1] (steps of 3e-5) or "float16".

    Raises ValueError for values the type cannot hold, NaN among them: nothing is clipped here.
    """
    low, high = float(array.min()), float(array.max())
    if dtype == "uint16":
        if not (low >= -1.0001 and high <= 1.0001):
            raise ValueError(f"values {low} .. {high} outside [-1, 1]")
        return np.rint((np.clip(array, -1, 1) + 1) * np.float32(32767.5)).astype(np.uint16)
    if not (low > -65504 and high < 65504):
        raise ValueError(f"values {low} .. {high} outside float16")
    return np.asarray(array, np.float16)


class ShardWriter:
    """Collects volumes of one modality and writes each shard whole.

    A shard is written when the next volume would take it past `shard_items` slices (a longer volume has
    a shard to itself), so one shard is held in memory.
    """

    def __init__(self, folder, modality: str, shard_items: int):
        self.folder, self.modality, self.shard_items = pathlib.Path(folder), modality, shard_items
        self.shards: dict[str, dict] = {}
        self._parts: list[np.ndarray] = []
        self._count = 0

    def add(self, stored: np.ndarray) -> tuple[str, int]:
        """Appends a volume [Z, H, W] or [Z, h, w, C] of encoded numbers.

        Returns (shard file name, index of its first slice in the shard).
        """
        if self._count and self._count + len(stored) > self.shard_items:
            self._flush()
        offset = self._count
        self._parts.append(stored)
        self._count += len(stored)
        return self._name(), offset

    def close(self) -> dict[str, dict]:
        """Writes the last shard; returns the index's "shards" entries of this modality."""
        if self._count:
            self._flush()
        return self.shards

    def _name(self) -> str:
        return f"{self.modality}-{len(self.shards):05d}.npy"

    def _flush(self) -> None:
        name, data = self._name(), np.concatenate(self._parts)
        with files.atomic_path(self.folder / name) as tmp, open(tmp, "wb") as f:
            # Into a file itself NumPy writes in C, and of a full disk says "9 requested and 5 written".
            np.save(types.SimpleNamespace(write=f.write), data, allow_pickle=False)
        sha256 = files.sha256_file(self.folder / name)
        self.shards[name] = {"sha256": sha256, "shape": list(data.shape), "dtype": str(data.dtype)}
        self._parts, self._count = [], 0


def fingerprint(index: dict) -> str:
    """SHA-256 over what the data are: subjects, shards, modalities. Not over the config or the name."""
    return files.sha256_json({k: index[k] for k in ("subjects", "shards", "modalities")})


def write_index(folder, index: dict) -> dict:
    """Adds format, version and fingerprint and writes index.json, the mark of a finished folder."""
    index = {"format": FORMAT, "version": VERSION, **index, "fingerprint": fingerprint(index)}
    files.write_json(pathlib.Path(folder) / INDEX, index)
    return index


class Prepared:
    """A finished folder: `.index` (records), `.json` (as it stands) and decoded slices. Picklable; opens
    files when read.
    """

    def __init__(self, folder, verify: bool = False):
        """Raises UserError if the folder is unfinished, of another version, or lacks a shard.

        `verify=True` also re-hashes every shard (about a second per gigabyte).
        """
        self.folder = pathlib.Path(folder)
        self.json, self.index = _read_index(self.folder / INDEX)
        self.scale, self.offset = np.float32(self.index.scale), np.float32(self.index.offset)
        self._shards: dict[str, np.ndarray] = {}
        for name in self.index.shards:
            self._check_size(name)
        if verify:
            self.verify()

    def verify(self) -> None:
        """Re-hashes the index's content and every shard; raises UserError naming the damaged file."""
        if fingerprint(self.json) != self.index.fingerprint:
            raise UserError(self.folder / INDEX, "changed since it was written", _AGAIN)
        for name, shard in self.index.shards.items():
            if files.sha256_file(self.folder / name) != shard.sha256:
                raise UserError(self.folder / name, "damaged: its SHA-256 differs", _AGAIN)

    def subjects(self, split: str) -> list[int]:
        """Indices into `index.people` of a split, in order ("all": everyone)."""
        people = self.index.people
        if split == "all":
            return list(range(len(people)))
        if split not in ("train", "val", "test"):
            raise ValueError(f"unknown split {split!r}; known: train, val, test, all")
        members = set(getattr(self.index.splits, split))
        return [i for i, p in enumerate(people) if p.id in members]

    def has(self, subject: int, modality: str) -> bool:
        return modality in self.index.people[subject].volumes

    def keep(self, subject: int, modality: str) -> np.ndarray:
        """bool [Z]: slices that count for this volume: its own list, else the person's."""
        person = self.index.people[subject]
        own = person.volumes[modality].keep
        return person.keep if own is None else own

    def mask_of(self, subject: int, modality: str) -> str:
        """The volume that holds the head as far as `modality` shows it."""
        own = f"mask_{modality}"
        return own if self.has(subject, own) else "mask"

    def held(self, split: str) -> tuple[str, ...]:
        """The modalities of which somebody in the split has a slice that counts."""
        people = self.subjects(split)
        return tuple(
            name
            for name in self.index.modalities
            if any(self.has(s, name) and self.keep(s, name).any() for s in people)
        )

    def read(self, subject: int, modality: str) -> np.ndarray:
        """float32 [Z, H, W] (latents [Z, h, w, C]); "mask" is 0 or 1. KeyError if it has none."""
        person = self.index.people[subject]
        volume = person.volumes[modality]
        end = volume.offset + person.n_slices
        return self.decode(self.shard(volume.shard)[volume.offset : end])

    def read_slice(self, subject: int, modality: str, z: int) -> np.ndarray:
        """float32 [H, W] (latents [h, w, C])."""
        person = self.index.people[subject]
        if not 0 <= z < person.n_slices:
            raise IndexError(f"{person.id}: slice {z} of {person.n_slices}")
        volume = person.volumes[modality]
        return self.decode(self.shard(volume.shard)[volume.offset + z])

    def shard(self, name: str) -> np.ndarray:
        """The stored numbers of a shard [N, ...], memory-mapped, read-only."""
        if name not in self._shards:
            path, expected = self.folder / name, self.index.shards[name]
            try:
                mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError, OSError) as e:
                raise UserError(path, f"not a shard of numbers ({e})", _AGAIN) from e
            if not isinstance(mapped, np.ndarray):  # an .npz
                raise UserError(path, "not a shard but an archive", _AGAIN)
            if mapped.shape != expected.shape or mapped.dtype != expected.dtype:
                reason = f"holds {mapped.dtype} {list(mapped.shape)}, against its index"
                raise UserError(path, reason, _AGAIN)
            # A plain view: indexing np.memmap itself costs several times more per slice.
            self._shards[name] = mapped.view(np.ndarray)
        return self._shards[name]

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Stored numbers -> float32; a mask's are as they are."""
        x = stored.astype(np.float32)
        if stored.dtype != np.uint8:
            x *= self.scale
            x += self.offset
        return x

    def _check_size(self, name: str) -> None:
        shard = self.index.shards[name]
        need = int(np.prod(shard.shape)) * np.dtype(shard.dtype).itemsize
        try:
            size = os.stat(self.folder / name).st_size
        except FileNotFoundError as e:
            raise UserError(self.folder / name, "missing", _AGAIN) from e
        if size < need:
            raise UserError(self.folder / name, f"cut short: {size} of {need} bytes", _AGAIN)

    def __getstate__(self):
        return {**self.__dict__, "_shards": {}}


def _read_index(path: pathlib.Path) -> tuple[dict, index_lib.Index]:
    """(its JSON, its records). UserError where it is unfinished, damaged or another version's."""
    if not path.exists():
        raise UserError(path.parent, "no index.json: not prepared, or not finished", "Run prepare")
    try:
        index = files.read_json(path)
    except (ValueError, RecursionError) as e:
        raise UserError(path, f"not JSON ({e})", _AGAIN) from e
    except OSError as e:
        raise UserError(path, f"cannot be read ({e.strerror})", _AGAIN) from e
    if not isinstance(index, dict):
        raise UserError(path, "not the index of a prepared folder", _AGAIN)
    if index.get("format") != FORMAT or index.get("version") != VERSION:
        found = f"{index.get('format')} version {index.get('version')}"
        raise UserError(path, f"{found}, this program reads {FORMAT} {VERSION}", _AGAIN)
    try:
        return index, index_lib.parse(index)
    except (KeyError, TypeError, AttributeError, ValueError, UserError) as e:
        reason = f"not an index that prepare writes ({type(e).__name__}: {e})"
        raise UserError(path, reason, _AGAIN) from e
