"""The unit of a series' voxels: HU, SUV where the tags allow it and a living brain can have it."""

import dataclasses

import numpy as np

from cldm_jax.data import dicom_header, intensity, nifti, suv, whole_body
from cldm_jax.errors import UserError, rounded

# Median SUV of what is foreground in a PET of a head: brain, or brain and scalp. The whole body has 1 by
# definition; grey matter takes up to 25 of FDG. Wide enough for any tracer and person, and narrow enough
# for a dose in another unit or a clock that is hours off.
HEAD_SUV = (0.1, 25.0)
FDG_HEAD_SUV = (0.5, 25.0)


def quantify(slices, volume: nifti.Volume):
    """(facts, what the rescaled voxels of `volume` are multiplied by, notes)."""
    first, notes = slices[0], []
    facts = {
        "modality": first.modality,
        "manufacturer": first.manufacturer,
        "slices": len(slices),
        "units": "HU" if first.modality == "CT" and first.hounsfield else "arbitrary",
        "suv_factor": None,
    }
    if any(s.lossy for s in slices):
        notes.append("the images were compressed with loss before")
    if any(s.burned_in for s in slices):
        notes.append("text may be burned into the images (BurnedInAnnotation): look before sharing")
    if first.modality != "PT":
        return facts, 1.0, notes
    if first.declared is not None and first.declared > len(slices):
        notes.append(f"the header allows {first.declared} slices, {len(slices)} were found")
    pet = dataclasses.replace(
        first.pet,
        acquisitions=tuple(m for s in slices for m in s.pet.acquisitions),
        frames=tuple(m for s in slices for m in s.pet.frames),
    )
    facts["units"] = _stored_unit(pet)
    try:
        factor = suv.bw_factor(pet)
        _check_head(pet, volume, factor, first.tracer)
        facts.update(units="SUVbw", suv_factor=factor)
        notes += suv.remarks(pet)
    except suv.NoSuv as e:
        factor = 1.0
        if facts["units"] == "SUV":  # which is what cannot be
            facts["units"] = "unknown"
        notes.append(f"the stored unit ({facts['units']}) is kept, not SUV: {e}")
    facts.update(
        tracer=first.tracer,
        half_life_s=pet.half_life_s,
        minutes_after_injection=_minutes(suv.image_seconds, pet),
        minutes_to_decay_reference=_minutes(suv.reference_seconds, pet),
        decay_correction=pet.decay_correction,
        corrections=sorted(pet.corrections),
    )
    return facts, factor, notes


def _stored_unit(pet: suv.Pet) -> str:
    if pet.units == "GML":
        return f"SUV ({pet.suv_type})" if pet.suv_type else "SUV"
    return dicom_header.UNITS.get(pet.units, "unknown")


def _minutes(seconds, pet: suv.Pet) -> int | None:
    try:
        return round(seconds(pet) / 60)
    except suv.NoSuv:
        return None


def _check_head(pet: suv.Pet, volume: nifti.Volume, factor: float, tracer: str | None) -> None:
    """NoSuv where the factor gives a head that no living brain has, whatever the tags say."""
    try:
        crop = whole_body.find_head(volume, "")
    except UserError:  # no head to judge by
        return
    array = (volume if crop is None else crop.head).array  # a full bladder is hotter than any brain
    if not array.max() > 0:  # refused elsewhere, by name
        return
    typical = float(np.median(array[intensity.foreground(array)])) * factor
    low, high = FDG_HEAD_SUV if tracer == "FDG" else HEAD_SUV
    if low <= typical <= high:
        return
    tags = "RadionuclideTotalDose, PatientWeight, Units or the times of injection and scan"
    if pet.units == "GML":
        tags = "Units"
    elif pet.units == "CNTS":
        tags = "the Philips scale factors (7053,1000/1009), the dose or the weight"
    reason = f"the head would have SUV {rounded(typical)} (a living one: {low:g} to {high:g})"
    raise suv.NoSuv(f"{reason}: {tags} cannot be right")
