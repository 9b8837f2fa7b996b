"""DICOM as it lies about: values that cannot be, exports without a mark, repeated, several in a folder.

Right values by hand (70 kg, 370 MBq, 6586.2 s, an hour: QIBA's formula) and a control that differs by
what is wrong alone. See test_data_dicom.py for the series themselves.
"""

import shutil

import numpy as np
import pydicom
import pytest
import test_data_dicom as made
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from test_data_dicom import HALF_LIFE, HOUR, NORMAL, STORED, nothing_leaks  # noqa: F401

from cldm_jax.data import dicom, dicom_files, pet_inputs, suv
from cldm_jax.errors import UserError

HALF = 0.5  # RescaleSlope of the series


def drug(**tags):
    """An edit of the injection's tags; None deletes one."""

    def edit(ds, z):
        item = ds.RadiopharmaceuticalInformationSequence[0]
        for tag, value in tags.items():
            if value is None:
                del item[tag]
            else:
                setattr(item, tag, value)

    return edit


def tags(**values):
    def edit(ds, z):
        for tag, value in values.items():
            if value is None:
                del ds[tag]
            else:
                setattr(ds, tag, value)

    return edit


def nuclide(code="", meaning="", **more):
    """Another nuclide by code or name, nothing else that names one but what `more` says."""

    def edit(ds, z):
        item, named = ds.RadiopharmaceuticalInformationSequence[0], Dataset()
        named.CodeValue, named.CodeMeaning = code, meaning
        item.RadionuclideCodeSequence = [named]
        del item.RadiopharmaceuticalCodeSequence, item.Radiopharmaceutical
        drug(**more)(ds, z)

    return edit


def both(*edits):
    def edit(ds, z):
        for one in edits:
            one(ds, z)

    return edit


def twice(ds, z):
    ds.RadiopharmaceuticalInformationSequence = [
        *ds.RadiopharmaceuticalInformationSequence,
        *ds.RadiopharmaceuticalInformationSequence,
    ]


# ---- SUV: factor by hand, minutes to the image, minutes to the decay reference ----

MIDNIGHT = dict(RadiopharmaceuticalStartTime="233000")
AFTER = dict(SeriesTime="003000", AcquisitionTime="003000")
SOUND = {
    "plain": (tags(), NORMAL * HOUR, 60, 60),
    "across midnight, no date of injection": (
        both(drug(**MIDNIGHT), tags(**AFTER)), NORMAL * HOUR, 60, 60),
    "across midnight, with dates": (
        both(drug(RadiopharmaceuticalStartTime=None, RadiopharmaceuticalStartDateTime="19770706233000"),
             tags(**AFTER)), NORMAL * HOUR, 60, 60),
    "two tags that agree": (
        drug(RadiopharmaceuticalStartDateTime="19770707091200.00"),
        NORMAL * 2 ** (3552 / HALF_LIFE), 59, 59),
    "ADMIN": (tags(DecayCorrection="ADMIN"), NORMAL, 60, 0),
    "carbon, and says so": (
        nuclide("C-105A1", "^11^Carbon", RadionuclideHalfLife=1223.0, Radiopharmaceutical="PiB"),
        NORMAL * 2 ** (3600 / 1223.0), 60, 60),
    "gallium, rounded": (
        nuclide("", "Gallium-68", RadionuclideHalfLife=4080.0), NORMAL * 2 ** (3600 / 4080), 60, 60),
    "fluorine, rounded": (drug(RadionuclideHalfLife=6600.0), NORMAL * 2 ** (3600 / 6600), 60, 60),
    "no nuclide named": (nuclide(), NORMAL * HOUR, 60, 60),
    "late frame by its acquisition": (
        tags(SeriesTime="091112", AcquisitionTime="100112"), NORMAL, 50, 0),
    "late frame by date and time": (
        tags(SeriesTime="091112", AcquisitionTime=None, AcquisitionDateTime="19770707100112"),
        NORMAL, 50, 0),
    "late frame by its reference time": (
        tags(SeriesTime="091112", AcquisitionTime=None, FrameReferenceTime="3600000",
             ActualFrameDuration="1200000"), NORMAL, 50, 0),
    "late frame whose acquisition repeats the series": (
        tags(SeriesTime="091112", AcquisitionTime="091112", FrameReferenceTime="3600000",
             ActualFrameDuration="1200000"), NORMAL, 50, 0),
    "static scan with its middle": (
        tags(AcquisitionTime="101112", FrameReferenceTime="598000", ActualFrameDuration="1200000"),
        NORMAL * HOUR, 60, 60),
    "codes with spaces around each": (
        tags(CorrectedImage=["DECY ", " ATTN"]), NORMAL * HOUR, 60, 60),
    "series reconstructed later": (tags(SeriesTime="181112"), NORMAL * HOUR, 60, 60),
}  # fmt: skip


