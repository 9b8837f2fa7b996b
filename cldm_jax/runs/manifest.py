"""run.json as a record: what a training was, on which data, and how far it came."""

import dataclasses
from typing import Any

from cldm_jax.data.grid import ModelGrid
from cldm_jax.data.index import Modality
from cldm_jax.data.shards import Prepared
from cldm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Data:
    """The data of a training: with grid and normalisers, all that a new person's PET needs."""

    name: str
    fingerprint: str
    split_hash: str
    train_patients: int
    contrast: str
    grid: ModelGrid
    center: str
    modalities: dict[str, Modality]

    @classmethod
    def parse(cls, value: dict) -> "Data":
        grid = value["grid"]
        modalities = {name: Modality.parse(m) for name, m in value["modalities"].items()}
        own = {"grid": ModelGrid.from_index(grid), "modalities": modalities}
        return cls(**{**value, **own, "center": grid["center"]})

    def to_json(self) -> dict:
        modalities = {name: m.to_json() for name, m in self.modalities.items()}
        kept = {**vars(self), "grid": self.grid.to_index(self.center), "modalities": modalities}
        del kept["center"]
        return kept

    def is_of(self, prepared: Prepared) -> bool:
        """Whether they are these people, split like this."""
        index = prepared.index
        return (self.fingerprint, self.split_hash) == (index.fingerprint, index.splits.hash)


@dataclasses.dataclass(kw_only=True)
class Manifest:
    """autoencoder: keywords of the frozen one, if any. best: {"step", "psnr"} of the kept
    validation, "highest": the best PSNR of any.
    imported: {"file", "sha256", "key"} of the weights it began with. pet_ranges: what prediction
    compares a new PET with. Each None where there is none; an exported model names no command.
    """

    method: str
    name: str
    preset: str
    command: str = ""
    config_sha256: str
    git: str
    versions: dict[str, str]
    hardware: dict[str, Any]
    data: Data
    autoencoder: dict[str, Any] | None
    params: int
    train_seconds: float
    train_cpu_seconds: float
    step: int
    best: dict[str, Any] | None
    imported: dict[str, str] | None = None
    pet_ranges: dict[str, Any] | None = None
    finished: bool

    def to_json(self) -> dict:
        return {**vars(self), "data": self.data.to_json()}


def parse(where, value: dict) -> Manifest:
    """The record of a run.json, or of an exported card's "training". UserError naming `where`."""
    try:
        return Manifest(**{**value, "data": Data.parse(value["data"])})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"holds no training's record ({type(error).__name__}: {error})"
        remedy = "Restore it from a copy, or use the cldm_jax that made it."
        raise UserError(where, reason, remedy) from error
