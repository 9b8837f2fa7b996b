"""Label volumes given by the user: checks and pulled-back sampling. Reads through data.nifti."""

import dataclasses
import functools
import pathlib

import numpy as np
from scipy import ndimage

from cldm_jax.data.nifti import canonical, read_volume
from cldm_jax.errors import UserError
from cldm_jax.phantom import tissue
from cldm_jax.phantom.fields import Grid

REMEDY = "Give BrainWeb's 12 classes (codes 0-11, table in docs/phantom.md)"


@dataclasses.dataclass(frozen=True)
class LabelVolume:
    """codes uint8 [grid.shape] in RAS order; sha256 of the file."""

    codes: np.ndarray
    grid: Grid
    sha256: str


def find_heads(folder: str) -> dict[str, pathlib.Path]:
    """{head id: path} of folder/<head id>/label.nii.gz, sorted by id. UserError if there is none."""
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise UserError(root, "is not a folder", "Set config.labels to a folder of label volumes")
    heads = {path.parent.name: path for path in sorted(root.glob("*/label.nii.gz"))}
    if not heads:
        raise UserError(
            root, "holds no */label.nii.gz", "Give one folder per head, see docs/phantom.md"
        )
    return heads


def read_labels(path) -> LabelVolume:
    """Reads one label volume. UserError: codes other than 0-11, no brain or skull, oblique axes."""
    volume = canonical(read_volume(path))
    if not np.array_equal(volume.array, np.rint(volume.array)):
        raise UserError(path, "holds values that are not whole numbers", REMEDY)
    low, high = volume.array.min(), volume.array.max()
    if low < 0 or high >= tissue.N_BRAINWEB:
        raise UserError(path, f"holds codes from {low:g} to {high:g}", REMEDY)
    codes = volume.array.astype(np.uint8)
    counts = np.bincount(codes.ravel(), minlength=tissue.N_BRAINWEB)
    missing = [tissue.NAMES[c] for c in (tissue.GM, tissue.WM, tissue.SKULL) if counts[c] == 0]
    if missing:
        raise UserError(path, f"has no {' and no '.join(missing)}", REMEDY)
    affine = np.asarray(volume.affine, float)
    linear = affine[:3, :3]
    spacing = np.diag(linear)
    if np.abs(linear - np.diag(spacing)).max() > 1e-3 * spacing.min():
        raise UserError(path, "has oblique axes", "Resample it to axes along x, y and z")
    grid = Grid(codes.shape, tuple(map(float, spacing)), tuple(map(float, affine[:3, 3])))
    return LabelVolume(codes, grid, volume.sha256)


@functools.lru_cache(maxsize=2)
def read_head(path: str) -> LabelVolume:
    """`read_labels` without what does not touch the head (some heads have blobs beside them).

    Remembers the last heads: a worker simulates the variants of one head in a row.
    """
    volume = read_labels(path)
    parts, _ = ndimage.label(volume.codes > 0)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    codes = np.where(parts == sizes.argmax(), volume.codes, np.uint8(tissue.AIR))
    return dataclasses.replace(volume, codes=codes)


def covering_grid(labels: Grid, spacing: tuple[float, float, float]) -> Grid:
    """The output grid over the whole field of view of a label grid, from the same lower edge."""
    shape = np.ceil(np.multiply(labels.shape, labels.spacing) / spacing - 1e-6).astype(int)
    edge = labels.origin - np.divide(labels.spacing, 2)
    return Grid.of(shape, spacing, edge + np.divide(spacing, 2))


def sample(labels: LabelVolume, position: list[np.ndarray]) -> np.ndarray:
    """Nearest label at world positions (x, y, z); air outside the label volume. uint8."""
    flat = np.zeros(position[0].shape, np.int32)
    valid = np.ones(position[0].shape, bool)
    for p, origin, spacing, n in zip(
        position, labels.grid.origin, labels.grid.spacing, labels.grid.shape, strict=True
    ):
        # a voxel centre that falls exactly between two labels must not depend on rounding to even
        index = np.floor((p - origin) / spacing + np.float32(0.5 + 1e-4)).astype(np.int32)
        valid &= (index >= 0) & (index < n)
        flat *= n
        flat += np.clip(index, 0, n - 1)
    codes = labels.codes.ravel()[flat]
    codes[~valid] = tissue.AIR
    return codes
