"""Rigid registration of a CT or MR to the PET of the same head. The only file that imports SimpleITK.

Mattes' mutual information (Mattes et al. 2003) on three resolutions, from several starts. The same
numbers on every run of one machine: seeded sampling, one thread. Nothing is resampled here that is
kept: a registration is a matrix, and `move` puts it into the volume's affine.
"""

import contextlib
import dataclasses
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cldm_jax import console
from cldm_jax.data import grid, intensity, mask, nifti
from cldm_jax.data.mutual_information import overlap
from cldm_jax.errors import UserError

MAX_MOTION_MM, MAX_ROTATION_DEG = 60.0, 45.0  # more is not how a person lies
MAX_SPREAD_MM, MAX_SPREAD_DEG = 3.0, 3.0  # two starts that end further apart are not to be trusted
MIN_SEEN = 0.5  # of the PET's head inside the target's field of view, or a match proves nothing
KEPT_MM = 1.5  # a pair that fits within the method's own error stays as it is
_HEAD_MM = 80.0  # where a rotation is felt
_MARGIN_MM = 20.0  # around the PET's head: skin and skull count, the bed hardly does
_VIEW_MM = 123.0
_BINS = 32
# A radian counts as this many mm. A head is nearly round, so a rotation changes the match much less
# than its radius says: with 50 mm the search stops up to 4 degrees early.
_RADIUS_MM = 20.0
_SEED = 1


class Registration(NamedTuple):
    """What `register_rigid` found."""

    matrix: np.ndarray  # float64 [4, 4], PET world mm -> target world mm (RAS+)
    qc: dict
    views: dict[str, list]


class _Level(NamedTuple):
    spacing: float  # mm
    blur: float  # mm
    samples: int  # voxels
    iterations: int
    first: float  # step, mm
    last: float


_SEARCH = _Level(6.0, 4.0, 6_000, 90, 8.0, 0.2)
_REFINE = (_Level(4.0, 1.5, 20_000, 120, 2.0, 0.05), _Level(2.5, 0.0, 40_000, 120, 0.8, 0.01))
_TILTS_DEG = ((0, 0, 0), (20, 0, 0), (-20, 0, 0), (0, 20, 0), (0, -20, 0), (0, 0, 20), (0, 0, -20))


def require():
    """The SimpleITK module; UserError where it is not installed."""
    try:
        import SimpleITK
    except ImportError as e:
        remedy = console.command("pip", "install", "SimpleITK")
        raise UserError("register", "rigid registration needs SimpleITK", remedy) from e
    return SimpleITK


@contextlib.contextmanager
def one_thread(sitk):
    """Sums in one order: the same bits."""
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def image(sitk, array: np.ndarray, spacing, origin=(0.0, 0.0, 0.0)):
    """A SimpleITK image of an array [z, y, x], bool or float32; spacing and origin: (x, y, z) mm."""
    kind = np.uint8 if array.dtype == bool else np.float32
    made = sitk.GetImageFromArray(np.ascontiguousarray(array.astype(kind)))
    made.SetOrigin(origin)
    made.SetSpacing(spacing)
    return made