@pytest.mark.parametrize("kind", SOUND)
def test_sound_tags_give_the_factor_and_the_minutes_of_the_image(tmp_path, kind):
    edit, factor, image, reference = SOUND[kind]
    edit = both(tags(AcquisitionTime="101112", SeriesTime="101112"), edit)
    read = dicom.read_series(made._series(tmp_path, edit))
    np.testing.assert_allclose(read.volume.array, STORED * HALF * factor, rtol=1e-6)
    assert read.facts["units"] == "SUVbw"
    assert read.facts["suv_factor"] == pytest.approx(factor, rel=1e-9)
    assert read.facts["minutes_after_injection"] == image
    assert read.facts["minutes_to_decay_reference"] == reference
    assert read.volume.notes == ()


CANNOT = {
    "injection emptied to midnight": (
        drug(RadiopharmaceuticalStartDateTime="19770707000000.00"),
        "StartTime and RadiopharmaceuticalStartDateTime contradict"),
    "injection two hours off in one tag": (
        drug(RadiopharmaceuticalStartDateTime="19770707071112"), "contradict"),
    "injection at midnight, one tag": (drug(RadiopharmaceuticalStartTime="000000"), "midnight"),
    "every time emptied": (
        both(drug(RadiopharmaceuticalStartTime="000000"),
             tags(SeriesTime="000000", AcquisitionTime="000000")), "midnight"),
    "injection after the scan": (
        drug(RadiopharmaceuticalStartTime="111112"), "the scan begins first"),
    "injection seven hours after the scan": (
        drug(RadiopharmaceuticalStartTime="171112"), "the scan begins first"),
    "injection after the acquisition": (
        both(drug(RadiopharmaceuticalStartTime="094500"), tags(AcquisitionTime="093000")),
        "the scan begins first"),
    "injection on another day": (
        drug(RadiopharmaceuticalStartDateTime="19770605091112"), "contradict"),
    "dose in kBq": (drug(RadionuclideTotalDose=3.7e5), "RadionuclideTotalDose"),
    "dose in mBq": (drug(RadionuclideTotalDose=3.7e11), "RadionuclideTotalDose"),
    "dose of a tenth of a millicurie": (drug(RadionuclideTotalDose=3.7e6), "head would have SUV"),
    "weight in grams": (tags(PatientWeight=70000), "PatientWeight"),
    "weight 1": (tags(PatientWeight=1), "head would have SUV"),
    "late frame of a series that was reconstructed later": (
        tags(SeriesTime="181112", AcquisitionTime="111112", FrameReferenceTime="3600000",
             ActualFrameDuration="600000"), "FrameReferenceTime names a late frame"),
    "carbon with fluorine's half-life": (
        nuclide("C-105A1", "^11^Carbon", Radiopharmaceutical="PiB"), "not that of C-11"),
    "carbon by SNOMED's code": (nuclide("40565003"), "not that of C-11"),
    "carbon by the tracer": (nuclide(Radiopharmaceutical="[11C]raclopride"), "not that of C-11"),
    "carbon's half-life with fluorine": (
        nuclide("C-111A1", RadionuclideHalfLife=1223.0), "not that of F-18"),
    "code and name of two nuclides": (nuclide("C-111A1", "^11^Carbon"), "not that of C-11"),
    "half-life in minutes": (drug(RadionuclideHalfLife=109.77), "not that of F-18"),
    "half-life in minutes, no nuclide": (
        nuclide(RadionuclideHalfLife=109.77), "that of no PET nuclide"),
    "half-life in hours": (drug(RadionuclideHalfLife=1.83), "RadionuclideHalfLife"),
    "two injections": (twice, "several injections"),
    "SUV that says Bq/ml": (tags(RescaleSlope=1e-4), "Units"),
    "kBq/ml that say Bq/ml": (tags(RescaleSlope=5e-4), "Units"),
    "Bq/ml that say SUV": (tags(Units="GML"), "Units cannot be right"),
    "Philips factor out of reach": (made._philips(1e300), "Philips"),
    "Philips factor a thousand off": (made._philips(0.25), "Philips"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CANNOT)
def test_what_cannot_be_keeps_the_stored_unit_and_names_the_tag(tmp_path, kind):
    edit, named = CANNOT[kind]
    read = dicom.read_series(made._series(tmp_path, edit))
    assert read.facts["suv_factor"] is None and read.facts["units"] not in ("SUVbw", "SUV")
    assert len(read.volume.notes) == 1 and named in read.volume.notes[0], read.volume.notes
    assert "is kept, not SUV" in read.volume.notes[0]
    slope = pydicom.dcmread(next(tmp_path.rglob("*.dcm"))).RescaleSlope
    np.testing.assert_allclose(read.volume.array, STORED * np.float32(slope), rtol=1e-6)


def whole_body(bladder):
    """Stored values of a person's FDG PET, head above: 10 mm voxels, RAS; SUV times 100."""
    affine = np.diag([10.0, 10.0, 10.0, 1.0])
    affine[:3, 3] = (-195, -145, -950)
    x, y, z = np.meshgrid(np.arange(-195, 200, 10), np.arange(-145, 150, 10), np.arange(-950, 160, 10),
                          indexing="ij", sparse=True)  # fmt: skip

    def ball(half, height):
        return (x / half[0]) ** 2 + (y / half[1]) ** 2 + ((z - height) / half[2]) ** 2 < 1

    pet = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape))
    for half, height, suv_there in (
        ((180, 110, 340), -480, 0.6), ((60, 60, 120), -150, 0.5), ((78, 98, 110), 0, 0.6),
        ((66, 84, 62), 20, 6.0), ((45, 45, 45), -740, bladder),
    ):  # fmt: skip
        pet[ball(half, height)] = suv_there
    return np.rint(100 * pet).astype(np.uint16), affine


