"""Promises 9 to 11: data are not run, paths do not escape, nobody is named in what is written."""

import base64
import contextlib
import gzip
import io
import json
import pathlib
import pickle
import re
import struct
import zipfile
import zlib
from unittest import mock

import nibabel as nib
import numpy as np

from cldm_jax import files
from cldm_jax.data import bids, dicom, nifti, shards
from cldm_jax.errors import UserError
from cldm_jax.runtime import weights
from faults import ROOT, corpus, hurt, inputs, twins
from faults.common import Outcome, Promise, command, quiet, tally

# ---- 9: no code from data ----


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: pathlib.Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def no_code(folder: pathlib.Path, quick: bool) -> Outcome:
    """Every place that reads data of others is given an object that would touch a file."""
    canary, touched, notes = folder / "touched", [], []
    payload = pickle.dumps(Canary(canary))
    yaml = f"!!python/object/apply:builtins.open ['{canary}', 'w']\n".encode()
    jsonpickle = json.dumps({"py/reduce": [{"py/function": "builtins.open"}, [str(canary), "w"]]})
    objects = np.array([[[Canary(canary)]]], dtype=object)
    texts = {"pickle": payload, "yaml": yaml, "jsonpickle": jsonpickle.encode()}
    kinds = {k: inputs.read_mutant for k in ("index", "card", "manifest", "nifti", "dicom")}
    places = {
        f"{kind}: {name}": lambda d, r=read, k=kind, v=data: r(k, v, d)
        for name, data in texts.items()
        for kind, read in (kinds | {"config.json": _read_config}).items()
    }
    npz, head = _saved(np.savez, objects), struct.pack("<Q", len(payload)) + payload
    for name, data in (("objects", _saved(np.save, objects)), ("npz", npz), ("pickle", payload)):
        places[f"shard: {name}"] = lambda d, v=data: _read_shard(d, v)
    for name, data in (("pickle", payload), ("npz", npz), ("pickle as header", head)):
        places[f"weights: {name}"] = lambda d, v=data: _read_weights(d, v)
    places["NIfTI extension: pickle"] = lambda d: nifti.read_volume(_extension(d, payload))
    places["DICOM private tags: pickle"] = lambda d: dicom.read_series(_private(d / "s", payload))
    for number in range(3 if quick else 30):
        places[f"checkpoint, file {number}"] = lambda d, n=number: _read_checkpoint(d, payload, n)
    for number, (name, read) in enumerate(places.items()):
        own = folder / f"{number:02d}"
        inputs.seeds(own)
        try:
            with quiet():
                read(own)
        except StopIteration:  # no such file in the checkpoint
            continue
        except Exception as error:  # what is refused, and how, is promise 8's
            if not isinstance(error, UserError):
                notes.append(f"{name}: {type(error).__name__}, not a UserError")
        if canary.exists():
            touched.append(name)
            canary.unlink()
    with contextlib.suppress(Exception):
        np.load(io.BytesIO(_saved(np.save, objects)), allow_pickle=True)
    control = canary.exists()
    return tally(len(places), [f"ran: {name}" for name in touched], control, *notes)


def _saved(save, array) -> bytes:
    buffer = io.BytesIO()
    save(buffer, array)
    return buffer.getvalue()


def _read_config(name: str, data: bytes, folder) -> None:
    from cldm_jax.runs.inputs import read_run_config

    corpus.raw(folder / name, data)
    read_run_config(folder)


def _read_shard(folder, data: bytes) -> None:
    """With hashes that fit, and long enough: whoever writes a shard can write its index."""
    path = corpus.raw(folder / "prepared" / "pet-00000.npy", data + bytes(300))
    index = files.read_json(folder / "prepared" / "index.json")
    index["shards"][path.name]["sha256"] = files.sha256_file(path)
    shards.write_index(folder / "prepared", index)
    shards.Prepared(folder / "prepared", verify=True).read(0, "pet")


def _read_weights(folder, data: bytes) -> None:
    exported = folder / "exported"
    corpus.raw(exported / weights.WEIGHTS, data)
    card = files.read_json(exported / weights.CARD)
    for key in ("card_sha256", "files", "sha256"):
        card.pop(key)
    weights.write_card(exported, card, [weights.WEIGHTS])
    weights.load(exported, weights.read_card(exported))


def _extension(folder, payload: bytes) -> pathlib.Path:
    image = nib.Nifti1Image(corpus.head()["pet"], corpus.affine_of())
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", payload))
    nib.save(image, folder / "pet.nii.gz")
    return folder / "pet.nii.gz"


def _private(folder, payload: bytes) -> pathlib.Path:
    def edit(ds, z):
        block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
        block.add_new(0, "OB", payload + bytes(len(payload) % 2))

    return corpus.series(folder, edit)


