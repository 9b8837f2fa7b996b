"""Volumes <-> the fixed grid of axial slices that models see.

A slice is an image [row, column]: row 0 is anterior and rows run to posterior; column 0 is the
patient's left and columns run to the right; slices run from inferior to superior. A grid affine
maps (column, row, slice, 1) to world mm. For oblique scans "axial" is the closest axis of the voxel
array: the head is not rotated, so that nothing is interpolated that need not be.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

AGREE = 1e-3  # relative difference of spacing below which voxels are taken as they are
_WHOLE = 0.02  # voxels: how far the corners of a pure crop may lie from whole indices


@dataclasses.dataclass(frozen=True)
class ModelGrid:
    """`size` (H, W) in voxels, `spacing_mm` (row, column), `slice_spacing_mm` None = as scanned."""

    size: tuple[int, int]
    spacing_mm: tuple[float, float]
    slice_spacing_mm: float | None

    @classmethod
    def from_index(cls, value: dict) -> "ModelGrid":
        """From the "grid" entry of an index.json."""
        return cls(tuple(value["size"]), tuple(value["spacing_mm"]), value["slice_spacing_mm"])

    def to_index(self, center: str) -> dict:
        """The "grid" entry of an index.json; `center` "pet" or "fov"."""
        mm = [float(s) for s in self.spacing_mm]
        value = {"size": list(self.size), "spacing_mm": mm}
        return value | {"slice_spacing_mm": self.slice_spacing_mm, "center": center}


def spacing_of(grid_affine) -> tuple[float, float, float]:
    """(slice, row, column) mm of a grid affine."""
    return tuple(np.linalg.norm(grid_affine[:3, :3], axis=0)[::-1].tolist())


def to_grid(
    array: np.ndarray,
    affine: np.ndarray,
    grid: ModelGrid,
    *,
    center_mm: Sequence[float] | None = None,
    fill: float,
    order: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """RAS array [x, y, z] with its affine -> (slices float32 [Z, H, W], grid affine [4, 4]).

    center_mm  world (x, y, z) of the in-plane centre; None: centre of the field of
               view. Along an axis whose spacing agrees with the grid's within 1e-3 the centre moves
               to the nearest whole voxel and the axis keeps its spacing: a pure crop or pad.
    fill       value outside the field of view
    order      1 linear, 0 nearest (label maps)
    Raises ValueError if the array is not in RAS order (see nifti.canonical).
    """
    axes = affine[:3, :3]
    if (np.diag(axes) <= 0).any():
        raise ValueError("to_grid needs a volume in RAS order: call nifti.canonical first")
    have = np.sqrt((axes**2).sum(0))
    want = [grid.spacing_mm[1], grid.spacing_mm[0], grid.slice_spacing_mm or have[2]]
    step = np.where(np.abs(np.divide(want, have) - 1) < AGREE, have, want) / have  # in voxels
    shape = np.array(array.shape)
    depth = max(1, round(shape[2] / step[2]))
    size = np.array([grid.size[1], grid.size[0], depth])
    middle = (shape - 1) / 2
    if center_mm is not None:
        middle[:2] = np.linalg.solve(affine, [*center_mm, 1.0])[:2]
    first = middle - (size - 1) / 2 * step  # voxel index of grid corner with lowest x, y, z
    first = np.where(step == 1, np.floor(first + 0.5), first)
    # Rows run against y: grid row 0 is the highest y.
    index_map = np.diag([step[0], -step[1], step[2], 1.0])
    index_map[:3, 3] = first[0], first[1] + (size[1] - 1) * step[1], first[2]
    slices = _sample(array, index_map, tuple(size), fill, order)
    return np.ascontiguousarray(slices.transpose(2, 1, 0)), affine @ index_map


def from_grid(
    slices: np.ndarray,
    grid_affine: np.ndarray,
    shape: Sequence[int],
    affine: np.ndarray,
    *,
    fill: float,
) -> np.ndarray:
    """Slices [Z, H, W] -> float32 [x, y, z] of `shape` on the grid of `affine`, any orientation.

    The exact inverse of `to_grid` inside the grid where that was a crop or pad; `fill` outside it.
    """
    return resample(slices.transpose(2, 1, 0), grid_affine, shape, affine, fill=fill)


def resample(
    array: np.ndarray,
    array_affine: np.ndarray,
    shape: Sequence[int],
    affine: np.ndarray,
    *,
    fill: float,
    order: int = 1,
) -> np.ndarray:
    """`array` [i, j, k] seen on another voxel grid through both affines: float32 of `shape`."""
    return _sample(array, np.linalg.inv(array_affine) @ affine, tuple(shape), fill, order)


def _sample(array, index_map, shape, fill, order) -> np.ndarray:
    """array at index_map @ (i, j, k, 1) for every output index; a copy where those are whole."""
    whole = np.rint(index_map)
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
    corners[:, :3] *= np.array(shape) - 1
    turns = np.abs(whole[:3, :3])
    if (turns.sum(0) == 1).all() and (turns.sum(1) == 1).all():
        if np.abs((index_map - whole) @ corners.T).max() < _WHOLE:
            return _copy(array, whole.astype(int), shape, fill)
    array = np.asarray(array, np.float32)
    # Voxels of the input per step of the output, along each input axis: above 1 it would alias.
    shrink = np.sqrt((index_map[:3, :3] ** 2).sum(1))
    if order and (shrink > 1 + AGREE).any():
        array = ndimage.gaussian_filter(array, np.maximum(shrink - 1, 0) / 2, mode="nearest")
    matrix, offset = index_map[:3, :3], index_map[:3, 3]
    diagonal = np.diag(matrix)
    separable = not (matrix - np.diag(diagonal)).any()
    out = ndimage.affine_transform(
        array,
        diagonal if separable else matrix,
        offset,
        shape,
        np.float32,
        order=order,
        mode="nearest",
    )
    return np.where(_inside(array.shape, index_map, shape), out, np.float32(fill))


def _inside(array_shape, index_map, shape) -> np.ndarray:
    """bool, broadcastable to `shape`: the point lies in a voxel (not only between voxel centres)."""
    inside = np.ones((1, 1, 1), bool)
    for axis, n in enumerate(array_shape):
        at = np.full((1, 1, 1), index_map[axis, 3])
        for i, steps in enumerate(np.ogrid[tuple(slice(k) for k in shape)]):
            if index_map[axis, i]:
                at = at + index_map[axis, i] * steps
        inside = inside & (at > -0.5 - 1e-6) & (at < n - 0.5 + 1e-6)
    return inside


def _copy(array, index_map, shape, fill) -> np.ndarray:
    """Crop, pad, flip and permute by whole voxels."""
    perm = np.abs(index_map[:3, :3]).argmax(0)  # input axis that each output axis walks along
    moved, take, put = array.transpose(perm), [], []
    for axis, n in enumerate(shape):
        step, size = index_map[perm[axis], axis], moved.shape[axis]  # 1 or -1
        first = index_map[perm[axis], 3] if step > 0 else size - 1 - index_map[perm[axis], 3]
        low, high = max(0, -first), max(0, min(n, size - first))  # of the output, inside the input
        put.append(slice(low, max(low, high)))
        take.append(slice(first + low, first + max(low, high)))
        if step < 0:
            moved = np.flip(moved, axis)
    out = np.full(shape, fill, np.float32)
    out[tuple(put)] = moved[tuple(take)]
    return out
