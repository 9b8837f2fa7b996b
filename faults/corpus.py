"""Volumes as they should not be, and unusual ones that are fine: made here by code, no files kept.

A kind is a maker and what is expected of it: "refused", with a part of the reason, or "handled", with a
check of the result. All show one head, defined in world coordinates, on whatever grid the kind has.
"""

import contextlib
import gzip
import os
import pathlib
import warnings
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

SHAPE, SPACING = (36, 44, 18), (5.0, 5.0, 8.0)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
RGB = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])


class Kind(NamedTuple):
    """make(folder) -> what is handed in. reason: part of the message (refused), or of a warning or note
    (handled, "" where none is asked). check(volume, truth) of the PET as read, in its own voxels.
    """

    name: str
    expect: str  # "refused" | "handled"
    make: Callable[[pathlib.Path], Any]
    reason: str = ""
    check: Callable[[Any, dict], bool] | None = None


# ---- one head ----


def affine_of(shape=SHAPE, spacing=SPACING, rotation=None, axes="RAS") -> np.ndarray:
    """Voxel -> world mm, the centre of the volume at 0; `axes`: where the voxel axes point."""
    matrix = np.zeros((3, 3))
    for column, letter in enumerate(axes):
        row = next(i for i, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
        matrix[row, column] = spacing[column] * (1 if letter in "RAS" else -1)
    if rotation is not None:
        matrix = rotation @ matrix
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = -matrix @ ((np.array(shape) - 1) / 2)
    return affine


def turned(degrees: float, axis: int = 0) -> np.ndarray:
    i, j = [k for k in range(3) if k != axis]
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    matrix[[i, j], [i, j]], matrix[i, j], matrix[j, i] = c, -s, s
    return matrix


def head(affine=None, shape=SHAPE, seed: int = 0) -> dict[str, np.ndarray]:
    """{"pet" SUV, "ct" HU, "mr" a.u.}: float32 [x, y, z], symmetric in no axis."""
    affine = affine_of() if affine is None else affine
    rng = np.random.default_rng(seed)
    index = np.moveaxis(np.indices(shape), 0, -1)
    world = index @ affine[:3, :3].T + affine[:3, 3] - (6, -8, -7)
    x, y, z = np.moveaxis(world, -1, 0)
    a, b, c = np.array([68.0, 84.0, 58.0]) * rng.uniform(0.95, 1.03, 3)
    r = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    nose = ((x / 14) ** 2 + ((y - b) / 14) ** 2 + ((z + 10) / 18) ** 2) < 1
    whole, skull, brain, white = (r < 1) | nose, (r > 0.84) & (r < 0.93), r < 0.8, r < 0.5
    lesion = ((x - 30) ** 2 + (y - 22) ** 2 + (z - 10) ** 2) < 18**2
    ventricle = ((x / 8) ** 2 + ((y - 5) / 25) ** 2 + (z / 12) ** 2) < 1
    ct = np.where(whole, 40.0, -1000.0)
    ct[skull], ct[ventricle] = 1300.0, 8.0
    pet = np.where(brain, 8.0, np.where(whole, 0.8, 0.0))
    pet[white], pet[lesion & brain], pet[ventricle] = 3.0, 4.0, 1.0
    mr = np.where(whole, 900.0, 0.0)
    mr[skull], mr[brain], mr[white], mr[ventricle], mr[lesion & brain] = 60, 450, 700, 100, 300
    noise = rng.standard_normal(shape)
    made = {"pet": pet + 0.02 * np.abs(noise), "ct": ct + 8 * noise, "mr": mr + np.abs(15 * noise)}
    return {name: array.astype(np.float32) for name, array in made.items()}


# ---- NIfTI ----


def save(path, array=None, affine=None, kind=nib.Nifti1Image, code: int = 1) -> pathlib.Path:
    affine = affine_of() if affine is None else affine
    image = kind(head(affine)["pet"] if array is None else array, affine)
    image.set_qform(affine, code)
    image.set_sform(affine, code)
    nib.save(image, path)
    return pathlib.Path(path)


def patched(path, array=None, affine=None, **fields) -> pathlib.Path:
    """A file whose header fields are overwritten without any check."""
    save(path, array, affine)
    zipped = str(path).endswith(".gz")
    data = bytearray(gzip.decompress(path.read_bytes()) if zipped else path.read_bytes())
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    for key, value in fields.items():
        header[key] = value
    data[:348] = header.binaryblock
    path.write_bytes(gzip.compress(data) if zipped else data)
    return path


def raw(path, data: bytes) -> pathlib.Path:
    path.write_bytes(data)
    return path


def _cells(**cells) -> np.ndarray:
    affine = affine_of()
    for cell, value in cells.items():
        affine[int(cell[1]), int(cell[2])] = value
    return affine


def _with(value) -> np.ndarray:
    array = head()["pet"].astype(np.float64)
    array[3, 4, 5] = value
    return array


def flipped(path, at: int, bit: int = 0) -> pathlib.Path:
    """A gzip file with one bit wrong, `at` bytes from its start (or end)."""
    data = bytearray(save(path, np.rint(head()["ct"]).astype("i2")).read_bytes())
    data[at] ^= 1 << bit
    return raw(path, bytes(data))


def _bomb(path, shape, tail: int) -> pathlib.Path:
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.float32)
    header["magic"], header["vox_offset"] = b"n+1", 352
    with gzip.open(path, "wb", 9) as f:
        f.write(header.binaryblock + bytes(4))
        for _ in range(tail >> 20):
            f.write(bytes(1 << 20))
    return path


