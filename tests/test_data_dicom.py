"""A DICOM series becomes the right volume in the right unit, or one clear line; no name gets out.

Every series is written here, into files named and tagged with canaries that no output may hold.
"""

import json
import logging
import os
import pathlib
import sys
import traceback
import warnings
import zipfile
import zlib

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from cldm_jax.data import dicom, dicom_files, dicom_header, nifti, suv, volumes
from cldm_jax.errors import UserError

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # faults is not installed

from faults.dicom_slices import LPS, dicom_slice  # noqa: E402

SHAPE = (9, 7, 6)  # x (columns), y (rows), z
DOSE, WEIGHT, HALF_LIFE = 3.7e8, 70.0, 6586.2
UIDS = {
    "study": "1.2.3.77701",
    "series": "1.2.3.77702",
    "frame": "1.2.3.77703",
    "sop": "1.2.3.77704",
}
CANARIES = ("CANARY", *UIDS.values(), "19770707", "19330303", "101112", "091112", "secret")
NAMING = {
    "PatientName": "CANARY^Name", "PatientID": "CANARY-ID", "InstitutionName": "CANARY Hospital",
    "ReferringPhysicianName": "CANARY^Doctor", "OperatorsName": "CANARY^Operator",
    "StudyDescription": "CANARY study", "SeriesDescription": "CANARY series",
    "ProtocolName": "CANARY protocol", "AccessionNumber": "CANARYACC", "StationName": "CANARYSTN",
    "DeviceSerialNumber": "CANARYSN", "PatientBirthDate": "19330303", "StudyDate": "19770707",
    "PatientComments": "CANARY comment", "ImageComments": "CANARY image", "StudyID": "CANARY-SID",
    "PatientAddress": "CANARY street", "Manufacturer": "CANARY SIEMENS", "PatientSex": "F",
}  # fmt: skip


def _oblique(spacing=(2.0, 3.0, 4.0)):
    a, b = 0.4, -0.25
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tip = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ tip @ np.diag(spacing)
    affine[:3, 3] = (31.5, -20.25, 12.0)
    return affine


AFFINE = _oblique()
STORED = np.random.default_rng(3).integers(0, 30000, SHAPE).astype(np.uint16)


PET_ONLY = (
    "Units CorrectedImage DecayCorrection PatientWeight NumberOfSlices "
    "RadiopharmaceuticalInformationSequence"
).split()


def _slice(z, modality="PT", stored=STORED, affine=AFFINE, uid="series", number=3):
    """One slice, rows [y, x], of a volume [x, y, z] with a RAS+ affine, full of names."""
    ds = dicom_slice(z, stored, affine, 0.5)
    for tag, value in NAMING.items():
        setattr(ds, tag, value)
    ds.add_new((0x0099, 0x0010), "LO", "CANARY block")
    ds.add_new((0x0099, 0x1001), "LO", "CANARY private")
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{UIDS['sop']}.{z}"
    ds.StudyInstanceUID, ds.FrameOfReferenceUID = UIDS["study"], UIDS["frame"]
    ds.SeriesInstanceUID = UIDS["series"] + ("" if uid == "series" else "." + uid)
    ds.Modality, ds.SeriesNumber = modality, number
    ds.SeriesDate = ds.AcquisitionDate = "19770707"
    ds.PatientWeight = WEIGHT
    drug, code = ds.RadiopharmaceuticalInformationSequence[0], Dataset()
    drug.Radiopharmaceutical = "CANARY FDG"
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = DOSE, HALF_LIFE
    code.CodeMeaning = "Fluorodeoxyglucose F^18^"
    drug.RadiopharmaceuticalCodeSequence = [code]
    for tag in PET_ONLY if modality != "PT" else ():
        delattr(ds, tag)
    return ds