def matching(sitk, fixed, fixed_mask, samples: int, *, correlation: bool = False):
    """A registration by so many random voxels of the image `fixed`: by Mattes' mutual information or by
    correlation, linear. Optimiser and start are the caller's.
    """
    method = sitk.ImageRegistrationMethod()
    if correlation:
        method.SetMetricAsCorrelation()
    else:
        method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricFixedMask(fixed_mask)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(min(1.0, samples / fixed.GetNumberOfPixels()), _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    return method


def move(volume: nifti.Volume, matrix: np.ndarray) -> nifti.Volume:
    """The target where the PET's world has it: its affine changes, its voxels do not."""
    return dataclasses.replace(volume, affine=np.linalg.inv(matrix) @ volume.affine)


def register_rigid(fixed: nifti.Volume, moving: nifti.Volume, kind: str) -> Registration:
    """The PET `fixed` and a target `moving` of `kind` "ct" or "mr", on any grids.

    qc, floats but for the last:
      mi_before, mi_after   normalised mutual information (`overlap`) in and around the PET's
                            head, with the affines as given and with the registration
      rotation_deg          angle of the rotation
      translation_mm        how far it moves the middle of the PET's head from where the affines put it
      from_centres_mm       the same, from where the centres of both heads coincide
      seen                  share of the PET's head inside the target's field of view
      dice, pet_in_head     of the PET's foreground and the target's head: Dice, and the share of the
                            foreground inside the head; both within the target's field of view
      spread_mm, spread_deg   between the results of the two best starts
      kept                  the head moved by less than KEPT_MM: the matrix is the identity
    Raises UserError where SimpleITK is missing.
    """
    sitk = require()
    pet, target = _Scan(fixed, "pet"), _Scan(moving, kind)
    middle, goal = pet.centre, target.centre
    judge = _Judge(pet, target)
    found = _optimise_all(sitk, pet, target, _SEARCH, _starts(middle, goal))
    best = sorted(found, key=judge.mi, reverse=True)[:2]
    for level in _REFINE:
        best = _optimise_all(sitk, pet, target, level, best)
    matrix, other = sorted(best, key=judge.mi, reverse=True)
    spread = np.linalg.inv(matrix) @ other
    kept = displacement(matrix, middle) < KEPT_MM
    if kept:
        matrix = np.eye(4)
    centred = np.linalg.inv(_rigid(np.eye(3), middle, goal)) @ matrix
    qc = {
        "mi_before": judge.mi(np.eye(4)),
        "mi_after": judge.mi(matrix),
        "rotation_deg": angle(matrix),
        "translation_mm": _shift(matrix, middle),
        "from_centres_mm": _shift(centred, middle),
        **judge.overlaps(matrix),
        "spread_mm": _shift(spread, middle),
        "spread_deg": angle(spread),
    }
    qc = {k: round(v, 4) for k, v in qc.items()} | {"kept": kept}
    return Registration(matrix, qc, views(fixed, moving, matrix, middle))


def verdict(qc: dict) -> tuple[str, str]:
    """("error", "warning" or "", reason) of a registration's qc."""
    # Scanners give coordinates of their own, so a long way from one to the other means nothing by
    # itself: the heads' centres decide as well.
    mm = min(qc["translation_mm"], qc["from_centres_mm"])
    if mm > MAX_MOTION_MM or qc["rotation_deg"] > MAX_ROTATION_DEG:
        moved = f"turns the head by {qc['rotation_deg']:.0f} degrees and moves it by {mm:.0f} mm"
        return "error", f"the registration {moved}: implausible"
    if qc["seen"] < MIN_SEEN:
        return "error", f"its field of view holds only {qc['seen']:.0%} of the PET's head"
    if not qc["kept"] and qc["mi_after"] <= qc["mi_before"]:
        change = f"{qc['mi_before']:.3f} before, {qc['mi_after']:.3f} after"
        return "error", f"the registration did not improve the mutual information ({change})"
    if qc["spread_mm"] > MAX_SPREAD_MM or qc["spread_deg"] > MAX_SPREAD_DEG:
        apart = f"{qc['spread_mm']:.1f} mm and {qc['spread_deg']:.1f} degrees apart"
        return "warning", f"two registrations from different starts ended {apart}"
    return "", ""


def views(fixed: nifti.Volume, moving: nifti.Volume, matrix, centre) -> dict[str, list]:
    """What a person looks at: {"pet", "before", "after": [axial, coronal, sagittal]}, float32.

    Planes of 1.5 mm pixels through `centre` (world mm) along the world's axes; NaN outside the field of
    view. Row 0 is anterior (axial) or superior, column 0 the patient's left (axial, coronal) or anterior
    (sagittal).
    """
    steps = np.arange(-_VIEW_MM, _VIEW_MM + 1, 1.5)
    down, across = np.meshgrid(-steps, steps, indexing="ij")
    zero = np.zeros_like(down)
    planes = ((across, down, zero), (across, zero, down), (zero, -across, down))
    out = {}
    scans = (("pet", fixed, np.eye(4)), ("before", moving, np.eye(4)), ("after", moving, matrix))
    for name, volume, motion in scans:
        index_map = np.linalg.inv(volume.affine) @ motion
        out[name] = []
        for plane in planes:
            index = _apply(index_map, np.stack(plane, -1).reshape(-1, 3) + centre).T
            values = ndimage.map_coordinates(volume.array, index, order=1, mode="nearest")
            far = (index < -0.5) | (index.T > np.array(volume.array.shape) - 0.5).T
            values[far.any(0)] = np.nan
            out[name].append(values.reshape(zero.shape).astype(np.float32))
    return out


def displacement(matrix: np.ndarray, centre: np.ndarray) -> float:
    """Mean distance in mm by which a rigid motion moves six points 80 mm around `centre`."""
    points = np.concatenate([np.eye(3), -np.eye(3)]) * _HEAD_MM + centre
    moved = points @ matrix[:3, :3].T + matrix[:3, 3]
    return float(np.sqrt(((moved - points) ** 2).sum(1)).mean())


def angle(matrix: np.ndarray) -> float:
    """Angle in degrees of the rotation of a rigid motion."""
    return float(np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1))))


