"""What a randomised PET sees of a person: shares of tissue groups and attenuation on a working grid of
about 2 mm, finer than any PET resolves and eight times smaller than 1 mm. numpy only.
"""

import dataclasses

import numpy as np

from cldm_jax.phantom import osem, tissue
from cldm_jax.phantom.fields import Grid, block_mean, block_sum, tissue_mean
from cldm_jax.phantom.pathology import Disease

WORK_MM = 2.0
GROUPS = {
    "grey": tissue.GREY,
    "white": (tissue.WM,),
    "fluid": (tissue.CSF,),
    "fat": (tissue.FAT, tissue.CONNECTIVE),
    "muscle": (tissue.MUSCLE,),
    "skin": (tissue.SKIN,),
    "bone": (tissue.SKULL,),
    "marrow": (tissue.MARROW,),
    "vessels": (tissue.VESSEL, tissue.DURA),
    "tumour": (tissue.TUMOUR,),
}


@dataclasses.dataclass(frozen=True)
class Scene:
    """shares: {group: float32 [grid.shape] in 0..1}; mu: attenuation in 1/mm, and with bone as water;
    hypo: factor on grey matter or None; grid: the working grid; out: the grid of the files.
    """

    shares: dict[str, np.ndarray]
    mu: np.ndarray
    mu_water: np.ndarray
    hypo: np.ndarray | None
    grid: Grid
    out: Grid

    @property
    def head(self) -> np.ndarray:
        return np.minimum(sum(self.shares.values()), 1)


def make(disease: Disease, hu: np.ndarray, out: Grid, factor: tuple[int, int, int]) -> Scene:
    """disease.labels lie on out.refine(factor); hu [14]: the person's CT numbers."""
    coarse = np.maximum(1, (np.divide(WORK_MM, out.spacing) + 1e-3).astype(int))
    shape, block = -(-np.array(out.shape) // coarse), factor * coarse
    origin = out.origin + (coarse - 1) * out.spacing / 2

    def padded(array, blocks, **how):
        missing = shape * blocks - array.shape
        return np.pad(array, [(0, n) for n in missing], **how)

    codes = padded(disease.labels, block)
    shares = {}
    for name, members in GROUPS.items():
        mask = np.isin(codes, members)
        if name != "tumour" or mask.any():
            counted = mask.view(np.uint8) if np.prod(block) < 256 else mask.astype(np.uint16)
            shares[name] = block_sum(counted, block) / np.float32(np.prod(block))
    water = np.minimum(hu, hu[tissue.MUSCLE])
    hypo = disease.hypo
    return Scene(
        shares,
        osem.attenuation(tissue_mean(hu, codes, block)).astype(np.float32),
        osem.attenuation(tissue_mean(water, codes, block)).astype(np.float32),
        None if hypo is None else block_mean(padded(hypo, coarse, mode="edge"), coarse),
        Grid.of(shape, out.spacing * coarse, origin),
        out,
    )