def _linked(folder, target) -> pathlib.Path:
    (folder / "pet.nii.gz").symlink_to(target)
    return folder / "pet.nii.gz"


def _fifo(folder) -> pathlib.Path:
    os.mkfifo(folder / "pet.nii.gz")
    return folder / "pet.nii.gz"


def _made(path) -> pathlib.Path:
    path.mkdir()
    return path


def _big(folder, dtype, slope: float, shape=(160, 160, 160)) -> pathlib.Path:
    """Large enough for its memory to be seen: 16 MiB as float32."""
    array = (np.arange(np.prod(shape)) % 251).astype(dtype).reshape(shape)
    spacing = tuple(200 / n for n in shape)
    return patched(folder / "pet.nii", array, affine_of(shape, spacing), scl_slope=slope)


def _gz(folder, data: bytes) -> pathlib.Path:
    return raw(folder / "pet.nii.gz", gzip.compress(data))


def _plain(folder) -> bytes:
    path = save(folder / "plain.nii")
    data = path.read_bytes()
    path.unlink()
    return data


def _refused(name, reason, make) -> Kind:
    return Kind(name, "refused", make, reason)


def _handled(name, make, reason="", check=None) -> Kind:
    return Kind(name, "handled", make, reason, check or same_pet)


def same_pet(volume, facts) -> bool:
    """The voxels are those of the head on this grid: nothing shifted, turned or scaled."""
    truth = head(volume.affine, volume.array.shape)["pet"]
    return np.abs(volume.array - truth).max() < 0.02 * truth.max()


def _scaled(factor: float) -> Callable:
    def check(volume, facts) -> bool:
        truth = head(volume.affine, volume.array.shape)["pet"] * factor
        return np.abs(volume.array - truth).max() < 0.02 * abs(truth).max()

    return check


def anything(volume, facts) -> bool:
    return bool(np.isfinite(volume.array).all())