def _shift(matrix: np.ndarray, centre: np.ndarray) -> float:
    return float(np.linalg.norm(_apply(matrix, centre) - centre))


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """World points [..., 3] moved. Not by matmul: its sums depend on threads and on alignment."""
    moved = matrix[:3, 3] + points[..., :1] * matrix[:3, 0]
    return moved + points[..., 1:2] * matrix[:3, 1] + points[..., 2:] * matrix[:3, 2]


def _rigid(rotation: np.ndarray, middle: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """[4, 4]: turned about `middle`, which then goes to `goal`."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = goal - rotation @ middle
    return matrix


def _starts(middle: np.ndarray, goal: np.ndarray) -> list[np.ndarray]:
    """The affines as given and the centres of the heads, each upright and tilted about each axis."""
    turns = Rotation.from_euler("xyz", _TILTS_DEG, degrees=True).as_matrix()
    return [_rigid(turn, middle, place) for place in (middle, goal) for turn in turns]


class _Scan:
    """A volume as it is compared: clipped, and on cubes of any size along the world's axes.

    head      bool [x, y, z] on cubes of 2.5 mm with `head_affine`: its largest piece of tissue
    centre    of the head, world mm
    """

    def __init__(self, volume: nifti.Volume, kind: str):
        if kind == "ct":  # brain against bone and air: metal and the table's foam have no say
            low, high = mask.HEAD_HU, 1000.0
        else:  # negative PET is noise, and a hot spot or bright fat is not to take all the bins
            low, high = 0.0, float(np.percentile(volume.array, 99.8))
        self.array, self.affine, self.fill = np.clip(volume.array, low, high), volume.affine, low
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.array.shape])).reshape(3, -1).T
        world = _apply(self.affine, corners)
        self.box = world.min(0), world.max(0)
        values, self.head_affine = self.on_cubes(_REFINE[-1].spacing, self.box)
        head = mask.largest(_tissue(values, kind).transpose(2, 0, 1)).transpose(1, 2, 0)
        self.head = head if head.any() else ~head  # where nothing stands out, all of it
        self.centre = _apply(self.head_affine, np.array(np.nonzero(self.head)).mean(1))

    def on_cubes(self, spacing: float, box) -> tuple[np.ndarray, np.ndarray]:
        """(float32 [x, y, z], affine) of `box` (two corners, world mm)."""
        affine = np.diag([spacing] * 3 + [1.0])
        affine[:3, 3] = box[0]
        shape = (np.subtract(box[1], box[0]) / spacing).astype(int) + 1
        return grid.resample(self.array, self.affine, shape, affine, fill=self.fill), affine

    def sees(self, points: np.ndarray) -> np.ndarray:
        """bool [n] for world points [n, 3]: inside the field of view."""
        index = _apply(np.linalg.inv(self.affine), points)
        return ((index > -0.5) & (index < np.array(self.array.shape) - 0.5)).all(1)

    def head_box(self) -> tuple[np.ndarray, np.ndarray]:
        """Corners of the head with its margin, cut at the field of view."""
        world = _apply(self.head_affine, np.array(np.nonzero(self.head)).T)
        low, high = world.min(0) - _MARGIN_MM, world.max(0) + _MARGIN_MM
        return np.maximum(low, self.box[0]), np.minimum(high, self.box[1])

    def near_head(self, points: np.ndarray) -> np.ndarray:
        """bool [n]: within the margin of the head."""
        far = ndimage.distance_transform_edt(~self.head) * self.head_affine[0, 0]
        index = _apply(np.linalg.inv(self.head_affine), points).T
        return ndimage.map_coordinates(far, index, order=1, mode="nearest") <= _MARGIN_MM

    def in_head(self, points: np.ndarray) -> np.ndarray:
        index = np.rint(_apply(np.linalg.inv(self.head_affine), points)).astype(int)
        inside = ((index >= 0) & (index < self.head.shape)).all(1)
        out = np.zeros(len(points), bool)
        out[inside] = self.head[tuple(index[inside].T)]
        return out


def _tissue(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "ct":
        return values > mask.HEAD_HU
    if kind == "pet":
        return intensity.foreground(values)
    return np.sqrt(values) > mask.otsu(np.sqrt(values))


def _world(shape, affine) -> np.ndarray:
    """World points [n, 3] of every voxel, in C order."""
    return _apply(affine, np.indices(shape).reshape(3, -1).T)


class _Judge:
    """One measure for all results, whatever was sampled to find them."""

    def __init__(self, pet: _Scan, target: _Scan):
        self.pet, self.target = pet, target
        values, affine = pet.on_cubes(5.0, pet.head_box())
        points = _world(values.shape, affine)
        near = pet.near_head(points)
        self.points, self.values = points[near], values.ravel()[near]
        self.inside = pet.in_head(self.points)
        self.other, self.other_affine = target.on_cubes(3.0, target.box)

    def mi(self, matrix: np.ndarray) -> float:
        """Normalised mutual information near the head, 0 where too little of it is seen."""
        points = _apply(matrix, self.points)
        seen = self.target.sees(points)
        if seen[self.inside].mean() < MIN_SEEN:
            return 0.0
        index = _apply(np.linalg.inv(self.other_affine), points[seen]).T
        other = ndimage.map_coordinates(self.other, index, order=1, mode="nearest")
        return overlap(self.values[seen], other)

    def overlaps(self, matrix: np.ndarray) -> dict[str, float]:
        points = _apply(matrix, self.points)
        seen = self.target.sees(points)
        a, b = self.inside[seen], self.target.in_head(points[seen])
        both = float((a & b).sum())
        return {
            "seen": float(seen[self.inside].mean()),
            "dice": 2 * both / max(1.0, float(a.sum() + b.sum())),
            "pet_in_head": both / max(1.0, float(a.sum())),
        }


def _optimise_all(sitk, pet: _Scan, target: _Scan, level: _Level, starts) -> list[np.ndarray]:
    """Each start followed to its nearest maximum of Mattes' mutual information at one resolution."""
    images = []
    for scan, box in ((pet, pet.head_box()), (target, target.box)):
        values, affine = scan.on_cubes(level.spacing, box)
        points = _world(values.shape, affine)
        valid = scan.sees(points) & (scan.near_head(points) if scan is pet else True)
        values = ndimage.gaussian_filter(values, level.blur / level.spacing)
        # Its axes stay RAS+, which is all the same to a registration.
        place = np.diag(affine)[:3].tolist(), affine[:3, 3].tolist()
        arrays = values, valid.reshape(values.shape)
        images.append([image(sitk, a.transpose(2, 1, 0), *place) for a in arrays])
    (fixed, fixed_mask), (moving, moving_mask) = images
    method = matching(sitk, fixed, fixed_mask, level.samples)
    method.SetMetricMovingMask(moving_mask)
    method.SetOptimizerAsRegularStepGradientDescent(
        level.first, level.last, level.iterations, relaxationFactor=0.7
    )
    method.SetOptimizerScales([_RADIUS_MM**2] * 3 + [1.0] * 3)
    with one_thread(sitk):
        return [_follow(sitk, method, fixed, moving, start, pet.centre) for start in starts]


def _follow(sitk, method, fixed, moving, start: np.ndarray, centre: np.ndarray) -> np.ndarray:
    euler = sitk.Euler3DTransform()
    euler.SetCenter(centre.tolist())
    euler.SetMatrix(start[:3, :3].ravel().tolist(), 1e-6)
    euler.SetTranslation((_apply(start, centre) - centre).tolist())
    method.SetInitialTransform(euler, True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:  # too few points inside both: this start leads nowhere
        return start
    turn = np.array(euler.GetMatrix()).reshape(3, 3)
    return _rigid(turn, centre, centre + np.array(euler.GetTranslation()))