def _read_checkpoint(folder, payload: bytes, number: int) -> None:
    """One file of a checkpoint replaced, the manifest made to fit."""
    from cldm_jax.runtime.checkpoint import Checkpoints, restore_for_inference

    saved = Checkpoints(folder / "checkpoints")
    saved.save(1, {"ema_params": {"kernel": np.ones((2, 3), np.float32)}, "frozen": {}})
    saved.close()
    paths = sorted(p for p in (folder / "checkpoints" / "1").rglob("*") if p.is_file())
    if number >= len(paths):
        raise StopIteration
    corpus.raw(paths[number], payload)
    root = folder / "checkpoints" / "1"
    hashes = {str(p.relative_to(root)): files.sha256_file(p) for p in paths}
    files.write_json(folder / "checkpoints" / "sha256-1.json", hashes)
    restore_for_inference(folder / "checkpoints")


# ---- 10: no path out ----

ID_TWINS = ("test_data_audit.py::test_ids_cannot_leave_the_folder",)


def no_escape(folder: pathlib.Path, only_few: bool) -> Outcome:
    """Whatever names and links data hold, files are written below the output folder only."""
    outside = folder / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    tried = {
        "group ../x": _bad_group,
        "output subfolder is a link": lambda d: _linked_out(d, outside, "sub-1/ct"),
        "output of a session is a link": lambda d: _linked_out(d, outside, "sub-1"),
        "output file is a link": lambda d: _linked_file(d, outside / "precious"),
        "zip member ../": lambda d: _zip_member(d, "../../outside/{}"),
        "zip member /abs": lambda d: _zip_member(d, f"{outside}/{{}}"),
        "BIDS folder is a link": lambda d: _linked_bids(d, outside),
        "card names ../file": lambda d: _card_names(d, "../outside/precious"),
        "card names /file": lambda d: _card_names(d, str(outside / "precious")),
        "index names ../shard": lambda d: _index_names(d, "../pet-00000.npy"),
        "file called ..nii.gz": lambda d: _named(d, "..nii.gz"),
        "file called -rf.nii.gz": lambda d: _named(d, "-rf.nii.gz"),
        "manifest path ../": lambda d: _manifest_path(d, outside),
    }
    wrong, notes = [], []
    for number, (name, attempt) in enumerate(tried.items()):
        own = folder / f"{number:02d}"
        own.mkdir()
        before = _listing(folder, own)
        try:
            with corpus.identity_model(), quiet():
                refused = attempt(own)
        except Exception as error:
            refused = True
            if not isinstance(error, UserError):
                notes.append(f"{name}: {type(error).__name__}, not a UserError")
        if _listing(folder, own) != before or refused is False:
            wrong.append(f"escaped: {name}")
    outcome = tally(len(tried), wrong, _escapes_unchecked(folder), *notes)
    return twins.added(outcome, folder, () if only_few else ID_TWINS)


def _escapes_unchecked(folder) -> bool:
    """Whether the link would have been followed without the check."""
    from cldm_jax.volumes.derivatives import Names

    (folder / "control" / "elsewhere").mkdir(parents=True)
    with (
        corpus.identity_model(),
        mock.patch.object(Names, "_check_inside", lambda self: None),
        quiet(),
    ):
        _linked_out(folder / "control", folder / "control" / "elsewhere", "sub-1/ct")
    return any((folder / "control" / "elsewhere").iterdir())


def _listing(folder, own) -> list:
    """Everything below `folder` but the attempt's own inputs and outputs, with its content's hash."""
    paths = sorted(p for p in folder.rglob("*") if not p.is_relative_to(own) or p == own)
    listed = [(str(p), files.sha256_file(p) if p.is_file() else "") for p in paths]
    return [*listed, sorted(p.name for p in folder.parent.iterdir())]


def _bad_group(folder) -> bool:
    """False: it was taken."""
    bids.find_cohort(corpus.raw(folder / "m.csv", b"subject,group,pet\nok,../x,pet.nii.gz\n"))
    return False


def _bids(folder, name: str = "sub-1") -> pathlib.Path:
    (folder / "bids" / name / "pet").mkdir(parents=True)
    corpus.save(folder / "bids" / name / "pet" / f"{name}_pet.nii.gz")
    return folder / "bids"


def _linked_out(folder, outside, where: str) -> None:
    link = folder / "out" / where
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    inputs.predicted(_bids(folder), folder / "out")


def _linked_file(folder, precious) -> None:
    """The link is replaced, what it points to is left as it was."""
    (folder / "out").mkdir()
    for name in ("pet_desc-synth_ct.nii.gz", "pet_desc-synth_unfinished.json"):
        (folder / "out" / name).symlink_to(precious)
    inputs.predicted(corpus.save(folder / "pet.nii.gz"), folder / "out")


