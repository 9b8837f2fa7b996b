"""One person's files -> facts (after an audit) and -> encoded slices. Safe to run in any process."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from cldm_jax.data import audit, bids, grid, intensity, mask, nifti, register, shards

_LOOK = "Look at its picture in the folder overlays"
PET_EMPTY = 0.05  # of the volume's scale: a slice that stays below holds no PET


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


@dataclasses.dataclass(frozen=True)
class Registered:
    """One pair, for the record and for the eye: see `register`."""

    matrix: np.ndarray
    qc: dict
    views: dict[str, list]


def inspect(
    task: tuple[Settings, bids.Subject],
) -> tuple[list[audit.Finding], Facts | None, dict[str, Registered]]:
    """Reads, registers where asked, and audits one person; without facts when there is an error.

    Module-level, so that a spawned process can find it.
    """
    settings, subject = task
    registered, digests = {}, {}
    if settings.register:
        found, volumes, registered, digests = _register(settings, subject)
    else:
        found, volumes = audit.audit_subject(
            subject, allow_misaligned=settings.allow_misaligned, mi_threshold=settings.mi_threshold
        )
    if any(f.severity == "error" for f in found):
        return found, None, registered
    scales, origins, pixels = {}, {}, {}
    for name, volume in volumes.items():
        spec = settings.normalisers[intensity.base_modality(name)]
        scales[name] = intensity.volume_scale(spec, volume.array)
        if name == "pet":
            scales[name] /= subject.pet_gain
        origins[name] = intensity.volume_origin(spec, volume.array)
        pixels[name] = digests.get(name) or audit.pixel_digest(volume)
    pet = volumes["pet"]
    center = pet_center_mm(pet) if settings.center == "pet" else None
    slices, affine = grid.to_grid(pet.array, pet.affine, settings.grid, center_mm=center, fill=0.0)
    found += audit.check_field_of_view(subject, pet, affine, settings.grid.size)
    sha256 = {name: v.sha256 for name, v in volumes.items()}
    matrices = {name: r.matrix for name, r in registered.items()}
    facts = Facts(sha256, pixels, scales, origins, center, len(slices), matrices)
    return found, facts, registered


def _register(settings: Settings, subject: bids.Subject):
    """(findings, volumes on the PET's voxels, registrations, digests of the targets as given)."""
    found, volumes = audit.read_subject(subject)
    if any(f.severity == "error" for f in found):
        return found, {}, {}, {}
    pet, registered, digests = volumes["pet"], {}, {}
    for name in sorted(set(volumes) - {"pet"}):
        target = volumes[name]
        done = register.register_rigid(pet, target, intensity.base_modality(name))
        views = register.views(pet, target, done.matrix)
        registered[name] = Registered(done.matrix, done.qc, views)
        # Two copies of one file would differ once each has been turned to its PET.
        digests[name] = audit.pixel_digest(nifti.canonical(target))
        volumes[name] = register.move(target, done.matrix)
        severity, reason = register.verdict(done.qc)
        if severity:
            what = str(subject.files[name])
            found.append(audit.Finding(severity, subject.id, what, reason, _LOOK))
    if not any(f.severity == "error" for f in found):
        volumes = audit.align(volumes)
        found += audit.check_overlap(subject, volumes, settings.mi_threshold, _LOOK)
    return found, volumes, registered, digests


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
    scale = intensity.volume_scale(normaliser, pet.array)
    origin = intensity.volume_origin(normaliser, pet.array)
    return intensity.to_model(normaliser, slices, scale, origin), affine


@dataclasses.dataclass(frozen=True)
class Slices:
    """One person's slices, encoded as they are stored."""

    stored: dict[str, np.ndarray]  # uint16 [Z, H, W] by volume; "mask" uint8
    scales: dict[str, float]
    keep: list[bool]
    grid_affine: list[list[float]]


def make_slices(task: tuple[Settings, bids.Subject, Facts]) -> Slices:
    """Reads one person again and brings every volume to the grid and to model range."""
    settings, subject, facts = task
    volumes = audit.load(subject)
    if {n: v.sha256 for n, v in volumes.items()} != facts.sha256:
        raise RuntimeError(f"the files of {subject.id} changed while they were being prepared")
    on_grid, affine = _on_grid(settings, volumes, facts)
    stored, scales = {}, {}
    for name in volumes:
        spec = settings.normalisers[intensity.base_modality(name)]
        own = spec.rule == "train_percentile"
        scales[name] = spec.population_scale if own else facts.scales[name]
        x = intensity.to_model(spec, on_grid[name], scales[name], facts.origins[name])
        stored[name] = shards.encode(x, "uint16")
    head = _head_mask(on_grid)
    enough = head.mean((1, 2)) >= settings.min_head_fraction
    pet = on_grid["pet"].max((1, 2)) > PET_EMPTY * facts.scales["pet"]
    stored["mask"] = head.astype(np.uint8)
    return Slices(stored, scales, (enough & pet).tolist(), affine.tolist())


def _on_grid(settings: Settings, volumes: dict[str, nifti.Volume], facts: Facts):
    """({volume: [Z, H, W] in units}, grid affine), each on the grid that the PET gives.

    A registered target goes from its own voxels to the grid in one interpolation.
    """
    own = {n: register.move(volumes[n], m) for n, m in facts.matrices.items()}
    aligned = audit.align({n: v for n, v in volumes.items() if n not in own})
    on_grid = {}
    for name, volume in aligned.items():
        fill = intensity.MODALITIES[intensity.base_modality(name)].fill
        on_grid[name], affine = grid.to_grid(
            volume.array, volume.affine, settings.grid, center_mm=facts.center_mm, fill=fill
        )
    shape = on_grid["pet"].shape[::-1]
    for name, volume in own.items():
        fill = intensity.MODALITIES[intensity.base_modality(name)].fill
        array = grid.resample(volume.array, volume.affine, shape, affine, fill=fill)
        on_grid[name] = np.ascontiguousarray(array.transpose(2, 1, 0))
    return on_grid, affine


def _head_mask(on_grid: dict[str, np.ndarray]) -> np.ndarray:
    """From the real CT where there is one, else from the MR."""
    if "ct" in on_grid:
        return mask.head_mask_ct(on_grid["ct"])
    return mask.head_mask_mr(on_grid["mr"])
