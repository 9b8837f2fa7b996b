"""The head of a PET whose field of view is much longer than a head: found, cut out, and put back.

The rule goes by shape first, because tracers differ in what is hot (liver, heart, bladder) and arms may
lie above the head. The body is what stands out from air. A head is its highest part that is THICK_MM
thick in every direction, as hands and arms are not; of several such parts near each other at the top it
is the one that is clearly hottest. A hot piece in it as large as a brain says where its top is: arms that
are folded over the head make one part with it.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from cldm_jax.data import mask, nifti
from cldm_jax.errors import UserError

LONG_MM = 400.0  # from below to above: a longer field of view is cropped
HEAD_MM = 240.0  # taken from the top of the head down: to below the chin
MARGIN_MM = (40.0, 50.0, 20.0)  # beside, before and behind, above: nose and ears are thin
STEP_MM = 6.0  # the body is looked for on blocks of about this size
SMOOTH_MM = 5.0  # SD
BODY_SHARE = 3.0  # per cent of the field of view that is clipped before body and air are told apart
THICK_MM = 90.0
TOP_MM = 200.0  # of a part, from its top down: what is judged
WIDTH_MM = 150.0  # from its top down: how wide it is; below are shoulders
MIN_ML = 700.0
BRAIN_ML, BRAIN_TOP_MM = 500.0, 20.0  # of the hot piece; the skull and scalp above it
NEAR_MM, HOTTER = 250.0, 1.5  # a part this far below another is the head where it is so much hotter


class Crop(NamedTuple):
    """The head of a PET, in the PET's own voxels."""

    head: nifti.Volume  # array and affine of the box; all else is the PET's
    box: tuple[slice, slice, slice]
    length_mm: float  # of the whole field of view, below to above
    cropped: np.ndarray  # bool [2, 3]: the box begins behind the first voxel, ends before the last


class _Part(NamedTuple):
    solid: np.ndarray  # bool, RAS
    top: int  # its highest slice
    uptake: float  # 75th percentile: of a head, in the brain


def find_head(pet: nifti.Volume, where) -> Crop | None:
    """None for a field of view up to LONG_MM long. Raises UserError where a longer one shows no head.

    pet: any orientation. where: how an error calls it.
    """
    length = length_mm(pet)
    if length <= LONG_MM:
        return None
    ras = nifti.canonical(pet)
    steps = np.maximum(1, np.floor(STEP_MM / ras.spacing)).astype(int)
    small, mm = _blocks(ras.array, steps), steps * ras.spacing
    smooth = ndimage.gaussian_filter(np.maximum(small, 0), SMOOTH_MM / mm)
    body = _body(smooth)
    parts = _thick_parts(smooth, body, mm)
    if not parts:
        reason = f"no head found in a field of view of {length / 10:.0f} cm"
        raise UserError(where, reason, "Crop it to the head")
    found = parts[0]
    for part in parts[1:]:
        near = (parts[0].top - part.top) * mm[2] <= NEAR_MM
        if near and part.uptake >= HOTTER * found.uptake:
            found = part
    first, last = _box(_narrowed(found, smooth, body, mm), mm)
    shape = np.array(ras.array.shape)
    low = np.clip(first * steps, 0, shape - 1)
    high = np.clip(last * steps, low + 1, shape)
    return _cut(pet, ras, low, high, length)


def length_mm(pet: nifti.Volume) -> float:
    """Of the whole field of view, below to above; any orientation."""
    ras = nifti.canonical(pet)
    return float(ras.array.shape[2] * ras.spacing[2])


def paste(array: np.ndarray, crop: Crop | None, shape, fill: float) -> np.ndarray:
    """`array` on the head's voxels -> on the PET's, of `shape`, `fill` elsewhere."""
    if crop is None:
        return array
    whole = np.full(shape, fill, array.dtype)
    whole[crop.box] = array
    return whole