def _save(ds, path, raw=()):
    """`raw`: (old, new) bytes of the file, for values pydicom would not write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.save_as(path, enforce_file_format=True)
    data = path.read_bytes()
    for old, new in raw:
        assert len(old) == len(new) and old in data
        data = data.replace(old, new)
    path.write_bytes(data)


def _series(folder, edit=None, raw=(), keep=None, **slice_options):
    """Slices in shuffled files; `edit(ds, z)` changes one before it is written."""
    depth = slice_options.get("stored", STORED).shape[2]
    names = np.random.default_rng(1).permutation(depth)
    for z in range(depth):
        if keep is not None and z not in keep:
            continue
        ds = _slice(z, **slice_options)
        if edit:
            edit(ds, z)
        name = f"CANARY_{names[z]}_{slice_options.get('uid', '')}.dcm"
        _save(ds, folder / "CANARYdir" / name, raw)
    return folder


def _clean(text):
    for canary in CANARIES:
        assert canary not in text, canary


def _refused(path, fragment, **options):
    with pytest.raises(UserError) as caught:
        dicom.read_series(path, **options)
    error = caught.value
    assert fragment.lower() in error.reason.lower(), error.reason
    assert error.remedy and str(error).count("\n") == 0
    _clean(str(error))
    _clean("".join(traceback.format_exception(error)))
    assert error.__cause__ is None
    return error


@pytest.fixture(autouse=True)
def nothing_leaks(caplog, capfd, recwarn):
    caplog.set_level(logging.DEBUG)
    yield
    out = capfd.readouterr()
    _clean(caplog.text + out.out + out.err + "".join(str(w.message) for w in recwarn))


# ---- geometry and stored values ----


def test_shuffled_oblique_series_equals_the_nifti_truth(tmp_path):
    read = dicom.read_series(_series(tmp_path / "in")).volume
    factor = suv.bw_factor(_pet())
    nifti.write_volume(tmp_path / "t.nii", STORED * 0.5 * factor, AFFINE, dtype=np.float32)
    truth = nifti.read_volume(tmp_path / "t.nii")
    np.testing.assert_allclose(read.array, truth.array, rtol=1e-6)
    np.testing.assert_allclose(read.affine, truth.affine, atol=1e-4)
    np.testing.assert_allclose(read.spacing, (2, 3, 4), atol=1e-5)
    marker = np.unravel_index(STORED.argmax(), SHAPE)
    found = np.unravel_index(read.array.argmax(), SHAPE)
    world = (read.affine @ [*found, 1])[:3]
    np.testing.assert_allclose(world, (AFFINE @ [*marker, 1])[:3], atol=1e-3)
    assert read.array.dtype == np.float32 and read.notes == ()


def test_axial_geometry_by_hand(tmp_path):
    """Against the standard's text, not against the writer above."""

    def edit(ds, z):
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [-10, -20, 30 + 4 * z]
        ds.PixelSpacing = [2, 3]  # between rows, between columns

    volume = dicom.read_series(_series(tmp_path, edit)).volume
    assert nifti.orientation(volume.affine) == "LPS"
    np.testing.assert_allclose(volume.affine @ [5, 6, 2, 1], (10 - 15, 20 - 12, 38, 1))
    np.testing.assert_allclose(volume.spacing, (3, 2, 4))


def test_slices_against_the_normal_come_out_along_it(tmp_path):
    flipped = AFFINE @ np.diag([1, 1, -1, 1.0])
    read = dicom.read_series(_series(tmp_path, modality="CT", affine=flipped)).volume
    np.testing.assert_allclose(read.array, STORED[:, :, ::-1] * 0.5)
    np.testing.assert_allclose(read.affine @ [0, 0, 5, 1], flipped @ [0, 0, 0, 1], atol=1e-6)


def test_each_slice_has_its_own_slope_and_intercept(tmp_path):
    def edit(ds, z):
        ds.RescaleSlope, ds.RescaleIntercept, ds.Units = 0.25 * (z + 1), z, "GML"

    read = dicom.read_series(_series(tmp_path, edit)).volume
    slopes, inters = 0.25 * (1 + np.arange(6)), np.arange(6)
    np.testing.assert_allclose(read.array, STORED * slopes + inters, rtol=1e-6)


def test_ct_is_in_hounsfield_units(tmp_path):
    def edit(ds, z):
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"

    read = dicom.read_series(_series(tmp_path, edit, modality="CT"))
    np.testing.assert_array_equal(read.volume.array, STORED.astype(np.float32) - 1024)
    assert (read.facts["modality"], read.facts["units"]) == ("CT", "HU")


def test_mr_needs_no_slope(tmp_path):
    def edit(ds, z):
        del ds.RescaleSlope, ds.RescaleIntercept

    read = dicom.read_series(_series(tmp_path, edit, modality="MR"))
    np.testing.assert_array_equal(read.volume.array, STORED)
    assert read.facts["units"] == "arbitrary"


@pytest.mark.parametrize("signed", [0, 1])
def test_sign_and_stored_bits(tmp_path, signed):
    """12 bits stored; the upper four hold rubbish, as overlays once did."""
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE) * 7 % 4096
    stored = (values | 0xA000).astype(np.uint16)

    def edit(ds, z):
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation, ds.RescaleSlope = 12, 11, signed, 1

    read = dicom.read_series(_series(tmp_path, edit, modality="CT", stored=stored))
    expected = np.where(values >= 2048, values - 4096, values) if signed else values
    np.testing.assert_array_equal(read.volume.array, expected)


def _pads(signed, value, limit=None, syntax=ExplicitVRLittleEndian, at=(slice(2), slice(3))):
    """Rows 0, 1 of columns 0 to 2 hold `value`; the tag has the other sign than the pixels."""

    def edit(ds, z):
        rows = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns).copy()
        rows[at] = value % 65536
        ds.PixelData, ds.PixelRepresentation = rows.tobytes(), signed
        ds.file_meta.TransferSyntaxUID = syntax
        other = value % 65536 if signed else (value + 32768) % 65536 - 32768
        ds.add_new("PixelPaddingValue", "US" if signed else "SS", other)
        if limit is not None:
            ds.add_new("PixelPaddingRangeLimit", "SS" if signed else "US", limit)

    return edit


