"""A volume by its path, whatever holds it: a NIfTI file, or the folder or zip of a DICOM series."""

import pathlib

from cldm_jax import files
from cldm_jax.data import nifti


def is_series(path) -> bool:
    """Whether the path is to be read as a DICOM series: a folder or a .zip."""
    path = pathlib.Path(path)
    return path.is_dir() or path.suffix.lower() == ".zip"


def read_volume(path) -> nifti.Volume:
    """Raises UserError for anything but one sound volume: see `nifti` and `dicom`."""
    if not is_series(path):
        return nifti.read_volume(path)
    from cldm_jax.data import dicom

    return dicom.read_series(path).volume


def sha256(path) -> str:
    """That of `read_volume(path)`, without the voxels where a file's bytes are enough."""
    return read_volume(path).sha256 if is_series(path) else files.sha256_file(path)
