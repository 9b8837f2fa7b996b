"""What wrong or missing attenuation correction and a head holder do to a PET. numpy and scipy only.

A point's signal is lost along all lines through it. Their mean line integral of a map d is, in each
slice, d convolved with 1 / (pi r) (back-projection of the projections); correcting with a map that
differs by d multiplies the image by about exp(mean line integral of d).
"""

import numpy as np
from scipy import fft, ndimage

from cldm_jax.phantom import osem
from cldm_jax.phantom.fields import Grid, upsample
from cldm_jax.phantom.scene import Scene

COARSE_MM = 4.0  # the mean line integral is smooth
FACTOR_LIMITS = (0.05, 3.0)
RIM_MM = 8.0


def mean_line_integral(values: np.ndarray, grid: Grid) -> np.ndarray:
    """Mean over all in-plane directions of the line integral through each voxel; 1/mm -> no unit."""
    pixel = np.sqrt(grid.spacing[0] * grid.spacing[1])
    shape = [fft.next_fast_len(2 * n, real=True) for n in values.shape[:2]]
    offsets = (np.minimum(np.arange(n), n - np.arange(n)) for n in shape)
    x, y = (o * s for o, s in zip(offsets, grid.spacing[:2], strict=True))
    r = np.hypot(x[:, None], y[None, :])
    r[0, 0] = 1
    kernel = grid.spacing[0] * grid.spacing[1] / (np.pi * r)
    kernel[0, 0] = 4 * pixel * np.log(1 + np.sqrt(2)) / np.pi  # of 1 / (pi r) over a square pixel
    spectrum = fft.rfft2(values, shape, axes=(0, 1))
    spectrum *= fft.rfft2(kernel.astype(np.float32))[..., None]
    result = fft.irfft2(spectrum, shape, axes=(0, 1))
    return result[: values.shape[0], : values.shape[1]].astype(np.float32)


def holder(drawn: dict, scene: Scene) -> np.ndarray:
    """0..1 [x, y]: a cup behind the head, the same in every slice; zeros without one."""
    grid = scene.grid
    if not drawn["has_holder"]:
        return np.zeros(grid.shape[:2], np.float32)
    outline = scene.head.max(axis=2) > 0.5
    half, centre = [], []
    for i in (0, 1):
        at = grid.axis(i)[outline.any(axis=1 - i)]
        centre.append((at[0] + at[-1]) / 2)
        half.append((at[-1] - at[0]) / 2 + drawn["holder_gap_mm"])
    x, y = grid.axis(0)[:, None] - centre[0], grid.axis(1)[None, :] - centre[1]
    radius = np.hypot(x / half[0], y / half[1])
    depth = (radius - 1) * half[1]  # mm outside the inner face, at the back
    inside = np.clip(depth / 2, 0, 1) * np.clip((drawn["holder_mm"] - depth) / 2, 0, 1)
    return (inside * np.clip((-0.2 * half[1] - y) / 10, 0, 1)).astype(np.float32)


def corrected(drawn: dict, activity: np.ndarray, scene: Scene, cup: np.ndarray) -> np.ndarray:
    """The activity as this scan's attenuation correction leaves it (none at all in a NAC image)."""
    grid = scene.grid
    holder_mu = np.float32(drawn["holder_density"] * osem.MU_WATER) * cup[..., None]
    true = scene.mu + holder_mu
    if drawn["nac"]:
        used, strength = np.zeros_like(true), drawn["nac_strength"]
    else:
        used = scene.mu_water if drawn["bone_as_water"] else scene.mu
        if drawn["mu_shifted"]:
            used = _shifted(drawn, used, grid)
        used = used * np.float32(drawn["mu_scale"])
        if drawn["holder_in_map"]:
            used = used + holder_mu
        strength = 1.0
    step = tuple(max(1, round(COARSE_MM / s)) for s in grid.spacing)
    difference = ndimage.uniform_filter(used - true, step, mode="nearest")
    thin = tuple(slice(None, None, s) for s in step)
    lattice = Grid.of(difference[thin].shape, np.multiply(grid.spacing, step), grid.origin)
    path = mean_line_integral(difference[thin], lattice)
    factor = np.exp(np.float32(strength) * upsample(path, lattice, grid))
    result = activity * np.clip(factor, *FACTOR_LIMITS)
    if drawn["nac"]:
        head = scene.head
        size = [2 * round(RIM_MM / 2 / s) + 1 for s in grid.spacing]
        rim = head - ndimage.minimum_filter(head, size)
        result += np.float32(drawn["nac_rim"] * np.percentile(result, 97)) * rim
    return result


def _shifted(drawn: dict, used: np.ndarray, grid: Grid) -> np.ndarray:
    direction = np.array(drawn["mu_shift_direction"])
    way = drawn["mu_shift_mm"] * direction / max(np.linalg.norm(direction), 1e-3)
    return ndimage.shift(used, way / grid.spacing, order=1, mode="nearest")
