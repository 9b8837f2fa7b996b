"""PET by simulated acquisition and ordered-subset EM, slice by slice. numpy and scipy only.

Parallel-beam sinograms with attenuation, Poisson counts and a known background of scatter and
randoms; the image after `ITERATIONS` x `SUBSETS` updates (Hudson and Larkin 1994) is post-filtered.
Without correction (NAC) the same counts are taken as if nothing had been lost and nothing scattered.
"""

import numpy as np
from scipy import ndimage, sparse

from cldm_jax.phantom.fields import Grid, blur
from cldm_jax.phantom.pet import PetScan, point_spread

ANGLES, SUBSETS, ITERATIONS = 120, 8, 4
INTRINSIC_MM = 4.2  # FWHM of detection; the rest of the scan's resolution is the post-filter
BACKGROUND = 0.25  # scatter and randoms as a fraction of all counts
MU_WATER, MU_BONE_PER_HU = 0.0096, 5.1e-6  # 1/mm at 511 keV
COUNTS = 7.5e4  # sets the number of counts, see _counts; fitted so that both PET models agree


def attenuation(hu: np.ndarray) -> np.ndarray:
    """Bilinear 511 keV map in 1/mm: water-air below 0 HU, water-bone above (Carney et al. 2006)."""
    return np.where(hu < 0, MU_WATER * (1 + hu / 1000), MU_WATER + MU_BONE_PER_HU * hu).clip(0)


def system_matrix(grid: Grid, support: np.ndarray) -> sparse.csr_matrix:
    """Line integrals (mm) of the pixels in support [x, y]: CSR [ANGLES * bins, n_pixels].

    Pixel driven: each pixel's area falls on the two nearest bins in proportion, so the total of every
    view is the total of the image.
    """
    x, y = np.meshgrid(grid.axis(0), grid.axis(1), indexing="ij")
    x, y = x[support] - x.mean(), y[support] - y.mean()
    width = min(grid.spacing[:2])
    bins = 2 * int(np.ceil(np.hypot(x, y).max() / width)) + 3
    rows, columns, values = [], [], []
    area = grid.spacing[0] * grid.spacing[1] / width
    for view in range(ANGLES):
        angle = np.pi * view / ANGLES
        at = (x * np.cos(angle) + y * np.sin(angle)) / width + (bins - 1) / 2
        low = np.floor(at).astype(np.int32)
        weight = at - low
        rows += [view * bins + low, view * bins + low + 1]
        columns += [np.arange(x.size)] * 2
        values += [area * (1 - weight), area * weight]
    shape = (ANGLES * bins, x.size)
    entries = (
        np.concatenate(values).astype(np.float32),
        (np.concatenate(rows), np.concatenate(columns)),
    )
    return sparse.csr_matrix(entries, shape)


def subsets(matrix: sparse.csr_matrix) -> list[tuple]:
    """[(rays, their rows of the matrix, those transposed)]: every SUBSETS-th view, for `reconstruct`."""
    views = np.arange(matrix.shape[0]) // (matrix.shape[0] // ANGLES)
    made = []
    for s in range(SUBSETS):
        rays = np.flatnonzero(views % SUBSETS == s)
        part = matrix[rays]
        made.append((rays, part, part.T.tocsr()))
    return made


def reconstruct(parts, counts, loss, background) -> np.ndarray:
    """OSEM estimate float32 [pixels, slices] with the `subsets` of a system matrix, from counts,
    attenuation factors and background [rays, slices]. A loss of 1 and a background of 0: no correction.
    """
    parts = [(*part, part[2] @ loss[part[0]]) for part in parts]
    image = np.ones((parts[0][1].shape[1], counts.shape[1]), np.float32)
    for _ in range(ITERATIONS):
        for rays, part, back, sensitivity in parts:
            expected = loss[rays] * (part @ image) + background[rays]
            ratio = loss[rays] * counts[rays] / np.maximum(expected, 1e-6)
            image *= (back @ ratio) / np.maximum(sensitivity, 1e-6)
    return image


def _counts(grid: Grid, scan: PetScan, post_filter_mm: float) -> float:
    """Counts in the fullest slice that give about scan.cov in grey matter (0.3 to 1.5 million).

    Noise variance falls with the counts and with the volume that pixel and post-filter average over.
    """
    area = grid.spacing[0] * grid.spacing[1] + post_filter_mm**2
    return COUNTS * grid.spacing[2] / (scan.cov**2 * area**1.5)


def acquire(
    rng: np.random.Generator,
    true: np.ndarray,
    hu: np.ndarray,
    grid: Grid,
    scan: PetScan,
    *,
    nac: bool = False,
) -> dict[str, np.ndarray]:
    """A scan of the true activity through noise-free CT numbers: {"pet": activity float32 [grid.shape],
    attenuation, scatter and randoms known} and, with `nac`, "nac": the same counts without correction.

    cov = 0 gives noise-free data. Counts follow from scan.cov, so both PET models are comparable.
    nac: pixels lie over the whole field of view and not only around the head; air is not empty then, and
    its edge would show where the head ends.
    """
    rest = np.sqrt(max(scan.fwhm_mm**2 - INTRINSIC_MM**2, 1.0))  # post-filter, FWHM mm
    support = ndimage.binary_dilation((hu > -500).any(axis=2), iterations=3) | nac
    matrix = system_matrix(grid, support)
    blurred = point_spread(true, grid, INTRINSIC_MM)
    loss = np.exp(-(matrix @ attenuation(hu)[support])).astype(np.float32)
    trues = loss * (matrix @ blurred[support])
    bins = matrix.shape[0] // ANGLES
    views = trues.reshape(ANGLES, bins, -1)
    smooth = ndimage.gaussian_filter1d(views, bins / 6, axis=1, mode="constant")
    background = smooth.reshape(trues.shape) * BACKGROUND / (1 - BACKGROUND)
    scale = 1.0
    if scan.cov:
        scale = _counts(grid, scan, rest) / max(float(trues.sum(axis=0).max()), 1e-6)
    expected = scale * (trues + background)
    counts = rng.poisson(expected).astype(np.float32) if scan.cov else expected
    background, parts = scale * background, subsets(matrix)

    def image(loss, background):
        estimate = reconstruct(parts, counts, loss, background) / np.float32(scale)
        volume = np.zeros(grid.shape, np.float32)
        volume[support] = estimate
        return np.maximum(blur(volume, grid, rest), 0)

    images = {"pet": image(loss, background)}
    if nac:
        images["nac"] = image(np.ones_like(loss), np.zeros_like(background))
    return images
