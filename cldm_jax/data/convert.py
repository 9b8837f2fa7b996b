"""One person's files -> facts (after an audit) and -> encoded slices. Safe to run in any process."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from cldm_jax.data import audit, bids, coverage, grid, intensity, nifti, register, shards
from cldm_jax.data.volumes import read_volume
from cldm_jax.errors import UserError

_LOOK = "Look at its picture in the folder overlays"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the passes need of the config, picklable for worker processes."""

    grid: grid.ModelGrid
    center: str
    allow_misaligned: bool
    register: str  # "" or "rigid"
    mi_threshold: float
    min_head_fraction: float
    normalisers: Mapping[str, intensity.Normaliser]  # by modality; fitted in the second pass


@dataclasses.dataclass(frozen=True)
class Facts:
    """The first pass's result for one person."""

    sha256: dict[str, str]
    pixels: dict[str, str]
    scales: dict[str, float]
    origins: dict[str, float]
    center_mm: tuple[float, ...] | None
    n_slices: int
    matrices: dict[str, np.ndarray]  # of registered targets: PET world mm -> their world mm
    covers: dict[str, coverage.Cover]  # by target
    mr_size: float  # see coverage.Heads


def inspect(
    task: tuple[Settings, bids.Subject],
) -> tuple[list[audit.Finding], Facts | None, dict[str, register.Registration]]:
    """Reads, registers where asked, and audits one person. An image with an error is left out; there are
    no facts where no PET with a target is left.

    Module-level, so that a spawned process can find it.
    """
    settings, subject = task
    notes = audit.Notes(subject)
    given = audit.read_subject(notes)
    if not settings.register and "pet" in given:
        audit.check_geometry(notes, given, settings.allow_misaligned)
    given = audit.usable(notes, given)
    if not given:
        return notes, None, {}
    given, measured = _clean(notes, given)
    registered = {}
    if settings.register:
        registered = _register(notes, given)
        given = audit.usable(notes, given)
    if not given:
        return notes, None, registered
    matrices = {name: r.matrix for name, r in registered.items() if name in given}
    volumes = align(_moved(given, matrices))

    def seen(name: str) -> np.ndarray:
        masks = _moved({n: measured[n] for n in ("pet", name)}, matrices)
        return align(masks)[name].array

    advice = _LOOK if settings.register else audit.REGISTER
    audit.check_overlap(notes, volumes, seen, settings.mi_threshold, advice)
    given = audit.usable(notes, given)
    if not given:
        return notes, None, registered
    facts = _facts(settings, notes, given, measured, matrices, volumes)
    return notes, facts if audit.usable(notes, given) else None, registered


def _facts(settings, notes: audit.Notes, given, measured, matrices, volumes) -> Facts:
    """Of the images in `given`; notes what they do not show of the head."""
    volumes, measured = ({n: of[n] for n in given} for of in (volumes, measured))
    matrices = {n: m for n, m in matrices.items() if n in given}
    scales, origins, pixels = {}, {}, {}
    for name, volume in volumes.items():
        spec = settings.normalisers[intensity.base_modality(name)]
        scales[name], origins[name] = intensity.volume_scaling(spec, volume.array)
        if name == "pet":
            scales[name] /= notes.subject.pet_gain
        # As given: two copies of one file would differ once each has been brought to its PET.
        pixels[name] = audit.pixel_digest(nifti.canonical(given[name]))
    center = pet_center_mm(volumes["pet"]) if settings.center == "pet" else None
    _, affine, heads = _judge(settings, given, measured, center, matrices, scales["pet"])
    audit.check_field_of_view(notes, volumes["pet"], affine, settings.grid.size)
    _check_coverage(notes, heads)
    sha256 = {name: v.sha256 for name, v in given.items()}
    n_slices, covers, size = len(heads.keep), heads.covers, heads.mr_size
    return Facts(sha256, pixels, scales, origins, center, n_slices, matrices, covers, size)


