"""Promise 8: bad volumes are refused by name, unusual ones handled right; and readers that never fall.

Each kind is a case of a test (tests/test_faults_inputs.py), which looks at the memory it takes as well; a
few go through the real commands.
"""

import contextlib
import json
import pathlib
import subprocess

import nibabel as nib
import numpy as np

from cldm_jax import files
from cldm_jax.data import bids, nifti, pet_inputs, shards
from cldm_jax.data.grid import ModelGrid
from cldm_jax.errors import UserError
from cldm_jax.jobs import prepare
from cldm_jax.runtime import device, weights
from configs import prepare as prepare_config
from faults import ROOT, corpus, twins
from faults.common import quiet
from faults.dicom_slices import dicom_slice

SLACK = 24 << 20  # bytes of memory that are not the volume's: buffers, imports on first use


def check(where: str, kind: corpus.Kind, folder: pathlib.Path) -> str:
    """Makes a kind and reads, predicts or prepares it. "" where that is what was expected."""
    path = kind.make(folder / "cohort" if where == "pair" else folder)
    before = _reset_peak()
    try:
        peak, allowed, why = (_pair if where == "pair" else _volume)(kind, path, folder)
    except UserError as error:
        peak, allowed, why = _status("VmHWM"), before, _wrong_refusal(kind, error, path)
    if not why and where != "pair" and peak > allowed + SLACK:
        why = f"took {(peak - before) >> 20} MiB"
    return why


def _volume(kind: corpus.Kind, path, folder) -> tuple[int, int, str]:
    """(peak of memory while reading, what it may be, what was wrong), of a kind that is handled."""
    before = _status("VmRSS")
    with quiet() as text:
        (found,) = pet_inputs.find_inputs(path)
        volume, facts = pet_inputs.read_input(found)
        peak = _status("VmHWM")
        allowed = before + 2 * volume.array.size * max(4, _item_size(found.path))
        written = predicted(path, folder / "out")
    return peak, allowed, _unlike(kind, volume, facts, written, text.getvalue())


def _pair(kind: corpus.Kind, cohort, folder) -> tuple[int, int, str]:
    """The same of a cohort of which one person is wrong: only the others are prepared."""
    with quiet() as text:
        try:
            prepared(cohort, folder / "work", split_mode="default")
            why = "" if kind.expect == "handled" else "accepted"
            if kind.reason not in text.getvalue():
                why = why or f"no word of {kind.reason!r}"
        except UserError as error:
            why = "" if kind.expect == "refused" else f"refused: {error}"
            if kind.reason.lower() not in str(error).lower() + text.getvalue().lower():
                why = f"another reason: {error}"
            if (folder / "work" / shards.INDEX).exists():
                why = why or _unlike_the_others(cohort, folder / "work")
    return 0, 0, why


def prepared(cohort, work, **changes) -> shards.Prepared:
    """The tiny preset's, verified."""
    config = prepare_config.get_config("tiny")
    config.cohort = str(cohort)
    for name, value in changes.items():
        config[name] = value
    prepare.run(config, str(work))
    return shards.Prepared(work, verify=True)


def predicted(path, out) -> list[pathlib.Path]:
    from cldm_jax.jobs import predict

    request = predict.Request(str(path), str(out), checkpoint=str(ROOT), mode="onestep")
    return predict.predict(request)


def _wrong_refusal(kind: corpus.Kind, error: UserError, path) -> str:
    """Why this is not the refusal that was expected: "" where it is."""
    if kind.expect != "refused":
        return f"refused: {error}"
    if kind.reason.lower() not in str(error).lower():
        return f"another reason: {error}"
    named = repr(str(path))[1:-1] in str(error) or repr(str(path)) in str(error)
    if not named or not error.remedy or "\n" in str(error):
        return f"not one line with file and remedy: {error}"
    return ""


def _unlike(kind: corpus.Kind, volume, facts, written, text: str) -> str:
    if kind.expect != "handled":
        return "accepted"
    if kind.check and not kind.check(volume, facts):
        return "the voxels are not the head's"
    if kind.reason and kind.reason not in text:
        return f"no word of {kind.reason!r} in {text!r}"
    for path in written:
        made = nifti.read_volume(path, allow_constant=True)
        on_grid = np.allclose(made.affine, volume.affine, atol=1e-4)
        if made.array.shape != volume.array.shape or not on_grid:
            return f"{path.name} is not on the input's grid"
    if kind.check is not corpus.anything:  # nothing is odd: the identity model gives the PET back
        pet = np.minimum(volume.array, 1.5 * np.percentile(volume.array[volume.array > 0], 99))
        fit = np.corrcoef(nifti.read_volume(written[0]).array.ravel(), pet.ravel())[0, 1]
        if fit < 0.9:
            return f"{written[0].name} does not show the PET (correlation {fit:.2f})"
    return ""


