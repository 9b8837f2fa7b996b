"""Promises 9 and 10 (tests/test_faults_security.py); 11: nobody is named in what is written."""

import base64
import contextlib
import gzip
import io
import pathlib
import re
import struct
import zipfile
import zlib

import nibabel as nib

from faults import ROOT, corpus, inputs, twins
from faults.common import Outcome, Promise, command, quiet, tally
from faults.training import uninterrupted

NAMED = (  # PS3.15 Annex E, the attributes of the basic profile that people are named by
    "PatientName PatientID OtherPatientNames PatientBirthName PatientMotherBirthName "
    "PatientAddress PatientTelephoneNumbers PatientComments EthnicGroup Occupation "
    "AdditionalPatientHistory MedicalRecordLocator AccessionNumber StudyID InstitutionName "
    "InstitutionAddress InstitutionalDepartmentName ReferringPhysicianName "
    "PerformingPhysicianName NameOfPhysiciansReadingStudy OperatorsName StationName "
    "DeviceSerialNumber StudyDescription SeriesDescription ProtocolName ImageComments "
    "RequestedProcedureDescription PerformedProcedureStepDescription Manufacturer "
    "ManufacturerModelName SoftwareVersions"
).split()
DATES = "StudyDate SeriesDate AcquisitionDate ContentDate InstanceCreationDate".split()
TIMES = "StudyTime SeriesTime AcquisitionTime ContentTime".split()
UIDS = (
    "StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID SOPInstanceUID "
    "InstanceCreatorUID SynchronizationFrameOfReferenceUID"
).split()
TAGS = {
    "PatientBirthDate": "18730419",
    **{name: f"QZ{number:02d}CANARY" for number, name in enumerate(NAMED)},
    **{name: str(18991231 - number) for number, name in enumerate(DATES)},
    **{name: f"045917.12345{number}" for number, name in enumerate(TIMES)},
    **{name: f"1.2.826.0.1.{76543210 + number}" for number, name in enumerate(UIDS)},
}
NIFTI_TEXT = ("descrip", "aux_file", "db_name", "intent_name")
REFUSALS = ("test_data_dicom.py::test_bad_series_is_refused_in_one_line",)  # with their tracebacks


def dicom_study(folder: pathlib.Path) -> dict[str, str]:
    """A PET series full of names, in folders and files of names; returns {where: canary}."""

    def edit(ds, z):
        for name, value in TAGS.items():
            setattr(ds, name, f"{value}.{z}" if name == "SOPInstanceUID" else value)
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.add_new((0x0099, 0x0010), "LO", "QZ90CANARY block")
        ds.add_new((0x0099, 0x1001), "LO", "QZ91CANARY private")
        ds.add_new((0x6000, 0x4000), "LT", "QZ92CANARY overlay comment")
        drug = ds.RadiopharmaceuticalInformationSequence[0]
        drug.Radiopharmaceutical = "QZ93CANARY FDG"
        drug.RadiopharmaceuticalStartTime = "035917.0"
        ds.preamble = b"QZ94CANARY preamble".ljust(128, b"\0")

    corpus.series(folder, edit, name="QZ95CANARY_{}.dcm")
    private = {f"private {n}": f"QZ{n}CANARY" for n in (90, 91, 92, 93, 94)}
    return TAGS | private | {"file name": "QZ95CANARY"}


def named_nifti(path: pathlib.Path, name: str = "pet", seed: int = 0) -> dict[str, str]:
    """A NIfTI with a name wherever one fits; returns {where: canary}."""
    image = nib.Nifti1Image(corpus.head(seed=seed)[name], corpus.affine_of())
    canaries = {field: f"QN{number}CANARY" for number, field in enumerate(NIFTI_TEXT)}
    for field, value in canaries.items():
        image.header[field] = value
    for number, code in ((7, "comment"), (8, "afni"), (9, 42)):
        canaries[f"extension {code}"] = f"QN{number}CANARY"
        extension = nib.nifti1.Nifti1Extension(code, f"QN{number}CANARY".encode())
        image.header.extensions.append(extension)
    with open(path, "wb") as f, gzip.GzipFile("QN5CANARY.nii", "wb", fileobj=f) as zipped:
        zipped.write(image.to_bytes())  # the gzip header keeps the file's name
    return canaries | {"gzip file name": "QN5CANARY"}


def _unpack(data: bytes, depth: int = 0):
    """The bytes, and all that is packed inside: gzip, zip, PNG text, base64 in HTML."""
    yield data
    if depth > 4:
        return
    if data[:2] == b"\x1f\x8b":
        yield from _unpack(gzip.decompress(data), depth + 1)
    elif data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield from _unpack(archive.read(name), depth + 1)
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        for chunk in re.finditer(rb"zTXt|iTXt|iCCP", data):
            with contextlib.suppress(zlib.error):
                yield zlib.decompressobj().decompress(data[data.find(b"\x78", chunk.end()) :])
    for match in re.finditer(rb"base64,([A-Za-z0-9+/=]+)", data):
        yield from _unpack(base64.b64decode(match[1]), depth + 1)


