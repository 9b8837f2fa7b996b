"""Disease: hypometabolism (PET only), white-matter lesions (MR only), tumours (all three).

Everything comes from the function stream, so a second acquisition sees the same disease.
"""

import dataclasses

import numpy as np

from cldm_jax.phantom import tissue
from cldm_jax.phantom.fields import Grid, block_mean, smooth_field

P_HYPOMETABOLISM, P_TUMOUR = 0.35, 0.12
WHITE_LESION_AGE = 0.5  # people older than this have white-matter lesions
WHITE_LESION_SIGNAL = 0.82  # T1w signal of a lesion relative to normal white matter
LESION_HYPO, LESION_TUMOUR, LESION_WHITE = 1, 2, 3  # codes of truth/lesions.nii.gz

# (x, y, z, radius) of Gaussian foci in units of the brain's half extents; x is mirrored.
PATTERNS = {
    "alzheimer": ((0.70, -0.50, 0.30, 0.26), (0.80, -0.15, -0.05, 0.24), (0.05, -0.50, 0.30, 0.18)),
    "frontotemporal": ((0.4, 0.65, 0.30, 0.30), (0.7, 0.35, -0.05, 0.22), (0.05, 0.60, 0.40, 0.2)),
}


@dataclasses.dataclass(frozen=True)
class Disease:
    """labels: fine labels with the tumour in; white: bool fine mask of white-matter lesions or None;
    hypo: factor on grey-matter activity on the output grid or None; record: for truth.json;
    tumour_uptake: relative to grey matter.
    """

    labels: np.ndarray
    white: np.ndarray | None
    hypo: np.ndarray | None
    tumour_uptake: float
    record: list[dict]


def healthy(labels: np.ndarray) -> Disease:
    return Disease(labels, None, None, float(tissue.UPTAKE[tissue.TUMOUR]), [])


def draw(
    rng: np.random.Generator, labels: np.ndarray, fine: Grid, grid: Grid, age: float
) -> Disease:
    """Draws a person's diseases; labels [fine.shape] are copied when a tumour changes them."""
    record: list[dict] = []
    hypo = white = None
    chance = rng.uniform(size=2)
    if chance[0] < P_HYPOMETABOLISM:
        hypo = _hypometabolism(rng, labels, fine, grid, record)
    uptake = float(tissue.UPTAKE[tissue.TUMOUR])
    if chance[1] < P_TUMOUR:
        uptake = float(rng.choice([0.5, 1.5]))
        labels = _tumour(rng, labels, fine, uptake, record)
    if age > WHITE_LESION_AGE:
        threshold = 2.7 - 0.6 * (age - WHITE_LESION_AGE) / (1 - WHITE_LESION_AGE)
        white = (smooth_field(rng, fine, 2.5) > threshold) & (labels == tissue.WM)
        volume = float(white.sum() * np.prod(fine.spacing))
        record.append({"kind": "white_matter_lesions", "code": LESION_WHITE, "volume_mm3": volume})
    return Disease(labels, white, hypo, uptake, record)


def _box(labels: np.ndarray, fine: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half extents (mm) of the brain, from its occupied planes."""
    brain = np.isin(labels, tissue.BRAIN)
    centre, half = np.zeros(3), np.zeros(3)
    for i in range(3):
        other = tuple(j for j in range(3) if j != i)
        planes = fine.axis(i)[brain.any(other)]
        centre[i], half[i] = (planes[0] + planes[-1]) / 2, (planes[-1] - planes[0]) / 2
    return centre, np.maximum(half, 1)


def _seed(rng: np.random.Generator, labels: np.ndarray, codes, fine: Grid) -> np.ndarray:
    """A random voxel (mm) of the given tissues."""
    voxels = np.flatnonzero(np.isin(labels, codes))
    index = np.unravel_index(rng.choice(voxels), labels.shape)
    return np.array([float(fine.axis(i)[k]) for i, k in enumerate(index)])


def _squared(grid: Grid, centre, radii) -> np.ndarray:
    """Sum of squares of (p - centre) / radii on the grid, float32 [grid.shape]."""
    parts = [((grid.axis(i) - centre[i]) / radii[i]) ** 2 for i in range(3)]
    return parts[0][:, None, None] + parts[1][None, :, None] + parts[2][None, None, :]


def _hypometabolism(rng, labels, fine: Grid, grid: Grid, record) -> np.ndarray:
    """Smooth loss of grey-matter uptake: one focus of 12-20 mm with 15-40 % at its peak, or a lobar
    pattern with that times the side's weight.
    """
    kind = str(rng.choice(["alzheimer", "frontotemporal", "focal"]))
    depth = float(rng.uniform(0.15, 0.40))
    found = {"kind": "hypometabolism", "pattern": kind, "code": LESION_HYPO, "depth": depth}
    if kind == "focal":
        centre = _seed(rng, labels, (tissue.GM,), fine)
        radius = float(rng.uniform(12, 20))
        profile = np.exp(-0.5 * _squared(grid, centre, (radius,) * 3))
        found |= {"centre_mm": centre.round(1).tolist(), "radius_mm": radius}
    else:
        centre, half = _box(labels, fine)
        weight = rng.uniform(0.6, 1.0, 2)  # disease is rarely symmetric
        profile = np.zeros(grid.shape, np.float32)
        for x, y, z, radius in PATTERNS[kind]:
            for sign, w in zip((-1, 1), weight, strict=True):
                focus = centre + half * (sign * x, y, z)
                bump = w * np.exp(-0.5 * _squared(grid, focus, half * radius))
                profile = np.maximum(profile, bump)
        found["left_right_weight"] = weight.round(3).tolist()
    record.append(found)
    return (1 - depth * profile).astype(np.float32)


def _tumour(rng, labels, fine: Grid, uptake: float, record) -> np.ndarray:
    """A lobulated ball of 5-12 mm radius in grey and white matter."""
    centre = _seed(rng, labels, (tissue.WM,), fine)
    radius = float(rng.uniform(5, 12))
    distance = np.sqrt(_squared(fine, centre, (radius,) * 3))
    ball = distance < 1 + 0.15 * smooth_field(rng, fine, 5)
    ball &= np.isin(labels, tissue.BRAIN)
    labels = labels.copy()
    labels[ball] = tissue.TUMOUR
    volume = float(ball.sum() * np.prod(fine.spacing))
    record.append(
        {
            "kind": "tumour",
            "code": LESION_TUMOUR,
            "centre_mm": centre.round(1).tolist(),
            "radius_mm": radius,
            "uptake": uptake,
            "volume_mm3": volume,
        }
    )
    return labels


def lesion_map(disease: Disease, factor: tuple[int, int, int]) -> np.ndarray:
    """Lesion codes uint8 on the output grid; where kinds overlap the later code is shown.

    Hypometabolism counts where grey matter (at least 30 % of a voxel) lost at least 8 % of its uptake.
    """
    grey = block_mean(np.isin(disease.labels, tissue.GREY), factor)
    lesions = np.zeros(grey.shape, np.uint8)
    if disease.hypo is not None:
        lesions[(disease.hypo < 0.92) & (grey > 0.3)] = LESION_HYPO
    lesions[block_mean(disease.labels == tissue.TUMOUR, factor) > 0.4] = LESION_TUMOUR
    if disease.white is not None:
        lesions[block_mean(disease.white, factor) > 0.3] = LESION_WHITE
    return lesions
