"""The phantom's truth on the grid of a prepared dataset: tissue labels and lesions of a person."""

import pathlib

import numpy as np

from cldm_jax.data import grid, nifti
from cldm_jax.data.index import Person
from cldm_jax.data.shards import Prepared

FILES = {"labels": "label.nii.gz", "lesions": "lesions.nii.gz"}


def find_truth(prepared: Prepared) -> pathlib.Path | None:
    """The cohort folder if it is a simulated one that is still there, else None (real people)."""
    if prepared.index.contrast != "simulated":
        return None
    folder = pathlib.Path(prepared.index.cohort)
    return folder if (folder / "manifest.json").is_file() else None


def read_truth(prepared: Prepared, cohort: pathlib.Path, subject: int) -> dict[str, np.ndarray]:
    """{"labels", "lesions"}: uint8 [Z, H, W] on the person's grid, nearest voxel; outside is 0."""
    person, size = prepared.index.people[subject], prepared.index.grid.size
    name_there = person.id.partition("_")[0]  # sub-0001_pet2: the second PET of sub-0001
    return {
        name: _on_grid(cohort / name_there / "truth" / file, person, size)
        for name, file in FILES.items()
    }


def _on_grid(path, person: Person, size) -> np.ndarray:
    volume = nifti.canonical(nifti.read_volume(path, allow_constant=True))
    shape = (size[1], size[0], person.n_slices)  # column, row, slice, as in `data.grid`
    affine = person.grid_affine
    array = grid.resample(volume.array, volume.affine, shape, affine, fill=0, order=0)
    return np.rint(array).astype(np.uint8).transpose(2, 1, 0)