def _unlike_the_others(cohort, work) -> str:
    """Why a folder from which something was left out is not whole: "" where it is."""
    prepared = shards.Prepared(work, verify=True)
    given = {s.id: set(s.files) for s in bids.read_cohort(cohort)}
    made = {p.id: {n for n in given[p.id] if n in p.volumes} for p in prepared.index.people}
    wrong = [k for k in given if made.get(k) != given[k]]
    return "" if len(wrong) == 1 and len(made) >= len(given) - 1 else f"left out of {wrong}: {made}"


def _item_size(path) -> int:
    if not pathlib.Path(path).is_file() or str(path).endswith(".zip"):
        return 4
    with contextlib.suppress(Exception):
        return nib.load(path).get_data_dtype().itemsize
    return 4


def _reset_peak() -> int:
    """Bytes of memory held now; the peak counts from here (Linux)."""
    device.trim_heap()
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    return 0


KINDS = (
    *(("nifti", kind) for kind in corpus.NIFTI),
    *(("dicom", kind) for kind in corpus.DICOM),
    *(("pair", kind) for kind in corpus.PAIRS),
)
# The last are refused by tests of the same tables as well.
SLOW = ("large", "bomb behind", "tests: ")


def warm_up(folder: pathlib.Path) -> None:
    """What is imported and compiled once is no kind's memory."""
    folder.mkdir(parents=True)
    with corpus.identity_model():
        check("dicom", corpus.Kind("", "handled", lambda d: corpus.series(d / "s")), folder)


# ---- the real commands ----


def is_one_line(done: subprocess.CompletedProcess, fragment: str) -> bool:
    """Exit status 2, and a last line that begins with "error: " and says so; no traceback."""
    last = (done.stderr.strip().splitlines() or [""])[-1]
    is_clean = done.returncode == 2 and "Traceback" not in done.stderr + done.stdout
    return is_clean and last.startswith("error: ") and fragment in last


# ---- files of others, to be mutated (tests/test_faults_inputs.py) ----


def seeds(folder: pathlib.Path) -> dict[str, bytes]:
    """Small valid files of everything that is read from others."""
    folder.mkdir(parents=True, exist_ok=True)
    shape, affine = (6, 7, 5), corpus.affine_of((6, 7, 5), (3.0, 3.0, 4.0))
    array = np.random.default_rng(0).normal(5, 2, shape).astype(np.float32)
    nifti.write_volume(folder / "a.nii", array, affine, dtype=np.float32)
    plain = (folder / "a.nii").read_bytes()
    nifti.write_volume(folder / "a.nii.gz", array, affine, dtype=np.int16)
    stored = np.abs(array * 100).astype(np.uint16)
    for z in range(shape[2]):
        slice_ = dicom_slice(z, stored, affine, 0.5)
        slice_.save_as(folder / f"{z}.dcm", enforce_file_format=True)
    header = "subject,group,split,pet,ct,mr\n"
    prepared = {"name": "a", "contrast": "unknown", "config": {}, "modalities": {}}
    prepared["grid"] = ModelGrid((4, 4), (1.0, 1.0), 1.0).to_index("fov")
    prepared["encoding"] = shards.ENCODINGS["uint16"]
    (folder / "prepared").mkdir(exist_ok=True)
    writer = shards.ShardWriter(folder / "prepared", "pet", "uint16", (4, 4), 8)
    where = writer.add(np.zeros((3, 4, 4), np.float32))
    volume = {"pet": {"shard": where[0], "offset": 0}}
    prepared["subjects"] = [
        {"id": "a", "group": "a", "n_slices": 3, "keep": [True] * 3}
        | {"grid_affine": np.eye(4).tolist(), "volumes": volume}
    ]
    prepared["splits"] = {"hash": "", "train": ["a"], "val": [], "test": []}
    prepared["shards"] = writer.close()
    shards.write_index(folder / "prepared", prepared)
    exported = folder / "exported"
    exported.mkdir(exist_ok=True)
    facts = weights.save(exported, {"params": {"kernel": np.ones((2, 3), np.float32)}}, "float32")
    card = {"config": {}, "training": {}, "weights": facts, "step": 1}
    weights.write_card(exported, card, [weights.WEIGHTS])
    return {
        "nifti": plain,
        "nifti.gz": (folder / "a.nii.gz").read_bytes(),
        "dicom": (folder / "2.dcm").read_bytes(),
        "manifest": (
            header + "a,g,train,a/pet.nii,a/ct.nii,\nb,,val,b/pet.nii,,b/mr.nii\n"
        ).encode(),
        "index": (folder / "prepared" / "index.json").read_bytes(),
        "shard": (folder / "prepared" / "pet-00000.npy").read_bytes(),
        "card": (exported / "model.json").read_bytes(),
        "weights": (exported / "model.safetensors").read_bytes(),
    }