def leaks(canaries: dict[str, str], blobs) -> set[str]:
    """Which canaries are in `blobs`, as ASCII or UTF-16."""
    found = set()
    for data in blobs:
        for where, canary in canaries.items():
            if canary.encode() in data or canary.encode("utf-16-le") in data:
                found.add(where)
    return found


def written(*folders: pathlib.Path):
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            yield str(path.relative_to(folder)).encode()
            if path.is_file():
                yield from _unpack(path.read_bytes())


def nobody_named(folder: pathlib.Path, only_few: bool) -> Outcome:
    """Predict from DICOM and NIfTI and prepare, all in the names of people; every byte is searched."""
    study, files_of_one = folder / "QZ96CANARY", folder / "QN6CANARY"
    files_of_one.mkdir()
    of_dicom = dicom_study(study / "QZ97CANARY") | {"inner folder": "QZ97CANARY"}
    given = {
        "dicom": (study, of_dicom | {"folder": "QZ96CANARY"}),
        "nifti": (files_of_one / "pet.nii.gz", named_nifti(files_of_one / "pet.nii.gz")),
    }
    given["nifti"][1]["folder"] = "QN6CANARY"
    model = "" if only_few else str(uninterrupted(folder.parent).workdir)
    seen = {}
    for name, (path, canaries) in given.items():
        out, page = folder / f"out-{name}", name == "dicom" or not only_few
        log = predict_all(path, out, model, page)
        # The path as the user typed it may be repeated on the terminal.
        unasked = {k: v for k, v in canaries.items() if k != "folder"}
        seen[name] = leaks(canaries, written(out)) | leaks(unasked, [log.encode()])
        assert len(list(out.rglob("*.nii.gz"))) == 4 and page == bool(list(out.rglob("*.html")))
    seen["prepare"], prepared = _prepared_leaks(folder / "prepare")
    control = leaks(of_dicom, written(study)) == set(of_dicom)
    control &= bool(leaks({"png": "QPCANARY"}, _unpack(_html_with_png("QPCANARY"))))
    looked_for = {"prepare": prepared, **{name: canaries for name, (_, canaries) in given.items()}}
    found = {
        f"{name}, {where}": "can be read" if where in seen[name] else ""
        for name, canaries in looked_for.items()
        for where in canaries
    }
    if not only_few:
        found |= twins.run(folder, REFUSALS)
    return tally(found, control)


def _html_with_png(text: str) -> bytes:
    body = b"Comment\0\0" + zlib.compress(text.encode())
    chunk = struct.pack(">I4s", len(body), b"zTXt") + body + bytes(4)
    png = b"\x89PNG\r\n\x1a\n" + chunk
    return b'<img src="data:image/png;base64,' + base64.b64encode(png) + b'">'


def predict_all(path, out, model: str, page: bool) -> str:
    """Images, uncertainty and, if asked, the page; returns all that was printed. Without a model, the
    identity's.
    """
    if model:
        words = ["--mode", "onestep", "--samples", "2", "--uncertainty", *["--report"] * page]
        words += ["-i", str(path), "-o", str(out), "--checkpoint", model]
        done = command("cldm_jax.predict", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr
    from cldm_jax.jobs import predict

    asked = dict(mode="onestep", samples=2, uncertainty=True, report=page)
    with corpus.identity_model(), quiet() as text:
        predict.predict(predict.Request(str(path), str(out), str(ROOT), **asked))
    return text.getvalue()


def _prepared_leaks(folder: pathlib.Path) -> tuple[set[str], dict[str, str]]:
    """Ids and file names are the user's choice; what is inside the files is not."""
    canaries = {}
    corpus.cohort(folder / "cohort")
    for number in range(4):
        for name in ("pet", "ct", "mr"):
            path = folder / "cohort" / f"p{number}" / f"{name}.nii.gz"
            canaries |= named_nifti(path, name, number)
    canaries |= dicom_study(folder / "cohort" / "p0" / "dicom" / "QZ97CANARY")
    manifest = folder / "cohort" / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("p0/pet.nii.gz", "p0/dicom"))
    with quiet() as text:
        inputs.prepared(folder / "cohort", folder / "work")
    return leaks(canaries, [*written(folder / "work"), text.getvalue().encode()]), canaries


PROMISES = [
    twins.promise(
        9,
        "data are never run",
        ("test_faults_security.py::test_data_are_never_run",),
        ("test_faults_security.py::test_a_loader_that_unpickles_runs_them",),
    ),
    twins.promise(
        10,
        "no path leads out",
        (
            "test_faults_security.py::test_no_path_leads_out",
            "test_data_audit.py::test_ids_cannot_leave_the_folder",
        ),
        ("test_faults_security.py::test_without_the_check_a_link_is_followed",),
    ),
    Promise(11, "nobody is named in what is written", nobody_named),
]
