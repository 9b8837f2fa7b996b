"""What the command line and the Python call have in common: a PET in memory, looked at and answered."""

import contextlib
import time
from typing import NamedTuple

import numpy as np

from cldm_jax.data import grid, intensity, nifti, pet_checks, pet_ranges, whole_body
from cldm_jax.errors import UserError
from cldm_jax.runtime.progress import Progress
from cldm_jax.volumes import synthesis
from cldm_jax.volumes.opened import Model, Request


class Looked(NamedTuple):
    """A PET before it is answered."""

    pet: nifti.Volume
    crop: whole_body.Crop | None  # of a field of view that is much longer than a head
    facts: dict  # of the acquisition, see `pet_inputs.read_input`
    source: synthesis.Source
    checks: list[pet_checks.Check]
    measured: dict[str, float | None]  # see `pet_ranges.measure`
    outside: list[dict] | None  # of the training's ranges, see `pet_ranges.outside`
    seconds: float  # of reading and resampling

    @property
    def head(self) -> nifti.Volume:
        """What is answered: the PET, or the head that was found in it."""
        return self.pet if self.crop is None else self.crop.head

    def warnings(self) -> list[str]:
        """One line each."""
        return [f"{c.name} {c.value}: {c.warning}" for c in self.checks if c.warning]


class Answer(NamedTuple):
    looked: Looked
    volumes: dict[str, synthesis.Synthetic]  # by target, on the voxels of the head
    timings: dict[str, float]  # seconds

    def on_pet(self, target: str) -> synthesis.Synthetic:
        """The target on all voxels of the PET: air where no head was found."""
        made, crop, shape = self.volumes[target], self.looked.crop, self.looked.pet.array.shape
        image = whole_body.paste(made.image, crop, shape, intensity.MODALITIES[target].fill)
        sd = None if made.sd is None else whole_body.paste(made.sd, crop, shape, 0.0)
        return made._replace(image=image, sd=sd)


def look(model: Model, pet: nifti.Volume, facts: dict, where, began: float) -> Looked:
    """Brings a PET to the model's grid, checks it and measures it against the training people's.

    where: how an error calls it. began: `time.monotonic()` before it was read. Raises UserError where it
    shows no head.
    """
    if pet.array.max() <= 0:
        raise UserError(where, "no voxel is positive", "Check that this is the PET")
    crop = whole_body.find_head(pet, where)
    head = pet if crop is None else crop.head
    source = synthesis.make_source(head, model.run)
    spacing = grid.spacing_of(source.affine)
    spec = model.data.modalities[model.source].normaliser
    measured = pet_ranges.measure(source.slices, spec, spacing)
    pet_ranges.refuse_no_head(where, measured)
    outside = pet_ranges.outside(measured, model.pet_ranges)
    checks = [] if crop is None else [_said(crop)]
    cropped = crop is not None and crop.cropped
    size = source.affine, len(source.slices)
    checks += pet_checks.check_pet(head, model.data.grid, *size, cropped)
    checks += pet_ranges.checks(outside)
    return Looked(pet, crop, facts, source, checks, measured, outside, time.monotonic() - began)


def _said(crop: whole_body.Crop) -> pet_checks.Check:
    x, y, z = np.array(crop.head.array.shape) * crop.head.spacing / 10
    value = f"{crop.length_mm / 10:.0f} cm long, the head found in {x:.0f} x {y:.0f} x {z:.0f} cm"
    warning = "only the head is answered, all else is given as air: look whether it is the head"
    return pet_checks.Check("field of view", value, warning)


def answer(request: Request, model: Model, looked: Looked, bar: str = "") -> Answer:
    """Predicts all targets of the model. Of the request only sharpness and seed are read here.

    bar: title of a progress bar, "" for none.
    """
    total = len(looked.source.picks) * len(model.targets) * model.evaluations()
    with Progress(total, bar, "evaluation") if bar else contextlib.nullcontext() as progress:
        options = dict(sharpness=request.sharpness, seed=request.seed, progress=progress)
        volumes, seconds = synthesis.synthesise(model, looked.head, looked.source, **options)
    timings = {"ReadAndResample": round(looked.seconds, 2), "Predict": round(seconds, 2)}
    return Answer(looked, volumes, timings)
