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
import subprocess
import sys
import traceback
import zipfile
import zlib

import nibabel as nib
import numpy as np

from cldm_jax import files
from cldm_jax.data import bids, nifti, pet_inputs, shards
from cldm_jax.errors import UserError
from cldm_jax.jobs import prepare
from cldm_jax.runtime import weights
from configs import prepare as prepare_config
from faults import corpus, inputs
from faults.common import Outcome, Promise

# ---- 9: no code from data ----


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: pathlib.Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def no_code(folder: pathlib.Path, quick: bool) -> Outcome:
    """Every place that reads data of others is given an object that would touch a file."""
    canary, touched, quiet = folder / "touched", [], []
    payload = pickle.dumps(Canary(canary))
    yaml = f"!!python/object/apply:builtins.open ['{canary}', 'w']\n".encode()
    jsonpickle = json.dumps({"py/reduce": [{"py/function": "builtins.open"}, [str(canary), "w"]]})
    objects = np.array([[[Canary(canary)]]], dtype=object)
    places = {}
    for name, data in (("pickle", payload), ("yaml", yaml), ("jsonpickle", jsonpickle.encode())):
        for kind in ("index", "card", "manifest", "nifti", "dicom"):
            places[f"{kind}: {name}"] = lambda d, k=kind, v=data: inputs.read_mutant(k, v, d)
        places[f"config.json: {name}"] = lambda d, v=data: _read_config(d, v)
    places["shard of objects"] = lambda d: _read_shard(d, _saved(np.save, objects))
    places["shard that is an .npz"] = lambda d: _read_shard(d, _saved(np.savez, objects))
    places["shard that is a pickle"] = lambda d: _read_shard(d, payload)
    places["weights that are a pickle"] = lambda d: _read_weights(d, payload)
    places["weights that are an .npz"] = lambda d: _read_weights(d, _saved(np.savez, objects))
    places["weights with a pickle as their header"] = lambda d: _read_weights(
        d, struct.pack("<Q", len(payload)) + payload
    )
    places["pickle in a NIfTI extension"] = lambda d: nifti.read_volume(_extension(d, payload))
    places["pickle in DICOM private tags"] = lambda d: pet_inputs.read_input(
        pet_inputs.find_inputs(_private(d / "s", payload))[0]
    )
    for number in range(3 if quick else 30):
        places[f"checkpoint, file {number}"] = lambda d, n=number: _read_checkpoint(d, payload, n)
    for number, (name, read) in enumerate(places.items()):
        own = folder / f"{number:02d}"
        inputs.seeds(own)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                read(own)
        except StopIteration:  # no such file in the checkpoint
            continue
        except Exception as error:  # what is refused, and how, is promise 8's
            if not isinstance(error, UserError):
                quiet.append(f"{name}: {type(error).__name__}, not a UserError")
        if canary.exists():
            touched.append(name)
            canary.unlink()
    with contextlib.suppress(Exception):
        np.load(io.BytesIO(_saved(np.save, objects)), allow_pickle=True)
    control = canary.exists()
    notes = [f"ran: {name}" for name in touched] + quiet
    return Outcome(len(places), len(places) - len(touched), len(touched), control, notes)


def _saved(save, array) -> bytes:
    buffer = io.BytesIO()
    save(buffer, array)
    return buffer.getvalue()


def _read_config(folder, data: bytes) -> None:
    from cldm_jax.runs.inputs import read_run_config

    corpus.raw(folder / "config.json", data)
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
        ds.add_new((0x7053, 0x0010), "LO", "Philips PET Private Group")
        ds.add_new((0x7053, 0x1000), "OB", payload + bytes(len(payload) % 2))

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

BAD_IDS = (
    "../x",
    "/abs",
    "a/b",
    "a/../b",
    "..",
    "a/../b",
    "CON",
    "nul.nii",
    "-rf",
    ".hidden",
    "",
    "x" * 201,
)


