"""PET-only spatial normalisation: is a synthetic MR as good a guide to a template as the real MR is?

The transform found from the real MR is the truth; every other guide is held against it, in mm and by
what the PET reads in the template's regions.
"""

from typing import NamedTuple

import numpy as np

from cldm_jax.data import grid, intensity, mask, nifti, splits, warp
from cldm_jax.data.warp import NoMatch, Scan
from cldm_jax.errors import UserError
from cldm_jax.metrics import anatomy
from cldm_jax.uses.base import AGAIN, FLOOR, Case, Cohort, Judge, Measure, Use, boxes

CUBE_MM = 3.0  # of the template
ROUNDS = 2  # in which the training people's mean is made
MIN_VOXELS = 20  # of a region in which the PET is read


class Template(NamedTuple):
    mr: Scan
    pet: Scan  # same cubes
    regions: dict[str, np.ndarray]  # bool [Z, H, W] each


class _Pair(NamedTuple):
    mr: Scan
    pet: Scan


def mr_scan(values, spacing) -> Scan:
    """An MR with its own head: what is known of a synthetic one too."""
    values = np.asarray(values, np.float32)
    head = mask.head_mask(values, "mr") if np.ptp(values) else np.zeros(values.shape, bool)
    return Scan(values, head, spacing)


def pet_scan(values, spacing) -> Scan:
    values = np.maximum(np.asarray(values, np.float32), 0)
    head = mask.largest(intensity.foreground(values)) if values.any() else values > 0
    return Scan(values, head, spacing)


def start(cohort: Cohort):
    """The judge of a case, after the template is made. UserError where that cannot be."""
    template = _open_template(cohort)
    return lambda case: make_judge(case, template)


def _open_template(cohort: Cohort) -> Template:
    if cohort.template_pet:
        if not cohort.template:
            reason = "a PET template belongs to the T1 whose space it is in"
            raise UserError(cohort.template_pet, reason, "Give that as --config.template")
        return read_template(cohort.template, cohort.template_pet)
    pairs = _training(cohort)
    first = _read_mr(cohort.template) if cohort.template else _mean_of_centres(pairs)
    return make_template(pairs, first, bool(cohort.template), cohort.step)


def make_judge(case: Case, template: Template) -> Judge:
    """Raises NoMatch where the real MR cannot be registered: there is no truth then."""
    pet = pet_scan(case.pet, case.spacing)
    middle = len(template.mr.values) // 2
    guide = mr_scan(case.real, case.spacing)
    matrix, true = _register(template.mr, guide)
    true_pet = _seen(pet, true)

    def compare(place):
        apart = np.linalg.norm(place - true, axis=-1)[template.mr.head]
        errors = region_errors(_seen(pet, place), true_pet, template.regions)
        values = {
            "pet_region": float(np.mean(errors)) if errors.size else float("nan"),
            "pet_worst": float(np.max(errors)) if errors.size else float("nan"),
            "displacement": float(apart.mean()),
            "displacement_95": float(np.quantile(apart, 0.95)),
        }
        return values, np.nan_to_num(_seen(guide, place)[middle])

    def score(image):
        return compare(_register(template.mr, mr_scan(image, case.spacing))[1])

    def by_information():
        found = warp.affine(template.mr, pet, same_kind=False)
        return compare(warp.moved(found, template.mr))

    own = {
        "centres": lambda: compare(warp.moved(warp.aligned(template.pet, pet), template.pet)),
        "affine_only": lambda: compare(warp.moved(matrix, template.mr)),
        "pet_to_pet": lambda: compare(_register(template.pet, pet)[1]),
        "pet_to_mr": by_information,
    }
    return Judge(score, {name: _or_why(make) for name, make in own.items()})


def region_errors(pet, true, regions) -> np.ndarray:
    """% error, either way, of the mean of `pet` in each region that both fill; [regions]."""
    errors = []
    for region in regions.values():
        seen = region & np.isfinite(pet) & np.isfinite(true)
        if seen.sum() >= MIN_VOXELS and true[seen].mean() > 0:
            errors.append(100 * abs(pet[seen].mean() / true[seen].mean() - 1))
    return np.array(errors)


def make_template(pairs: list[_Pair], first: Scan, keep: bool, step) -> Template:
    """MR and PET means of the training people, affinely aligned in ROUNDS; with `keep` the MR is `first`
    and the PETs are laid on it once. Who cannot be aligned is left out. UserError where that is all.
    """
    mr = first
    for _ in range(1 if keep else ROUNDS):
        found, reasons = [], []
        for pair in pairs:
            try:
                found.append((pair, warp.affine(mr, pair.mr, same_kind=True)))
            except NoMatch as error:
                reasons.append(str(error))
            step()
        if not found:
            reason = f"no training person could be laid on it ({reasons[0]})"
            raise UserError("the template", reason, "Give a T1 of about the same field of view")
        places = [(pair, warp.moved(matrix, mr)) for pair, matrix in found]
        pet = _mean([_seen(p.pet, at) for p, at in places])
        if not keep:
            mr = mr_scan(_mean([_seen(p.mr, at) for p, at in places]), mr.spacing)
    return Template(mr, pet_scan(pet, mr.spacing), _regions(mr, pet))


