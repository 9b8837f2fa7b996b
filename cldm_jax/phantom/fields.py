"""Grids, random streams, smooth random fields and block means. numpy and scipy only."""

import dataclasses

import numpy as np
from scipy import ndimage

FWHM = 2.354820045  # FWHM of a Gaussian in units of its sigma
STREAMS = {"anatomy": 1, "function": 2, "acquisition": 3, "randomised": 4}


def stream(seed: int, key: tuple[int, ...], name: str, acquisition: int = 0) -> np.random.Generator:
    """Independent generator per (cohort seed, person, purpose, acquisition).

    Anatomy, function and acquisition never share draws: a second acquisition of the same person has
    exactly the same anatomy and pathology, and no worker count or order can change a person.
    """
    return np.random.default_rng([seed, *key, STREAMS[name], acquisition])


@dataclasses.dataclass(frozen=True)
class Grid:
    """Axis-aligned voxel grid: shape [x,y,z], spacing mm, origin mm = centre of voxel (0,0,0)."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]

    @classmethod
    def of(cls, shape, spacing, origin) -> "Grid":
        """From arrays or other sequences of three numbers."""
        return cls(*(tuple(np.asarray(part).tolist()) for part in (shape, spacing, origin)))

    def axis(self, i: int) -> np.ndarray:
        """Centres of the voxels along axis i, mm, float32 [shape[i]]."""
        return (self.origin[i] + self.spacing[i] * np.arange(self.shape[i])).astype(np.float32)

    def affine(self) -> np.ndarray:
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = self.origin
        return affine

    def refine(self, factor: tuple[int, int, int]) -> "Grid":
        """The grid whose blocks of `factor` voxels are this grid's voxels."""
        spacing = np.divide(self.spacing, factor)
        origin = self.origin - np.divide(self.spacing, 2) + spacing / 2
        return Grid.of(np.multiply(self.shape, factor), spacing, origin)

    def lattice(self, step_mm: float) -> "Grid":
        """A coarser grid that covers this one, with steps of at least the voxel size."""
        spacing = np.maximum(self.spacing, step_mm)
        length = np.subtract(self.shape, 1) * self.spacing
        steps = np.ceil(length / spacing).astype(int)
        return Grid.of(steps + 1, spacing, self.origin - (steps * spacing - length) / 2)


def upsample(values: np.ndarray, lattice: Grid, grid: Grid) -> np.ndarray:
    """Trilinear interpolation of values [lattice.shape] at the voxel centres of `grid`; clamps."""
    if lattice == grid:
        return values
    for axis in (2, 1, 0):  # the pass over the full volume runs along the contiguous rows
        n = lattice.shape[axis]
        if n == 1:
            values = np.repeat(values, grid.shape[axis], axis)
            continue
        position = (grid.axis(axis) - lattice.origin[axis]) / lattice.spacing[axis]
        low = np.clip(np.floor(position).astype(np.intp), 0, n - 2)
        weight = np.clip(position - low, 0, 1).astype(np.float32)
        result = np.take(values, low, axis)
        step = np.take(values, low + 1, axis)
        step -= result
        step *= weight.reshape([-1 if i == axis else 1 for i in range(3)])
        result += step
        values = result
    return values


def smooth_field(rng: np.random.Generator, grid: Grid, sigma_mm: float) -> np.ndarray:
    """Zero-mean, unit-variance Gaussian random field [grid.shape], white noise filtered by sigma_mm.

    Drawn on a lattice of half a sigma and interpolated: smooth fields cost almost nothing.
    """
    lattice = grid.lattice(sigma_mm / 2)
    noise = rng.standard_normal(lattice.shape, np.float32)
    field = ndimage.gaussian_filter(noise, [sigma_mm / s for s in lattice.spacing], mode="reflect")
    field -= field.mean()
    field /= max(float(field.std()), 1e-6)
    return upsample(field, lattice, grid)


def blur(values: np.ndarray, grid: Grid, fwhm_mm: float) -> np.ndarray:
    """3-D Gaussian point spread of the given FWHM."""
    sigma = [fwhm_mm / FWHM / s for s in grid.spacing]
    return ndimage.gaussian_filter(values, sigma, mode="nearest", truncate=3.5)


def wide_blur(values: np.ndarray, grid: Grid, width_mm: float, mode: str) -> np.ndarray:
    """Two box filters of that width: nearly a Gaussian, at a cost that ignores their size."""
    size = [max(1, round(width_mm / s)) for s in grid.spacing]
    for _ in range(2):
        values = ndimage.uniform_filter(values, size, mode=mode)
    return values


def block_sum(values: np.ndarray, factor: tuple[int, int, int]) -> np.ndarray:
    """Sums over blocks of `factor` voxels; keeps the dtype."""
    for axis, f in enumerate(factor):
        before = (slice(None),) * axis
        parts = [values[(*before, slice(i, None, f))] for i in range(f)]
        values = sum(parts[1:], parts[0])
    return values


def block_mean(values: np.ndarray, factor: tuple[int, int, int]) -> np.ndarray:
    """Partial volume: the mean of each block of `factor` voxels, float32."""
    return block_sum(values.astype(np.float32, copy=False), factor) / np.float32(np.prod(factor))


def tissue_mean(table: np.ndarray, labels: np.ndarray, factor: tuple[int, int, int]) -> np.ndarray:
    """Block mean of table[labels]: the quantity map of a fine label map on the output grid."""
    return block_mean(table.astype(np.float32)[labels], factor)


def majority(labels: np.ndarray, factor: tuple[int, int, int], n_codes: int) -> np.ndarray:
    """Most frequent code of each block, uint8; the lower code wins a tie."""
    if factor == (1, 1, 1):
        return labels
    # blocks have at most 27 voxels, so uint8 sums cannot wrap
    count = block_sum((labels == 0).view(np.uint8), factor)
    best = np.zeros(count.shape, np.uint8)
    for code in range(1, n_codes):
        votes = block_sum((labels == code).view(np.uint8), factor)
        wins = votes > count
        best[wins] = code
        np.maximum(count, votes, out=count)
    return best