def read_mutant(kind: str, data: bytes, folder: pathlib.Path) -> None:
    """Reads `data` as what it claims to be. Raises UserError for bad ones; anything else is a fault."""
    if kind in ("nifti", "nifti.gz"):
        volume = nifti.read_volume(corpus.raw(folder / "m.nii.gz", data), max_bytes=1 << 24)
        assert np.isfinite(volume.array).all() and volume.array.ndim == 3
    elif kind == "dicom":
        from cldm_jax.data import dicom

        corpus.raw(folder / "2.dcm", data)
        series = dicom.read_series(folder, max_bytes=1 << 24)
        assert np.isfinite(series.volume.array).all()
        json.dumps(series.facts, allow_nan=False)
    elif kind == "manifest":
        for subject in bids.read_cohort(corpus.raw(folder / "m.csv", data)):
            bids.check_id(subject.id, "fuzz")
    elif kind in ("index", "shard"):
        name = "index.json" if kind == "index" else "pet-00000.npy"
        corpus.raw(folder / "prepared" / name, data)
        prepared = shards.Prepared(folder / "prepared", verify=True)
        for split in ("train", "all"):
            for subject in prepared.subjects(split):
                if prepared.has(subject, "pet"):
                    prepared.read(subject, "pet")
    else:
        name = weights.CARD if kind == "card" else weights.WEIGHTS
        corpus.raw(folder / "exported" / name, data)
        weights.load(folder / "exported", weights.read_card(folder / "exported"))


def with_own_hashes(kind: str, data: bytes) -> bytes:
    """A mutant of a hostile hand: where it is still JSON, its hashes are made to fit again."""
    try:
        value = json.loads(data)
        if kind == "index":
            value["fingerprint"] = shards.fingerprint(value)
        elif kind == "card":
            value.pop("card_sha256", None)
            value["card_sha256"] = files.sha256_json(value)
        return json.dumps(value).encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return data


FUZZED = ("nifti", "nifti.gz", "dicom", "manifest", "index", "shard", "card", "weights")


NODES = (
    "test_faults_inputs.py::test_kind",
    "test_faults_inputs.py::test_command",
    "test_predict_grids.py::test_output_is_on_the_inputs_grid",
    "test_predict_grids.py::TestChecks",
    "test_predict_grids.py::TestDicom",
    "test_data_dicom.py::test_transfer_syntaxes",
    "test_data_dicom.py::test_philips_private_factors",
    "test_data_dicom.py::test_zip_equals_folder",
    "test_data_dicom.py::test_zip_bomb_is_refused_by_its_declared_size",
    "test_data_dicom.py::test_lying_encrypted_and_damaged_zips",
    "test_data_audit.py::test_bad_manifests",
    "test_prepare.py::test_one_bad_entry_does_not_stop_the_others",
    "test_faults_inputs.py::test_a_dataset_goes_on_and_lists_what_failed",
    "test_faults_inputs.py::TestMutants",
)
CONTROLS = ("test_faults_inputs.py::test_flipped_bits_pass_through_another_reader",)
NAME = "bad volumes are refused by name, unusual ones handled"
MUTANTS = {"CLDM_FUZZ_EXAMPLES": "3000"}  # of each kind of file
PROMISES = [twins.promise(8, NAME, NODES, CONTROLS, **MUTANTS)]