def _blocks(array, steps) -> np.ndarray:
    """Means over blocks of `steps` voxels; what is left over at the ends belongs to the last block."""
    for axis, step in enumerate(steps):
        starts = np.arange(0, max(1, array.shape[axis] - step + 1), step)
        sizes = np.diff([*starts, array.shape[axis]])
        sums = np.add.reduceat(array, starts, axis, dtype=np.float32)
        array = sums / np.float32(sizes).reshape([-1 if i == axis else 1 for i in range(3)])
    return array


def _body(smooth) -> np.ndarray:
    """bool: what stands out from air, filled within each axial slice."""
    # Unclipped, hot organs against all else would be the clearest division.
    clipped = np.sqrt(np.minimum(smooth, np.percentile(smooth, 100 - BODY_SHARE)))
    if np.ptp(clipped) == 0:
        return np.zeros(smooth.shape, bool)
    body = clipped > mask.otsu(clipped)
    return mask.fill(body.transpose(2, 0, 1)).transpose(1, 2, 0)


def _thick_parts(smooth, body, mm) -> list[_Part]:
    """The thick parts of the body that are as large as a head, from above to below."""
    labels, count = ndimage.label(ndimage.distance_transform_edt(body, sampling=mm) > THICK_MM / 2)
    parts = []
    for i, where in enumerate(ndimage.find_objects(labels, count), 1):
        top = min(where[2].stop + math.ceil(THICK_MM / 2 / mm[2]), body.shape[2])
        slab = slice(max(0, top - math.ceil(TOP_MM / mm[2])), top)
        away = ndimage.distance_transform_edt(labels[..., slab] != i, sampling=mm)
        solid = np.zeros_like(body)
        solid[..., slab] = body[..., slab] & (away <= THICK_MM / 2)
        if solid.sum() * math.prod(mm) / 1000 >= MIN_ML:
            highest = int(np.flatnonzero(solid.any((0, 1)))[-1])
            parts.append(_Part(solid, highest, float(np.percentile(smooth[solid], 75))))
    return sorted(parts, key=lambda part: -part.top)


def _narrowed(part: _Part, smooth, body, mm) -> _Part:
    """The part, or in its place the brain with the slices above it that hold skull and scalp."""
    low = max(0, part.top - round((HEAD_MM + TOP_MM / 2) / mm[2]))
    slab = np.zeros_like(body)
    slab[..., low : part.top + 1] = body[..., low : part.top + 1]
    brain = mask.piece(slab & (smooth > mask.otsu(smooth[slab])))
    if brain.sum() * math.prod(mm) / 1000 < BRAIN_ML:
        return part
    highest = int(np.flatnonzero(brain.any((0, 1)))[-1])
    top = min(part.top, highest + round(BRAIN_TOP_MM / mm[2]))
    return part._replace(solid=brain, top=top)


def _box(part: _Part, mm) -> tuple[np.ndarray, np.ndarray]:
    """(first, last + 1) block of the head along x, y, z."""
    upper = part.solid[..., max(0, part.top - round(WIDTH_MM / mm[2])) :]
    there = np.argwhere(upper)
    first = there.min(0) - np.ceil(MARGIN_MM / mm).astype(int)
    last = there.max(0) + 1 + np.ceil(MARGIN_MM / mm).astype(int)
    first[2] = part.top + 1 - round(HEAD_MM / mm[2])
    last[2] = part.top + 1 + round(MARGIN_MM[2] / mm[2])
    return first, last


def _cut(pet, ras, low, high, length: float) -> Crop:
    """The box from RAS voxel `low` to before `high`, in the order of `pet`."""
    corners = np.array([[*low, 1.0], [*(high - 1), 1.0]]) @ ras.affine.T
    corners = np.rint(corners @ np.linalg.inv(pet.affine).T)[:, :3].astype(int)
    first, last = corners.min(0), corners.max(0)
    box = tuple(slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))
    affine = pet.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ first
    cropped = np.stack([first > 0, last < np.array(pet.array.shape) - 1])
    head = dataclasses.replace(pet, array=pet.array[box], affine=affine)
    return Crop(head, box, length, cropped)
