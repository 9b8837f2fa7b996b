"""Volumes as they should not be, and unusual ones that are fine.

A kind is a maker and what is expected of it: "refused", with a part of the reason, or "handled", with a
check of the result. What other tests have a table of (`BAD`, `WRONG`) is taken from there.
"""

import gzip
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import test_data_audit as pairs
import test_data_dicom as dicoms
import test_data_nifti as niftis
from data_heads import SHAPE, affine_of, make_head, write_cohort
from scipy.spatial.transform import Rotation
from test_data_dicom import _drop, _set

from faults.corpus import flipped, head, raw, save, series, zipped


class Kind(NamedTuple):
    """make(folder) -> what is handed in. reason: part of the message (refused), or of a warning or note
    (handled, "" where none is asked). check(volume, truth) of the PET as read, in its own voxels.
    """

    name: str
    expect: str  # "refused" | "handled"
    make: Callable[[pathlib.Path], Any]
    reason: str = ""
    check: Callable[[Any, dict], bool] | None = None


def _refused(name, reason, make) -> Kind:
    return Kind(name, "refused", make, reason)


def _handled(name, make, reason="", check=None) -> Kind:
    return Kind(name, "handled", make, reason, check or same_pet)


def _of_tests(table: dict, other: dict) -> list[Kind]:
    """A table of tests: {name: (make, reason)}; `other` reasons where a door speaks before the reader."""

    def in_own(make):
        return lambda d: make(_made(d / "in"))

    return [
        _refused(f"tests: {name}", other.get(name, reason), in_own(make))
        for name, (make, reason) in table.items()
    ]


def turned(degrees: float, axis: str = "x") -> np.ndarray:
    return Rotation.from_euler(axis, degrees, degrees=True).as_matrix()


def same_pet(volume, facts, factor: float = 1.0) -> bool:
    """The voxels are those of the head on this grid: nothing shifted, turned or scaled."""
    truth = head(volume.affine, volume.array.shape)["pet"] * factor
    return np.abs(volume.array - truth).max() < 0.02 * abs(truth).max()


def _scaled(factor: float) -> Callable:
    return lambda volume, facts: same_pet(volume, facts, factor)


def anything(volume, facts) -> bool:
    return bool(np.isfinite(volume.array).all())


def _bomb(path) -> pathlib.Path:
    """A header of 8 x 8 x 8 voxels with 256 MiB behind it."""
    header = nib.Nifti1Header()
    header.set_data_shape((8, 8, 8))
    header.set_data_dtype(np.float32)
    header["magic"], header["vox_offset"] = b"n+1", 352
    with gzip.open(path, "wb", 9) as f:
        f.write(header.binaryblock + bytes(4))
        for _ in range(256):
            f.write(bytes(1 << 20))
    return path


def _linked(folder, target) -> pathlib.Path:
    (folder / P).symlink_to(target)
    return folder / P


def _fifo(folder) -> pathlib.Path:
    os.mkfifo(folder / P)
    return folder / P


def _made(path) -> pathlib.Path:
    path.mkdir()
    return path


def _big(folder, dtype, slope: float, shape=(160, 160, 160)) -> pathlib.Path:
    """Large enough for its memory to be seen: 16 MiB as float32."""
    array = (np.arange(np.prod(shape)) % 251).astype(dtype).reshape(shape)
    spacing = tuple(200 / n for n in shape)
    return save(folder / "pet.nii", array, affine_of(shape, spacing), scl_slope=slope)


def _plain(folder) -> bytes:
    path = save(folder / "plain.nii")
    data = path.read_bytes()
    path.unlink()
    return data


def _noise() -> np.ndarray:
    return np.abs(np.random.default_rng(0).standard_normal(SHAPE)).astype(np.float32)


def _hot() -> np.ndarray:
    array = np.zeros(SHAPE, np.float32)
    array[18:20, 22, 9] = 50
    return array


def _two_members(folder) -> pathlib.Path:
    data = _plain(folder)
    return raw(folder / P, gzip.compress(data[:5000]) + gzip.compress(data[5000:]))


