"""The Python call: a PET in, images of nibabel out. Nothing is written unless `Synthesis.save` is called.

The command line is another layer over the same `core`, and both give the same numbers.
"""

import os
import pathlib
import time
from typing import Any, NamedTuple

from cldm_jax.data import nifti, pet_inputs
from cldm_jax.errors import UserError
from cldm_jax.runtime import device
from cldm_jax.volumes import core, derivatives, sidecars
from cldm_jax.volumes.names import Names
from cldm_jax.volumes.opened import Request, open_model

MEMORY = "the PET"  # what errors call one that has no file


class Synthetic(NamedTuple):
    """One target of one PET."""

    image: Any  # nibabel, float32 on the PET's own grid: HU, or a.u. of MR
    sidecar: dict  # how it was made: as the command line writes it, less the file's SHA256
    sd: Any = None  # nibabel, in the same unit; None where no uncertainty was asked for
    sd_sidecar: dict | None = None  # says whether the SD is calibrated
    regions: list[dict] | None = None  # means with 90 % intervals, of a calibrated model


class Synthesis(dict):
    """{target: Synthetic} of one PET.

    warnings                one line each on what is odd about the PET, or about the uncertainty
    outside_training_range  list of {"Measure", "Value", "Unit", "Trained": [low, high]}: where the PET
                            is unlike the training people's; None where the model does not say
    """

    def __init__(self, request: Request, model, answer: core.Answer, found: pet_inputs.PetInput):
        self._made = request, model, answer, found
        about, _ = sidecars.describe(request, model, answer)
        looked = answer.looked
        self.warnings = looked.warnings()
        if model.uncalibrated:
            self.warnings.append(f"uncertainty: not calibrated: {model.uncalibrated}")
        self.outside_training_range = looked.outside
        for target in answer.volumes:
            volumes = answer.on_pet(target)
            sd = None if volumes.sd is None else nifti.to_image(volumes.sd, looked.pet)
            self[target] = Synthetic(
                nifti.to_image(volumes.image, looked.pet),
                about[target, "synth"],
                sd,
                about.get((target, "synthsd")),
                volumes.regions,
            )

    def save(self, folder, *, name: str = "", report: bool = False, overwrite: bool = False):
        """Writes what the command line writes, below `folder`; returns the images' paths.

        name: start of the files' names; default the PET file's, "pet" where it has none. UserError where
        some are there and `overwrite` is not said.
        """
        request, model, answer, found = self._made
        found = found._replace(name=name or found.name)
        names = Names(os.path.expanduser(folder), found, model)
        key = sidecars.run_key(request, model, answer.looked.pet.sha256)
        there = [path for path in names.all(report) if path.exists()] or names.of_others(key)
        if there and not overwrite:
            raise UserError(there[0], "exists already", "Say overwrite=True, or give another name")
        derivatives.write(names, request._replace(report=report), model, answer)
        return names.images()


class Synthesiser:
    """A model opened once for any number of PETs. Parameters: see `synthesise`."""

    def __init__(
        self,
        checkpoint=None,
        *,
        targets=(),
        mode: str = "",
        samples: int = 0,
        sharpness: float = 1.0,
        steps: int = 0,
        seed: int = 0,
        uncertainty: bool = False,
        batch_size: int = 0,
    ):
        device.check()
        device.keep_compiled()
        self._request = Request(
            "",
            "",
            checkpoint="" if checkpoint is None else os.path.expanduser(checkpoint),
            targets=(targets,) if isinstance(targets, str) else tuple(targets),
            mode=mode,
            samples=samples,
            sharpness=sharpness,
            steps=steps,
            seed=seed,
            uncertainty=uncertainty,
            batch_size=batch_size,
        )
        self._model = open_model(self._request)
        self.targets = self._model.targets

    def __call__(self, pet, *, series: str = "", progress: bool = False) -> Synthesis:
        """pet, series, progress: see `synthesise`."""
        began = time.monotonic()
        found, volume, facts = _read(pet, series, self._model.source)
        looked = core.look(self._model, volume, facts, found.path, began)
        bar = "synthesise" if progress else ""
        answer = core.answer(self._request, self._model, looked, bar)
        return Synthesis(self._request, self._model, answer, found)


def synthesise(
    pet,
    targets=(),
    *,
    checkpoint=None,
    mode: str = "",
    samples: int = 0,
    sharpness: float = 1.0,
    steps: int = 0,
    seed: int = 0,
    uncertainty: bool = False,
    batch_size: int = 0,
    series: str = "",
    progress: bool = False,
) -> Synthesis:
    """CT and MR of the person in a PET, on the PET's own grid. Research use only, not for clinical use.

    pet          path of a NIfTI file, or of the folder or .zip of a DICOM series; a nibabel image; or
                 (array [x, y, z], affine [4, 4]: voxel index -> world mm, RAS+). Any unit.
    targets      "ct", "mr" or several; () = all that the model makes
    checkpoint   workdir of a training or an exported folder; None: the model that comes along
    mode, samples, sharpness, steps, seed, uncertainty, batch_size, series   as of the command line,
                 whose --help explains them; "" and 0 are its defaults
    progress     shows a bar

    The noise of samples depends on the file's bytes; of a PET in memory, on its voxels and affine. For
    several PETs open the model once: `Synthesiser(checkpoint, ...)`, called with each. Raises UserError
    for a request that cannot work, and for what is no PET of a head.
    """
    model = Synthesiser(
        checkpoint,
        targets=targets,
        mode=mode,
        samples=samples,
        sharpness=sharpness,
        steps=steps,
        seed=seed,
        uncertainty=uncertainty,
        batch_size=batch_size,
    )
    return model(pet, series=series, progress=progress)


def _read(pet, series: str, source: str) -> tuple[pet_inputs.PetInput, nifti.Volume, dict]:
    if isinstance(pet, str | os.PathLike):
        inputs = pet_inputs.find_all(pet, source).found
        if len(inputs) > 1:
            reason = f"holds {len(inputs)} PET images"
            raise UserError(pet, reason, f"Give one, such as {inputs[0].path}")
        return inputs[0], *pet_inputs.read_input(inputs[0], series)
    if series:
        raise UserError(f"series {series}", "is for DICOM, and this is none", "Leave it out")
    found = pet_inputs.PetInput("pet", "", pathlib.Path(MEMORY), "memory")
    if nifti.is_image(pet):
        return found, nifti.from_image(pet, MEMORY, outside=0.0), {}
    if isinstance(pet, tuple) and len(pet) == 2:
        return found, nifti.from_array(*pet, MEMORY, outside=0.0), {}
    kinds = "a path, a nibabel image, or (array, affine)"
    raise UserError(MEMORY, f"is of type {type(pet).__name__}", f"Give {kinds}")
