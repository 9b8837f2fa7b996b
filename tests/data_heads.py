"""Small heads for the data tests: PET, CT and MR volumes of one anatomy, and cohorts of them."""

import csv

import numpy as np
from scipy import ndimage

from cldm_jax.data.nifti import write_volume

SHAPE = (36, 44, 18)
SPACING = (5.0, 5.0, 8.0)


def affine_of(shape=SHAPE, spacing=SPACING, rotation=None, letters="RAS"):
    """Centre of the volume at world 0; `letters`: where the voxel axes point."""
    axes = np.zeros((3, 3))
    for column, letter in enumerate(letters):
        row = next(i for i, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
        axes[row, column] = spacing[column] * (1 if letter in "RAS" else -1)
    axes = (np.eye(3) if rotation is None else rotation) @ axes
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = -axes @ ((np.array(shape) - 1) / 2)
    return affine


def anatomy(x, y, z, rng):
    """(pet SUV, ct HU, mr) at world points in mm, without noise; symmetric in no axis."""
    # Off the centre of the field of view, as people lie: a mirrored volume is then out of place.
    x, y, z = x - 6, y + 8, z + 7
    a, b, c = np.array([68.0, 84.0, 58.0]) * rng.uniform(0.95, 1.03, 3)
    r = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    nose = ((x / 14) ** 2 + ((y - b) / 14) ** 2 + ((z + 10) / 18) ** 2) < 1
    head, skull, brain = (r < 1) | nose, (r > 0.84) & (r < 0.93), r < 0.8
    white = r < 0.5
    lesion = ((x - 30) ** 2 + (y - 22) ** 2 + (z - 10) ** 2) < 18**2  # right, front, upper
    ventricle = ((x / 8) ** 2 + ((y - 5) / 25) ** 2 + (z / 12) ** 2) < 1
    ct = np.where(head, 40.0, -1000.0)
    ct[skull], ct[ventricle] = 1300.0, 8.0
    pet = np.where(brain, 8.0, np.where(head, 0.8, 0.0))
    pet[white], pet[lesion & brain], pet[ventricle] = 3.0, 4.0, 1.0
    mr = np.where(head, 900.0, 0.0)
    mr[skull], mr[brain], mr[white], mr[ventricle], mr[lesion & brain] = 60, 450, 700, 100, 300
    return pet, ct, mr


def make_head(seed, shape=SHAPE, spacing=SPACING):
    """{"pet" SUV, "ct" HU, "mr" arbitrary}: float32 [x, y, z] RAS."""
    rng = np.random.default_rng(seed)
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    pet, ct, mr = anatomy(*np.meshgrid(*axes, indexing="ij"), rng)
    noise = rng.standard_normal(shape)
    pet = ndimage.gaussian_filter(pet, 0.7) + 0.05 * noise
    gain = rng.uniform(0.5, 2.0)
    mr = (mr + np.abs(15 * rng.standard_normal(shape))) * gain
    ct = ct + 8 * rng.standard_normal(shape)
    pet = pet * rng.uniform(0.8, 1.2)
    return {k: v.astype(np.float32) for k, v in (("pet", pet), ("ct", ct), ("mr", mr))}


def write_head(folder, seed, names=("pet", "ct", "mr"), affine=None):
    """Files of `make_head`; `*_reacq` are the same anatomy with other noise."""
    affine = affine_of() if affine is None else affine
    for name in names:
        base = name.removesuffix("_reacq")
        array = make_head(seed)[base]
        if name != base:
            rng = np.random.default_rng(seed + 1000)
            sd = 8.0 if base == "ct" else 0.01 * array.max()
            array = array + (sd * rng.standard_normal(array.shape)).astype(np.float32)
        dtype = np.int16 if base == "ct" else np.float32
        write_volume(folder / f"{name}.nii.gz", array, affine, dtype=dtype)


def write_cohort(folder, people):
    """`people`: {id: dict(seed=, names=, group=, split=)}; returns the manifest's path."""
    names = ("pet", "ct", "mr", "ct_reacq", "mr_reacq")
    rows = []
    for number, (name, p) in enumerate(people.items()):
        have = p.get("names", ("pet", "ct", "mr"))
        write_head(folder / name, p.get("seed", number), have)
        cells = [f"{name}/{m}.nii.gz" if m in have else "" for m in names]
        rows.append([name, p.get("group", ""), p.get("split", ""), *cells])
    path = folder / "manifest.csv"
    with open(path, "w", newline="") as f:
        csv.writer(f).writerows([["subject", "group", "split", *names], *rows])
    return path