P = "pet.nii.gz"
NIFTI = [  # grids, orientations and parts of a head: tests/test_predict_grids.py
    *_of_tests(niftis.BAD, {"folder": "holds no"}),
    _refused("link to a device without end", "not a file", lambda d: _linked(d, "/dev/zero")),
    _refused("pipe nobody writes to", "not a file", _fifo),
    _refused("name longer than a disk allows", "", lambda d: d / ("x" * 300 + ".nii.gz")),
    _refused("gzip in gzip", "not a NIfTI",
             lambda d: raw(d / P, gzip.compress(gzip.compress(_plain(d))))),
    _refused("bit flip in the voxels", "damaged", lambda d: flipped(d / P, 4000, 3)),
    _refused("bit flip in the checksum", "damaged", lambda d: flipped(d / P, -8)),
    _refused("rubbish after gzip", "damaged", lambda d: raw(d / P, save(d / P).read_bytes() + b"x")),
    _refused("Analyze 7.5", "Analyze", lambda d: save(d / P, magic=b"\0\0\0\0")),
    _refused("8 dimensions", "", lambda d: save(d / P, dim=[8, 36, 44, 18, 1, 1, 1, 1])),
    _refused("bomb behind a small header", "more data", lambda d: _bomb(d / P)),
    _refused("voxels nowhere", "", lambda d: save(d / P, vox_offset=np.nan)),
    _refused("slope beyond float32", "NaN or inf", lambda d: save(d / P, scl_slope=3e38)),
    _refused("all zero", "every voxel", lambda d: save(d / P, np.zeros(SHAPE, "f4"))),
    _refused("all negative", "positive", lambda d: save(d / P, -1 - head()["pet"])),
    _refused("5D", "frame", lambda d: save(d / P, np.zeros((4, 4, 4, 1, 3), "f4"))),
    _handled("plain", lambda d: save(d / "pet.nii")),
    _handled("float64", lambda d: save(d / P, head()["pet"].astype("f8"))),
    _handled("uint8", lambda d: save(d / P, np.rint(head()["pet"] * 20).astype("u1"), scl_slope=0.05)),
    _handled("big-endian", lambda d: save(d / P, header=nib.Nifti1Header(endianness=">"))),
    _handled("oblique by 40 degrees", lambda d: save(d / P, affine=affine_of(rotation=turned(40))),
             "tilted"),
    _handled("uncompressed, called .gz", lambda d: raw(d / P, _plain(d))),
    _handled("compressed, called .nii", lambda d: raw(d / "pet.nii", gzip.compress(_plain(d)))),
    _handled("two gzip members", _two_members),
    _handled("called .NII.GZ", lambda d: save(d / P).rename(d / "PET.NII.GZ")),
    _handled("unicode and spaces in the name", lambda d: save(d / P).rename(d / "Ключ ü 脳 (1).nii.gz")),
    _handled("name of 240 letters", lambda d: save(d / P).rename(d / ("n" * 240 + ".nii.gz"))),
    _handled("no qform, no sform", lambda d: save(d / P, qform_code=0, sform_code=0),
             "left and right are a guess", anything),
    _handled("qform against sform", lambda d: save(d / P, qoffset_x=99.0), "disagree"),
    _handled("qform that is no rotation", lambda d: save(d / P, quatern_b=1e38), "disagree"),
    _handled("Bq/ml instead of SUV", lambda d: save(d / P, head()["pet"] * 5e3), "", _scaled(5e3)),
    _handled("tiny units", lambda d: save(d / P, head()["pet"] * 1e-7), "", _scaled(1e-7)),
    _handled("CT in HU instead of PET", lambda d: save(d / P, head()["ct"]), "CT in HU", anything),
    _handled("empty brain", lambda d: save(d / P, _noise()), "foreground", anything),
    _refused("one hot voxel", "no head", lambda d: save(d / P, _hot())),
    _handled("large float64", lambda d: _big(d, np.float64, 1.0), "", anything),
    _handled("large int32 with slope", lambda d: _big(d, np.int32, 0.5), "", anything),
    _handled("large int16 with slope", lambda d: _big(d, np.int16, 0.5), "", anything),
]  # fmt: skip


def _with_file(folder, name: str, data: bytes):
    raw(folder / name, data)
    return folder


def _two_series(folder, modality: str):
    series(folder)
    edit = _set(SeriesInstanceUID="1.2.3.9", Modality=modality, SeriesNumber=4)
    return series(folder, edit, name="other{}.dcm")