def _regions(mr: Scan, pet) -> dict[str, np.ndarray]:
    """Grey and white matter, by k-means of the template's MR, in each box of its brain."""
    brain = mask.brain_mask_pet(pet, mr.spacing[1:])
    if not brain.any():
        return {}
    tissue = np.searchsorted(anatomy.class_limits(mr.values[brain]), mr.values)
    return {
        f"{name} {where}": box & (tissue == code)
        for where, box in boxes(brain).items()
        for code, name in ((1, "grey"), (2, "white"))
    }


def _register(fixed: Scan, moving: Scan):
    """(affine matrix, places of the warp) between images of one kind."""
    matrix = warp.affine(fixed, moving, same_kind=True)
    return matrix, warp.warp(fixed, moving, matrix)


def _seen(scan: Scan, place) -> np.ndarray:
    return warp.sample(scan.values, place, scan.spacing)


def _or_why(make):
    try:
        return make()
    except NoMatch as error:
        return str(error)


def _mean(volumes):
    """[Z, H, W] over what each shows; 0 where none shows anything."""
    total = np.nansum(volumes, 0)
    return (total / np.maximum(1, np.isfinite(volumes).sum(0))).astype(np.float32)


def _mean_of_centres(pairs: list[_Pair]) -> Scan:
    """Training heads laid over each other by their centres, on cubes over the first one's volume."""
    one = pairs[0].mr
    spacing = (CUBE_MM,) * 3
    shape = (np.array(one.values.shape) - 1) * one.spacing // CUBE_MM + 1
    place = warp.points(shape.astype(int), spacing)
    head = warp.sample(one.head, place, one.spacing) > 0.5
    frame = Scan(np.zeros(head.shape, np.float32), head, spacing)
    laid = [_seen(p.mr, warp.moved(warp.aligned(frame, p.mr), frame)) for p in pairs]
    return mr_scan(_mean(laid), spacing)


def read_template(mr: str, pet: str) -> Template:
    """Both from files that share a space, of any voxels."""
    first, shown = (nifti.canonical(nifti.read_volume(path)) for path in (mr, pet))
    there = grid.resample(shown.array, shown.affine, first.array.shape, first.affine, fill=0.0)
    if not there.any():
        reason = f"shows nothing where {mr} is: another space"
        raise UserError(pet, reason, "Give a PET template of the same space as --config.template")
    scan, own = _read_mr(mr), pet_scan(_cubes(first, there), (CUBE_MM,) * 3)
    return Template(scan, own, _regions(scan, own.values))


def _read_mr(path: str) -> Scan:
    volume = nifti.canonical(nifti.read_volume(path))
    return mr_scan(_cubes(volume, volume.array), (CUBE_MM,) * 3)


def _cubes(volume: nifti.Volume, array) -> np.ndarray:
    """`array`, on the voxels of a canonical `volume`, on cubes; as fraction of its 99.5th percentile."""
    extent = np.array(volume.array.shape) * volume.spacing
    columns, rows, _ = np.maximum(1, np.rint(extent / CUBE_MM)).astype(int)
    cubes = grid.ModelGrid((int(rows), int(columns)), (CUBE_MM, CUBE_MM), CUBE_MM)
    values, _ = grid.to_grid(array, volume.affine, cubes, fill=0.0)
    return np.maximum(values, 0) / max(float(np.percentile(values, 99.5)), 1e-6)


def _training(cohort: Cohort) -> list[_Pair]:
    prepared = cohort.prepared
    have = [
        s for s in prepared.subjects("train") if prepared.has(s, "mr") and prepared.has(s, "pet")
    ]
    if not have:
        reason = "no training person has PET and MR, so there is no mean head and no mean PET"
        remedy = "Give --config.template and --config.template_pet, or other --config.uses"
        raise UserError(prepared.folder, reason, remedy)
    pairs = []
    groups = [person.group for person in prepared.index.people]
    for subject in splits.by_turns(have, groups)[: cohort.people]:
        where = np.flatnonzero(prepared.keep(subject, "mr"))
        part = slice(where.min(), where.max() + 1)
        scans = []
        for name, make in (("mr", mr_scan), ("pet", pet_scan)):
            spec = prepared.index.modalities[name].normaliser
            values = intensity.metric_units(spec, prepared.read(subject, name)[part])
            scans.append(make(values, prepared.index.people[subject].voxel_mm))
        pairs.append(_Pair(*scans))
    return pairs


USE = Use(
    "normalisation",
    "mr",
    "PET-only spatial normalisation",
    "Each image guides an affine transform and a smooth warp to a template (3 mm). The transform of the "
    "real MR is taken as true. PET: read in the template's grey and white matter, twelve boxes each.",
    {
        "pet_region": Measure("regional PET error", "%", "low", "mean over regions, either way"),
        "pet_worst": Measure("worst region", "%", "low", "the region with the largest error"),
        "displacement": Measure("displacement", "mm", "low", "mean in the template's head"),
        "displacement_95": Measure("displacement, 95 %", "mm", "low", "95th percentile"),
    },
    (FLOOR, AGAIN),
    {
        "centres": "Floor: heads laid over each other, no registration",
        "affine_only": "Floor: the real MR's affine transform without its warp",
        "pet_to_pet": "Rival: the PET to the template's PET",
        "pet_to_mr": "Rival: the PET straight to the MR template (mutual information, rigid)",
    },
    ("pet_to_pet",),  # the other can be worse than no registration: to beat it says nothing
    start,
)