@pytest.mark.parametrize(
    "modality, edit",
    [
        ("PT", _pads(0, 65535)), ("PT", _pads(1, -32768)), ("CT", _pads(0, 65535)),
        ("PT", _pads(0, 65535, syntax=ImplicitVRLittleEndian)), ("PT", _pads(1, -2000, limit=-1)),
    ],
)  # fmt: skip
def test_padding_is_air_and_is_said(tmp_path, modality, edit):
    read = dicom.read_series(_series(tmp_path, edit, modality=modality)).volume
    factor = 0.5 * (suv.bw_factor(_pet()) if modality == "PT" else 1)
    expected = (STORED * factor).astype(np.float32)
    expected[:3, :2] = 0.0 if modality == "PT" else -1024.0
    np.testing.assert_allclose(read.array, expected, rtol=1e-6)
    assert read.notes == ("36 voxels are padding (PixelPaddingValue), read as air",)


def test_a_padding_value_that_tissue_has_is_a_leftover(tmp_path):
    read = dicom.read_series(_series(tmp_path, _pads(0, 40, at=(3, 4)), modality="CT")).volume
    assert (read.array[4, 3] == 20.0).all() and read.notes == ()


@pytest.mark.parametrize("syntax", ["implicit", "big endian", "RLE"])
def test_transfer_syntaxes(tmp_path, syntax):
    def edit(ds, z):
        if syntax == "RLE":
            ds.compress(pydicom.uid.RLELossless)
        elif syntax == "implicit":
            ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        else:
            ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()

    read = dicom.read_series(_series(tmp_path, edit))
    np.testing.assert_allclose(read.volume.array, STORED * 0.5 * suv.bw_factor(_pet()), rtol=1e-6)


def test_header_serves_the_writer(tmp_path):
    volume = dicom.read_series(_series(tmp_path / "in")).volume
    path = tmp_path / "out.nii.gz"
    nifti.write_volume(path, volume.array, volume.affine, dtype=np.float32, like=volume)
    again = nifti.read_volume(path)
    np.testing.assert_array_equal(again.array, volume.array)
    assert int(volume.header["qform_code"]) == int(volume.header["sform_code"]) == 1
    assert volume.header.get_xyzt_units() == ("mm", "sec")


# ---- SUV ----


def _pet(**changes):
    known = dict(
        units="BQML", corrections=frozenset(("ATTN", "DECY")), decay_correction="START",
        weight_kg=WEIGHT, dose_bq=DOSE, half_life_s=HALF_LIFE,
        injection=suv.parse_moment("", "091112"), series=suv.parse_moment("", "101112"),
    )  # fmt: skip
    return suv.Pet(**{**known, **changes})


def _at(date, time):
    return suv.parse_moment(date, time)


