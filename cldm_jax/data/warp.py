"""One head onto another: a linear transform, then a smooth warp. SimpleITK's, by `register.require`.

Scans lie on grids of slices [Z, H, W] whose axes agree (`data.grid`), so a point is (x, y, z) in mm from
the first voxel along columns, rows and slices, and nothing is known of a scanner's coordinates. Mattes'
mutual information throughout (Mattes et al. 2003): one method for MR to MR, PET to PET and PET to MR. The
same numbers on every run of one machine: seeded sampling, one thread.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from cldm_jax.data import register

SCALES = (0.7, 1.4)  # of a person's head against the template's, along any axis
MIN_DICE = 0.6  # of both heads after the affine step
MAX_FOLDED = 0.01  # of the head, where the warp turns space inside out
_RADIUS_MM = 40.0  # a unit of rotation or scale counts as this many mm
_SAMPLES = 40_000
_ROUNDS, _SMOOTH_MM = 50, 6.0  # of the demons; SD of the field's smoothing


# Images of one kind: correlation, rigid then affine. Of two kinds: mutual information, rigid only: its
# optimum lets a scale collapse (to 0.1 to 0.4 on heads cut at their fields of view, measured).
class _Stage(NamedTuple):
    kind: str  # SimpleITK's transform
    sigma: float  # mm, of the smoothing before
    first: float  # mm, first step
    rounds: int


_RIGID = (_Stage("Euler3DTransform", 4.0, 4.0, 60), _Stage("Euler3DTransform", 2.0, 1.0, 80))
_AFFINE = (_Stage("AffineTransform", 4.0, 1.0, 80), _Stage("AffineTransform", 2.0, 0.5, 80))


class NoMatch(Exception):
    """A registration that found nothing to trust; the message says why."""


class Scan(NamedTuple):
    values: np.ndarray  # float32 [Z, H, W]
    head: np.ndarray  # bool [Z, H, W]
    spacing: tuple[float, float, float]  # mm of slice, row, column


def centre(scan: Scan) -> np.ndarray:
    """(x, y, z) mm of the middle of the head. NoMatch where there is none."""
    if not scan.head.any():
        raise NoMatch("it shows no head")
    index = np.array(np.nonzero(scan.head)).mean(1)
    return (index * scan.spacing)[::-1]


def points(shape, spacing) -> np.ndarray:
    """(x, y, z) mm of every voxel [Z, H, W, 3]."""
    return np.stack(np.indices(shape)[::-1], -1) * np.array(spacing[::-1])


def affine(fixed: Scan, moving: Scan, same_kind: bool) -> np.ndarray:
    """[4, 4]: mm of `fixed` -> mm of `moving`. Raises NoMatch; UserError without SimpleITK."""
    sitk = register.require()
    matrix, middle = aligned(fixed, moving), centre(fixed)
    with register.one_thread(sitk):
        images = [_image(sitk, s.values, s) for s in (fixed, moving)]
        for stage in (*_RIGID, *(_AFFINE if same_kind else ())):
            matrix = _follow(sitk, fixed, images, matrix, middle, same_kind, stage)
    scales = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    if not (SCALES[0] <= scales.min() and scales.max() <= SCALES[1]):
        raise NoMatch(f"its head would be scaled by {scales.min():.2f} to {scales.max():.2f}")
    index, seen = _index(moved(matrix, fixed), moving.spacing), fixed.head
    there = ndimage.map_coordinates(moving.head.astype(np.float32), index, order=0) > 0
    dice = 2 * (there & seen).sum() / max(1, there.sum() + seen.sum())
    if dice < MIN_DICE:
        raise NoMatch(f"the heads overlap by {dice:.2f} (Dice) only")
    return matrix


def warp(fixed: Scan, moving: Scan, matrix: np.ndarray) -> np.ndarray:
    """Place in `moving`, (x, y, z) mm, of every voxel of `fixed` [Z, H, W, 3]: the affine's, bent by
    diffeomorphic demons (Vercauteren et al. 2009) between images of one kind, their histograms matched.

    Raises NoMatch where space folds.
    """
    sitk = register.require()
    there = np.nan_to_num(sample(moving.values, moved(matrix, fixed), moving.spacing))
    image, other = (_image(sitk, v, fixed) for v in (fixed.values, there))
    filter_ = sitk.DiffeomorphicDemonsRegistrationFilter()
    filter_.SetNumberOfIterations(_ROUNDS)
    filter_.SetSmoothDisplacementField(True)
    filter_.SetStandardDeviations([_SMOOTH_MM / s for s in fixed.spacing[::-1]])
    with register.one_thread(sitk):
        field = filter_.Execute(image, sitk.HistogramMatching(other, image, 128, 10, True))
    bent = points(fixed.values.shape, fixed.spacing) + sitk.GetArrayFromImage(field)
    folded = float((_volume_change(bent, fixed.spacing) <= 0)[fixed.head].mean())
    if folded > MAX_FOLDED:
        raise NoMatch(f"the warp folds {folded:.0%} of the head")
    return bent @ matrix[:3, :3].T + matrix[:3, 3]


def moved(matrix: np.ndarray, fixed: Scan) -> np.ndarray:
    """Places [Z, H, W, 3] of `fixed`'s voxels under a transform alone."""
    return points(fixed.values.shape, fixed.spacing) @ matrix[:3, :3].T + matrix[:3, 3]