def _clean(notes: audit.Notes, given: dict[str, nifti.Volume]):
    """(volumes with air for fill, bool masks: volumes of what was measured)."""
    volumes, measured = dict(given), {}
    for name in given:
        seen = np.ones(given[name].array.shape, bool)
        if name not in intensity.SOURCES:
            kind = intensity.base_modality(name)
            volumes[name], seen, fill = coverage.clean(given[name], kind)
            if fill is not None:
                modality = intensity.MODALITIES[kind]
                reason = (
                    f"{fill[1]:.0%} of its voxels are exactly {fill[0]:g} {modality.units}, up to the"
                    " edge: filled when it was resampled or masked, not measured"
                )
                remedy = f"Taken as air and as not seen; better fill it with {modality.fill:g}"
                notes.add("warning", name, reason, remedy)
        measured[name] = dataclasses.replace(given[name], array=seen)
    return volumes, measured


def _moved(volumes: dict[str, nifti.Volume], matrices) -> dict[str, nifti.Volume]:
    return {n: register.move(v, matrices[n]) if n in matrices else v for n, v in volumes.items()}


def _judge(settings: Settings, given, measured, center, matrices, pet_scale):
    """({volume: [Z, H, W] in units}, grid affine, what they show of the head)."""
    on_grid, affine = _on_grid(settings, given, center, matrices)
    seen, _ = _on_grid(settings, measured, center, matrices)
    seen, mm = {name: array > 0.5 for name, array in seen.items()}, grid.spacing_of(affine)
    heads = coverage.judge(on_grid, seen, mm, pet_scale, settings.min_head_fraction)
    return on_grid, affine, heads


def _check_coverage(notes: audit.Notes, heads: coverage.Heads) -> None:
    """What each target does not show of the head, in numbers."""
    if not any(heads.covers[name].keep.any() for name in heads.covers if name in ("ct", "mr")):
        reason = "no slice shows enough head on this grid"
        notes.add("error", "ct, mr", reason, "Check size, spacing_mm, center and min_head_fraction")
        return
    total = int(heads.keep.sum())
    for name, cover in heads.covers.items():
        left = int((heads.keep & ~cover.keep).sum())
        if cover.stripped:
            reason = f"shows the brain and not the head around it ({cover.unseen:.0%} is missing)"
            remedy = "Scored inside the brain; a model learns what it is shown"
        elif cover.is_partial:
            reason = f"does not show {cover.unseen:.0%} of the head"
            reason += f": {left} of {total} slices do not count for it"
            remedy = "Expected for a short scan; else look at how it was cut or resampled"
        else:
            continue
        notes.add("warning", name, reason, remedy)


def _register(notes: audit.Notes, volumes: dict[str, nifti.Volume]):
    """Registrations by target."""
    pet, registered = volumes["pet"], {}
    for name in sorted(set(volumes) - set(intensity.SOURCES)):  # a NAC is its PET's own scan
        done = register.register_rigid(pet, volumes[name], intensity.base_modality(name))
        registered[name] = done
        severity, reason = register.verdict(done.qc)
        if severity:
            notes.add(severity, name, reason, _LOOK)
    return registered


def pet_center_mm(pet: nifti.Volume) -> tuple[float, float, float]:
    """World position of the PET foreground's centre of intensity."""
    index = np.nonzero(intensity.foreground(pet.array))
    weight = pet.array[index].astype(np.float64)
    voxel = [float((i * weight).sum() / weight.sum()) for i in index]
    return tuple(float(x) for x in (pet.affine @ [*voxel, 1.0])[:3])


def source_slices(
    pet: nifti.Volume, model_grid: grid.ModelGrid, center: str, normaliser: intensity.Normaliser
) -> tuple[np.ndarray, np.ndarray]:
    """A new person's PET, any orientation -> (model range [Z, H, W], grid affine), as in training.

    The numbers are those `prepare` stores for the same file, up to its uint16 steps.
    """
    pet = nifti.canonical(pet)
    center_mm = pet_center_mm(pet) if center == "pet" else None
    slices, affine = grid.to_grid(pet.array, pet.affine, model_grid, center_mm=center_mm, fill=0.0)
    scaling = intensity.volume_scaling(normaliser, pet.array)
    return intensity.to_model(normaliser, slices, *scaling), affine