P = "pet.nii.gz"
NIFTI = [
    _refused("missing", "no such file", lambda d: d / P),
    _refused("0 bytes", "empty", lambda d: raw(d / P, b"")),
    _refused("folder called .nii.gz", "holds no", lambda d: _made(d / P)),
    _refused("links in a circle", "", lambda d: _linked(d, d / P)),
    _refused("link to a device without end", "not a file", lambda d: _linked(d, "/dev/zero")),
    _refused("pipe nobody writes to", "not a file", _fifo),
    _refused("NUL in the name", "", lambda d: f"{d}/a\0b.nii"),
    _refused("name longer than a disk allows", "", lambda d: d / ("x" * 300 + ".nii.gz")),
    _refused("text called .nii.gz", "not a NIfTI", lambda d: raw(d / P, b"hello " * 100)),
    _refused("text in gzip", "not a NIfTI", lambda d: _gz(d, b"hello " * 100)),
    _refused("gzip in gzip", "not a NIfTI", lambda d: _gz(d, gzip.compress(_plain(d)))),
    _refused("half a header", "not a NIfTI", lambda d: raw(d / "pet.nii", _plain(d)[:200])),
    _refused("cut short", "cut short", lambda d: raw(d / "pet.nii", _plain(d)[:-9])),
    _refused("cut short, then zipped", "cut short", lambda d: _gz(d, _plain(d)[:-9])),
    _refused("zipped, then cut", "cut short", lambda d: raw(d / P, save(d / P).read_bytes()[:-99])),
    _refused("bit flip in the voxels", "damaged", lambda d: flipped(d / P, 4000, 3)),
    _refused("bit flip in the checksum", "damaged", lambda d: flipped(d / P, -8)),
    _refused("bit flip in the length", "damaged", lambda d: flipped(d / P, -3)),
    _refused("data after the voxels", "more data", lambda d: _gz(d, _plain(d) + b"more")),
    _refused("rubbish after gzip", "damaged", lambda d: raw(d / P, save(d / P).read_bytes() + b"x")),
    _refused("header of a pair", "pair", lambda d: patched(d / P, magic=b"ni1")),
    _refused("Analyze 7.5", "Analyze", lambda d: patched(d / P, magic=b"\0\0\0\0")),
    _refused("negative size", "-36", lambda d: patched(d / P, dim=[3, -36, 44, 18, 1, 1, 1, 1])),
    _refused("size 0", "dimension", lambda d: patched(d / P, dim=[3, 0, 44, 18, 1, 1, 1, 1])),
    _refused("header lies", "cut short", lambda d: patched(d / P, dim=[3, 99, 99, 9, 1, 1, 1, 1])),
    _refused("8 dimensions", "", lambda d: patched(d / P, dim=[8, 36, 44, 18, 1, 1, 1, 1])),
    _refused("declares 50 TB", "MiB", lambda d: patched(d / P, dim=[3, *[30000] * 3, 1, 1, 1, 1])),
    _refused("bomb that says so", "MiB", lambda d: _bomb(d / P, (2000, 2000, 2000), 1 << 26)),
    _refused("bomb behind a small header", "more data", lambda d: _bomb(d / P, (8, 8, 8), 1 << 28)),
    _refused("unknown number type", "damaged", lambda d: patched(d / P, datatype=77)),
    _refused("voxels in the header", "", lambda d: patched(d / P, vox_offset=16)),
    _refused("voxels far away", "voxels at byte", lambda d: patched(d / P, vox_offset=1e9)),
    _refused("voxels nowhere", "", lambda d: patched(d / P, vox_offset=np.nan)),
    _refused("endless intercept", "scaling", lambda d: patched(d / P, scl_slope=2, scl_inter=np.inf)),
    _refused("a voxel NaN", "1 voxels are NaN", lambda d: save(d / P, _with(np.nan))),
    _refused("a voxel infinite", "NaN or infinite", lambda d: save(d / P, _with(np.inf))),
    _refused("beyond float32", "NaN or infinite", lambda d: save(d / P, _with(1e300))),
    _refused("slope beyond float32", "NaN or inf", lambda d: patched(d / P, scl_slope=3e38)),
    _refused("constant", "every voxel", lambda d: save(d / P, np.full(SHAPE, 7.0, "f4"))),
    _refused("all zero", "every voxel", lambda d: save(d / P, np.zeros(SHAPE, "f4"))),
    _refused("all negative", "positive", lambda d: save(d / P, -1 - head()["pet"])),
    _refused("2D", "not a 3D", lambda d: save(d / P, head()["pet"][:, :, 9])),
    _refused("one slice", "not a 3D", lambda d: save(d / P, head()["pet"][:, :, 9:10])),
    _refused("dynamic", "frame", lambda d: save(d / P, np.stack([head()["pet"]] * 3, -1))),
    _refused("5D", "frame", lambda d: save(d / P, np.zeros((4, 4, 4, 1, 3), "f4"))),
    _refused("colour", "RGB", lambda d: save(d / P, RGB)),
    _refused("complex", "complex", lambda d: save(d / P, head()["pet"].astype("c8"))),
    _refused("affine NaN", "NaN", lambda d: patched(d / P, srow_x=[np.nan, 0, 0, 0])),
    _refused("affine singular", "singular",
             lambda d: patched(d / P, srow_x=[5, 5, 0, 0], srow_y=[0] * 4)),
    _refused("affine with a zero column", "voxels of", lambda d: patched(d / P, srow_x=[0, 0, 0, 1])),
    _refused("voxels of 1e-9 mm", "voxels of", lambda d: save(d / P, affine=_cells(a00=1e-9))),
    _refused("voxels of a metre", "voxels of", lambda d: save(d / P, affine=_cells(a00=1e3))),
    _refused("sheared", "perpendicular", lambda d: patched(d / P, srow_x=[5, 0, 1.5, 0])),
    _handled("plain", lambda d: save(d / "pet.nii")),
    _handled("float64", lambda d: save(d / P, head()["pet"].astype("f8"))),
    _handled(
        "uint8", lambda d: patched(d / P, np.rint(head()["pet"] * 20).astype("u1"), scl_slope=0.05)
    ),
    _handled(
        "int16 with slope",
        lambda d: patched(d / P, np.rint(head()["pet"] * 100).astype("i2"), scl_slope=0.01),
    ),
    _handled("big-endian", lambda d: _big_endian(d / P)),
    _handled("NIfTI-2", lambda d: save(d / P, kind=nib.Nifti2Image)),
    _handled("one frame in 4D", lambda d: save(d / P, head()["pet"][..., None])),
    _handled("oblique", lambda d: save(d / P, affine=affine_of(rotation=turned(12)))),
    _handled("oblique by 40 degrees", lambda d: save(d / P, affine=affine_of(rotation=turned(40))),
             "tilted"),
    _handled("LPI", lambda d: save(d / P, affine=affine_of(axes="LPI"))),
    _handled("sagittal slices", lambda d: _sagittal(d / P)),
    _handled("uncompressed, called .gz", lambda d: raw(d / P, _plain(d))),
    _handled("compressed, called .nii", lambda d: raw(d / "pet.nii", gzip.compress(_plain(d)))),
    _handled("two gzip members", lambda d: _two_members(d)),
    _handled("called .NII.GZ", lambda d: save(d / P).rename(d / "PET.NII.GZ")),
    _handled("unicode and spaces in the name", lambda d: save(d / P).rename(d / "Ключ ü 脳 (1).nii.gz")),
    _handled("name of 240 letters", lambda d: save(d / P).rename(d / ("n" * 240 + ".nii.gz"))),
    _handled("qform only", lambda d: patched(d / P, sform_code=0)),
    _handled("no qform, no sform", lambda d: patched(d / P, qform_code=0, sform_code=0),
             "left and right are a guess", anything),
    _handled("qform against sform", lambda d: patched(d / P, qoffset_x=99.0), "disagree"),
    _handled("qform that is no rotation", lambda d: patched(d / P, quatern_b=1e38), "disagree"),
    _handled("Bq/ml instead of SUV", lambda d: save(d / P, head()["pet"] * 5e3), "", _scaled(5e3)),
    _handled("tiny units", lambda d: save(d / P, head()["pet"] * 1e-7), "", _scaled(1e-7)),
    _handled("negative background", lambda d: save(d / P, head()["pet"] - 0.9), "negative voxels",
             anything),
    _handled("CT in HU instead of PET", lambda d: save(d / P, head()["ct"]), "CT in HU", anything),
    _handled("empty brain", lambda d: save(d / P, _noise()), "foreground", anything),
    _refused("one hot voxel", "no head", lambda d: save(d / P, _hot())),
    _handled("half a head", lambda d: save(d / P, head()["pet"][:, :, :8]), "below to above",
             anything),
    _handled("cut at the side", lambda d: save(d / P, head()["pet"][12:]), "cut at the edge", anything),
    _handled("large float64", lambda d: _big(d, np.float64, 1.0), "", anything),
    _handled("large int32 with slope", lambda d: _big(d, np.int32, 0.5), "", anything),
    _handled("large int16 with slope", lambda d: _big(d, np.int16, 0.5), "", anything),
]  # fmt: skip


