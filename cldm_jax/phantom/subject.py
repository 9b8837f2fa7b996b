"""One simulated person: anatomy -> disease -> PET, CT and MR volumes with their truth."""

import dataclasses
import os
import pathlib
import shutil

import numpy as np
from scipy import ndimage

from cldm_jax.data.nifti import write_volume
from cldm_jax.files import sha256_file, write_json
from cldm_jax.phantom import (
    anatomy,
    ct,
    labels,
    mr,
    osem,
    pathology,
    pet,
    randomised,
    scene,
    tissue,
    warp,
)
from cldm_jax.phantom.draws import Dice
from cldm_jax.phantom.fields import Grid, majority, stream, tissue_mean

DESCRIPTION = "simulated contrast"
TWIN_EXTRA_MM = 3.5
# Pose and deformation of a label volume that is varied, and of the embedded head.
VARIED = dict(rotation_deg=8, scale=(0.92, 1.06), shear=0.03, shift_mm=3, sd_mm=3)
EMBEDDED = dict(rotation_deg=5, scale=(1, 1), shear=0.02, shift_mm=2, sd_mm=2.2)
PET_STEP = 1 / 128  # SUV; randomised people's PETs are rounded to it: files of half the size


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that decides one person's files.

    key: random-stream key; source: label volume or "" for the embedded head; vary: deform the label
    volume; twin: 1 = thicker skull and scans of its own, the PET apart; modalities: subset of pet, nac,
    ct, mr, ct_reacq, mr_reacq (nac: the PET's counts without correction, pet_model osem only); profile:
    PET scanner (pet.PROFILES); canonical: the targets (ct, mr) without a scanner's noise and variation;
    pets: how many; ranges: config.randomised, or None in other modes, of which randomised_share of the
    PETs are drawn.
    """

    id: str
    group: str
    seed: int
    key: tuple[int, ...]
    source: str
    vary: bool
    twin: int
    easy: bool
    modalities: tuple[str, ...]
    profile: str
    pet_model: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    canonical: tuple[str, ...]
    pets: int
    ranges: dict | None
    randomised_share: float

    def pet_names(self) -> list[str]:
        """pet, pet_2, pet_3, ..."""
        return ["pet", *(f"pet_{i}" for i in range(2, self.pets + 1))]

    def dice(self, number: int) -> Dice:
        """0: the person's; 1, 2, ...: of the first, the second PET."""
        return Dice(self.seed, self.key, number)

    def pet_gain(self, number: int) -> float:
        """Of PET 1, 2, ... of mode `randomised`: how much brighter it is shown than by its scale."""
        return randomised.gain(self.dice(number), self.randomised_share, self.ranges)


def embedded_grid(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Grid:
    """Field of view over the embedded head: centred in x and y; in z up to the vertex when it is long
    enough to reach from there to the lower ventricles, else from the lower ventricles upwards.
    """
    extent = shape[2] * spacing[2]
    bottom = 93 - extent if extent > 100 else -6
    half = [-(n - 1) * s / 2 for n, s in zip(shape[:2], spacing[:2], strict=True)]
    return Grid(tuple(shape), tuple(spacing), (half[0], half[1], bottom + spacing[2] / 2))


def block_factor(spacing, target_mm: tuple[float, float, float]) -> tuple[int, int, int]:
    """Sub-voxels per axis for partial volume, 1 to 3."""
    factor = np.ceil(np.divide(spacing, target_mm) - 1e-6)
    return tuple(np.clip(factor, 1, 3).astype(int).tolist())


def build_anatomy(plan: Plan) -> tuple[np.ndarray, Grid, tuple[int, int, int], dict]:
    """(fine labels uint8, output grid, block factor, record for truth.json)."""
    rng = stream(plan.seed, plan.key, "anatomy")
    age = float(rng.uniform())
    drawn = plan.dice(0).draw(plan.ranges["person"]) if plan.ranges else None
    if plan.source:
        read = labels.read_head if drawn else labels.read_labels
        volume = read(plan.source)
        own = volume.grid
        grid = labels.covering_grid(own, plan.spacing)
        detail, pose = own.spacing, VARIED
        centre = own.origin + np.subtract(own.shape, 1) * own.spacing / 2
    else:
        grid = embedded_grid(plan.shape, plan.spacing)
        detail, pose, centre = (1, 1, 2), EMBEDDED, (0.0, 0.0, 0.0)
        shape = anatomy.draw_shape(rng, age)
    if drawn:
        grid = randomised.moved_view(drawn, grid)
    factor = block_factor(plan.spacing, detail)
    fine = grid.refine(factor)
    if drawn:
        moved = randomised.pose(plan.dice(0), drawn, fine, centre)
    elif plan.source and not plan.vary:
        moved = warp.identity(fine)
    else:
        moved = warp.draw_warp(rng, fine, **pose, centre=centre)
    position = warp.pull_back(moved, fine)
    if plan.source:
        codes = labels.sample(volume, position)
        record = {"source": plan.source, "source_sha256": volume.sha256, "age": age}
    else:
        codes = anatomy.build(rng, shape, fine, position)
        record = {"source": "embedded", **dataclasses.asdict(shape)}
    record["jacobian_min"] = moved.jacobian_min
    record["pose"] = moved.matrix.round(5).tolist()
    if drawn:
        record["person"] = drawn
    return codes, grid, factor, record


def thicken_skull(labels: np.ndarray, grid: Grid, extra_mm: float) -> np.ndarray:
    """Labels of an adversarial twin, whose skull reaches extra_mm further into the scalp; brain, skin and
    outline are unchanged.

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
    soft = np.isin(part, (tissue.FAT, tissue.MUSCLE, tissue.CONNECTIVE))
    part[soft & (distance <= extra_mm)] = tissue.SKULL
    return result


def simulate(plan: Plan) -> tuple[dict[str, np.ndarray], Grid, dict]:
    """({"pet", "ct", ... as planned, "label", "lesions"}, grid, truth record)."""
    codes, grid, factor, record = build_anatomy(plan)
    fine = grid.refine(factor)
    rng = stream(plan.seed, plan.key, "function")
    person = tissue.draw_person(rng, record["age"], vary=not plan.easy)
    if plan.easy:
        disease = pathology.healthy(codes)
    else:
        disease = pathology.draw(rng, codes, fine, grid, person.age)
    shown = disease.labels
    if plan.twin:
        shown = thicken_skull(shown, fine, TWIN_EXTRA_MM)
    volumes: dict[str, np.ndarray] = {}
    scans: dict[str, dict] = {}
    if plan.ranges:
        _randomised_pets(plan, person, disease, grid, factor, volumes, scans)
    elif "pet" in plan.modalities:
        true = pet.activity(rng, disease, person, grid, factor, regional=not plan.easy)
        rng = stream(plan.seed, plan.key, "acquisition", 0)  # the same for both twins
        images, scans["pet"] = _scanned(plan, rng, true, person, disease, grid, factor)
        volumes |= images
        if "nac" in images:
            corrections = {"attenuation": False, "scatter": False, "randoms": False}
            scans["nac"] = scans["pet"] | {"counts": "those of pet", "corrections": corrections}
    for name in plan.modalities:
        if name not in ("pet", "nac"):
            volumes[name], scans[name] = _scan(plan, name, disease, person, shown, grid, factor)
    volumes["label"] = majority(shown, factor, tissue.N_CODES)
    volumes["lesions"] = pathology.lesion_map(disease, factor)
    truth = {
        "subject": plan.id,
        "group": plan.group,
        "contrast": "simulated",
        "twin": plan.twin,
        "seed": plan.seed,
        "key": list(plan.key),
        "anatomy": record,
        "suv_of_grey_matter": person.suv,
        "lesions": disease.record,
        "acquisition": scans,
        "label_codes": dict(enumerate(tissue.NAMES)),
    }
    return volumes, grid, truth


def _randomised_pets(plan: Plan, person, disease, grid: Grid, factor, volumes, scans) -> None:
    """Each PET of mode `randomised`, a share of them ordinary ones, into volumes and scans."""
    seen = scene.make(disease, person.hu, grid, factor)
    for number, name in enumerate(plan.pet_names(), 1):
        dice = plan.dice(number)
        if randomised.is_ordinary(dice, plan.randomised_share):
            rng = dice.rng("activity")
            own = tissue.draw_person(rng, person.age, vary=True)
            true = pet.activity(rng, disease, own, grid, factor, regional=True)
            images, record = _scanned(plan, dice.rng("scan"), true, own, disease, grid, factor)
            image = images["pet"]
            record |= {"suv_of_grey_matter": own.suv, "view": {"gain": 1.0}}
        else:
            image, record = randomised.pet(dice, plan.ranges, seen)
            image *= np.float32(person.suv)
        volumes[name] = np.rint(image / np.float32(PET_STEP)) * np.float32(PET_STEP)
        scans[name] = record


def _scanned(plan: Plan, rng, true, person, disease, grid: Grid, factor) -> tuple[dict, dict]:
    """({"pet" and, where planned, "nac"}, the scan's parameters)."""
    scan = pet.draw_scan(rng, plan.profile, noise=not plan.easy)
    if plan.pet_model == "osem":
        numbers = tissue_mean(person.hu, disease.labels, factor)
        images = osem.acquire(rng, true, numbers, grid, scan, nac="nac" in plan.modalities)
    else:
        images = {"pet": pet.fast(rng, true, grid, scan)}
    images = {name: image * np.float32(person.suv) for name, image in images.items()}
    return images, {"model": plan.pet_model, **dataclasses.asdict(scan)}


def _scan(plan: Plan, name: str, disease, person, shown, grid: Grid, factor):
    """A CT or MR volume and its parameters; each has its own acquisition stream."""
    number = 10 * plan.twin + {"ct": 1, "mr": 2, "ct_reacq": 3, "mr_reacq": 4}[name]
    rng = stream(plan.seed, plan.key, "acquisition", number)
    noise = not plan.easy and name.removesuffix("_reacq") not in plan.canonical
    if name.startswith("ct"):
        scan = ct.draw_scan(rng, noise)
        return ct.image(rng, shown, person.hu, grid, factor, scan), dataclasses.asdict(scan)
    scan = mr.draw_scan(rng, noise)
    record = dataclasses.asdict(scan) | {"jitter": scan.jitter.round(5).tolist()}
    image = mr.image(rng, disease, shown, grid, factor, scan)
    if name in plan.canonical:  # whole numbers, in a file of a fifth the size
        image = np.rint(image).astype(np.int16)
    return image, record


def write_person(plan: Plan, cohort: str) -> str:
    """Simulates and writes <cohort>/<id>; returns the id. The folder appears complete or not at all."""
    target = pathlib.Path(cohort) / plan.id
    folder = target.with_name(f".tmp-{os.getpid()}-{plan.id}")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "truth").mkdir(parents=True)
    try:
        volumes, grid, truth = simulate(plan)
        for name, array in volumes.items():
            place = folder / "truth" if name in ("label", "lesions") else folder
            path = place / f"{name}.nii.gz"
            write_volume(path, array, grid.affine(), dtype=array.dtype, description=DESCRIPTION)
        write_json(folder / "truth" / "truth.json", truth)
        os.rename(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return plan.id


def hash_person(cohort: str, subject: str) -> dict[str, str]:
    """{path relative to the cohort: SHA-256} of a finished person's files."""
    root = pathlib.Path(cohort)
    files = sorted(p for p in (root / subject).rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix(): sha256_file(p) for p in files}