@pytest.mark.parametrize("off", [1, 1000])
def test_a_full_bladder_is_no_head(tmp_path, off):
    """Of a whole body the head alone is judged; a dose that cannot be is found there still."""
    stored, affine = whole_body(bladder=90.0)
    edit = tags(RescaleSlope=f"{off * 0.01 / (NORMAL * HOUR):.10g}")
    read = dicom.read_series(made._series(tmp_path, edit, stored=stored, affine=affine))
    if off == 1:
        assert read.facts["units"] == "SUVbw" and read.volume.notes == ()
        np.testing.assert_allclose(read.volume.array, stored * 0.01, rtol=1e-6)
    else:
        assert "the head would have SUV 6000 (" in read.volume.notes[0]


@pytest.mark.parametrize(
    "edit, image, reference", [(tags(DecayCorrection="NONE"), 60, None), (twice, None, None)]
)
def test_times_that_nobody_knows_are_none(tmp_path, edit, image, reference):
    facts = dicom.read_series(made._series(tmp_path, edit)).facts
    assert facts["minutes_after_injection"] == image
    assert facts["minutes_to_decay_reference"] == reference


def test_philips_factors_that_contradict_the_dose():
    pet = made._pet(units="CNTS", philips_activity=2.0)
    right = suv.bw_factor(pet)
    assert suv.bw_factor(made._pet(units="CNTS", philips_suv=1.01 * right)) == 1.01 * right
    with pytest.raises(suv.NoSuv, match="contradict"):
        suv.bw_factor(made._pet(units="CNTS", philips_activity=2.0, philips_suv=3 * right))


def test_many_half_lives_are_computed_and_said(tmp_path):
    late = dict(SeriesTime="191112", AcquisitionTime="191112")
    read = dicom.read_series(made._series(tmp_path, tags(RescaleSlope=0.025, **late)))
    factor = NORMAL * 2 ** (36000 / HALF_LIFE)
    assert read.facts["suv_factor"] == pytest.approx(factor) and len(read.volume.notes) == 1
    assert "5.5 half-lives after the injection" in read.volume.notes[0]


