"""Pose and smooth diffeomorphic deformation of a head. numpy and scipy only.

A stationary velocity field is exponentiated by scaling and squaring (Arsigny et al. 2006) on a coarse
lattice; the map is pulled back: world point -> point of the undeformed head.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from cldm_jax.phantom.fields import Grid, smooth_field, upsample

SQUARINGS = 6
LATTICE_MM = 6.0
SMOOTH_MM = 26.0  # of deformations
MIN_JACOBIAN = 0.2


@dataclasses.dataclass(frozen=True)
class Warp:
    """p(x) = matrix @ (x + displacement(x) - centre) + centre + shift, all in mm.

    displacement: [3, *lattice.shape] or None; jacobian_min: smallest determinant of x + displacement.
    """

    matrix: np.ndarray
    shift: np.ndarray
    centre: np.ndarray
    lattice: Grid
    displacement: np.ndarray | None
    jacobian_min: float


def jacobian(displacement: np.ndarray, lattice: Grid) -> np.ndarray:
    """Determinant of d(x + u)/dx on the lattice, [lattice.shape]; needs two nodes along each axis."""
    rows = []
    for i in range(3):
        gradient = np.gradient(displacement[i].astype(np.float64), *lattice.spacing)
        rows.append([g + (i == j) for j, g in enumerate(gradient)])
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def exponentiate(velocity: np.ndarray, lattice: Grid) -> np.ndarray:
    """exp of a stationary velocity field [3, *shape] in mm -> displacement [3, *shape] in mm."""
    u = velocity / 2**SQUARINGS
    index = np.indices(lattice.shape, dtype=np.float32)
    scale = np.asarray(lattice.spacing, np.float32).reshape(3, 1, 1, 1)
    for _ in range(SQUARINGS):
        at = index + u / scale
        u = u + np.stack([ndimage.map_coordinates(c, at, order=1, mode="nearest") for c in u])
    return u


def diffeomorphism(
    rng: np.random.Generator, grid: Grid, sd_mm: float
) -> tuple[Grid, np.ndarray, float]:
    """(lattice, displacement [3, *shape] mm, smallest Jacobian > MIN_JACOBIAN).

    The field is halved until no cell folds; at the amplitudes used here that is never needed, but the
    promise must not depend on luck.
    """
    lattice = grid.lattice(LATTICE_MM)
    lattice = dataclasses.replace(lattice, shape=tuple(max(n, 2) for n in lattice.shape))
    velocity = sd_mm * np.stack([smooth_field(rng, lattice, SMOOTH_MM) for _ in range(3)])
    while True:
        displacement = exponentiate(velocity.astype(np.float32), lattice)
        smallest = float(jacobian(displacement, lattice).min())
        if smallest > MIN_JACOBIAN:
            return lattice, displacement, smallest
        velocity = velocity / 2


def draw_warp(
    rng: np.random.Generator,
    grid: Grid,
    *,
    rotation_deg: float,
    scale: tuple[float, float],
    shear: float,
    shift_mm: float,
    sd_mm: float,
    centre: tuple[float, float, float],
) -> Warp:
    """Random pose (uniform rotation +-, scale range, shear +-, shift +-) and smooth deformation.

    `scale` is the size of the person relative to the undeformed head, one draw per axis.
    """
    angle = np.deg2rad(rng.uniform(-rotation_deg, rotation_deg, 3))
    sizes = rng.uniform(*scale, 3)
    slant = rng.uniform(-shear, shear, 3)
    shift = rng.uniform(-shift_mm, shift_mm, 3)
    matrix = pose_matrix(angle, slant, sizes)
    field = diffeomorphism(rng, grid, sd_mm)
    return Warp(matrix, shift, np.asarray(centre, float), *field)


def pose_matrix(angle: np.ndarray, slant: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """[3, 3], from a person of these sizes, rotated by angle (about x, y, z), to the undeformed head."""
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = slant
    return _rotation(angle) @ shear @ np.diag(1 / sizes)


def identity(grid: Grid) -> Warp:
    return Warp(np.eye(3), np.zeros(3), np.zeros(3), grid, None, 1.0)


def _rotation(angle: np.ndarray) -> np.ndarray:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angle), np.sin(angle)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def pull_back(warp: Warp, grid: Grid) -> list[np.ndarray]:
    """Coordinates (x, y, z) of the undeformed head at each voxel of `grid`; float32 [grid.shape] each."""
    world = np.meshgrid(*(grid.axis(i) for i in range(3)), indexing="ij", copy=False)
    moved = [x - np.float32(c) for x, c in zip(world, warp.centre, strict=True)]
    if warp.displacement is not None:
        for i in range(3):
            moved[i] += upsample(warp.displacement[i], warp.lattice, grid)
    offset = (warp.centre + warp.shift).astype(np.float32)
    if np.array_equal(warp.matrix, np.eye(3)):
        return [m + o for m, o in zip(moved, offset, strict=True)]
    matrix = warp.matrix.astype(np.float32)
    result = []
    for row, o in zip(matrix, offset, strict=True):
        p = moved[0] * row[0]
        p += moved[1] * row[1]
        p += moved[2] * row[2]
        p += o
        result.append(p)
    return result
