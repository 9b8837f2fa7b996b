"""What a person hands in for prediction: a NIfTI file, a DICOM series or a BIDS dataset of PET images."""

import hashlib
import pathlib
import re
from typing import NamedTuple

from cldm_jax.data import dicom, dicom_files, layout, nifti
from cldm_jax.errors import UserError

MAX_NAME = 160  # letters of an input's name in its outputs', which add to it; disks take 255
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


class Inputs(NamedTuple):
    """found: in the order of their names. left: what a dataset holds besides, with the reason.
    without: people of whom no PET was found.
    """

    found: list[PetInput]
    left: list[layout.Left]
    without: tuple[str, ...] = ()


def find_all(path, source: str = "pet") -> Inputs:
    """Every PET image of `path`: one, or all of a BIDS dataset.

    BIDS: `sub-*/[ses-*/]pet/*_pet.nii[.gz]` in letters of either case, several to a session where it has
    them, with source "nac" those without attenuation correction (`*_rec-nac*_pet`, which are left else);
    of people as well as of their sessions. Names of DICOM inputs never come from the folder,
    which may be called after the patient. UserError where there is none.
    """
    path = layout.existing(path)
    if path.is_dir():
        inputs = _bids(path, source)
        if inputs.found:
            return inputs
        if dicom.is_dicom(path):
            return Inputs([PetInput("pet", "", path, "dicom")], [])
        rec = "_rec-nac*" * (source == "nac")
        reason = f"holds no BIDS PET (sub-*/[ses-*/]pet/*{rec}_pet.nii.gz) and no DICOM files"
        reason += layout.hints(path, inputs.left)
        if links := len(list(dicom_files.walk(path, leaving=True))):
            reason += (
                f"; {links} links that lead out of it are not followed: copy what they point to"
            )
        raise UserError(path, reason, "Give a NIfTI file, a DICOM series or a BIDS dataset")
    if not layout.NIFTI.search(path.name) and dicom.is_dicom(path):
        return Inputs([PetInput("pet", "", path, "dicom")], [])
    return Inputs([PetInput(_stem(path.name), "", path, "nifti")], [])


def read_input(found: PetInput, series: str = "") -> tuple[nifti.Volume, dict]:
    """(volume, facts of the acquisition: JSON-able, nothing that identifies a person). `series`: number
    of the one that is meant among several of a DICOM folder.
    """
    if found.kind == "nifti":
        if series:
            reason = "is for DICOM, and this is a NIfTI file"
            raise UserError(f"series {series}: {found.path}", reason, "Leave it out")
        return nifti.read_volume(found.path, outside=0.0), {}
    series = dicom.read_series(found.path, series=series)
    if series.facts["modality"] not in ("PT", "NM"):
        reason = f"a DICOM series of modality {series.facts['modality']}, not of a PET"
        raise UserError(found.path, reason, "Give the folder of the PET series")
    return series.volume, series.facts


def _stem(name: str) -> str:
    """A file's name as the start of others': letters that are safe anywhere, not too many."""
    stem = _UNSAFE.sub("_", layout.NIFTI.sub("", name)).strip("._-") or "pet"
    if len(stem) > MAX_NAME:  # of two long names that begin alike, each keeps its own outputs
        stem = f"{stem[:MAX_NAME]}-{_digest(name)}"
    return stem


def _own(name: str) -> str:
    """`_stem`, with a digest where that changed it: of two people in other letters each has a name."""
    stem = _stem(name)
    return stem if stem == name or stem.endswith(_digest(name)) else f"{stem}-{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]


def _bids(root: pathlib.Path, source: str) -> Inputs:
    tree = layout.scan(root)
    found, taken = [], set()
    has_pet = {level.person for level in tree.levels if source in level.images}
    targets = ("looks like CT", "looks like MR")  # nothing that is looked for here
    left = [item for item in tree.left if not item.reason.startswith(targets)]
    # What is no input of a model that takes this source.
    other, why = "pet", "the model takes PETs without attenuation correction (*_rec-nac*_pet)"
    if source == "pet":
        other, why = "nac", "without attenuation correction, the model takes corrected ones"
        why += " (or give it alone)"
    for level in tree.levels:
        left += [layout.Left(path, why) for path in level.images.get(other, ())]
        if level.person not in has_pet:
            left.append(layout.Left(level.folder, "no PET image in it"))
        parts = [_own(part) for part in level.folder.relative_to(root).parts]
        folder = "/".join(parts)
        for path in level.images.get(source, ()):
            base = layout.NIFTI.sub("", path.name)
            base = base[:-4] if base.lower().endswith("_pet") else "_".join((*parts, base))
            name = _own(base)
            # .nii beside .nii.gz, or other letters that are alike.
            if (folder, name.lower()) in taken:
                name = f"{name}-{_digest(path.relative_to(root).as_posix())}"
            taken.add((folder, name.lower()))
            found.append(PetInput(name, folder, path, "nifti"))
    return Inputs(found, left, tuple(p for p in tree.people if p not in has_pet))