@dataclasses.dataclass(frozen=True)
class Slices:
    """One person's slices, encoded as they are stored."""

    stored: dict[str, np.ndarray]  # uint16 [Z, H, W] by volume; "mask" and "mask_<target>" uint8
    scales: dict[str, float]
    keep: list[bool]  # slices that count for each of the volumes
    keeps: dict[str, list[bool]]  # of volumes for which other slices count
    grid_affine: list[list[float]]


def make_slices(task: tuple[Settings, bids.Subject, Facts]) -> Slices:
    """Reads one person again and brings every volume to the grid and to model range."""
    settings, subject, facts = task
    volumes = {name: read_volume(path, name) for name, path in subject.files.items()}
    if {n: v.sha256 for n, v in volumes.items()} != facts.sha256:
        reason = "its files changed while they were being prepared"
        raise UserError(subject.id, reason, "Run it again when nothing writes there")
    volumes, measured = _clean(audit.Notes(subject), volumes)
    place = facts.center_mm, facts.matrices, facts.scales["pet"]
    on_grid, affine, heads = _judge(settings, volumes, measured, *place)
    stored, scales = {}, {}
    for name in volumes:
        spec = settings.normalisers[intensity.base_modality(name)]
        own = spec.rule == "train_percentile"
        scales[name] = spec.population_scale if own else facts.scales[name]
        x = intensity.to_model(spec, on_grid[name], scales[name], facts.origins[name])
        stored[name] = shards.encode(x, "uint16")
    stored["mask"] = heads.mask.astype(np.uint8)
    for name, own in heads.by_target.items():
        stored[f"mask_{name}"] = own.astype(np.uint8)
    keeps = {name: heads.keep for name in intensity.SOURCES if name in volumes}
    keeps |= {name: cover.keep for name, cover in heads.covers.items()}
    # Whoever reads one list for all volumes finds nothing in it that was not measured.
    keep = np.all([k for name, k in keeps.items() if name in ("ct", "mr")], 0)
    keeps = {name: k.tolist() for name, k in keeps.items() if (k != keep).any()}
    return Slices(stored, scales, keep.tolist(), keeps, affine.tolist())


def align(volumes: dict[str, nifti.Volume]) -> dict[str, nifti.Volume]:
    """RAS order, all on the PET's voxels: through the affines where they differ."""
    pet = nifti.canonical(volumes["pet"])
    out = {}
    for name, volume in volumes.items():
        volume = nifti.canonical(volume)
        how = _interpolation(name, volume)
        array = grid.resample(volume.array, volume.affine, pet.array.shape, pet.affine, **how)
        out[name] = dataclasses.replace(volume, array=array, affine=pet.affine)
    return out


def _interpolation(name: str, volume: nifti.Volume) -> dict:
    """Of an image, linear, air outside its field of view; of a mask (bool), nearest voxel and 0."""
    if volume.array.dtype == bool:
        return {"fill": 0.0, "order": 0}
    return {"fill": intensity.MODALITIES[intensity.base_modality(name)].fill, "order": 1}


def _on_grid(settings: Settings, volumes, center, matrices):
    """({volume: [Z, H, W] in units}, grid affine), each on the grid that the PET gives.

    A registered target goes from its own voxels to the grid in one interpolation.
    """
    own = _moved({n: volumes[n] for n in matrices}, matrices)
    aligned = align({n: v for n, v in volumes.items() if n not in own})
    on_grid = {}
    for name, volume in aligned.items():
        how = _interpolation(name, volumes[name])
        on_grid[name], affine = grid.to_grid(
            volume.array, volume.affine, settings.grid, center_mm=center, **how
        )
    shape = on_grid["pet"].shape[::-1]
    for name, volume in own.items():
        how = _interpolation(name, volume)
        array = grid.resample(volume.array, volume.affine, shape, affine, **how)
        on_grid[name] = np.ascontiguousarray(array.transpose(2, 1, 0))
    return on_grid, affine