NORMAL = WEIGHT * 1000 / DOSE
HOUR = 2 ** (3600 / HALF_LIFE)
GIVEN = {
    "START, one hour": ({}, NORMAL * HOUR),
    "ADMIN": ({"decay_correction": "ADMIN"}, NORMAL),
    "ADMIN needs no times": (
        {"decay_correction": "ADMIN", "injection": None, "series": None, "half_life_s": None},
        NORMAL,
    ),
    "GML": ({"units": "GML", "corrections": frozenset()}, 1.0),
    "GML by weight": ({"units": "GML", "suv_type": "BW"}, 1.0),
    "midnight, no dates": (
        {"injection": _at("", "233000"), "series": _at("", "003000")},
        NORMAL * HOUR,
    ),
    "midnight, dates": (
        {"injection": _at("20231231", "233000"), "series": _at("20240101", "003000")},
        NORMAL * HOUR,
    ),
    "series after the scan": (
        {"series": _at("", "141112"), "acquisitions": (_at("", "102112"), _at("", "101112"))},
        NORMAL * HOUR,
    ),
    "series before the scan": ({"acquisitions": (_at("", "111112"),)}, NORMAL * HOUR),
    "series before midnight, scan after": (
        {
            "injection": _at("", "225900"),
            "series": _at("", "235900"),
            "acquisitions": (_at("", "000100"),),
        },
        NORMAL * HOUR,
    ),
    "no series time": ({"series": None, "acquisitions": (_at("", "101112"),)}, NORMAL * HOUR),
    "Philips counts": ({"units": "CNTS", "philips_suv": 3e-4}, 3e-4),
    "Philips activity": ({"units": "CNTS", "philips_activity": 2.0}, 2 * NORMAL * HOUR),
    "zirconium after three days": (
        {
            "half_life_s": 282240.0,
            "injection": _at("20240101", "101112"),
            "series": _at("20240104", "101112"),
        },
        NORMAL * 2 ** (3 * 86400 / 282240.0),
    ),
}
NOT_GIVEN = {
    "no weight": ({"weight_kg": None}, "PatientWeight is missing"),
    "weight in grams": ({"weight_kg": 70000.0}, "PatientWeight is not"),
    "weight 0": ({"weight_kg": 0.0}, "PatientWeight is not"),
    "no dose": ({"dose_bq": None}, "RadionuclideTotalDose is missing"),
    "dose in MBq": ({"dose_bq": 370.0}, "RadionuclideTotalDose is not"),
    "no half-life": ({"half_life_s": None}, "RadionuclideHalfLife is missing"),
    "no injection": ({"injection": None}, "RadiopharmaceuticalStartTime is missing"),
    "no scan time": ({"series": None}, "SeriesTime"),
    "not decay corrected": ({"corrections": frozenset(["ATTN"])}, "lacks DECY"),
    "not attenuation corrected": ({"corrections": frozenset(["DECY"])}, "lacks ATTN"),
    "SUV of a PET that is not": (
        {"units": "GML", "corrections": frozenset(["DECY"])},
        "lacks ATTN",
    ),
    "DecayCorrection NONE": ({"decay_correction": "NONE"}, "DecayCorrection"),
    "lean body mass": ({"units": "GML", "suv_type": "LBM"}, "not by body weight"),
    "counts": ({"units": "CNTS"}, "Philips"),
    "unknown units": ({"units": "other"}, "Units"),
    "clocks a minute apart": ({"injection": _at("", "101212")}, "contradict"),
    "injection the day after": (
        {"injection": _at("20240102", "091112"), "series": _at("20240101", "101112")},
        "contradict",
    ),
    "dates a year apart": (
        {"injection": _at("20230101", "091112"), "series": _at("20240101", "101112")},
        "contradict",
    ),
    "zirconium without dates": ({"half_life_s": 282240.0}, "RadiopharmaceuticalStartDateTime"),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_suv_closed_form(kind):
    changes, expected = GIVEN[kind]
    assert suv.bw_factor(_pet(**changes)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", NOT_GIVEN)
def test_suv_is_not_guessed(kind):
    changes, fragment = NOT_GIVEN[kind]
    with pytest.raises(suv.NoSuv, match=fragment):
        suv.bw_factor(_pet(**changes))


def test_times_are_parsed():
    assert suv.parse_moment("20240131", "101112.5") == suv.Moment(738916, 36672.5)
    assert suv.parse_moment("", "1011").second == 36660
    assert suv.parse_moment("2024.01.31", "10:11:12").second == 36672
    assert suv.parse_datetime("20240131101112.5").day == 738916
    for text in ("", "xx", "251112", "106112"):
        assert suv.parse_moment("20240131", text) is None
    for text in ("20240131", "20240131101112+0200", "20241331101112"):
        assert suv.parse_datetime(text) is None


def test_the_tags_reach_the_arithmetic(tmp_path):
    """Date and time of injection in one tag, which wins; acquisition before the series time."""

    def edit(ds, z):
        drug = ds.RadiopharmaceuticalInformationSequence[0]
        del drug.RadiopharmaceuticalStartTime
        drug.RadiopharmaceuticalStartDateTime = "19770706233000"
        ds.SeriesTime, ds.AcquisitionTime = "040000", f"01000{z}"
        ds.CorrectedImage = ["ATTN", "DECY", "CANARY"]

    read = dicom.read_series(_series(tmp_path, edit))
    factor = NORMAL * 2 ** (5400 / HALF_LIFE)
    np.testing.assert_allclose(read.volume.array, STORED * 0.5 * factor, rtol=1e-6)
    assert read.facts == {
        "modality": "PT", "manufacturer": "Siemens", "slices": 6, "units": "SUVbw",
        "suv_factor": pytest.approx(factor), "tracer": "FDG", "half_life_s": HALF_LIFE,
        "minutes_after_injection": 90, "minutes_to_decay_reference": 90,
        "decay_correction": "START", "corrections": ["ATTN", "DECY"],
    }  # fmt: skip


def _philips(value, element=0x00, syntax=ExplicitVRLittleEndian, behind=False):
    def edit(ds, z):
        ds.Units, ds.file_meta.TransferSyntaxUID = "CNTS", syntax
        if behind:
            ds.private_block(0x7053, "CANARY", create=True)
        block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
        block.add_new(element, "DS", f"{value:g}")

    return edit


@pytest.mark.parametrize("implicit, behind", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("element, factor", [(0x00, 3e-4), (0x09, 1.25 * NORMAL * HOUR)])
def test_philips_private_factors(tmp_path, element, factor, implicit, behind):
    """`behind`: another's private block is the first of the group."""
    read_as = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    _series(tmp_path, _philips(factor if element == 0 else 1.25, element, read_as, behind))
    read = dicom.read_series(tmp_path)
    np.testing.assert_allclose(read.volume.array, STORED * 0.5 * factor, rtol=1e-6)


@pytest.mark.parametrize(
    "units, suv_type, named",
    [
        ("BQML", "", "Bq/ml"),
        ("CNTS", "", "counts"),
        ("GML", "LBM", "SUV (LBM)"),
        ("X", "", "unknown"),
    ],
)
def test_without_the_tags_the_stored_unit_stays_and_says_so(tmp_path, units, suv_type, named):
    def edit(ds, z):
        del ds.PatientWeight
        ds.Units, ds.SUVType = units, suv_type

    read = dicom.read_series(_series(tmp_path, edit))
    np.testing.assert_array_equal(read.volume.array, STORED * np.float32(0.5))
    assert read.facts["units"] == named and read.facts["suv_factor"] is None
    assert len(read.volume.notes) == 1 and named in read.volume.notes[0]


@pytest.mark.parametrize(
    "drug, nuclide, named",
    [
        ("CANARY [18F]FDG", "", "FDG"), ("CANARY", "^18^Fluorine", "F-18"),
        ("CANARY", "CANARY", "other"), ("Ga-68 PSMA-11", "", "PSMA"), ("fetal CANARY", "", "other"),
    ],
)  # fmt: skip
def test_tracers_come_from_a_list(tmp_path, drug, nuclide, named):
    def edit(ds, z):
        item, code = ds.RadiopharmaceuticalInformationSequence[0], Dataset()
        del item.RadiopharmaceuticalCodeSequence
        code.CodeMeaning = nuclide
        item.Radiopharmaceutical, item.RadionuclideCodeSequence = drug, [code]

    assert dicom.read_series(_series(tmp_path, edit)).facts["tracer"] == named


# ---- refusals ----


def _set(**tags):
    def edit(ds, z):
        for tag, value in tags.items():
            setattr(ds, tag, value)

    return edit


def _on(which, **tags):
    return lambda ds, z: _set(**tags)(ds, z) if z == which else None


def _drop(tag):
    return lambda ds, z: delattr(ds, tag)


def _move(which, vector):
    def edit(ds, z):
        if z == which:
            ds.ImagePositionPatient = [a + b for a, b in zip(ds.ImagePositionPatient, vector)]  # noqa: B905

    return edit


def _tilt(ds, z):
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient = [0, 0.5 * z, 4 * z]


def _axial(*heights):
    def edit(ds, z):
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, heights[z]]

    return edit


def _syntax(uid):
    def edit(ds, z):
        ds.compress(pydicom.uid.RLELossless)
        ds.file_meta.TransferSyntaxUID = uid

    return edit


def _rle_bomb(ds, z):
    ds.compress(pydicom.uid.RLELossless)
    ds.PixelData = pydicom.encaps.encapsulate([b"\1\0\0\0\x40" + bytes(59) + b"\x81\0" * 9999])


def _colour(ds, z):
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.PixelData = ds.PixelData * 3


def _two(folder, **first):
    _series(folder, _set(**first), uid="1", number=2, modality="MR")
    return _series(folder, uid="2", number=5, modality="CT")


def _file(folder, data):
    folder.mkdir(exist_ok=True)
    (folder / "CANARY.dcm").write_bytes(data)
    return folder


def _cut(folder, keep):
    _series(folder)
    victim = sorted((folder / "CANARYdir").iterdir())[2]
    victim.write_bytes(victim.read_bytes()[:keep])
    return folder


NORMAL_VECTOR = (LPS @ AFFINE)[:3, 2] / 4
BAD = {
    "nothing there": (lambda d: d / "none", "no such"),
    "empty folder": (lambda d: d, "no DICOM image (0 DICOM files, 0 files)"),
    "other files": (lambda d: _file(d, b"CANARY" * 99), "no DICOM image (0 DICOM files, 1 files)"),
    "a text file": (lambda d: _file(d, b"CANARY" * 99) / "CANARY.dcm", "neither"),
    "one file": (lambda d: _file(d, bytes(128) + b"DICM") / "CANARY.dcm", "one DICOM file"),
    "empty DICOM": (
        lambda d: _file(d, bytes(128) + b"DICM"),
        "file 1 of 1 (sorted by name) is damaged",
    ),
    "rubbish DICOM": (lambda d: _file(d, bytes(128) + b"DICM" + b"CANARY" * 99), "damaged"),
    "two series": (_two, "2 series: number 2 MR 6 images 9 x 7; number 5 CT 6 images 9 x 7"),
    "odd modality": (lambda d: _two(d, Modality="CANARY"), "number 2 other"),
    "one slice": (lambda d: _series(d, keep=[2]), "1 image of 9 x 7 is not a 3D volume"),
    "a missing slice": (lambda d: _series(d, keep=[0, 1, 2, 4, 5]), "missing slices: 1, between"),
    "three missing": (
        lambda d: _series(d, _axial(0, 4, 8, 16, 20, 32)),
        "missing slices: 3, between 8.0 and 16.0, 20.0 and 32.0 mm",
    ),
    "irregular": (lambda d: _series(d, _axial(0, 4, 8, 12.1, 16, 20)), "spacing varies"),
    "drifting": (
        lambda d: _series(
            d,
            lambda ds, z: _axial(*np.r_[0, np.cumsum(np.linspace(0.992, 1.008, 72))])(ds, z),
            stored=np.tile(STORED, (1, 1, 12)),
        ),
        "spacing varies",
    ),
    "same position twice": (
        lambda d: _series(d, _move(4, -4 * NORMAL_VECTOR)),
        "InstanceNumber 4 and 5",
    ),
    "dynamic": (lambda d: _series(d, _axial(0, 0, 0, 4, 4, 4)), "6 images at 2 positions"),
    "tilted": (lambda d: _series(d, _tilt), "gantry tilt"),
    "one slice off": (
        lambda d: _series(d, _move(3, (LPS @ AFFINE)[:3, 0] / 4)),
        "shifted sideways",
    ),
    "mixed orientation": (
        lambda d: _series(d, _on(2, ImageOrientationPatient=[1, 0, 0, 0, 1, 0])),
        "mixed orientations",
    ),
    "mixed matrix": (lambda d: _series(d, _on(2, Rows=9, Columns=7)), "mixed matrix"),
    "mixed spacing": (lambda d: _series(d, _on(2, PixelSpacing=[1, 1])), "mixed pixel spacings"),
    "mixed units": (lambda d: _series(d, _on(2, Units="CNTS")), "mixed PET values (units)"),
    "mixed weights": (lambda d: _series(d, _on(2, PatientWeight=80)), "(weight kg)"),
    "mixed modality": (lambda d: _series(d, _on(2, Modality="CT")), "mixed modalities"),
    "mixed frames": (
        lambda d: _series(d, _on(2, FrameOfReferenceUID=UIDS["frame"] + ".9")),
        "mixed frames of reference",
    ),
    "bad orientation": (
        lambda d: _series(d, _set(ImageOrientationPatient=[1, 0, 0, 1, 0, 0])),
        "not two unit vectors",
    ),
    "negative spacing": (lambda d: _series(d, _set(PixelSpacing=[-2, 2])), "not positive"),
    "endless position": (
        lambda d: _series(d, _on(0, ImagePositionPatient=[0, 0, 1e200])),
        "ImagePositionPatient is missing in 1",
    ),
    "tiny voxels": (lambda d: _series(d, _set(PixelSpacing=[1e-3, 1e-3])), "voxels of"),
    "no position": (lambda d: _series(d, _drop("ImagePositionPatient")), "ImagePositionPatient"),
    "half a position": (
        lambda d: _series(d, _on(1, ImagePositionPatient=[0, 0])),
        "missing in 1 of 6",
    ),
    "no orientation": (lambda d: _series(d, _drop("ImageOrientationPatient")), "ImageOrient"),
    "no spacing": (lambda d: _series(d, _drop("PixelSpacing")), "PixelSpacing is missing"),
    "no slope": (lambda d: _series(d, _drop("RescaleSlope")), "RescaleSlope is missing in 6 of 6"),
    "slope 0": (lambda d: _series(d, _set(RescaleSlope=0)), "RescaleSlope is 0"),
    "slope of text": (
        lambda d: _series(d, _set(RescaleSlope="12345678"), [(b"12345678", b"CANARY12")]),
        "RescaleSlope is missing",
    ),
    "multi-frame": (lambda d: _series(d, _set(NumberOfFrames=2)), "multi-frame"),
    "localizer": (
        lambda d: _series(d, _set(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
        "localizer",
    ),
    "mosaic": (
        lambda d: _series(d, _set(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])),
        "mosaics",
    ),
    "colour": (lambda d: _series(d, _colour), "colour"),
    "palette": (lambda d: _series(d, _set(PhotometricInterpretation="PALETTE COLOR")), "colour"),
    "JPEG lossless": (lambda d: _series(d, _syntax("1.2.840.10008.1.2.4.70")), "JPEG Lossless"),
    "JPEG 2000": (lambda d: _series(d, _syntax("1.2.840.10008.1.2.4.90")), "JPEG 2000"),
    "private syntax": (
        lambda d: _series(
            d,
            _syntax("1.2.840.10008.1.2.4.70"),
            [(b"1.2.840.10008.1.2.4.70", b"1.2.3.77701.9.9.9.9.99")],
        ),
        "unknown",
    ),
    "one bit": (lambda d: _series(d, _set(BitsAllocated=1, BitsStored=1, HighBit=0)), "layout"),
    "high bit": (lambda d: _series(d, _set(BitsStored=12, HighBit=15)), "layout"),
    "huge": (lambda d: _series(d, _set(Rows=65535, Columns=65535)), "6 images of 65535 x 65535"),
    "RLE bomb": (lambda d: _series(d, _rle_bomb), "InstanceNumber 1 are missing"),
    "no pixels": (lambda d: _series(d, _drop("PixelData")), "missing, cut short"),
    "short pixels": (lambda d: _series(d, _on(3, PixelData=bytes(10))), "InstanceNumber 4"),
    "two frames of pixels": (
        lambda d: _series(d, lambda ds, z: setattr(ds, "PixelData", ds.PixelData * 2)),
        "not of its size",
    ),
    "cut in the pixels": (lambda d: _cut(d, -20), "cut short"),
    "cut in the header": (lambda d: _cut(d, 700), "file 3 of 6 (sorted by name) is damaged"),
    "cut before the rows": (lambda d: _cut(d, 900), "file 3 of 6 (sorted by name) is damaged"),
    "constant": (lambda d: _series(d, stored=np.full(SHAPE, 7, np.uint16)), "every voxel"),
    "overflow": (lambda d: _series(d, _set(RescaleSlope=1e37, Units="GML")), "NaN or infinite"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_series_is_refused_in_one_line(tmp_path, kind):
    make, fragment = BAD[kind]
    folder = tmp_path / "in"
    folder.mkdir()
    path = make(folder)
    if path == folder:
        assert _refused(path, fragment).what == str(folder)
        return
    with pytest.raises(UserError) as caught:  # the user gave this name, so it may be repeated
        dicom.read_series(path)
    assert fragment.lower() in caught.value.reason.lower() and caught.value.what == str(path)


@pytest.mark.parametrize("value, said", [("YES", True), ("CANARY", True), ("NO", False)])
def test_text_burned_into_the_pixels_is_noted(tmp_path, value, said):
    notes = dicom.read_series(_series(tmp_path, _set(BurnedInAnnotation=value))).volume.notes
    assert ("BurnedInAnnotation" in " ".join(notes)) == said


def test_rounded_positions_are_regular(tmp_path):
    heights = np.round(3.27 * np.arange(6), 2) + [0, 0.01, -0.01, 0, 0.01, 0]
    volume = dicom.read_series(_series(tmp_path, _axial(*heights))).volume
    assert volume.spacing[2] == pytest.approx(3.27, abs=0.005)


def test_a_series_in_the_wrong_column_is_refused(tmp_path):
    folder = _series(tmp_path, modality="MR")
    assert volumes.read_volume(folder, "mr_reacq").array.shape == SHAPE
    with pytest.raises(UserError, match="say MR, and the cohort lists it as ct"):
        volumes.read_volume(folder, "ct")


def test_the_only_pet_of_several_series_is_taken(tmp_path):
    _series(tmp_path, uid="21", number=2, modality="CT")
    _series(tmp_path, uid="22", number=7)
    read = dicom.read_series(tmp_path)
    assert read.facts["modality"] == "PT" and "2 series" in read.volume.notes[0]
    assert dicom.read_series(tmp_path, series="2").facts["modality"] == "CT"
    _refused(tmp_path, "no series has number 9: number 2 CT", series="9")
    _series(tmp_path, uid="23", number=8)
    _refused(tmp_path, "3 series")


def test_size_limit_comes_before_the_voxels(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom, "_voxels", None)
    stored = np.tile(STORED, (5, 5, 1))
    monkeypatch.setattr(nifti, "MAX_BYTES", 4 * stored.size - 1)
    _refused(_series(tmp_path, stored=stored), "declares 6 images")
    monkeypatch.setattr(nifti, "MAX_BYTES", 500)
    _refused(tmp_path, "takes 0 MiB")


def test_rle_bomb_never_reaches_the_decoder(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(pydicom.pixels, "pixel_array", calls.append)
    _refused(_series(tmp_path, _rle_bomb), "not of its size")
    assert not calls


def test_deflated_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    def edit(ds, z):
        ds.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian

    monkeypatch.setattr(dicom_header, "parse", None)
    _refused(_series(tmp_path, edit), "Deflated")


def test_a_deflated_report_beside_the_series_is_passed_over(tmp_path, monkeypatch):
    """As one is that is not deflated, and without inflating it; a deflated image stays refused."""
    alone = dicom.read_series(_series(tmp_path)).volume
    report = _slice(0)
    report.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    _save(report, tmp_path / "image" / "x.dcm")
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"  # Comprehensive SR
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID
    _save(report, tmp_path / "report.dcm")
    monkeypatch.setattr(zlib, "decompress", None)
    _refused(tmp_path, "Deflated")
    (tmp_path / "image" / "x.dcm").unlink()
    beside = dicom.read_series(tmp_path).volume
    assert beside.sha256 == alone.sha256 and beside.notes == alone.notes


# ---- pydicom's own files ----


def _bundled(folder, name, count=1):
    for i in range(count):
        data = open(get_testdata_file(name, download=False), "rb").read()
        (folder / f"{i}.dcm").write_bytes(data)
    return folder


@pytest.mark.parametrize(
    "name, count, fragment",
    [
        ("CT_small.dcm", 1, "1 image of 128 x 128"),
        ("CT_small.dcm", 2, "1 image of 128 x 128"),  # the same one twice
        ("MR_small_RLE.dcm", 1, "1 image of 64 x 64"),
        ("JPEG2000.dcm", 2, "JPEG 2000"),
        ("JPGExtended.dcm", 2, "JPEG Extended"),
        ("MR_small_jpeg_ls_lossless.dcm", 2, "JPEG-LS"),
        ("SC_rgb_rle.dcm", 2, "colour"),
        ("rtdose.dcm", 1, "multi-frame"),
        ("liver_1frame.dcm", 1, "multi-frame"),
        ("image_dfl.dcm", 1, "Deflated"),
        ("rtplan.dcm", 1, "no DICOM image (1 DICOM files"),
        ("test-SR.dcm", 1, "no DICOM image (1 DICOM files"),
        ("no_meta.dcm", 1, "no DICOM image (0 DICOM files"),
    ],
)
def test_bundled_files(tmp_path, name, count, fragment):
    error = _refused(_bundled(tmp_path, name, count), fragment)
    for tag in ("PatientName", "PatientID", "StudyInstanceUID"):
        value = str(pydicom.dcmread(tmp_path / "0.dcm", force=True).get(tag, "") or "none given")
        assert value not in str(error)


# ---- privacy and safety ----


def _output(read):
    volume = read.volume
    header = bytes(volume.header.binaryblock).decode("latin-1")
    return json.dumps(read.facts, allow_nan=False) + repr(volume.notes) + header + repr(read)


def test_no_canary_in_any_output(tmp_path):
    def edit(ds, z):
        ds.Units, ds.DecayCorrection, ds.SUVType = "CANARY", "CANARY", "CANARY"
        ds.RescaleType = ds.LossyImageCompression = "CANARY"

    read = dicom.read_series(_series(tmp_path, edit))
    _clean(_output(read))
    assert read.facts["manufacturer"] == "Siemens"
    _clean(_output(dicom.read_series(_series(tmp_path / "plain"))))


@pytest.mark.parametrize(
    "tag", ["InstanceNumber", "SeriesNumber", "PatientWeight", "NumberOfSlices"]
)
def test_malformed_numbers_are_not_quoted(tmp_path, tag):
    """pydicom's exceptions and warnings would quote them."""
    value = 31415 if tag == "NumberOfSlices" else "31415926"
    raw = [] if tag == "NumberOfSlices" else [(b"31415926", b"CANARY__")]
    read = dicom.read_series(_series(tmp_path, _set(**{tag: value}), raw))
    _clean(_output(read))


def test_pydicom_alone_would_quote_them(tmp_path):
    """Negative control of the test above."""
    _series(tmp_path, _set(InstanceNumber="31415926"), [(b"31415926", b"CANARY__")], keep=[0])
    with pytest.warns(UserWarning, match="CANARY"):
        _ = pydicom.dcmread(next((tmp_path / "CANARYdir").iterdir())).InstanceNumber


def _zip(folder, path, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as z:
        for file in sorted(folder.rglob("*")):
            z.write(file, f"../../CANARY/{file.name}")
    return path


def test_zip_equals_folder(tmp_path):
    folder = _series(tmp_path / "in")
    (folder / "notes.txt").write_text("CANARY")
    one, two = dicom.read_series(folder), dicom.read_series(_zip(folder, tmp_path / "in.zip"))
    np.testing.assert_array_equal(one.volume.array, two.volume.array)
    np.testing.assert_array_equal(one.volume.affine, two.volume.affine)
    assert one.facts == two.facts and one.volume.sha256 == two.volume.sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "in.zip"]  # nothing unpacked


def test_sha256_knows_bytes_not_names(tmp_path):
    first = dicom.read_series(_series(tmp_path / "a")).volume.sha256
    _series(tmp_path / "b")
    for i, file in enumerate(sorted((tmp_path / "b").rglob("*.dcm"), reverse=True)):
        file.rename(tmp_path / "b" / str(i))
    assert dicom.read_series(tmp_path / "b").volume.sha256 == first
    other = dicom.read_series(_series(tmp_path / "c", _on(2, StudyID="2"))).volume.sha256
    assert other != first


def test_zip_bomb_is_refused_by_its_declared_size(tmp_path, monkeypatch):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("CANARY.dcm", bytes(1 << 24))
    monkeypatch.setattr(dicom_files, "read", None)
    monkeypatch.setattr(nifti, "MAX_BYTES", 1 << 20)
    _refused(path, "unpacks to 16 MiB (limit 2)")


def test_lying_encrypted_and_damaged_zips(tmp_path):
    good = _zip(_series(tmp_path / "in"), tmp_path / "good.zip").read_bytes()
    (tmp_path / "lie.zip").write_bytes(_directory(good, 24, b"\xff\0\0\0"))  # size 255
    _refused(tmp_path / "lie.zip", "damaged")
    (tmp_path / "locked.zip").write_bytes(_directory(good, 8, b"\1\0"))  # flag bit 0
    _refused(tmp_path / "locked.zip", "encrypted")
    (tmp_path / "method.zip").write_bytes(_directory(good, 10, b"\x63\0"))
    _refused(tmp_path / "method.zip", "damaged or cannot be read")
    damaged = bytearray(good)
    damaged[400:420] = bytes(20)
    (tmp_path / "flip.zip").write_bytes(damaged)
    _refused(tmp_path / "flip.zip", "")
    (tmp_path / "cut.zip").write_bytes(good[: len(good) // 2])
    _refused(tmp_path / "cut.zip", "neither a folder nor a zip")


def _directory(data, offset, value):
    """The zip with a field of each entry of its central directory overwritten."""
    data, at = bytearray(data), data.find(b"PK\1\2")
    while at >= 0:
        data[at + offset : at + offset + len(value)] = value
        at = data.find(b"PK\1\2", at + 1)
    return bytes(data)


def test_too_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_files, "MAX_FILES", 5)
    _refused(_series(tmp_path), "holds 6 files")


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    inside, outside = _series(tmp_path / "in"), _series(tmp_path / "out", uid="24")
    (inside / "folder").symlink_to(outside)
    for file in (outside / "CANARYdir").iterdir():
        (inside / file.name).symlink_to(file)
    (inside / "loop").symlink_to(inside / "loop")
    os.mkfifo(inside / "pipe")
    assert dicom.read_series(inside).facts["slices"] == 6


def test_is_dicom(tmp_path):
    assert dicom.is_dicom(_series(tmp_path / "in"))
    assert dicom.is_dicom(_zip(tmp_path / "in", tmp_path / "in.zip"))
    (tmp_path / "empty").mkdir()
    nifti.write_volume(tmp_path / "nii" / "x.nii.gz", STORED, AFFINE, dtype=np.int16)
    for other in ("empty", "nii", "nii/x.nii.gz", "none"):
        assert not dicom.is_dicom(tmp_path / other)


def test_without_pydicom(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError) as caught:
        dicom.read_series(tmp_path)
    assert caught.value.what == "DICOM input" and "pip install pydicom" in caught.value.remedy
    assert dicom.is_dicom(tmp_path) is False
