"""Heads, series and cohorts for the promises and their tests: made by code, no files kept; and a model
without a training. All show one head, defined in world coordinates, on whatever grid is asked for.
"""

import contextlib
import gzip
import pathlib
import types
import zipfile
from unittest import mock

import nibabel as nib
import numpy as np
import test_data_dicom as dicoms
from data_heads import SHAPE, affine_of, anatomy, write_cohort

from faults.common import flip
from faults.dicom_slices import SUV_FACTOR, dicom_slice


def head(affine=None, shape=SHAPE, seed: int = 0) -> dict[str, np.ndarray]:
    """{"pet" SUV, "ct" HU, "mr" a.u.}: float32 [x, y, z], nearly without noise."""
    affine, rng = affine_of() if affine is None else affine, np.random.default_rng(seed)
    world = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    pet, ct, mr = anatomy(*np.moveaxis(world, -1, 0), rng)
    noise = rng.standard_normal(shape)
    made = {"pet": pet + 0.02 * np.abs(noise), "ct": ct + 8 * noise, "mr": mr + np.abs(15 * noise)}
    return {name: array.astype(np.float32) for name, array in made.items()}


def save(path, array=None, affine=None, header=None, **fields) -> pathlib.Path:
    """The head's PET, or `array`; then header `fields` overwritten without any check."""
    path, affine = pathlib.Path(path), affine_of() if affine is None else affine
    image = nib.Nifti1Image(head(affine)["pet"] if array is None else array, affine, header)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)
    if fields:
        zipped = path.suffix == ".gz"
        data = bytearray(gzip.decompress(path.read_bytes()) if zipped else path.read_bytes())
        patched = nib.Nifti1Header(bytes(data[:348]), check=False)
        for key, value in fields.items():
            patched[key] = value
        data[:348] = patched.binaryblock
        path.write_bytes(gzip.compress(data) if zipped else data)
    return path


def raw(path, data: bytes) -> pathlib.Path:
    path.write_bytes(data)
    return path


def flipped(path, at: int, bit: int = 0) -> pathlib.Path:
    """A gzip file with one bit wrong, `at` bytes from its start (or end)."""
    return flip(save(path, np.rint(head()["ct"]).astype("i2")), at, bit)


def series(folder, edit=None, affine=None, keep=None, name="{}.dcm", bq_per_suv=1 / SUV_FACTOR):
    """The head's PET as a folder of slices in shuffled files; edit(ds, z) changes one of them."""
    affine = affine_of() if affine is None else affine
    array = head(affine)["pet"] * bq_per_suv
    slope = float(array.max()) / 60000
    stored = np.rint(np.clip(array, 0, None) / slope).astype(np.uint16)
    order = np.random.default_rng(1).permutation(stored.shape[2])
    for z in range(stored.shape[2]) if keep is None else keep:
        ds = dicom_slice(z, stored, affine, slope)
        if edit:
            edit(ds, z)
        dicoms._save(ds, folder / name.format(order[z]))
    return folder


def zipped(folder, path, rename="{}") -> pathlib.Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for file in sorted(folder.iterdir()):
            z.write(file, rename.format(file.name))
    return path


def cohort(folder, people: int = 4, first: int = 0) -> pathlib.Path:
    """Heads (seeds from `first`) called p0, p1, ... and a manifest."""
    write_cohort(folder, {f"p{i}": dict(seed=first + i) for i in range(people)})
    return folder


def bids(folder, people: int = 1) -> pathlib.Path:
    """PETs (seeds from 0) of sub-0, sub-1, ..."""
    for number in range(people):
        own = folder / f"sub-{number}" / "pet"
        own.mkdir(parents=True)
        save(own / f"sub-{number}_pet.nii.gz", head(seed=number)["pet"])
    return folder


@contextlib.contextmanager
def identity_model():
    """predict.predict with a model whose CT and MR are its PET; nothing is trained or read."""
    from cldm_jax.data import intensity
    from cldm_jax.data.grid import ModelGrid
    from cldm_jax.data.index import Modality
    from cldm_jax.methods.base import Method, Prediction
    from cldm_jax.runs import stored
    from cldm_jax.runs.manifest import Data
    from cldm_jax.volumes import opened, sidecars

    rules = {
        "pet": ("volume_percentile", 0, 1.5, 99),
        "ct": ("window", -1024, 3071, None),
        "mr": ("volume_percentile", 0, 1, 99.5),
    }
    modalities = {}
    for name, (rule, low, high, percentile) in rules.items():
        spec = intensity.make(name, rule, low=low, high=high, percentile=percentile)
        code = intensity.MODALITIES[name].code
        modalities[name] = Modality(code, "", intensity.fit(spec, [1.0]))
    grid = ModelGrid((48, 40), (5.0, 5.0), None)
    data = Data("identity", "", "", 0, "simulated", grid, "pet", modalities)
    manifest = types.SimpleNamespace(data=data, pet_ranges=None)
    sampling = {"num_sampling_steps": 1, "num_samples": (1, 2)}
    config = {"recipe": {"sampling": sampling}, "data": {"context": 3, "targets": ["ct", "mr"]}}

    def identity(state, batch, rng):
        return Prediction(batch["source"][..., 1:2], None)

    def mean(state, batch, rng):
        image = batch["source"][..., 1:2]
        return Prediction(image, 0.1 * (image + 1))

    readings = {"onestep": identity, "sample": identity, "mean2": mean}
    method = Method(None, None, readings, {name: 1 for name in readings})
    run = stored.Run("", "identity", config, manifest, 0, method, (), None)
    with (
        mock.patch.object(opened, "open_run", lambda *_: run),
        mock.patch.object(sidecars, "model_identity", lambda *_: "0" * 64),
    ):
        yield