# ---- files as older consoles, viewers and CDs leave them ----


def bare(path):
    """The data set alone: no preamble, no mark, no file meta."""
    ds = pydicom.dcmread(path)
    implicit = ds.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    alone = Dataset()
    alone.update({e.tag: e for e in ds})
    alone.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)


def without_preamble(path):
    path.write_bytes(path.read_bytes()[132:])


def without_syntax(path):
    ds = pydicom.dcmread(path)
    implicit = ds.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    del ds.file_meta.TransferSyntaxUID
    ds.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize("strip", [bare, without_preamble, without_syntax])
def test_a_series_without_marks_is_the_same_series(tmp_path, strip, syntax):
    def edit(ds, z):
        ds.file_meta.TransferSyntaxUID = syntax

    whole = dicom.read_series(made._series(tmp_path / "whole", edit))
    folder = made._series(tmp_path / "CANARY", edit)
    for path in folder.rglob("*.dcm"):
        strip(path)
        assert path.read_bytes()[128:132] != b"DICM" or strip is without_syntax
    assert dicom.is_dicom(folder)
    (found,) = pet_inputs.find_all(folder).found
    read, facts = pet_inputs.read_input(found)
    np.testing.assert_array_equal(read.array, whole.volume.array)
    np.testing.assert_array_equal(read.affine, whole.volume.affine)
    assert facts == whole.facts and read.notes == ()


@pytest.mark.parametrize(
    "head",
    [b"", b"\x08\0", bytes(132), b"CANARY" * 40, b"\x08\0\x05\0\xff\xff\xff\x7f" + bytes(124),
     b"\x5c\x01\0\0" + bytes(128), b"\xd0\xcf\x11\xe0" + bytes(128)],
)  # fmt: skip
def test_other_files_are_not_taken_for_bare_data_sets(head):
    assert not dicom_files.is_bare(head)


def test_a_bare_slice_that_is_cut_is_refused(tmp_path):
    folder = made._series(tmp_path)
    for path in sorted(folder.rglob("*.dcm")):
        bare(path)
    path.write_bytes(path.read_bytes()[:300])
    made._refused(folder, "is damaged")


def test_stray_files_are_counted_and_left_aside(tmp_path):
    alone = dicom.read_series(made._series(tmp_path / "alone"))
    folder = made._series(tmp_path / "in")
    (folder / "CANARY.txt").write_text("CANARY " * 40)
    (folder / ".DS_Store").write_bytes(bytes(200))
    (folder / "empty").touch()
    read = dicom.read_series(folder)
    np.testing.assert_array_equal(read.volume.array, alone.volume.array)
    assert read.volume.notes == ("files that are not DICOM, left aside: 3",)


def test_a_dicomdir_is_its_folder(tmp_path):
    from pydicom.data import get_testdata_file

    folder = made._series(tmp_path / "cd")
    alone = dicom.read_series(folder)
    shutil.copy(get_testdata_file("DICOMDIR", download=False), folder / "DICOMDIR")
    for path in (folder, folder / "DICOMDIR"):
        (found,) = pet_inputs.find_all(path).found
        read, _ = pet_inputs.read_input(found)
        assert read.notes == () and read.sha256 == alone.volume.sha256


# ---- the same images more than once ----


def copied(folder, change=None):
    """`folder` with a second export of itself beside it."""
    again = folder / "CANARY again"
    shutil.copytree(folder / "CANARYdir", again)
    for path in again.iterdir() if change else ():
        change(path)
    return folder


def renamed(path):
    """What an anonymiser does: new UIDs."""
    ds = pydicom.dcmread(path)
    for tag in ("SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID", "StudyInstanceUID"):
        setattr(ds, tag, f"{ds[tag].value}.9")
    ds.save_as(path)


def renumbered(path):
    """What an archive does that merges two exports."""
    ds = pydicom.dcmread(path)
    ds.InstanceNumber += 100
    ds.save_as(path)


