"""One person's files -> facts (after an audit) and -> encoded slices. Safe to run in any process."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from cldm_jax.data import audit, bids, grid, intensity, mask, nifti, shards

PET_EMPTY = 0.05  # of the volume's scale: a slice that stays below holds no PET


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the passes need of the config, picklable for worker processes."""

    grid: grid.ModelGrid
    center: str
    allow_misaligned: bool
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


def inspect(task: tuple[Settings, bids.Subject]) -> tuple[list[audit.Finding], Facts | None]:
    """Reads and audits one person. Module-level, so that a spawned process can find it."""
    settings, subject = task
    found, volumes = audit.audit_subject(
        subject, allow_misaligned=settings.allow_misaligned, mi_threshold=settings.mi_threshold
    )
    if any(f.severity == "error" for f in found):
        return found, None
    scales, origins, pixels = {}, {}, {}
    for name, volume in volumes.items():
        spec = settings.normalisers[intensity.base_modality(name)]
        scales[name] = intensity.volume_scale(spec, volume.array)
        origins[name] = intensity.volume_origin(spec, volume.array)
        pixels[name] = audit.pixel_digest(volume)
    pet = volumes["pet"]
    center = pet_center_mm(pet) if settings.center == "pet" else None
    slices, affine = grid.to_grid(pet.array, pet.affine, settings.grid, center_mm=center, fill=0.0)
    found += audit.check_field_of_view(subject, pet, affine, settings.grid.size)
    sha256 = {name: v.sha256 for name, v in volumes.items()}
    return found, Facts(sha256, pixels, scales, origins, center, len(slices))


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
    volumes = audit.load_aligned(subject)
    if {n: v.sha256 for n, v in volumes.items()} != facts.sha256:
        raise RuntimeError(f"the files of {subject.id} changed while they were being prepared")
    on_grid, stored, scales = {}, {}, {}
    for name, volume in volumes.items():
        kind = intensity.base_modality(name)
        spec, fill = settings.normalisers[kind], intensity.MODALITIES[kind].fill
        on_grid[name], affine = grid.to_grid(
            volume.array, volume.affine, settings.grid, center_mm=facts.center_mm, fill=fill
        )
        own = spec.rule == "train_percentile"
        scales[name] = spec.population_scale if own else facts.scales[name]
        x = intensity.to_model(spec, on_grid[name], scales[name], facts.origins[name])
        stored[name] = shards.encode(x, "uint16")
    head = _head_mask(on_grid)
    enough = head.mean((1, 2)) >= settings.min_head_fraction
    pet = on_grid["pet"].max((1, 2)) > PET_EMPTY * facts.scales["pet"]
    stored["mask"] = head.astype(np.uint8)
    return Slices(stored, scales, (enough & pet).tolist(), affine.tolist())


def _head_mask(on_grid: dict[str, np.ndarray]) -> np.ndarray:
    """From the real CT where there is one, else from the MR."""
    if "ct" in on_grid:
        return mask.head_mask_ct(on_grid["ct"])
    return mask.head_mask_mr(on_grid["mr"])