def no_escape(folder: pathlib.Path, quick: bool) -> Outcome:
    """Whatever names and links data hold, files are written below the output folder only."""
    outside = folder / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    tried = {f"id {name!r}": lambda d, n=name: _manifest_id(d, n) for name in (*BAD_IDS, "a\0b")}
    tried |= {
        "group ../x": lambda d: _manifest_id(d, "ok", group="../x"),
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
    escaped, notes = [], []
    for number, (name, attempt) in enumerate(tried.items()):
        own = folder / f"{number:02d}"
        own.mkdir()
        before = _listing(folder, own)
        try:
            with corpus.identity_model(), contextlib.redirect_stdout(io.StringIO()):
                refused = attempt(own)
        except UserError:
            refused = True
        except Exception as error:
            refused = True
            notes.append(f"{name}: {type(error).__name__}, not a UserError")
        if _listing(folder, own) != before or refused is False:
            escaped.append(name)
    control = _escapes_unchecked(folder)
    notes += [f"escaped: {name}" for name in escaped]
    return Outcome(len(tried), len(tried) - len(escaped), len(escaped), control, notes)


def _escapes_unchecked(folder) -> bool:
    """Whether the link would have been followed without the check."""
    from cldm_jax.volumes.derivatives import Names

    (folder / "control" / "elsewhere").mkdir(parents=True)
    check, Names._check_inside = Names._check_inside, lambda self: None
    try:
        with corpus.identity_model(), contextlib.redirect_stdout(io.StringIO()):
            _linked_out(folder / "control", folder / "control" / "elsewhere", "sub-1/ct")
    finally:
        Names._check_inside = check
    return any((folder / "control" / "elsewhere").iterdir())


def _listing(folder, own) -> list:
    """Everything below `folder` but the attempt's own inputs and outputs, with its content's hash."""
    paths = sorted(p for p in folder.rglob("*") if not p.is_relative_to(own) or p == own)
    listed = [(str(p), files.sha256_file(p) if p.is_file() else "") for p in paths]
    return [*listed, sorted(p.name for p in folder.parent.iterdir())]


def _manifest_id(folder, name: str, group: str = "") -> bool:
    """False: the id was taken."""
    line = f'"{name}",{group},pet.nii.gz\n'
    try:
        bids.read_cohort(corpus.raw(folder / "m.csv", f"subject,group,pet\n{line}".encode()))
    except UserError:
        return True
    return False


def _predict(path, out):
    inputs._predict(path, out)


def _bids(folder, name: str = "sub-1") -> pathlib.Path:
    (folder / "bids" / name / "pet").mkdir(parents=True)
    corpus.save(folder / "bids" / name / "pet" / f"{name}_pet.nii.gz")
    return folder / "bids"


def _linked_out(folder, outside, where: str) -> None:
    link = folder / "out" / where
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    _predict(_bids(folder), folder / "out")


def _linked_file(folder, precious) -> None:
    """The link is replaced, what it points to is left as it was."""
    (folder / "out").mkdir()
    for name in ("pet_desc-synth_ct.nii.gz", "pet_desc-synth_unfinished.json"):
        (folder / "out" / name).symlink_to(precious)
    _predict(corpus.save(folder / "pet.nii.gz"), folder / "out")


def _zip_member(folder, name: str) -> None:
    corpus.series(folder / "s")
    _predict(corpus.zipped(folder / "s", folder / "pet.zip", name), folder / "out")


def _linked_bids(folder, outside) -> None:
    """Inputs may be links (git-annex has them); outputs lie where the link's own name says."""
    real = _bids(folder / "real")
    (folder / "linked").mkdir()
    (folder / "linked" / "sub-1").symlink_to(real / "sub-1")
    _predict(folder / "linked", folder / "out")
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
    _predict(corpus.save(folder / "pet.nii.gz").rename(folder / name), folder / "out")
    for path in (folder / "out").iterdir():
        bids.check_id(path.name.removesuffix(".nii.gz").replace("+", "")[:64], "output")


def _manifest_path(folder, outside) -> None:
    """Inputs may lie anywhere; what is made of them lies in the workdir."""
    corpus.cohort(folder / "far")
    (folder / "near").mkdir()
    manifest = (folder / "far" / "manifest.csv").read_text().replace(",p", ",../far/p")
    (folder / "near" / "manifest.csv").write_text(manifest)
    _prepare(folder / "near", folder / "work")


def _prepare(cohort, work) -> None:
    config = prepare_config.get_config("tiny")
    config.cohort = str(cohort)
    prepare.run(config, str(work))


# ---- 11: nobody is named ----

DICOM_CANARIES = {  # PS3.15 Annex E, the attributes of the basic profile that people are named by
    name: f"QZ{number:02d}CANARY"
    for number, name in enumerate(
        "PatientName PatientID OtherPatientNames PatientBirthName PatientMotherBirthName "
        "PatientAddress PatientTelephoneNumbers PatientComments EthnicGroup Occupation "
        "AdditionalPatientHistory MedicalRecordLocator AccessionNumber StudyID InstitutionName "
        "InstitutionAddress InstitutionalDepartmentName ReferringPhysicianName "
        "PerformingPhysicianName NameOfPhysiciansReadingStudy OperatorsName StationName "
        "DeviceSerialNumber StudyDescription SeriesDescription ProtocolName ImageComments "
        "RequestedProcedureDescription PerformedProcedureStepDescription "
        "RequestAttributesSequence Manufacturer ManufacturerModelName SoftwareVersions".split()
    )
    if name != "RequestAttributesSequence"
}
DATED = {
    **{"PatientBirthDate": "18730419", "StudyDate": "18991231", "SeriesDate": "18991230"},
    **{
        "AcquisitionDate": "18991229",
        "ContentDate": "18991228",
        "InstanceCreationDate": "18991227",
    },
    **{"StudyTime": "045917.123451", "SeriesTime": "045917.123452"},
    **{"AcquisitionTime": "045917.123453", "ContentTime": "045917.123454"},
}
UIDS = {
    name: f"1.2.826.0.1.{76543210 + number}"
    for number, name in enumerate(
        "StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID SOPInstanceUID "
        "InstanceCreatorUID SynchronizationFrameOfReferenceUID".split()
    )
}
NIFTI_TEXT = ("descrip", "aux_file", "db_name", "intent_name")


def dicom_study(folder: pathlib.Path, extra=None) -> dict[str, str]:
    """A PET series full of names, in folders and files of names; returns {where: canary}."""
    canaries = {**DICOM_CANARIES, **DATED, **UIDS}

    def edit(ds, z):
        for name, value in canaries.items():
            setattr(ds, name, f"{value}.{z}" if name == "SOPInstanceUID" else value)
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.add_new((0x0099, 0x0010), "LO", "QZ90CANARY block")
        ds.add_new((0x0099, 0x1001), "LO", "QZ91CANARY private")
        ds.add_new((0x6000, 0x4000), "LT", "QZ92CANARY overlay comment")
        drug = ds.RadiopharmaceuticalInformationSequence[0]
        drug.Radiopharmaceutical = "QZ93CANARY FDG"
        drug.RadiopharmaceuticalStartTime = "035917.0"
        ds.preamble = b"QZ94CANARY preamble".ljust(128, b"\0")
        if extra:
            extra(ds, z)

    corpus.series(folder, edit, name="QZ95CANARY_{}.dcm")
    private = {f"private {n}": f"QZ{n}CANARY" for n in (90, 91, 92, 93, 94)}
    return canaries | private | {"file name": "QZ95CANARY"}


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


def contents(path: pathlib.Path):
    """The bytes of a file, and all that is packed inside: gzip, zip, PNG text, base64 in HTML."""
    yield from _unpack(path.read_bytes())


def _unpack(data: bytes, depth: int = 0):
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
        at = 8
        while at + 8 <= len(data):
            length, kind = struct.unpack(">I4s", data[at : at + 8])
            body = data[at + 8 : at + 8 + length]
            if kind in (b"zTXt", b"iTXt", b"iCCP"):
                start = body.find(b"\x78")
                with contextlib.suppress(zlib.error):
                    yield zlib.decompress(body[start:])
            at += 12 + length
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
                yield from contents(path)


def nobody_named(folder: pathlib.Path, quick: bool) -> Outcome:
    """Predict from DICOM and NIfTI and prepare, all in the names of people; every byte is searched."""
    study = folder / "QZ96CANARY"
    of_dicom = dicom_study(study / "QZ97CANARY")
    of_dicom |= {"folder": "QZ96CANARY", "inner folder": "QZ97CANARY"}
    (folder / "QN6CANARY").mkdir()
    of_nifti = named_nifti(folder / "QN6CANARY" / "pet.nii.gz") | {"folder": "QN6CANARY"}
    model = "" if quick else str(train_tiny(folder / "model"))
    seen = {}
    for name, path, canaries in (
        ("dicom", study, of_dicom),
        ("nifti", folder / "QN6CANARY" / "pet.nii.gz", of_nifti),
    ):
        out = folder / f"out-{name}"
        page = name == "dicom" or not quick
        log = predict_all(path, out, model, page)
        typed = {"folder"}  # the path as the user typed it may be repeated on the terminal
        unasked = {k: v for k, v in canaries.items() if k not in typed}
        seen[name] = leaks(canaries, written(out)) | leaks(unasked, [log.encode()])
        assert len(list(out.rglob("*.nii.gz"))) == 4 and page == bool(list(out.rglob("*.html")))
    seen["prepare"], prepared = _prepared_leaks(folder / "prepare")
    seen["refusals"] = _refusal_leaks(folder / "refused", DICOM_CANARIES, quick)
    count = len(of_dicom) + len(of_nifti) + len(prepared) + len(DICOM_CANARIES)
    found = sum(map(len, seen.values()))
    control = leaks(of_dicom, written(study)) == set(of_dicom) - {"folder"}
    control &= bool(leaks({"png": "QPCANARY"}, _unpack(_html_with_png("QPCANARY"))))
    notes = [f"{name}: {', '.join(sorted(where))}" for name, where in seen.items() if where]
    notes.append("burned-in text: " + _burned_in(folder / "burned"))
    return Outcome(count, count - found, found, control, notes)


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
        done = inputs.command(
            *("cldm_jax.predict", "-i", str(path), "-o", str(out), "--checkpoint", model),
            *(
                "--mode",
                "onestep",
                "--samples",
                "2",
                "--uncertainty",
                *(["--report"] if page else []),
            ),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr
    from cldm_jax.jobs import predict

    text = io.StringIO()
    request = predict.Request(str(path), str(out), str(inputs.ROOT), mode="onestep", samples=2)
    request = request._replace(uncertainty=True, report=page)
    with (
        corpus.identity_model(),
        contextlib.redirect_stdout(text),
        contextlib.redirect_stderr(text),
    ):
        predict.predict(request)
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
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        _prepare(folder / "cohort", folder / "work")
    return leaks(canaries, [*written(folder / "work"), text.getvalue().encode()]), canaries


def _refusal_leaks(folder: pathlib.Path, canaries: dict[str, str], quick: bool) -> set[str]:
    """Errors name the path as it was typed and nothing of the files; so do tracebacks of --debug."""
    found = set()
    for number, kind in enumerate(corpus.DICOM[::6] if quick else corpus.DICOM):
        own = folder / str(number)
        (own / "typed").mkdir(parents=True)
        plain, corpus.series = corpus.series, _in_names(corpus.series)
        try:  # the same faults, in a study full of names
            path = kind.make(own / "typed")
        finally:
            corpus.series = plain
        try:
            pet_inputs.read_input(pet_inputs.find_inputs(path)[0])
        except UserError as error:
            text = "".join(traceback.format_exception(error))
            found |= {f"{kind.name}: {w}" for w in leaks(canaries, [text.encode()])}
    return found


def _in_names(series):
    def named(folder, edit=None, **options):
        def both(ds, z):
            for name, value in DICOM_CANARIES.items():
                setattr(ds, name, value)
            if edit:
                edit(ds, z)

        return series(folder, both, **options)

    return named


def _burned_in(folder: pathlib.Path) -> str:
    edit = corpus._set(BurnedInAnnotation="YES")
    volume, _ = pet_inputs.read_input(pet_inputs.find_inputs(corpus.series(folder, edit))[0])
    return "; ".join(volume.notes) or "NOT SAID"


def train_tiny(folder: pathlib.Path) -> pathlib.Path:
    """The smallest run of the latent model, through the real command: a minute."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "cldm_jax.main", "--config=configs/ldm.py:tiny"),
            *(f"--config.data.root={folder / 'data'}", f"--workdir={folder / 'ldm'}"),
            f"--config.autoencoder.workdir={folder / 'ae'}",
        ],
        cwd=inputs.ROOT,
        env=inputs._environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return folder / "ldm"


PROMISES = [
    Promise(9, "data are never run", no_code),
    Promise(10, "no path leads out", no_escape),
    Promise(11, "nobody is named in what is written", nobody_named),
]