def _noise() -> np.ndarray:
    return np.abs(np.random.default_rng(0).standard_normal(SHAPE)).astype(np.float32)


def _hot() -> np.ndarray:
    array = np.zeros(SHAPE, np.float32)
    array[18:20, 22, 9] = 50
    return array


def _big_endian(path) -> pathlib.Path:
    affine = affine_of()
    image = nib.Nifti1Image(head()["pet"].astype(">f4"), affine, nib.Nifti1Header(endianness=">"))
    nib.save(image, path)
    return path


def _sagittal(path) -> pathlib.Path:
    shape = (44, 18, 36)
    affine = affine_of(shape, (5.0, 8.0, 5.0), axes="PIR")
    return save(path, head(affine, shape)["pet"], affine)


def _two_members(folder) -> pathlib.Path:
    data = _plain(folder)
    return raw(folder / P, gzip.compress(data[:5000]) + gzip.compress(data[5000:]))


# ---- DICOM ----


def dicom_slice(z: int, stored: np.ndarray, affine: np.ndarray, slope: float) -> Dataset:
    """One slice of a PET in Bq/ml with all that SUV needs."""
    lps = LPS @ affine
    axes = lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.128"
    meta.MediaStorageSOPInstanceUID = f"1.2.3.77704.{z}"
    ds = Dataset()
    ds.file_meta, ds.preamble = meta, bytes(128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, f"1.2.3.77704.{z}"
    ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3.77702", "1.2.3.77703"
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "PT", 3, z + 1
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImagePositionPatient = [f"{v:.8f}" for v in (lps @ [0, 0, z, 1])[:3]]
    ds.ImageOrientationPatient = [f"{v:.10f}" for v in (*axes[:, 0], *axes[:, 1])]
    ds.PixelSpacing = [float(np.linalg.norm(lps[:3, 1])), float(np.linalg.norm(lps[:3, 0]))]
    ds.Rows, ds.Columns = stored.shape[1], stored.shape[0]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleSlope, ds.RescaleIntercept = f"{slope:.10g}", 0.0
    ds.PixelData = stored[:, :, z].T.astype("<u2").tobytes()
    ds.SeriesDate = ds.AcquisitionDate = "20200101"
    ds.SeriesTime = ds.AcquisitionTime = "101112.000000"
    ds.Units, ds.CorrectedImage, ds.DecayCorrection = "BQML", ["DECY", "ATTN", "SCAT"], "START"
    ds.PatientWeight, ds.NumberOfSlices = 70.0, stored.shape[2]
    drug = Dataset()
    drug.RadiopharmaceuticalStartTime = "091112.00"
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = 3.7e8, 6586.2
    drug.Radiopharmaceutical = "FDG"
    ds.RadiopharmaceuticalInformationSequence = [drug]
    return ds


SUV_FACTOR = 70e3 / (3.7e8 * 2 ** (-3600 / 6586.2))  # Bq/ml -> SUVbw of `dicom_slice`


def series(folder, edit=None, affine=None, keep=None, name="{}.dcm", bq_per_suv=1 / SUV_FACTOR):
    """The head's PET as a folder of slices in shuffled files; edit(ds, z) changes one of them."""
    affine = affine_of() if affine is None else affine
    array = head(affine)["pet"] * bq_per_suv
    slope = float(array.max()) / 60000
    stored = np.rint(np.clip(array, 0, None) / slope).astype(np.uint16)
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(1).permutation(stored.shape[2])
    for z in range(stored.shape[2]) if keep is None else keep:
        ds = dicom_slice(z, stored, affine, slope)
        if edit:
            edit(ds, z)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds.save_as(folder / name.format(order[z]), enforce_file_format=True)
    return folder


def _set(**fields) -> Callable:
    def edit(ds, z):
        for name, value in fields.items():
            setattr(ds, name, value)

    return edit


def _on(number: int, **fields) -> Callable:
    return lambda ds, z: _set(**fields)(ds, z) if z == number else None


def _drop(name: str) -> Callable:
    return lambda ds, z: delattr(ds, name)


def _syntax(uid) -> Callable:
    def edit(ds, z):
        ds.file_meta.TransferSyntaxUID = uid
        if uid == ExplicitVRBigEndian:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        elif uid not in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
            ds.PixelData = pydicom.encaps.encapsulate([bytes(64)])

    return edit


def _tilt(ds, z):
    x, y, height = (float(v) for v in ds.ImagePositionPatient)
    ds.ImagePositionPatient = [x, y + 2 * z, height]


def _at(heights) -> Callable:
    def edit(ds, z):
        x, y, _ = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y, heights[z]]

    return edit