S = "series"
DICOM = [
    *_of_tests(dicoms.BAD, {"empty folder": "no DICOM", "other files": "no DICOM",
                             "a text file": "not a NIfTI file"}),
    _refused("0-byte DICOM only", "no DICOM", lambda d: _with_file(_made(d / S), "a.dcm", b"")),
    _refused("slice of 0 bytes", "missing slices: 1",
             lambda d: _with_file(series(d / S), "9.dcm", b"")),
    _refused("slice twice, another image", "same position",
             lambda d: _with_file(series(d / S), "z", (d / S / "3.dcm").read_bytes()[:-2] + b"\0\0")),
    _refused("two PET series", "2 series", lambda d: _two_series(d / S, "PT")),
    _handled("Bq/ml to SUV", lambda d: series(d / S)),
    _handled("SUV as stored", lambda d: series(d / S, _set(Units="GML"), bq_per_suv=1.0)),
    _handled("no weight", lambda d: series(d / S, _drop("PatientWeight"), bq_per_suv=1.0), "not SUV"),
    _handled("oblique", lambda d: series(d / S, affine=affine_of(rotation=turned(9, "y")))),
    _handled("zip with ../ in it", lambda d: zipped(series(d / S), d / "pet.zip", "../../{}")),
    _handled("other files beside it", lambda d: _with_file(series(d / S), "notes.txt", b"x" * 999)),
    _handled("CT of the same study beside it", lambda d: _two_series(d / S, "CT"), "2 series"),
    _handled("end slices absent", lambda d: series(d / S, keep=range(16)), "16 were found"),
    _handled("compressed with loss before",
             lambda d: series(d / S, _set(LossyImageCompression="01")), "with loss"),
    _handled("text burned into the pixels",
             lambda d: series(d / S, _set(BurnedInAnnotation="YES")), "burned"),
]  # fmt: skip


def _pair(break_it: Callable[[pathlib.Path], Any]) -> Callable:
    """Without a manifest, so that an image may be absent; the last one is head 0, as in the tests."""

    def make(folder):
        write_cohort(folder, {f"sub-{i}": dict(seed=3 - i) for i in range(4)})
        (folder / "manifest.csv").unlink()
        break_it(folder / "sub-3")
        return folder

    return make


def _put(name: str, change: Callable) -> Callable:
    """Another image in its place, of what is there."""
    return _pair(lambda d: save(d / f"{name}.nii.gz", change(make_head(0)).astype("f4")))


def _lacking(names: tuple[str, ...]) -> Callable:
    """The last of a manifest has no other images than these."""

    def make(folder):
        write_cohort(folder, {f"p{i}": dict(names=names) if i == 3 else {} for i in range(4)})
        return folder

    return make


ABSENT = {"no PET": ("ct", "mr"), "no target": ("pet",)}


def _swap(folder) -> None:
    for a, b in (("pet", "x"), ("ct", "pet"), ("x", "ct")):
        (folder / f"{a}.nii.gz").rename(folder / f"{b}.nii.gz")


PAIRS = [
    *(_refused(f"tests: {k}", why, _pair(break_it))
      for k, (break_it, why) in pairs.WRONG.items() if k not in ABSENT),
    *(_refused(k, pairs.WRONG[k][1], _lacking(names)) for k, names in ABSENT.items()),
    _refused("PET and CT swapped", "swapped", _pair(_swap)),
    _refused("CT without its intercept", "not CT in HU",
             _put("ct", lambda v: np.maximum(v["ct"] + 1024, 0))),
    _refused("CT is an MR", "not CT in HU", _put("ct", lambda v: v["mr"])),
    _refused("PET zero", "every voxel", _put("pet", lambda v: 0 * v["pet"])),
    _refused("nobody's PET", "does not match", _put("pet", lambda v: _noise() + 1)),
    _refused("mosaic of slices", "not a 3D",
             _put("pet", lambda v: np.concatenate(np.moveaxis(v["pet"], 2, 0), 1))),
    _refused("dynamic PET", "frame", _put("pet", lambda v: np.stack([v["pet"]] * 2, -1))),
    _refused("a damaged file among good ones", "damaged",
             _pair(lambda d: flipped(d / "ct.nii.gz", 4000, 3))),
    _handled("content 20 mm off", _put("ct", lambda v: np.roll(v["ct"], 4, 0)), "moved about", anything),
    _handled("PET in Bq/ml", _put("pet", lambda v: v["pet"] * 5000), "is not SUV", anything),
    _handled("PET with negative voxels", _put("pet", lambda v: v["pet"] - 0.3), "is negative", anything),
    _handled("good ones", _pair(lambda d: None), "", anything),
]  # fmt: skip  # fmt: skip
