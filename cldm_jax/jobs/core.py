"""What the command line and the Python call have in common: a PET in memory, looked at and answered."""

import time
from typing import NamedTuple

from cldm_jax.data import nifti, pet_checks, pet_ranges
from cldm_jax.errors import UserError
from cldm_jax.jobs import synthesis
from cldm_jax.jobs.opened import Model, Request


class Looked(NamedTuple):
    """A PET before it is answered."""

    pet: nifti.Volume
    facts: dict  # of the acquisition, see `pet_inputs.read_input`
    source: synthesis.Source
    checks: list[pet_checks.Check]
    measured: dict[str, float | None]  # see `pet_ranges.measure`
    outside: list[dict] | None  # of the training's ranges, see `pet_ranges.outside`
    seconds: float  # of reading and resampling

    def warnings(self) -> list[str]:
        """One line each."""
        return [f"{c.name} {c.value}: {c.warning}" for c in self.checks if c.warning]


class Answer(NamedTuple):
    looked: Looked
    volumes: dict[str, synthesis.Synthetic]  # by target, on the voxels of the PET
    timings: dict[str, float]  # seconds


def look(model: Model, pet: nifti.Volume, facts: dict, where, began: float | None = None) -> Looked:
    """Brings a PET to the model's grid, checks it and measures it against the training people's.

    where: how an error calls it. began: `time.monotonic()` before it was read. Raises UserError where it
    shows no head.
    """
    began = time.monotonic() if began is None else began
    if pet.array.max() <= 0:
        raise UserError(where, "no voxel is positive", "Check that this is the PET")
    source = synthesis.make_source(pet, model.setting)
    spacing = pet_ranges.spacing_of(source.affine)
    measured = pet_ranges.measure(source.slices, model.setting.normalisers["pet"], spacing)
    pet_ranges.refuse_no_head(where, measured)
    outside = pet_ranges.outside(measured, model.pet_ranges)
    checks = pet_checks.check_pet(pet, model.setting.grid, source.affine, len(source.slices))
    checks += pet_ranges.checks(outside)
    return Looked(pet, facts, source, checks, measured, outside, time.monotonic() - began)


def evaluations(model: Model, looked: Looked) -> int:
    """Of the network, in all."""
    return len(looked.source.picks) * len(model.targets) * model.evaluations()


def answer(request: Request, model: Model, looked: Looked, progress=None) -> Answer:
    """Predicts all targets of the model. Of the request only sharpness and seed are read here."""
    volumes, seconds = synthesis.synthesise(
        model.run,
        model.setting,
        looked.pet,
        looked.source,
        targets=model.targets,
        mode=model.mode,
        sd_mode=model.sd_mode,
        sharpness=request.sharpness,
        batch_size=model.batch_size,
        member_batch=model.member_batch,
        seed=request.seed,
        progress=progress,
    )
    timings = {"ReadAndResample": round(looked.seconds, 2), "Predict": round(seconds, 2)}
    return Answer(looked, volumes, timings)
