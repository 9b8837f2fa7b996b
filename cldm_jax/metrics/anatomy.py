"""Scores that ask what an image is for: attenuation, bone edges, tissue, lesions, neighbouring slices.

All take volumes [Z, H, W] in metric units, the prediction first, and return NaN where there is nothing
to score. Label codes are those of the phantom's truth (docs/phantom.md).
"""

import functools

import numpy as np
from scipy import ndimage

from cldm_jax.metrics.image import dice

MU_WATER = 0.096  # per cm at 511 keV
MU_BONE_SLOPE = 0.051 / 1000  # per cm and HU above water, bilinear scaling (Carney 2006 form)
CELL_MM = 4.0  # of the projections, the resolution of PET
ANGLES = 60
CSF, GREY, WHITE = (1,), (2, 12), (3,)
RIM_MM = 20.0  # depth below the brain's surface in which sulci are counted
DIPLOE_MM = 3.0  # marrow between the tables of the skull is closed over before its surface is taken
LESION_PIXELS = 12  # of a lesion's section, at least
VISIBLE = 0.05  # contrast of a lesion, fraction of the MR scale
HYPOMETABOLIC, TUMOUR, WHITE_MATTER_LESION = 1, 2, 3


def mu_511(hu):
    """Linear attenuation per cm at 511 keV from HU, bilinear; air and below is 0."""
    hu = np.asarray(hu, np.float64)
    return np.where(hu <= 0, MU_WATER * np.maximum(0, 1 + hu / 1000), MU_WATER + MU_BONE_SLOPE * hu)


@functools.cache
def _rays(height: int, width: int, aspect: float):
    """(flat detector bins [A * P], weights of the next bin, number of bins) of every cell and angle.

    aspect: height over width of a cell; a bin is as wide as a square cell of the same area.
    """
    y, x = np.mgrid[:height, :width]
    y = (y - (height - 1) / 2).ravel() * np.sqrt(aspect)
    x = (x - (width - 1) / 2).ravel() / np.sqrt(aspect)
    angles = np.arange(ANGLES) * np.pi / ANGLES
    bins = int(np.ceil(2 * np.hypot(y.max(), x.max()))) + 4
    s = np.outer(np.cos(angles), x) + np.outer(np.sin(angles), y) + bins / 2  # [A, P]
    low = np.floor(s).astype(int)
    return (low + bins * np.arange(ANGLES)[:, None]).ravel(), (s - low).ravel(), bins


def attenuation_error(pred, target, mask, spacing_mm) -> float:
    """Mean absolute error of PET, %, where the target is soft tissue, were `pred` used to correct
    attenuation: the ratio of correction factors exp(line integral of the error of mu) is averaged over
    the rays through each cell (parallel beams in the slice). No reconstruction, no scatter.
    """
    errors = [
        _attenuation_slice(*planes, spacing_mm) for planes in zip(pred, target, mask, strict=True)
    ]
    errors = [e for e in errors if np.isfinite(e)]
    return float(np.mean(errors)) if errors else float("nan")


def _attenuation_slice(pred, target, mask, spacing_mm) -> float:
    block = tuple(max(1, round(CELL_MM / s)) for s in spacing_mm)
    error = _block_mean(np.where(mask, mu_511(pred) - mu_511(target), 0.0), block)
    soft = _block_mean(mask & (target > -500) & (target <= 300), block) > 0.5
    if not soft.any():
        return float("nan")
    high, wide = (b * s for b, s in zip(block, spacing_mm, strict=True))  # mm of a cell
    low, weight, bins = _rays(*error.shape, high / wide)
    values = np.tile(error.ravel() * np.sqrt(high * wide) / 10, ANGLES)  # line integrals in cm
    line = np.bincount(low, values * (1 - weight), ANGLES * bins)
    line += np.bincount(low + 1, values * weight, ANGLES * bins)
    ratio = np.expm1(line)
    along = (ratio[low] * (1 - weight) + ratio[low + 1] * weight).reshape(ANGLES, -1).mean(0)
    return float(100 * np.abs(along.reshape(error.shape)[soft]).mean())