def _zip_member(folder, name: str) -> None:
    corpus.series(folder / "s")
    inputs.predicted(corpus.zipped(folder / "s", folder / "pet.zip", name), folder / "out")


def _linked_bids(folder, outside) -> None:
    """Inputs may be links (git-annex has them); outputs lie where the link's own name says."""
    real = _bids(folder / "real")
    (folder / "linked").mkdir()
    (folder / "linked" / "sub-1").symlink_to(real / "sub-1")
    inputs.predicted(folder / "linked", folder / "out")
    assert (folder / "out" / "sub-1" / "ct").is_dir() and not (real / "sub-1" / "ct").exists()


def _card_names(folder, name: str) -> bool:
    inputs.seeds(folder)
    path = folder / "exported" / weights.CARD
    card = files.read_json(path)
    card["files"][name] = {"sha256": "0" * 64, "bytes": 4}
    files.write_json(path, json.loads(inputs.with_own_hashes("card", json.dumps(card).encode())))
    weights.read_card(folder / "exported")
    return False


def _index_names(folder, name: str) -> bool:
    inputs.seeds(folder)
    (folder / "pet-00000.npy").write_bytes((folder / "prepared" / "pet-00000.npy").read_bytes())
    index = files.read_json(folder / "prepared" / "index.json")
    index["shards"][name] = index["shards"].pop("pet-00000.npy")
    index["subjects"][0]["volumes"]["pet"]["shard"] = name
    shards.write_index(folder / "prepared", index)
    shards.Prepared(folder / "prepared")
    return False


def _named(folder, name: str) -> None:
    inputs.predicted(corpus.save(folder / "pet.nii.gz").rename(folder / name), folder / "out")
    for path in (folder / "out").iterdir():
        bids.check_id(path.name.removesuffix(".nii.gz").replace("+", "")[:64], "output")


def _manifest_path(folder, outside) -> None:
    """Inputs may lie anywhere; what is made of them lies in the workdir."""
    corpus.cohort(folder / "far")
    (folder / "near").mkdir()
    manifest = (folder / "far" / "manifest.csv").read_text().replace(",p", ",../far/p")
    (folder / "near" / "manifest.csv").write_text(manifest)
    inputs.prepared(folder / "near", folder / "work")


# ---- 11: nobody is named ----

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
    model = "" if only_few else str(train_tiny(folder / "model"))
    seen = {}
    for name, (path, canaries) in given.items():
        out, page = folder / f"out-{name}", name == "dicom" or not only_few
        log = predict_all(path, out, model, page)
        # The path as the user typed it may be repeated on the terminal.
        unasked = {k: v for k, v in canaries.items() if k != "folder"}
        seen[name] = leaks(canaries, written(out)) | leaks(unasked, [log.encode()])
        assert len(list(out.rglob("*.nii.gz"))) == 4 and page == bool(list(out.rglob("*.html")))
    seen["prepare"], prepared = _prepared_leaks(folder / "prepare")
    wrong = [f"{name}: {', '.join(sorted(where))}" for name, where in seen.items() if where]
    control = leaks(of_dicom, written(study)) == set(of_dicom)
    control &= bool(leaks({"png": "QPCANARY"}, _unpack(_html_with_png("QPCANARY"))))
    count = len(prepared) + sum(len(canaries) for _, canaries in given.values())
    found = sum(map(len, seen.values()))
    outcome = Outcome(count, count - found, found, control, wrong)
    return twins.added(outcome, folder, () if only_few else REFUSALS)


def _html_with_png(text: str) -> bytes:
    body = b"Comment\0\0" + zlib.compress(text.encode())
    chunk = struct.pack(">I4s", len(body), b"zTXt") + body + bytes(4)
    png = b"\x89PNG\r\n\x1a\n" + chunk
    return b'<img src="data:image/png;base64,' + base64.b64encode(png) + b'">'


def predict_all(path, out, model: str, page: bool) -> str:
    """Images, uncertainty and, if asked, the page; returns all that was printed. Without a model, the
    identity's.
    """
    asked = dict(mode="onestep", samples=2, uncertainty=True, report=page)
    if model:
        words = ["--mode", "onestep", "--samples", "2", "--uncertainty", *["--report"] * page]
        words += ["-i", str(path), "-o", str(out), "--checkpoint", model]
        done = command("cldm_jax.predict", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr
    from cldm_jax.jobs import predict

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


def train_tiny(folder: pathlib.Path) -> pathlib.Path:
    """The smallest run of the latent model, through the real command: a minute."""
    done = command("cldm_jax.main", *hurt.arguments(folder, folder / "ldm"), timeout=900)
    assert done.returncode == 0, done.stderr
    return folder / "ldm"


PROMISES = [
    Promise(9, "data are never run", no_code),
    Promise(10, "no path leads out", no_escape),
    Promise(11, "nobody is named in what is written", nobody_named),
]