def _counts(ds, z):
    ds.Units = "CNTS"
    ds.add_new((0x7053, 0x0010), "LO", "Philips PET Private Group")
    ds.add_new((0x7053, 0x1000), "DS", f"{SUV_FACTOR:.8g}")


def _with_file(folder, name: str, data: bytes):
    raw(folder / name, data)
    return folder


def _cut(folder, count: int):
    path = sorted(folder.iterdir())[5]
    raw(path, path.read_bytes()[:count])
    return folder


def _two_series(folder, modality: str):
    series(folder)
    edit = _set(SeriesInstanceUID="1.2.3.9", Modality=modality, SeriesNumber=4)
    return series(folder, edit, name="other{}.dcm")


def zipped(folder, path, rename="{}") -> pathlib.Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for file in sorted(folder.iterdir()):
            z.write(file, rename.format(file.name))
    return path


def _zip_bomb(folder) -> pathlib.Path:
    """Says that it unpacks to 3 GiB. (zipfile gives no more than is said.)"""
    with zipfile.ZipFile(folder / "pet.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("a.dcm", bytes(1 << 24))
    return _directory(folder / "pet.zip", 24, (3 << 30).to_bytes(4, "little"))


def _encrypted(folder) -> pathlib.Path:
    return _directory(zipped(series(folder / "s"), folder / "pet.zip"), 8, b"\1\0")


def _directory(path, offset: int, value: bytes) -> pathlib.Path:
    """A zip with a field of its first entry in the central directory overwritten."""
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\1\2") + offset
    data[at : at + len(value)] = value
    return raw(path, bytes(data))


S = "series"
DICOM = [
    _refused("empty folder", "no DICOM", lambda d: _made(d / S)),
    _refused("0-byte DICOM only", "no DICOM", lambda d: _with_file(_made(d / S), "a.dcm", b"")),
    _refused("one DICOM file", "one DICOM file", lambda d: next(series(d / S).iterdir())),
    _refused("mark without content", "damaged",
             lambda d: _with_file(_made(d / S), "a.dcm", bytes(128) + b"DICM" + b"x" * 99)),
    _refused("missing slice", "missing slices: 1",
             lambda d: series(d / S, keep=[z for z in range(18) if z != 7])),
    _refused("slice of 0 bytes", "missing slices: 1", lambda d: _cut(series(d / S), 0)),
    _refused("slice cut in its header", "damaged", lambda d: _cut(series(d / S), 600)),
    _refused("slice cut in its pixels", "cut short", lambda d: _cut(series(d / S), 3000)),
    _refused("slice twice, another image", "same position",
             lambda d: _with_file(series(d / S), "z", (d / S / "3.dcm").read_bytes()[:-2] + b"\0\0")),
    _refused("dynamic", "at 6 positions", lambda d: series(d / S, _at(np.arange(18) // 3 * 8.0))),
    _refused("uneven spacing", "spacing varies",
             lambda d: series(d / S, _at(8.0 * np.arange(18) + (np.arange(18) == 5)))),
    _refused("gantry tilt", "tilt", lambda d: series(d / S, _tilt)),
    _refused("two PET series", "2 series", lambda d: _two_series(d / S, "PT")),
    _refused("CT series", "modality CT", lambda d: series(d / S, _set(Modality="CT"))),
    _refused("mixed matrix", "mixed matrix", lambda d: series(d / S, _on(2, Rows=36, Columns=44))),
    _refused("mixed units", "mixed PET", lambda d: series(d / S, _on(2, Units="GML"))),
    _refused("mixed orientation", "mixed orientations",
             lambda d: series(d / S, _on(2, ImageOrientationPatient=[0, 1, 0, 1, 0, 0]))),
    _refused("no RescaleSlope", "RescaleSlope is missing",
             lambda d: series(d / S, _drop("RescaleSlope"))),
    _refused("no position", "ImagePositionPatient",
             lambda d: series(d / S, _drop("ImagePositionPatient"))),
    _refused("no spacing", "PixelSpacing", lambda d: series(d / S, _drop("PixelSpacing"))),
    _refused("JPEG without a codec", "JPEG", lambda d: series(d / S, _syntax("1.2.840.10008.1.2.4.70"))),
    _refused("JPEG 2000", "JPEG 2000", lambda d: series(d / S, _syntax("1.2.840.10008.1.2.4.90"))),
    _refused("multi-frame", "multi-frame", lambda d: series(d / S, _set(NumberOfFrames=2))),
    _refused("mosaic", "mosaic",
             lambda d: series(d / S, _set(ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"]))),
    _refused("localizer", "localizer",
             lambda d: series(d / S, _set(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))),
    _refused("colour", "colour", lambda d: series(d / S, _set(PhotometricInterpretation="RGB"))),
    _refused("declares 65535 x 65535", "MiB", lambda d: series(d / S, _set(Rows=65535, Columns=65535))),
    _refused("no pixels", "missing", lambda d: series(d / S, _drop("PixelData"))),
    _refused("slope beyond float32", "NaN or inf",
             lambda d: series(d / S, _set(RescaleSlope=1e37, Units="GML"))),
    _refused("zip bomb", "unpacks to", _zip_bomb),
    _refused("encrypted zip", "encrypted", _encrypted),
    _handled("Bq/ml to SUV", lambda d: series(d / S)),
    _handled("SUV as stored", lambda d: series(d / S, _set(Units="GML"), bq_per_suv=1.0)),
    _handled("counts of Philips", lambda d: series(d / S, _counts)),
    _handled("no weight", lambda d: series(d / S, _drop("PatientWeight"), bq_per_suv=1.0), "not SUV"),
    _handled("implicit VR", lambda d: series(d / S, _syntax(ImplicitVRLittleEndian))),
    _handled("big-endian", lambda d: series(d / S, _syntax(ExplicitVRBigEndian))),
    _handled("RLE", lambda d: series(d / S, lambda ds, z: ds.compress(pydicom.uid.RLELossless))),
    _handled("oblique", lambda d: series(d / S, affine=affine_of(rotation=turned(-9, 1)))),
    _handled("zip", lambda d: zipped(series(d / S), d / "pet.zip")),
    _handled("zip with ../ in it", lambda d: zipped(series(d / S), d / "pet.zip", "../../{}")),
    _handled("other files beside it", lambda d: _with_file(series(d / S), "notes.txt", b"x" * 999)),
    _handled("CT of the same study beside it", lambda d: _two_series(d / S, "CT"), "2 series"),
    _handled("end slices absent", lambda d: series(d / S, keep=range(16)), "16 were found"),
    _handled("compressed with loss before",
             lambda d: series(d / S, _set(LossyImageCompression="01")), "with loss"),
    _handled("text burned into the pixels",
             lambda d: series(d / S, _set(BurnedInAnnotation="YES")), "burned"),
]  # fmt: skip


# ---- pairs: a cohort of one person who is wrong in some way ----


def cohort(folder, change=None, people: int = 4, first: int = 0) -> pathlib.Path:
    """`people` heads (seeds from `first`) and a manifest; change(images) alters the last person's
    {name: (array, affine)}.
    """
    names = ("pet", "ct", "mr")
    rows = ["subject," + ",".join(names)]
    for number in range(people):
        images = {n: (a, affine_of()) for n, a in head(seed=first + number).items()}
        if change and number == people - 1:
            images = change(dict(images))
        own = folder / f"p{number}"
        own.mkdir(parents=True)
        for name, (array, affine) in images.items():
            save(own / f"{name}.nii.gz", array, affine)
        rows.append(
            ",".join([own.name, *(f"p{number}/{n}.nii.gz" if n in images else "" for n in names)])
        )
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


def _array(name: str, function) -> Callable:
    return lambda v: v | {name: (function(v[name][0]), v[name][1])}


def _moved(name: str, mm, content: bool = False) -> Callable:
    """The affine says `mm` more; with `content`, the voxels are moved and the affine stays."""

    def change(v):
        array, affine = v[name][0], v[name][1].copy()
        if content:
            return v | {name: (np.roll(array, mm, (0, 1, 2)), affine)}
        affine[:3, 3] += mm
        return v | {name: (array, affine)}

    return change


def _other_grid(v):
    affine = affine_of((30, 40, 20), (6.0, 5.5, 7.5))
    return v | {"ct": (head(affine, (30, 40, 20), seed=3)["ct"], affine)}


PAIRS = [
    _refused("affine mirrored", "not on the PET's voxels", lambda d: cohort(
        d, lambda v: v | {"ct": (v["ct"][0], np.diag([-1.0, 1, 1, 1]) @ v["ct"][1])})),
    _refused("affine 2 mm off", "2.00 mm apart", lambda d: cohort(d, _moved("ct", (2, 0, 0)))),
    _refused("other spacing", "voxels of", lambda d: cohort(
        d, lambda v: v | {"ct": (v["ct"][0], affine_of(spacing=(5.0, 5.0, 8.4)))})),
    _refused("other grid", "not on the PET's voxels", lambda d: cohort(d, _other_grid)),
    _refused("voxels mirrored, affine not", "left and right exchanged",
             lambda d: cohort(d, lambda v: {n: (a[::-1] if n != "pet" else a, f)
                                            for n, (a, f) in v.items()})),
    _refused("upside down", "top and bottom",
             lambda d: cohort(d, _array("ct", lambda a: a[:, :, ::-1]))),
    _refused("PET and CT swapped", "swapped",
             lambda d: cohort(d, lambda v: v | {"pet": v["ct"], "ct": v["pet"]})),
    _refused("CT in uint8", "not CT in HU",
             lambda d: cohort(d, _array("ct", lambda a: np.clip((a + 1000) / 9, 0, 255).astype("u1")))),
    _refused("CT without its intercept", "not CT in HU",
             lambda d: cohort(d, _array("ct", lambda a: np.maximum(a + 1024, 0)))),
    _refused("CT without bone", "no bone",
             lambda d: cohort(d, _array("ct", lambda a: a.clip(-1024, 90)))),
    _refused("MR is a CT", "CT in HU", lambda d: cohort(d, lambda v: v | {"mr": v["ct"]})),
    _refused("CT is an MR", "not CT in HU", lambda d: cohort(d, lambda v: v | {"ct": v["mr"]})),
    _refused("PET zero", "every voxel", lambda d: cohort(d, _array("pet", lambda a: 0 * a))),
    _refused("PET negative", "no voxel is above zero",
             lambda d: cohort(d, _array("pet", lambda a: -a - 1))),
    _refused("PET of one hot voxel", "ml stand out",
             lambda d: cohort(d, lambda v: v | {"pet": (_hot(), affine_of())})),
    _refused("nobody's PET", "does not match", lambda d: cohort(
        d, lambda v: v | {"pet": (_noise() + 1, affine_of())})),
    _refused("no PET", "no PET", lambda d: cohort(d, lambda v: {k: v[k] for k in ("ct", "mr")})),
    _refused("PET only", "neither CT nor MR", lambda d: cohort(d, lambda v: {"pet": v["pet"]})),
    _refused("mosaic of slices", "not a 3D", lambda d: cohort(
        d, _array("pet", lambda a: np.concatenate(np.moveaxis(a, 2, 0), 1)))),
    _refused("dynamic PET", "frame",
             lambda d: cohort(d, _array("pet", lambda a: np.stack([a, a], -1)))),
    _refused("a damaged file among good ones", "damaged", lambda d: _damage(cohort(d))),
    _refused("a file that is not there", "no such file", lambda d: _unlink(cohort(d))),
    _refused("column misspelt", "Rename it to 'ct'", lambda d: _header(cohort(d), "subject,pet,cct,mr")),
    _refused("no PET column", "no column 'pet'", lambda d: _header(cohort(d), "subject,image,ct,mr")),
    _handled("content 20 mm off", lambda d: cohort(d, _moved("ct", (4, 0, 0), content=True)),
             "moved about", anything),
    _handled("PET in Bq/ml", lambda d: cohort(d, _array("pet", lambda a: a * 5000)),
             "is not SUV", anything),
    _handled("PET with negative voxels", lambda d: cohort(d, _array("pet", lambda a: a - 0.3)),
             "is negative", anything),
    _handled("good ones", lambda d: cohort(d), "", anything),
]  # fmt: skip


def _damage(folder):
    path = folder / "p3" / "ct.nii.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    return raw(path, bytes(data)).parent.parent


def _unlink(folder):
    (folder / "p2" / "mr.nii.gz").unlink()
    return folder


def _header(folder, line: str):
    path = folder / "manifest.csv"
    path.write_text(line + "\n" + path.read_text().partition("\n")[2])
    return folder


# ---- a model without a training ----


@contextlib.contextmanager
def identity_model():
    """predict.predict with a model whose CT and MR are its PET; nothing is trained or read."""
    from cldm_jax.data import intensity
    from cldm_jax.methods.base import Method
    from cldm_jax.runs import readouts
    from cldm_jax.volumes import derivatives, opened

    rules = {
        "pet": intensity.make("pet", "volume_percentile", low=0, high=1.5, percentile=99),
        "ct": intensity.make("ct", "window", low=-1024, high=3071, percentile=None),
        "mr": intensity.make("mr", "volume_percentile", low=0, high=1, percentile=99.5),
    }
    modalities = {
        name: {
            "code": intensity.MODALITIES[name].code,
            "normaliser": intensity.fit(spec, [1.0]).to_json(),
        }
        for name, spec in rules.items()
    }
    grid = {"size": [48, 40], "spacing_mm": [5.0, 5.0], "slice_spacing_mm": None, "center": "pet"}
    data = {"grid": grid, "modalities": modalities, "name": "identity", "contrast": "simulated"}
    sampling = {"num_sampling_steps": 1, "num_samples": (1, 2)}
    config = {
        "recipe": {"sampling": sampling},
        "data": {"context": 3, "targets": ["ct", "mr"]},
    }
    readings = {"onestep": _identity, "sample": _identity, "mean2": _identity_mean}
    method = Method(None, None, readings, {name: 1 for name in readings})
    run = readouts.Run("", "identity", config, {"data": data}, 0, method, (), None)
    old = opened.open_run, derivatives.model_identity
    opened.open_run, derivatives.model_identity = (lambda *a: run), (lambda *a: "0" * 64)
    try:
        yield
    finally:
        opened.open_run, derivatives.model_identity = old


def _identity(state, batch, rng):
    from cldm_jax.methods.base import Prediction

    return Prediction(batch["source"][..., 1:2], None)


def _identity_mean(state, batch, rng):
    from cldm_jax.methods.base import Prediction

    image = batch["source"][..., 1:2]
    return Prediction(image, 0.1 * (image + 1))
