"""index.json of a prepared folder as records: what a reader may look up.

The file is written by `jobs/prepare` and `jobs/encode` and read here only. Its other keys:
`data/shards.py`.
"""

import dataclasses
import re

import numpy as np

from cldm_jax.data.grid import ModelGrid, spacing_of
from cldm_jax.data.intensity import Normaliser, from_json

_SHARD = re.compile(r"\w[\w.-]*\.npy")  # in the folder itself: no "..", no other folder


@dataclasses.dataclass(frozen=True)
class Shard:
    sha256: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Modality:
    """`code`: the class code that models of these data are conditioned on."""

    code: int
    units: str
    normaliser: Normaliser

    @classmethod
    def parse(cls, value: dict) -> "Modality":
        return cls(value["code"], value["units"], from_json(value["normaliser"]))

    def to_json(self) -> dict:
        return {"code": self.code, "units": self.units, "normaliser": self.normaliser.to_json()}


@dataclasses.dataclass(frozen=True)
class Volume:
    """Slices `offset` ... of a shard; units = scale * (fraction of it) + origin, of the volume's own.

    keep: bool [Z], the slices that count for it, where they are not the person's.
    """

    shard: str
    offset: int
    scale: float = 1.0
    origin: float = 0.0
    keep: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Person:
    """keep: bool [Z]. grid_affine [4, 4]: (column, row, slice, 1) to world mm."""

    id: str
    group: str
    n_slices: int
    keep: np.ndarray
    grid_affine: np.ndarray
    volumes: dict[str, Volume]

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """(slice, row, column)."""
        return spacing_of(self.grid_affine)


@dataclasses.dataclass(frozen=True)
class Splits:
    hash: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Index:
    """cohort: the folder or table that the people came from. scale, offset: decoding, see `Prepared`."""

    name: str
    contrast: str
    fingerprint: str
    cohort: str
    grid: ModelGrid
    center: str
    scale: float
    offset: float
    modalities: dict[str, Modality]
    people: tuple[Person, ...]
    splits: Splits
    shards: dict[str, Shard]
    statistics: dict[str, np.ndarray] | None = None  # of latents, float32 [classes, C]
    images_fingerprint: str = ""  # of latents

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """(row, column)."""
        return self.grid.spacing_mm

    def code(self, name: str) -> int:
        return self.modalities[name].code

    def names(self, targets) -> dict[int, str]:
        """{class code: target}."""
        return {self.code(t): t for t in targets}


def parse(value: dict) -> Index:
    """The records of an index.json. ValueError, KeyError, TypeError or AttributeError where it is none:
    a folder may come from elsewhere, and its hashes say that it is whole, not that it makes sense.
    """
    splits, encoding = value["splits"], value["encoding"]
    statistics = value.get("statistics")
    index = Index(
        value["name"],
        value["contrast"],
        value["fingerprint"],
        value["config"].get("cohort", ""),
        ModelGrid.from_index(value["grid"]),
        value["grid"]["center"],
        encoding["scale"],
        encoding["offset"],
        {name: Modality.parse(m) for name, m in value["modalities"].items()},
        tuple(_person(s) for s in value["subjects"]),
        Splits(splits["hash"], *(tuple(splits[k]) for k in ("train", "val", "test"))),
        {
            name: Shard(s["sha256"], tuple(s["shape"]), s["dtype"])
            for name, s in value["shards"].items()
        },
        statistics and {k: np.asarray(v, np.float32) for k, v in statistics.items()},
        value.get("images_fingerprint", ""),
    )
    if problem := _problem(index):
        raise ValueError(problem)
    return index


def _person(value: dict) -> Person:
    return Person(
        value["id"],
        value["group"],
        value["n_slices"],
        np.asarray(value["keep"], bool),
        np.asarray(value["grid_affine"], float),
        {name: _volume(v) for name, v in value["volumes"].items()},
    )


def _volume(value: dict) -> Volume:
    keep = np.asarray(value["keep"], bool) if "keep" in value else None
    scale, origin = value.get("scale", 1.0), value.get("origin", 0.0)
    return Volume(value["shard"], value["offset"], scale, origin, keep)


def _problem(index: Index) -> str:
    """What does not point into the shards, or is of another kind; "" where nothing is."""
    if not (0 < index.scale < 1e6 and -1e6 < index.offset < 1e6):
        return "encoding"
    if not isinstance(index.fingerprint, str):
        return "fingerprint"
    for name, shard in index.shards.items():
        if not (_SHARD.fullmatch(name) and isinstance(shard.sha256, str)):
            return f"shard {name!r}"
        if not (len(shard.shape) in (3, 4) and all(map(_is_count, shard.shape))):
            return f"shape of {name}"
        if shard.dtype not in ("uint8", "uint16", "float16"):
            return f"type of {name}"
    if not all(_is_count(m.code + 1) for m in index.modalities.values()):
        return "modalities"
    for person in index.people:
        if not (isinstance(person.id, str) and _is_count(person.n_slices)):
            return f"subject {person.id!r}"
        for name, volume in person.volumes.items():
            count, start = index.shards[volume.shard].shape[0], volume.offset
            if not (_is_count(start + 1) and start + person.n_slices <= count):
                return f"{name} of {person.id} lies outside its shard"
    ids, splits = [p.id for p in index.people], index.splits
    train, rest = set(splits.train), {*splits.val, *splits.test}
    if len(set(ids)) < len(ids) or not train | rest <= set(ids):
        return "a subject is there twice, or in a split and not there"
    return f"{min(train & rest)} is in train and in another split" if train & rest else ""


def _is_count(value) -> bool:
    return type(value) is int and 0 < value < 1 << 40
