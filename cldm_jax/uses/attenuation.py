"""What a synthetic CT is worth as the attenuation map of its person's PET: errors of uptake in %.

A scan of the person is simulated through the real CT without noise, and reconstructed with the map of the
real CT, of the synthetic one, and of what is used without either: water, and an atlas. That is what
Ladefoged et al. (2017) and others score on scanners, less scatter and noise. numpy and scipy only.
"""

import numpy as np
from scipy import ndimage

from cldm_jax.data import mask
from cldm_jax.data.warp import NoMatch
from cldm_jax.metrics import image
from cldm_jax.metrics.scores import AIR_HU, BONE_HU
from cldm_jax.phantom import osem
from cldm_jax.phantom.fields import Grid, block_mean
from cldm_jax.uses.base import AGAIN, FLOOR, Case, Judge, Measure, Use, boxes

WORK_MM = 2.0  # finer pixels are averaged: no PET resolves them
LARGE_ML = 2.0  # smaller regions are not scored
MARGIN = 3  # pixels around the heads that may hold activity


def score(hu_synthetic, hu_real, pet, spacing, regions: dict[str, np.ndarray]) -> dict:
    """Errors of the PET, of bone and of air of one person.

    hu_synthetic, hu_real   CT numbers [Z, H, W], one grid; what does not belong to the head's largest
                            piece (a holder) is taken for air
    pet          the true or corrected activity, any unit, same grid
    spacing      mm of slice, row, column
    regions      {name: bool [Z, H, W]}

    Returns {"regions": {name: signed % of the image that the synthetic CT gives against that of the real
    CT}, without those below LARGE_ML or without uptake; "bone_dice" above BONE_HU; "mae_hu" in the real
    head; "air_dice" in the head (sinuses, mastoid cells; below AIR_HU and closed within a slice)}.
    Raises NoMatch where no region can be scored.
    """
    spacing = [float(spacing[i]) for i in (1, 2, 0)]  # as osem has the axes
    cts = {"real": hu_real, "synthetic": hu_synthetic}
    cts = {k: _slices_last(v, np.float32) for k, v in cts.items()}
    pet = _slices_last(pet, np.float32)
    regions = {name: _slices_last(r, bool) for name, r in regions.items()}
    heads = {k: _head(v) for k, v in cts.items()}
    maps = {k: _mu(v, heads[k]) for k, v in cts.items()}
    images, activity, weights = _reconstructed(maps, pet, regions, spacing)
    totals = {k: float((activity * w).sum()) for k, w in weights.items()}
    ml = float(np.prod(spacing)) / 1000
    large = [k for k, r in regions.items() if r.sum() * ml >= LARGE_ML and totals[k] > 0]
    if not large:
        raise NoMatch(f"no region of {LARGE_ML:g} ml with uptake among {', '.join(regions)}")
    found = {
        k: [float((images[c] * weights[k]).sum()) for c in ("synthetic", "real")] for k in large
    }
    air = {k: heads[k] & (cts[k] < AIR_HU) for k in ("real", "synthetic")}
    return {
        "regions": {k: 100 * (made / true - 1) for k, (made, true) in found.items()},
        "bone_dice": image.dice(*(cts[k] * heads[k] > BONE_HU for k in ("synthetic", "real"))),
        "mae_hu": float(np.abs(cts["synthetic"] - cts["real"])[heads["real"]].mean()),
        "air_dice": image.dice(air["synthetic"], air["real"]),
    }


def water(hu: np.ndarray) -> np.ndarray:
    """CT numbers of what stands for a head without a CT: water in its outline, filled. [Z, H, W]."""
    return np.where(mask.largest(hu > mask.HEAD_HU), np.float32(0), np.float32(-1000))


def _slices_last(array, dtype) -> np.ndarray:
    return np.moveaxis(np.asarray(array, dtype), 0, 2)


def _head(hu: np.ndarray) -> np.ndarray:
    """Its largest piece, filled within each slice."""
    return mask.largest((hu > mask.HEAD_HU).transpose(2, 0, 1)).transpose(1, 2, 0)


def _mu(hu: np.ndarray, head: np.ndarray) -> np.ndarray:
    """1/mm; the skin's edge, which is half air, is part of the head."""
    edge = ndimage.binary_dilation(head, ndimage.generate_binary_structure(2, 1)[..., None])
    return (osem.attenuation(hu) * edge).astype(np.float32)


def _reconstructed(maps, pet, regions, spacing):
    """({map: image}, activity, {region: share of each pixel}), [x, y, z] on pixels of about WORK_MM."""
    factor = tuple(max(1, int(WORK_MM / s + 1e-3)) for s in spacing[:2])

    def coarse(array):
        ends = [(0, -n % f) for n, f in zip(array.shape, factor, strict=False)]
        padded = np.pad(array, (*ends, (0, 0))).astype(np.float32)
        return block_mean(padded, (*factor, 1))

    maps = {k: coarse(v) for k, v in maps.items()}
    activity = np.maximum(coarse(pet), 0)
    around = ndimage.binary_dilation(np.any(list(maps.values()), axis=(0, 3)), iterations=MARGIN)
    mm = (spacing[0] * factor[0], spacing[1] * factor[1], spacing[2])
    matrix = osem.system_matrix(Grid(activity.shape, mm, (0.0, 0.0, 0.0)), around)
    loss = {k: np.exp(-(matrix @ v[around])).astype(np.float32) for k, v in maps.items()}
    counts = loss["real"] * (matrix @ activity[around])
    parts, nothing = osem.subsets(matrix), np.zeros_like(counts)
    images = {}
    for name, own in loss.items():
        images[name] = np.zeros_like(activity)
        images[name][around] = osem.reconstruct(parts, counts, own, nothing)
    return images, activity, {k: coarse(v) for k, v in regions.items()}


def _judge(case: Case) -> Judge:
    regions = boxes(case.brain)

    def compared(hu) -> dict[str, float]:
        found = score(hu, case.real, case.pet, case.spacing, regions)
        errors = np.abs(list(found.pop("regions").values()))
        return {"pet_error": float(errors.mean()), "pet_worst": float(errors.max()), **found}

    def judged(hu):
        return compared(hu), (osem.attenuation(hu[len(hu) // 2]) / 0.016).clip(0, 1)

    floor = compared(water(case.real)) | dict.fromkeys(("bone_dice", "mae_hu", "air_dice"), np.nan)
    return Judge(judged, {"water": (floor, None)})


_MEASURES = {
    "pet_error": Measure("regional PET error", "%", "low", "of 12 boxes of the brain, either way"),
    "pet_worst": Measure("worst region", "%", "low", "the largest of them"),
    "bone_dice": Measure("Dice bone", "", "high", f"above {BONE_HU:g} HU in the head"),
    "mae_hu": Measure("MAE of the CT", "HU", "low", "in the head"),
    "air_dice": Measure("Dice air", "", "high", "sinuses and mastoid cells"),
}
USE = Use(
    "attenuation",
    "ct",
    "Attenuation correction of the PET",
    "The person is scanned through the real CT, without noise or scatter, and reconstructed with the map "
    "of each row. A use only for a network that reads a PET without attenuation correction.",
    _MEASURES,
    (FLOOR, AGAIN),
    {"water": "Floor: water in the real head's outline"},
    ("water", FLOOR),
    lambda cohort: _judge,
)
