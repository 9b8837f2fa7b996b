"""Whether the slices of a DICOM series are one evenly spaced volume, and where it lies."""

import dataclasses

import numpy as np

from cldm_jax.data import dicom_header, nifti, suv
from cldm_jax.data.dicom_files import FIX_FILE
from cldm_jax.data.dicom_header import Slice
from cldm_jax.errors import UserError

SPACING_TOLERANCE = 0.01  # of the slice spacing, between neighbours
ROUNDING_MM = 0.02  # positions are often written with two decimals
DCM2NIIX = "Convert the series to .nii.gz, for example with dcm2niix"
_ONE_SCAN = "Give the slices of one scan only"
# Values of a PET header that differ from slice to slice.
_OF_A_SLICE = ("series", "acquisitions", "frames")


def check_slices(path, slices: list[Slice]) -> None:
    """Refuses, before a voxel is read, what is not one stack of greyscale slices."""
    first = slices[0]
    if any(s.multiframe for s in slices):
        raise UserError(path, "enhanced (multi-frame) DICOM is not supported", DCM2NIIX)
    if any(s.localizer for s in slices):
        raise UserError(path, "holds localizer images", "Give the folder of the volume's series")
    if any(s.mosaic for s in slices):
        raise UserError(path, "holds mosaics (many slices tiled in one image)", DCM2NIIX)
    if any(s.samples != 1 or not s.photometric.startswith("MONOCHROME") for s in slices):
        raise UserError(path, "the images are in colour", "Export the original greyscale series")
    for s in slices:
        if s.syntax not in dicom_header.READABLE:
            remedy = "Decompress it first (gdcmconv --raw, dcmdjpeg), or use dcm2niix"
            raise UserError(
                path, f"compressed: transfer syntax {dicom_header.syntax_name(s.syntax)}", remedy
            )
        allocated, stored, high = s.bits
        if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or high != stored - 1:
            raise UserError(path, "unusual pixel layout (BitsAllocated/Stored, HighBit)", DCM2NIIX)
    need = 4 * len(slices) * max(s.shape[0] * s.shape[1] for s in slices)
    if need > nifti.MAX_BYTES:
        rows, columns = max(s.shape for s in slices)
        reason = f"declares {len(slices)} images of {columns} x {rows}, {need / 2**20:.0f} MiB"
        raise UserError(path, reason, f"The limit is {nifti.MAX_BYTES / 2**20:.0f} MiB")
    if len(slices) < 2 or min(first.shape) < 2:
        reason = f"{len(slices)} image of {first.shape[1]} x {first.shape[0]} is not a 3D volume"
        raise UserError(path, reason, "Export all slices of the series")
    shared = {
        "matrix sizes": [s.shape for s in slices],
        "modalities": [s.modality for s in slices],
        "frames of reference (several scans)": [s.frame_of_reference for s in slices],
    }
    for name in (f.name for f in dataclasses.fields(suv.Pet) if f.name not in _OF_A_SLICE):
        shared[f"PET values ({name.replace('_', ' ')})"] = [getattr(s.pet, name) for s in slices]
    for what, values in shared.items():
        if len(set(values)) > 1:
            raise UserError(path, f"mixed {what} in one series", _ONE_SCAN)
    for tag, field in (
        ("ImagePositionPatient", "position"),
        ("ImageOrientationPatient", "orientation"),
        ("PixelSpacing", "spacing"),
        *((("RescaleSlope", "slope"),) if first.modality in ("CT", "PT") else ()),
    ):
        missing = sum(getattr(s, field) is None for s in slices)
        if missing:
            raise UserError(
                path, f"{tag} is missing in {missing} of {len(slices)} images", FIX_FILE
            )
    if any(s.slope == 0 for s in slices):
        raise UserError(path, "RescaleSlope is 0", FIX_FILE)