def _block_mean(image, block):
    h, w = (n - n % b for n, b in zip(image.shape, block, strict=True))
    cut = np.asarray(image[:h, :w], np.float64)
    return cut.reshape(h // block[0], block[0], w // block[1], block[1]).mean((1, 3))


def bone_edge(pred, target, mask, bone_hu: float, spacing_mm) -> float:
    """Mean gradient on the prediction's own bone surface over that on the target's: < 1 is blunted.

    Each image is asked on its own surface, so that noise in soft tissue does not count and a shifted
    but sharp edge does. Marrow lies near the limit of bone: gaps up to twice DIPLOE_MM are closed first,
    so that its texture is no surface. 0 where the prediction has no bone.
    """
    radius = max(1, round(DIPLOE_MM / float(np.sqrt(np.prod(spacing_mm)))))
    edges = [_edge_gradient(image, mask, bone_hu, radius) for image in (pred, target)]
    if not edges[1] > 0:
        return float("nan")
    return float(np.nan_to_num(edges[0]) / edges[1])


def _edge_gradient(image, mask, bone_hu: float, radius: int) -> float:
    cross = ndimage.generate_binary_structure(2, 1)[None]
    bone = (image > bone_hu) & mask
    closed = ndimage.binary_dilation(bone, cross, iterations=radius)
    closed = ndimage.binary_erosion(closed, cross, iterations=radius, border_value=1)
    surface = bone & ~ndimage.binary_erosion(closed, cross)
    if not surface.any():
        return float("nan")
    return float(np.hypot(*np.gradient(image, axis=(1, 2)))[surface].mean())


def consistency(pred, target, mask, slices) -> float:
    """Mean absolute change from a slice to the next, prediction over target: > 1 flickers."""
    follows = np.flatnonzero(np.diff(slices) == 1)
    if not follows.size:
        return float("nan")
    both = mask[follows] & mask[follows + 1]
    change = [np.abs(v[follows + 1] - v[follows])[both] for v in (pred, target)]
    if not change[1].size or change[1].mean() == 0:
        return float("nan")
    return float(change[0].mean() / change[1].mean())


def three_classes(values) -> np.ndarray:
    """0, 1, 2 (dark to bright) of each value by k-means."""
    return np.searchsorted(class_limits(values), values)


def class_limits(values) -> np.ndarray:
    """The two limits between the three classes. Deterministic: the better of two starts, because a tissue
    that is more than half of all splits in two when k-means starts from quantiles.
    """
    values = np.asarray(values, np.float64)
    low, high = np.quantile(values, (0.01, 0.99))
    starts = np.quantile(values, (1 / 6, 1 / 2, 5 / 6)), np.linspace(low, high, 3)
    found = [_k_means(values, start) for start in starts]
    centres = min(found, key=lambda c: np.square(values[:, None] - c).min(1).mean())
    return (centres[1:] + centres[:-1]) / 2


def _k_means(values, centres) -> np.ndarray:
    for _ in range(100):
        classes = np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
        counts = np.bincount(classes, minlength=3)
        sums = np.bincount(classes, values, 3)
        moved = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
        if np.allclose(moved, centres, atol=1e-9):
            break
        centres = np.sort(moved)
    return centres


def _brain(labels):
    return np.isin(labels, CSF + GREY + WHITE)


def tissue_dice(pred, labels, tissue) -> float:
    """Dice of a tissue (CSF, GREY or WHITE) in the T1w image, segmented by `three_classes` inside the
    true brain, against the true labels. The real image has a value below 1 too.
    """
    brain = _brain(labels)
    if not brain.any():
        return float("nan")
    found = three_classes(pred[brain]) == (CSF, GREY, WHITE).index(tissue)
    return dice(found, np.isin(labels[brain], tissue))


def sulcal_csf(pred, target, labels, spacing_mm) -> float:
    """Share of pixels as dark as the target's CSF within RIM_MM of the brain's surface, prediction over
    target: < 1 where sulci are filled in. One limit for both, the target's between CSF and grey.
    """
    brain = _brain(labels)
    if not brain.any():
        return float("nan")
    rim = [b & (ndimage.distance_transform_edt(b, spacing_mm) <= RIM_MM) for b in brain]
    limit = class_limits(target[brain])[0]
    shares = [(v[np.stack(rim)] < limit).mean() for v in (pred, target)]
    return float(shares[0] / shares[1]) if shares[1] > 0 else float("nan")


def _sections(lesions, labels, kinds):
    """(slice, section, ring around it), the latter two boolean [H, W] and of one tissue.

    The tissue is what most of the section is; a tumour has a code of its own and is compared with the
    tissue that most of its ring is.
    """
    for z in np.flatnonzero(np.isin(lesions, kinds).any((1, 2))):
        parts, count = ndimage.label(np.isin(lesions[z], kinds))
        for number in range(1, count + 1):
            section = parts == number
            ring = ndimage.binary_dilation(section, iterations=6)
            ring &= ~ndimage.binary_dilation(section, iterations=2)
            ring &= lesions[z] == 0
            inside = [section & np.isin(labels[z], t) for t in (GREY, WHITE)]
            around = [ring & np.isin(labels[z], t) for t in (GREY, WHITE)]
            decides = inside if any(v.any() for v in inside) else around
            tissue = int(decides[1].sum() > decides[0].sum())
            section = inside[tissue] if inside[tissue].any() else section
            if min(section.sum(), around[tissue].sum()) >= LESION_PIXELS:
                yield z, section, around[tissue]


def _contrast(image, section, ring) -> float:
    return float(image[section].mean() - image[ring].mean())


def lesions_missed(pred, target, lesions, labels) -> float:
    """Share of the sections of tumours and white-matter lesions visible in the real MR whose contrast
    to the tissue around is less than half as strong in the prediction, or of the other sign.
    """
    missed = []
    for z, section, ring in _sections(lesions, labels, (TUMOUR, WHITE_MATTER_LESION)):
        real = _contrast(target[z], section, ring)
        if abs(real) >= VISIBLE:
            missed.append(_contrast(pred[z], section, ring) / real < 0.5)
    return float(np.mean(missed)) if missed else float("nan")


def lesions_invented(pred, target, lesions, labels) -> float:
    """Share of hypometabolic sections, which no MR shows, with a visible contrast to the same tissue
    around in the prediction that is visibly not the real one.
    """
    invented = []
    for z, section, ring in _sections(lesions, labels, (HYPOMETABOLIC,)):
        found, real = (_contrast(v[z], section, ring) for v in (pred, target))
        invented.append(min(abs(found), abs(found - real)) >= VISIBLE)
    return float(np.mean(invented)) if invented else float("nan")
