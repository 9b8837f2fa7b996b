"""What of a head a target shows: voxels that were measured, and voxels that somebody filled.

A tool that brings an image to another grid, or cuts a face or a skull off, leaves one constant where it
knows nothing. Such a block touches the volume's border and has no noise at all. It may also be air, which
clipping makes as constant: so a block counts as missing only where the head is, as the PET and the other
target show it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from cldm_jax.data import intensity, mask, nifti

MAX_UNSEEN = 0.02  # of the head over all slices: more is said, and the target gets its own mask
MAX_SLICE_UNSEEN = 0.10  # of the head in a slice, for the slice to count
MAX_BRAIN_UNSEEN = 0.05  # of what the PET shows in a slice
_FILLED = 0.005  # of a volume: a smaller share of a fill that is no air is not worth a word
_SMALLEST = 5e-4  # of a volume: smaller constant blocks are chance
_SAME = 0.08  # of the voxels outside constant blocks; of whole HU with noise any one value has less
_NOISELESS = 0.002  # of a volume, constant, away from the border and above its lowest value
PET_EMPTY = 0.05  # of the PET's scale: a slice that stays below holds none
_SKIN_MM = 5.0  # how far inside the skin a head must be seen: masks of two images differ by that
_SHELL_MM = 10.0  # the head's outermost layer: skin, fat, skull
_STRIPPED = 0.6  # of that layer unseen, with the brain whole: skull-stripped


class Cover(NamedTuple):
    """One target of one person, on the training grid.

    unseen    share of the head that it does not show
    keep      bool [Z]: slices that count for it
    stripped  it shows the brain and nothing around it
    """

    unseen: float
    keep: np.ndarray
    stripped: bool

    @property
    def is_partial(self) -> bool:
        return self.unseen > MAX_UNSEEN


class Heads(NamedTuple):
    """mask: bool [Z, H, W], the head that scores count in; by_target: the part of it that each shows."""

    mask: np.ndarray
    keep: np.ndarray  # bool [Z]: slices with enough of it and with PET
    covers: dict[str, Cover]
    by_target: dict[str, np.ndarray]
    mr_size: float  # the MR's head in the slices that count for it, over the PET's brain; 0: no MR


def clean(volume: nifti.Volume, kind: str):
    """A target of `kind` "ct" or "mr" as read -> (the same with air for its fill, bool like its array:
    what was measured, (value, share) of the fill or None). A CT's fill becomes air where it is no air;
    whatever lies below the lowest HU becomes the lowest.
    """
    blocks, values = filled_blocks(volume.array)
    if not values:
        return volume, np.ones(volume.array.shape, bool), None
    air = intensity.MODALITIES[kind].fill
    array, worst = volume.array, None
    for label, value in values.items():
        wrong = value > mask.HEAD_HU if kind == "ct" else value != air
        if wrong or (kind == "ct" and value < air):
            own = blocks == label
            array = np.where(own, np.float32(air), array)
            share = float(own.mean())
            if wrong and share > (worst[1] if worst else _FILLED):
                worst = (value, share)
    return dataclasses.replace(volume, array=array), blocks == 0, worst


def filled_blocks(array: np.ndarray) -> tuple[np.ndarray, dict[int, float]]:
    """(int32 labels like `array`, {label: value}) of constant blocks that touch the border; 0: none."""
    none = np.zeros(array.shape, np.int32)
    if not _repeats(array):
        return none, {}
    padded = np.pad(array, 1, mode="edge")  # so that one border slice is enough
    flat = ndimage.maximum_filter(padded, 3) == ndimage.minimum_filter(padded, 3)
    labels, _ = ndimage.label(flat, np.ones((3, 3, 3), bool))  # flat neighbours share their value
    sizes = np.bincount(labels.ravel())
    at_border = {int(n) for face in _faces(labels) for n in np.unique(face) if n}
    found = [n for n in sorted(at_border) if sizes[n] > _SMALLEST * array.size]
    lowest = float(array.min())
    within = ~np.isin(labels, [0, *at_border])
    inside = int((within & (padded > lowest)).sum())
    constant = ndimage.maximum_filter(labels > 0, 3)[1:-1, 1:-1, 1:-1]
    rest = array[~constant & (array > lowest)]
    values = {}
    for n in found:
        at = np.unravel_index((labels == n).argmax(), labels.shape)
        value = float(padded[at])
        # An image without noise is as constant in tissue that ends at the border: there is more of the
        # same elsewhere.
        is_tissue = (
            inside >= _NOISELESS * array.size or _share(rest == value, rest > lowest) > _SAME
        )
        if value == lowest or not is_tissue:
            values[n] = value
    # A flat voxel's neighbours have its value: they belong to its block.
    blocks = ndimage.maximum_filter(np.where(np.isin(labels, list(values)), labels, 0), 3)
    return blocks[1:-1, 1:-1, 1:-1], values


def judge(
    on_grid: Mapping[str, np.ndarray],
    measured: Mapping[str, np.ndarray],
    spacing_mm: tuple[float, float, float],
    pet_scale: float,
    min_head_fraction: float,
) -> Heads:
    """What the targets among `on_grid` ([Z, H, W] in units, with "pet") show of the head.

    measured: bool [Z, H, W] by target. spacing_mm: slice, row, column.
    """
    pet = on_grid["pet"]
    heads = {
        n: mask.head_mask(a, intensity.base_modality(n))
        for n, a in on_grid.items()
        if n not in intensity.SOURCES
    }
    signal = pet > PET_EMPTY * pet_scale
    has_pet = signal.any((1, 2))
    bright = intensity.foreground(pet, intensity.BRAIN_FRACTION)
    uptake = mask.largest(bright) & has_pet[:, None, None]
    brain = _inner(uptake, spacing_mm, _SKIN_MM)
    # PET blurs through plane as well: what it shows above the brain is no brain.
    up = np.ones((3, 1, 1), bool)
    brain = ndimage.binary_erosion(brain, up, math.ceil(_SKIN_MM / spacing_mm[0]), border_value=1)
    first = {n: h for n, h in heads.items() if n in ("ct", "mr")}
    outer = np.any(list(first.values()), axis=0) & has_pet[:, None, None]
    inner = _inner(outer, spacing_mm, _SKIN_MM, mask.DILATE)
    whole = inner | brain
    shell = inner & ~_inner(outer, spacing_mm, _SKIN_MM + _SHELL_MM, mask.DILATE)
    unseen = {n: _share(whole & ~measured[n], whole) for n in heads}
    head = heads["ct"] if "ct" in heads else heads["mr"]
    if "ct" in heads and "mr" in heads and unseen["ct"] > MAX_UNSEEN:
        head = head | (heads["mr"] & ~measured["ct"])  # the other one knows where the CT ends
    keep = (head.mean((1, 2)) >= min_head_fraction) & has_pet
    covers, by_target = {}, {}
    for name in heads:
        missing = ~measured[name]
        stripped = (
            intensity.base_modality(name) == "mr"
            and _share(shell & missing, shell) > _STRIPPED
            and _share(brain & missing, brain) < MAX_UNSEEN
        )
        own = keep & (_by_slice(brain & missing, brain) <= MAX_BRAIN_UNSEEN)
        if unseen[name] > MAX_UNSEEN:
            own &= (head & measured[name]).mean((1, 2)) >= min_head_fraction
        # Above the head nothing is missed but where there is PET: a CT that ended below is no air.
        own &= whole.any((1, 2)) | (_by_slice(signal & missing, signal) <= MAX_SLICE_UNSEEN)
        if not stripped:
            own &= _by_slice(whole & missing, whole) <= MAX_SLICE_UNSEEN
        covers[name] = Cover(unseen[name], own, stripped)
        if unseen[name] > MAX_UNSEEN or (own != keep).any():
            by_target[name] = head & measured[name]
    size = 0.0
    if "mr" in heads:
        own = covers["mr"].keep
        size = _share(heads["mr"][own], uptake[own])
    return Heads(head, keep, covers, by_target, size)


def _repeats(array: np.ndarray) -> bool:
    """Whether anywhere on the border neighbours have one value: cheap, and false for most images."""
    for face in _faces(array):
        same = (face[1:, 1:] == face[:-1, 1:]) & (face[1:, 1:] == face[1:, :-1])
        if same.mean() > 0.02:
            return True
    return False


def _faces(array: np.ndarray) -> list[np.ndarray]:
    """The six sides of a volume."""
    return [array.take(end, axis) for axis in range(3) for end in (0, -1)]


def _inner(region: np.ndarray, spacing_mm, depth_mm: float, steps: int = 0) -> np.ndarray:
    """What lies deeper than `depth_mm`, and `steps` voxels more, in each slice."""
    steps += max(1, math.ceil(depth_mm / max(spacing_mm[1:])))
    cross = ndimage.generate_binary_structure(2, 1)[None]
    return ndimage.binary_erosion(region, cross, iterations=steps)


def _share(part: np.ndarray, of: np.ndarray) -> float:
    return float(part.sum() / max(1, of.sum()))


def _by_slice(part: np.ndarray, of: np.ndarray) -> np.ndarray:
    return part.sum((1, 2)) / np.maximum(1, of.sum((1, 2)))
