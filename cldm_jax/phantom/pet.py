"""FDG PET: activity map, point spread and noise of a reconstructed image. numpy and scipy only."""

import dataclasses

import numpy as np
from scipy import ndimage

from cldm_jax.phantom import tissue
from cldm_jax.phantom.fields import FWHM, Grid, blur, smooth_field, tissue_mean
from cldm_jax.phantom.pathology import Disease
from cldm_jax.phantom.tissue import Person

# Resolution (FWHM mm) and noise (coefficient of variation in grey matter) by scanner. In mode
# `abstract` the people with CT were on the first and those with MR on the second: PET looks differ.
PROFILES = {
    "any": ((4.5, 6.5), (0.06, 0.14)),
    "pet_ct": ((5.3, 6.5), (0.09, 0.14)),
    "pet_mr": ((4.5, 5.2), (0.06, 0.10)),
}
CORTEX = 0.72  # usual apparent uptake of the cortex, where a scan's cov is defined
NOISE_TO_PSF = 0.8  # FWHM of the noise correlation in units of the resolution


@dataclasses.dataclass(frozen=True)
class PetScan:
    """fwhm_mm: total resolution; cov: noise SD over mean in grey matter; profile: scanner name."""

    profile: str
    fwhm_mm: float
    cov: float


def draw_scan(rng: np.random.Generator, profile: str, noise: bool) -> PetScan:
    fwhm, cov = PROFILES[profile]
    fwhm_mm, cov_drawn = rng.uniform(*fwhm), rng.uniform(*cov)
    return PetScan(profile, float(fwhm_mm), float(cov_drawn) if noise else 0.0)


def activity(
    rng: np.random.Generator,
    disease: Disease,
    person: Person,
    grid: Grid,
    factor: tuple[int, int, int],
    regional: bool,
) -> np.ndarray:
    """Activity relative to grey matter on the output grid, before the scanner. float32.

    rng: function stream. Grey matter carries a +-10 % regional field (14 mm) and the disease's factor.
    """
    uptake = person.uptake.copy()
    uptake[tissue.TUMOUR] = disease.tumour_uptake
    grey = np.zeros_like(uptake)
    grey[list(tissue.GREY)] = uptake[list(tissue.GREY)]
    of_grey = tissue_mean(grey, disease.labels, factor)
    total = tissue_mean(uptake - grey, disease.labels, factor)
    if regional:
        of_grey *= np.clip(1 + 0.10 * smooth_field(rng, grid, 14), 0.6, 1.4)
    if disease.hypo is not None:
        of_grey *= disease.hypo
    total += of_grey
    return total


def point_spread(values: np.ndarray, grid: Grid, fwhm_mm: float, axial_ratio: float = 1.0):
    """Blur to a total resolution of fwhm_mm (along z of axial_ratio times that): the average over a voxel
    (variance s^2/12) is part of it.
    """
    widths = (fwhm_mm, fwhm_mm, fwhm_mm * axial_ratio)
    variance = [(w / FWHM) ** 2 - s * s / 12 for w, s in zip(widths, grid.spacing, strict=True)]
    sigma = [np.sqrt(max(v, 0.0)) / s for v, s in zip(variance, grid.spacing, strict=True)]
    return ndimage.gaussian_filter(values, sigma, mode="nearest", truncate=3.5)


def fast(rng: np.random.Generator, true: np.ndarray, grid: Grid, scan: PetScan) -> np.ndarray:
    """Blurred activity + correlated noise whose variance is proportional to the mean. float32.

    That is the law of images reconstructed by expectation maximisation; cov holds at the usual
    cortical level.
    """
    mean = point_spread(true, grid, scan.fwhm_mm)
    if scan.cov == 0:
        return mean
    noise = blur(rng.standard_normal(grid.shape, np.float32), grid, NOISE_TO_PSF * scan.fwhm_mm)
    noise *= scan.cov / noise.std()
    noise *= np.sqrt(CORTEX * np.maximum(mean, 1e-4))
    noise += mean
    return np.maximum(noise, 0, out=noise)
