"""CT of the head as for attenuation correction. numpy and scipy only."""

import dataclasses

import numpy as np
from scipy import ndimage

from cldm_jax.phantom import tissue
from cldm_jax.phantom.fields import Grid, blur, smooth_field, tissue_mean, wide_blur

HU_RANGE = (-1024, 3071)
BLUR_MM = 0.9  # in-plane and along z, FWHM
TEXTURE_MM = 2.0
CUPPING_MM = 30.0


@dataclasses.dataclass(frozen=True)
class CtScan:
    """noise_hu: SD of the noise in brain; cupping_hu: depth of the centre; texture: 1 or 0."""

    noise_hu: float
    cupping_hu: float
    texture: float


def draw_scan(rng: np.random.Generator, noise: bool) -> CtScan:
    noise_hu, cupping = rng.uniform(4, 9), rng.uniform(0, 4)
    return CtScan(float(noise_hu), float(cupping), 1.0) if noise else CtScan(0.0, 0.0, 0.0)


def image(
    rng: np.random.Generator,
    labels: np.ndarray,
    hu: np.ndarray,
    grid: Grid,
    factor: tuple[int, int, int],
    scan: CtScan,
) -> np.ndarray:
    """int16 HU in [-1024, 3071] from fine labels and the person's CT numbers hu [14].

    Tissue texture, blur, cupping (the centre reads low: beam hardening behind the skull) and noise with
    the ramp's high-pass spectrum in each slice.
    """
    ct = tissue_mean(hu, labels, factor)  # attenuation averages linearly
    if scan.texture:
        spread = tissue_mean(tissue.HU_TEXTURE, labels, factor)
        ct += scan.texture * spread * smooth_field(rng, grid, TEXTURE_MM)
    ct = blur(ct, grid, BLUR_MM)
    if scan.cupping_hu:
        head = (ct > -300).astype(np.float32)
        ct -= scan.cupping_hu * wide_blur(head, grid, CUPPING_MM, "nearest") * head
    if scan.noise_hu:
        noise = rng.standard_normal(grid.shape, np.float32)
        noise -= ndimage.gaussian_filter(noise, (2.2, 2.2, 0), mode="wrap")
        noise = ndimage.gaussian_filter(noise, (0.45, 0.45, 0.3), mode="wrap")
        ct += scan.noise_hu / noise.std() * noise
    return np.clip(np.rint(ct), *HU_RANGE).astype(np.int16)
