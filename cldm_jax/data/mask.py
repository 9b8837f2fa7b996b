"""Where the head is: scores count inside it, and slices without it are left out."""

import numpy as np
from scipy import ndimage

HEAD_HU = -500.0  # halfway between air and soft tissue
SMOOTH_MM = 4.0  # SD, of a PET before its brain is looked for
DILATE = 2  # in-plane voxels, so that the skin edge counts


def head_mask(slices: np.ndarray, kind: str) -> np.ndarray:
    """bool [Z, H, W] from slices of a "ct" in HU, or of an "mr" in any units: its largest piece, DILATE
    voxels wider within each slice.

    MR: Otsu's threshold between air and tissue, of the square root: on the intensities themselves bright
    fat pulls it into the brain. Filled before the largest piece is taken, because dark bone parts the
    brain from the scalp.
    """
    if kind == "ct":
        tissue = slices > HEAD_HU
    else:
        root = np.sqrt(np.maximum(slices, 0))
        tissue = fill(root > otsu(root))
    cross = ndimage.generate_binary_structure(2, 1)[None]
    return ndimage.binary_dilation(largest(tissue), cross, iterations=DILATE)


def brain_mask_pet(slices: np.ndarray, spacing_mm) -> np.ndarray:
    """bool [Z, H, W] from PET slices in any units, where nothing else tells where the brain is: above
    Otsu's threshold once noise is smoothed away (scalp is dim in PET), its largest piece, filled.
    spacing_mm: (row, column). Nothing, of a PET that is the same everywhere.
    """
    sigma = (0.0, *(SMOOTH_MM / s for s in spacing_mm))
    smooth = ndimage.gaussian_filter(np.asarray(slices, np.float32), sigma, mode="nearest")
    if np.ptp(smooth) == 0:
        return np.zeros(smooth.shape, bool)
    return largest(smooth > otsu(smooth - smooth.min()) + smooth.min())


def otsu(values: np.ndarray) -> float:
    """The threshold that maximises the variance between two classes (Otsu 1979), 256 bins.

    Values are clipped at their 99.5th percentile first: a few bright vessels would else shift it.
    """
    top = np.percentile(values, 99.5)
    if top <= values.min():  # nearly all of it is one value
        top = values.max()
    counts, edges = np.histogram(np.minimum(values, top), 256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    total = np.cumsum(counts * centres)
    with np.errstate(invalid="ignore"):  # an empty class has no mean; nanargmax passes over it
        gap = total[:-1] / below - (total[-1] - total[:-1]) / above
        between = below * above * gap**2
    return float(edges[1:-1][np.nanargmax(between)])


def fill(tissue: np.ndarray) -> np.ndarray:
    """Holes filled within each slice: background that no path along rows and columns joins to its border.

    As `ndimage.binary_fill_holes` slice by slice, whose repeated dilation was a fifth of `prepare`.
    """
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    labels, count = ndimage.label(~tissue, in_plane)
    is_hole = np.ones(count + 1, bool)
    for border in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        is_hole[border] = False
    is_hole[0] = False
    return tissue | is_hole[labels]


def piece(tissue: np.ndarray) -> np.ndarray:
    """Largest connected piece of a bool array."""
    labels, count = ndimage.label(tissue)
    if not count:
        return tissue
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def largest(tissue: np.ndarray) -> np.ndarray:
    """Largest connected piece of bool [Z, H, W], holes filled within each slice."""
    return fill(piece(tissue))
