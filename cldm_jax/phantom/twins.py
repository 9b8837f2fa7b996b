"""Adversarial twins: two people whose PET is equal and whose skulls are not. numpy and scipy only."""

import numpy as np
from scipy import ndimage

from cldm_jax.phantom import tissue
from cldm_jax.phantom.fields import Grid

SOFT = (tissue.FAT, tissue.MUSCLE, tissue.CONNECTIVE)


def thicken_skull(labels: np.ndarray, grid: Grid, extra_mm: float) -> np.ndarray:
    """Labels whose skull reaches extra_mm further into the scalp; brain, skin and outline unchanged.

    Only fat, muscle and connective tissue near bone turn to bone, so the given PET (which barely sees
    either) can be kept as it is: the right CT for it is then one of two.
    """
    bone = (labels == tissue.SKULL) | (labels == tissue.MARROW)
    box = tuple(
        slice(max(s.start - 8, 0), s.stop + 8) for s in ndimage.find_objects(bone.view(np.uint8))[0]
    )
    distance = ndimage.distance_transform_edt(~bone[box], sampling=grid.spacing)
    result = labels.copy()
    part = result[box]
    part[np.isin(part, SOFT) & (distance <= extra_mm)] = tissue.SKULL
    return result