def geometry(path, slices: list[Slice]):
    """(slices in the order of z, affine voxel -> RAS+ mm [4, 4]).

    DICOM PS3.3 C.7.6.2.1.1: the first cosines point along a row, the second down a column, and
    PixelSpacing gives the distance between rows first. DICOM is LPS+, NIfTI RAS+.
    """
    orientations = np.array([s.orientation for s in slices])
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise UserError(path, "mixed orientations in one series", _ONE_SCAN)
    pixel = np.array([s.spacing for s in slices])
    if np.abs(pixel - pixel[0]).max() > 1e-3:
        raise UserError(path, "mixed pixel spacings in one series", _ONE_SCAN)
    if pixel.min() <= 0:
        raise UserError(path, "PixelSpacing is not positive", FIX_FILE)
    row, column = orientations.mean(0).reshape(2, 3)
    cosines = [row @ row - 1, column @ column - 1, row @ column]
    if np.abs(cosines).max() > 1e-2:
        reason = "ImageOrientationPatient is not two unit vectors at 90 degrees"
        raise UserError(path, reason, _ONE_SCAN)
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    normal = np.cross(row, column)
    along = np.array([s.position for s in slices]) @ normal
    order = np.argsort(along, kind="stable")
    slices, along = [slices[i] for i in order], along[order]
    _check_duplicates(path, slices, along)
    _check_gaps(path, along)
    positions = np.array([s.position for s in slices])
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    line = positions[0] + np.arange(len(slices))[:, None] * step
    sideways = (positions - line) @ np.stack([row, column], 1)
    tilt = np.linalg.norm(step - (step @ normal) * normal) / np.linalg.norm(step)
    if tilt > nifti.MAX_SHEAR_COSINE or np.abs(sideways).max() > 0.1:
        reason = "the slices are shifted sideways, not stacked along their normal (gantry tilt?)"
        raise UserError(path, reason, "Resample the volume to perpendicular axes")
    affine = np.eye(4)
    affine[:3] = np.stack([row * pixel[0, 1], column * pixel[0, 0], step, positions[0]], 1)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    nifti.check_spacing(path, affine, FIX_FILE)
    return slices, affine


def _check_duplicates(path, slices: list[Slice], along: np.ndarray) -> None:
    breaks = np.flatnonzero(np.diff(along) > ROUNDING_MM / 2) + 1
    counts = np.diff([0, *breaks, len(along)])
    if len(counts) > 1 and np.median(counts) > 1:
        reason = (
            f"{len(along)} images at {len(counts)} positions: a dynamic, gated or multi-echo series"
        )
        raise UserError(path, reason, "Give one frame, or the average of the frames")
    if counts.max() > 1:
        start = int(np.r_[0, breaks][counts.argmax()])
        pair = " and ".join(
            "?" if s.instance is None else str(s.instance) for s in slices[start : start + 2]
        )
        reason = (
            f"several images at the same position ({along[start]:.2f} mm), InstanceNumber {pair}"
        )
        raise UserError(path, reason, "Remove one of them, or export the series again")


def _check_gaps(path, along: np.ndarray) -> None:
    steps = np.diff(along)
    step = float(np.median(steps))
    tolerance = max(SPACING_TOLERANCE * step, ROUNDING_MM)
    missing = np.rint(steps / step).astype(int) - 1
    where = np.flatnonzero(missing > 0)
    if len(where):
        gaps = ", ".join(f"{along[i]:.1f} and {along[i + 1]:.1f}" for i in where[:5])
        more = " and elsewhere" if len(where) > 5 else ""
        reason = f"missing slices: {missing[where].sum()}, between {gaps} mm{more}"
        raise UserError(path, reason, "Export all slices of the series")
    grid = np.linspace(along[0], along[-1], len(along))
    if np.abs(steps - step).max() > tolerance or np.abs(along - grid).max() > 0.1 * step:
        reason = f"slice spacing varies from {steps.min():.3f} to {steps.max():.3f} mm"
        raise UserError(path, reason, "Reconstruct or resample it to even spacing")
