"""A volume by its path, whatever holds it: a NIfTI file, or the folder or zip of a DICOM series."""

import pathlib

from cldm_jax.data import dicom, intensity, layout, nifti
from cldm_jax.errors import UserError

# What a DICOM file may say of itself where a cohort lists it as this.
_DICOM = {"pet": "PT", "nac": "PT", "ct": "CT", "mr": "MR"}


def is_series(path) -> bool:
    """Whether the path is to be read as a DICOM series: a folder (not one called .nii) or a .zip."""
    path = pathlib.Path(path)
    if layout.NIFTI.search(path.name):
        return False
    return path.is_dir() or path.suffix.lower() == ".zip"


def read_volume(path, name: str) -> nifti.Volume:
    """What a cohort lists as `name` ("pet", "ct_reacq"); NaN outside its field of view is its air. Raises
    UserError for anything but one sound volume (see `nifti` and `dicom`) of that modality.
    """
    modality = intensity.base_modality(name)
    if not is_series(path):
        return nifti.read_volume(path, outside=intensity.MODALITIES[modality].fill)
    series = dicom.read_series(path)
    found = series.facts["modality"]
    if found != _DICOM[modality]:
        reason = f"its DICOM files say {found}, and the cohort lists it as {name}"
        raise UserError(path, reason, "List it in the right column, or export the other series")
    return series.volume


def sha256(path) -> str:
    """That of the volume that is read, without its voxels where a file's bytes are enough."""
    return dicom.read_series(path).volume.sha256 if is_series(path) else nifti.sha256(path)
