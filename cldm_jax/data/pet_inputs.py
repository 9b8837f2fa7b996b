"""What a person hands in for prediction: a NIfTI file, a DICOM series or a BIDS dataset of PET images."""

import hashlib
import os
import pathlib
import re
from typing import NamedTuple

from cldm_jax.data import bids, nifti
from cldm_jax.errors import UserError

_NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
MAX_NAME = (
    160  # letters of an input's name in its outputs', which add to it; a disk takes 255 bytes
)
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")


class PetInput(NamedTuple):
    """One PET image that was found and not opened yet.

    name    start of its outputs' file names and how progress and errors call it
    folder  of its outputs, below the output folder: "" or "sub-01/ses-a" (BIDS)
    path    the file, or the folder or zip of a DICOM series
    kind    "nifti" | "dicom"
    """

    name: str
    folder: str
    path: pathlib.Path
    kind: str


def find_inputs(path) -> list[PetInput]:
    """Every PET image of `path`: one, or all of a BIDS dataset in the order of their names.

    BIDS: `sub-*/[ses-*/]pet/*_pet.nii[.gz]`, several to a session where it has them. Names of DICOM
    inputs never come from the folder, which may be called after the patient. UserError where there is
    none.
    """
    path = pathlib.Path(path)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(path, "no such file or folder", "Check the path") from None
    except (OSError, ValueError) as e:  # too long, links in a circle, no permission; a NUL byte
        reason = f"cannot be read ({getattr(e, 'strerror', None) or e})"
        raise UserError(repr(str(path))[1:-1], reason, "Check the path") from e
    if path.is_dir():
        found = _bids(path)
        if found:
            return found
        if _is_dicom(path):
            return [PetInput("pet", "", path, "dicom")]
        reason = "holds no BIDS PET (sub-*/[ses-*/]pet/*_pet.nii.gz) and no DICOM files"
        raise UserError(path, reason, "Give a NIfTI file, a DICOM series or a BIDS dataset")
    if not _NIFTI.search(path.name) and _is_dicom(path):
        return [PetInput("pet", "", path, "dicom")]
    stem = _UNSAFE.sub("_", _NIFTI.sub("", path.name)).strip("._-") or "pet"
    if len(stem) > MAX_NAME:  # of two long names that begin alike, each keeps its own outputs
        stem = f"{stem[:MAX_NAME]}-{hashlib.sha256(path.name.encode()).hexdigest()[:8]}"
    return [PetInput(stem, "", path, "nifti")]


def read_input(found: PetInput, series: str = "") -> tuple[nifti.Volume, dict]:
    """(volume, facts of the acquisition: JSON-able, nothing that identifies a person). `series`: number
    of the one that is meant among several of a DICOM folder.
    """
    if found.kind == "nifti":
        if series:
            reason = "is for DICOM, and this is a NIfTI file"
            raise UserError(f"series {series}: {found.path}", reason, "Leave it out")
        return nifti.read_volume(found.path), {}
    from cldm_jax.data import dicom

    series = dicom.read_series(found.path, series=series or None)
    if series.facts["modality"] not in ("PT", "NM"):
        reason = f"a DICOM series of modality {series.facts['modality']}, not of a PET"
        raise UserError(found.path, reason, "Give the folder of the PET series")
    return series.volume, series.facts


def _is_dicom(path: pathlib.Path) -> bool:
    from cldm_jax.data import dicom

    return dicom.is_dicom(path)


def _bids(root: pathlib.Path) -> list[PetInput]:
    found = []
    for person in sorted(p for p in root.glob("sub-*") if p.is_dir()):
        bids.check_id(person.name, person)
        sessions = sorted(p for p in person.glob("ses-*") if p.is_dir())
        for session in sessions or [person]:
            if session != person:
                bids.check_id(session.name, session)
            for path in sorted((session / "pet").glob("*_pet.nii*")):
                if _NIFTI.search(path.name):
                    name = _NIFTI.sub("", path.name).removesuffix("_pet")
                    bids.check_id(name, path)
                    folder = session.relative_to(root).as_posix()
                    found.append(PetInput(name, folder, path, "nifti"))
    return found