@pytest.mark.parametrize("change", [None, bare, renamed, renumbered])
def test_a_series_exported_twice_counts_once(tmp_path, change):
    alone = dicom.read_series(made._series(tmp_path / "alone")).volume
    folder = copied(made._series(tmp_path / "in"), change)
    read = dicom.read_series(folder).volume
    np.testing.assert_array_equal(read.array, alone.array)
    assert read.notes == ("6 of 12 images repeat others and were counted once",)
    if change is None:
        assert read.sha256 == alone.sha256
        zipped = dicom.read_series(shutil.make_archive(tmp_path / "in", "zip", folder)).volume
        assert zipped.sha256 == alone.sha256 and zipped.notes == read.notes


def test_other_pixels_or_another_time_are_not_the_same_image(tmp_path):
    def brighter(path):
        ds = pydicom.dcmread(path)
        ds.PixelData = bytes(np.frombuffer(ds.PixelData, "<u2") + np.uint16(1))
        ds.save_as(path)

    def later(path):
        ds = pydicom.dcmread(path)
        ds.AcquisitionTime = "111112"
        ds.save_as(path)

    for i, change in enumerate((brighter, later)):
        made._refused(copied(made._series(tmp_path / str(i)), change), "12 images at 6 positions")


def test_two_reconstructions_keep_the_empty_slices_that_they_share(tmp_path):
    """Of one number and header, other pixels but in the end slices."""
    for uid, gain in (("7", 1), ("8", 2)):
        stored = (STORED // 2 * gain).astype(np.uint16)
        stored[:, :, [0, -1]] = 0
        made._series(tmp_path, stored=stored, uid=uid)
    for series in ("3.1", "3.2"):
        read = dicom.read_series(tmp_path, series=series).volume
        assert read.array.shape == STORED.shape and "repeat" not in "".join(read.notes)


# ---- several series ----


def corrected_or_not(folder, numbers=(3, 4)):
    made._series(folder, uid="31", number=numbers[0])
    nac = both(tags(CorrectedImage=["DECY"]), lambda ds, z: setattr(ds, "RescaleSlope", 0.25))
    return made._series(folder, nac, uid="32", number=numbers[1])


def test_several_pets_are_listed_with_what_they_are_and_chosen_by_number(tmp_path):
    folder = corrected_or_not(tmp_path)
    error = made._refused(folder, "number 3 PT 6 images 9 x 7 (attenuation-corrected)")
    assert "number 4 PT 6 images 9 x 7 (not attenuation-corrected)" in error.reason
    assert "--series NUMBER" in error.remedy
    (found,) = pet_inputs.find_all(folder).found
    _, facts = pet_inputs.read_input(found, "3")
    assert facts["units"] == "SUVbw"
    volume, facts = pet_inputs.read_input(found, "4")
    assert facts["units"] == "Bq/ml" and "lacks ATTN" in volume.notes[0]
    np.testing.assert_allclose(volume.array, STORED * 0.25, rtol=1e-6)


@pytest.mark.parametrize("number, names", [(7, ("7.1", "7.2")), (None, ("0.1", "0.2"))])
def test_series_that_share_a_number_can_be_chosen(tmp_path, number, names):
    folder = corrected_or_not(tmp_path, (number, number))
    error = made._refused(folder, f"number {names[0]} PT 6 images 9 x 7 (attenuation")
    assert f"number {names[1]} PT 6 images 9 x 7 (not att" in error.reason
    assert dicom.read_series(folder, series=names[0]).facts["units"] == "SUVbw"
    assert dicom.read_series(folder, series=names[1]).facts["units"] == "Bq/ml"
    made._refused(folder, "no series has number 7: number", series="7")


def test_a_series_to_each_image_is_not_a_choice(tmp_path):
    def edit(ds, z):
        ds.SeriesInstanceUID += f".{z}"

    error = made._refused(
        made._series(tmp_path, edit), "each of its 6 images has a SeriesInstanceUID"
    )
    assert "--series" not in error.remedy


def test_a_number_is_for_dicom(tmp_path):
    found = pet_inputs.PetInput("pet", "", tmp_path / "pet.nii.gz", "nifti")
    with pytest.raises(UserError, match="is for DICOM"):
        pet_inputs.read_input(found, "3")
