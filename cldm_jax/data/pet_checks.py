"""What is worth a look in a PET before its CT and MR are believed."""

from typing import NamedTuple

import numpy as np

from cldm_jax.data import grid, intensity, nifti

HEAD_ML = (700.0, 6000.0)  # PET foreground of an adult head: brain to whole head
HEAD_MM = (110.0, 330.0)  # its extent from below to above
MAX_NEGATIVE = 0.02  # share of voxels below -5 % of the scale; filtered back-projection has them
MAX_AIR = 0.05  # share of air of a CT, as the audit has it
MAX_CUT = 0.01  # share of the foreground outside the model's grid
COARSE = 2.0  # times the model's spacing


class Check(NamedTuple):
    name: str
    value: str
    warning: str  # "" where nothing is wrong


def check_pet(
    pet: nifti.Volume, model_grid: grid.ModelGrid, grid_affine, depth: int, cropped=False
) -> list[Check]:
    """Checks of a PET, any orientation, against the grid it was brought to (`grid_affine`, `depth`
    slices). Warnings say what may go wrong with the prediction; nothing is repaired.

    cropped: bool, or bool [2, 3], where the first and the last voxels along each axis are the edge of a
    head that was cut out (`whole_body.Crop.cropped`), not of the image: arms and shoulders end there.
    """
    said = "; ".join(pet.notes)
    inside = intensity.foreground(pet.array)
    index = np.argwhere(inside)
    world = index @ pet.affine[:3, :3].T + pet.affine[:3, 3]
    return [
        Check("header", said or "complete", said),
        _orientation(pet),
        _spacing(pet, model_grid),
        _volume(pet, len(index)),
        _extent(world),
        _cut(world, model_grid, grid_affine, depth),
        _edges(index, pet, cropped),
        _negative(pet, inside),
    ]


def _orientation(pet) -> Check:
    axes = pet.affine[:3, :3] / pet.spacing
    degrees = float(np.degrees(np.arccos(np.clip(np.abs(axes).max(0).min(), 0, 1))))
    text = f"{nifti.orientation(pet.affine)}, {degrees:.0f} degrees oblique"
    warning = "heads were upright in training; a tilted one is seen in tilted slices"
    return Check("orientation", text, warning if degrees > 20 else "")


def _spacing(pet, model_grid: grid.ModelGrid) -> Check:
    have = np.sort(pet.spacing)
    want = np.sort([*model_grid.spacing_mm, model_grid.slice_spacing_mm or have[-1]])
    text = " x ".join(f"{s:.3g}" for s in pet.spacing) + " mm"
    warning = (
        f"coarser than the model's {' x '.join(f'{s:.3g}' for s in want)} mm: detail is guessed"
    )
    return Check("voxels", text, warning if (have > COARSE * want).any() else "")


def _volume(pet, count: int) -> Check:
    ml = count * float(np.prod(pet.spacing)) / 1000
    low, high = HEAD_ML
    warning = f"a head has {low:.0f} to {high:.0f} ml: part of a head, or more than one"
    return Check("foreground", f"{ml:.0f} ml", "" if low <= ml <= high else warning)


def _extent(world) -> Check:
    mm = float(np.ptp(np.percentile(world[:, 2], (0.5, 99.5))))
    low, high = HEAD_MM
    warning = f"a head has {low:.0f} to {high:.0f} mm: crop the scan to one whole head"
    return Check("foreground, below to above", f"{mm:.0f} mm", "" if low <= mm <= high else warning)


def _cut(world, model_grid: grid.ModelGrid, grid_affine, depth: int) -> Check:
    size = np.array([model_grid.size[1], model_grid.size[0], depth])
    at = (world - grid_affine[:3, 3]) @ np.linalg.inv(grid_affine[:3, :3]).T
    share = float(1 - ((at > -0.5) & (at < size - 0.5)).all(1).mean())
    warning = "what lies outside comes out as air"
    return Check(
        "outside the model's field of view", f"{share:.1%}", warning if share > MAX_CUT else ""
    )


def _edges(index, pet, cropped) -> Check:
    """In-plane the head should end inside the image; below and above a scan may end."""
    plane = [i for i, letter in enumerate(nifti.orientation(pet.affine)) if letter not in "SI"]
    last = np.array(pet.array.shape) - 1
    at_end = np.stack([index == 0, index == last], 1) & ~np.asarray(cropped)
    edge = at_end[..., plane].any((1, 2)).mean()
    warning = "the head is cut at the edge of the image"
    return Check("foreground at the image's edge", f"{edge:.1%}", warning if edge > 0.005 else "")


def _negative(pet, inside) -> Check:
    air = intensity.share_of_air(pet.array)
    if air > MAX_AIR:
        return Check("negative voxels", f"{air:.1%}", "it looks like CT in HU: is this the PET?")
    scale = float(np.percentile(pet.array[inside], 99))
    share = float((pet.array < -0.05 * scale).mean())
    warning = "filtered back-projection? Streaks look like tissue to a model that has not seen them"
    return Check("negative voxels", f"{share:.1%}", warning if share > MAX_NEGATIVE else "")