def aligned(fixed: Scan, moving: Scan) -> np.ndarray:
    """[4, 4]: the heads' centres laid over each other, no registration."""
    matrix = np.eye(4)
    matrix[:3, 3] = centre(moving) - centre(fixed)
    return matrix


def sample(values, place, spacing) -> np.ndarray:
    """values [Z, H, W] at places [..., 3] (x, y, z mm), linear; NaN outside the field of view."""
    index = _index(place, spacing)
    inside = (index > -0.5).all(0)
    inside &= (index < np.array(values.shape).reshape(3, *[1] * (index.ndim - 1)) - 0.5).all(0)
    values = np.asarray(values, np.float32)
    found = ndimage.map_coordinates(values, index, order=1, mode="nearest")
    return np.where(inside, found, np.nan).astype(np.float32)


def _index(place, spacing) -> np.ndarray:
    """[3, ...]: (z, y, x) voxels of places [..., 3]."""
    return np.moveaxis(place[..., ::-1] / np.array(spacing), -1, 0)


def _volume_change(bent, spacing) -> np.ndarray:
    """Determinant of the Jacobian of places [Z, H, W, 3]."""
    columns = [np.gradient(bent, s, axis=a) for a, s in zip((2, 1, 0), spacing[::-1], strict=True)]
    return np.linalg.det(np.stack(columns, -1))


def _follow(sitk, fixed, images, start, middle, same_kind: bool, stage: _Stage):
    """The matrix at which the optimiser ends that begins at `start`."""
    is_affine = stage.kind == "AffineTransform"
    transform = getattr(sitk, stage.kind)(*[3] * is_affine)
    transform.SetCenter(middle.tolist())
    transform.SetMatrix(start[:3, :3].ravel().tolist())
    transform.SetTranslation((start[:3, :3] @ middle + start[:3, 3] - middle).tolist())
    near = _image(sitk, ndimage.binary_dilation(fixed.head, iterations=4), fixed)
    method = register.matching(sitk, images[0], near, _SAMPLES, correlation=same_kind)
    method.SetShrinkFactorsPerLevel([1])
    method.SetSmoothingSigmasPerLevel([stage.sigma])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    method.SetInitialTransform(transform, True)
    method.SetOptimizerAsRegularStepGradientDescent(
        stage.first, 0.01, stage.rounds, relaxationFactor=0.7
    )
    method.SetOptimizerScales([_RADIUS_MM**2] * (9 if is_affine else 3) + [1.0] * 3)
    try:
        method.Execute(*images)
    except RuntimeError as error:
        raise NoMatch("too few points lie in both fields of view") from error
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    shift = np.array(transform.GetTranslation())
    matrix[:3, 3] = middle + shift - matrix[:3, :3] @ middle
    return matrix


def _image(sitk, array, scan: Scan):
    return register.image(sitk, array, [float(s) for s in scan.spacing[::-1]])
