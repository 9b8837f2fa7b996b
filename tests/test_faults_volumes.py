"""Promise 8: bad volumes are refused by name, unusual ones handled right; and readers that never fall.

`faults` runs all of it; the suite what is not marked slow.
"""

import contextlib
import json
import os
import pathlib
import signal
import sys

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cldm_jax import files
from cldm_jax.data import bids, nifti, pet_inputs, shards
from cldm_jax.data.grid import ModelGrid
from cldm_jax.errors import UserError
from cldm_jax.jobs import predict
from cldm_jax.runtime import device, weights

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # faults is not installed

import volume_kinds  # noqa: E402
from volume_kinds import Kind  # noqa: E402

from faults import corpus  # noqa: E402
from faults.common import command, flip, is_one_line, quiet  # noqa: E402
from faults.dicom_slices import dicom_slice  # noqa: E402
from faults.inputs import predicted, prepared  # noqa: E402

FUZZ = settings(
    max_examples=int(os.environ.get("CLDM_FUZZ_EXAMPLES", 25)),  # faults: 3000
    deadline=5000,  # ms
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SECONDS = 60  # for a kind, on a loaded machine; most take well under one
SLACK = 24 << 20  # bytes of memory that are not the volume's: buffers, imports on first use


def check(where: str, kind: Kind, folder: pathlib.Path) -> str:
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


def _volume(kind: Kind, path, folder) -> tuple[int, int, str]:
    """(peak of memory while reading, what it may be, what was wrong), of a kind that is handled."""
    before = _status("VmRSS")
    with quiet() as text:
        (found,) = pet_inputs.find_all(path).found
        volume, facts = pet_inputs.read_input(found)
        peak = _status("VmHWM")
        allowed = before + 2 * volume.array.size * max(4, _item_size(found.path))
        written = predicted(path, folder / "out")
    return peak, allowed, _unlike(kind, volume, facts, written, text.getvalue())


def _pair(kind: Kind, cohort, folder) -> tuple[int, int, str]:
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


def _wrong_refusal(kind: Kind, error: UserError, path) -> str:
    """Why this is not the refusal that was expected: "" where it is."""
    if kind.expect != "refused":
        return f"refused: {error}"
    if kind.reason.lower() not in str(error).lower():
        return f"another reason: {error}"
    named = repr(str(path))[1:-1] in str(error) or repr(str(path)) in str(error)
    if not named or not error.remedy or "\n" in str(error):
        return f"not one line with file and remedy: {error}"
    return ""


def _unlike(kind: Kind, volume, facts, written, text: str) -> str:
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
    if (
        kind.check is not volume_kinds.anything
    ):  # nothing is odd: the identity model gives the PET back
        pet = np.minimum(volume.array, 1.5 * np.percentile(volume.array[volume.array > 0], 99))
        fit = np.corrcoef(nifti.read_volume(written[0]).array.ravel(), pet.ravel())[0, 1]
        if fit < 0.9:
            return f"{written[0].name} does not show the PET (correlation {fit:.2f})"
    return ""


def _unlike_the_others(cohort, work) -> str:
    """Why a folder from which something was left out is not whole: "" where it is."""
    prepared = shards.Prepared(work, verify=True)
    given = {s.id: set(s.files) for s in bids.find_cohort(cohort).subjects}
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
    *(("nifti", kind) for kind in volume_kinds.NIFTI),
    *(("dicom", kind) for kind in volume_kinds.DICOM),
    *(("pair", kind) for kind in volume_kinds.PAIRS),
)
# The last are refused by tests of the same tables as well.
SLOW = ("large", "bomb behind", "tests: ")


def warm_up(folder: pathlib.Path) -> None:
    """What is imported and compiled once is no kind's memory."""
    folder.mkdir(parents=True)
    with corpus.identity_model():
        check("dicom", Kind("", "handled", lambda d: corpus.series(d / "s")), folder)


@pytest.fixture(scope="module", autouse=True)
def identity(tmp_path_factory):
    warm_up(tmp_path_factory.mktemp("warm") / "up")
    with corpus.identity_model():
        yield


def cases(values, is_slow, name=str) -> list:
    """Parameters of a test, of which some are slow."""
    slow = pytest.mark.slow
    return [pytest.param(*v, id=name(v), marks=slow if is_slow(v) else ()) for v in values]


@pytest.fixture
def deadline():
    """A kind that hangs fails."""

    def hung(*_):
        raise TimeoutError(f"it hung for {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "where, kind",
    cases(
        KINDS,
        lambda case: case[1].name.startswith(SLOW),
        lambda case: f"{case[0]}: {case[1].name}",
    ),
)
def test_kind(tmp_path, where, kind, deadline):
    assert check(where, kind, tmp_path) == ""


PREDICTED = ("empty", "bomb", "a missing slice", "JPEG 2000", "bit flip in the voxels")
PREPARED = ("flipped affine", "CT without bone", "dynamic PET")


@pytest.mark.parametrize(
    "name, more",
    cases(
        [*((name, "") for name in (*PREDICTED, *PREPARED)), (PREDICTED[0], "--debug")],
        lambda case: case != (PREDICTED[0], ""),
        " ".join,
    ),
)
def test_command(tmp_path, name, more):
    """With the model that is shipped: status 2, one line, no traceback; with --debug there is one."""
    (kind,) = (kind for _, kind in KINDS if kind.name in (name, f"tests: {name}"))
    if name in PREDICTED:
        words = ["cldm_jax.predict", "-i", kind.make(tmp_path), "-o", tmp_path / "out"]
    else:
        words = ["cldm_jax.main", "--config=configs/prepare.py:tiny", f"--workdir={tmp_path / 'w'}"]
        words += [f"--config.cohort={kind.make(tmp_path / 'cohort')}"]
    done = command(*map(str, words), *more.split())
    if more:
        assert "Traceback" in done.stderr and done.returncode
    else:
        assert is_one_line(done, kind.reason), done.stderr


def test_the_corpus_is_large():
    assert (
        len(volume_kinds.NIFTI) >= 75
        and len(volume_kinds.DICOM) >= 65
        and len(volume_kinds.PAIRS) >= 28
    )
    names = [f"{where}: {kind.name}" for where, kind in KINDS]
    assert len(set(names)) == len(names)


def test_a_dataset_goes_on_and_lists_what_failed(tmp_path):
    """Two bad images of five: the good ones are written."""
    bids = corpus.bids(tmp_path / "bids", 5)
    corpus.raw(bids / "sub-1" / "pet" / "sub-1_pet.nii.gz", b"")
    corpus.flipped(bids / "sub-3" / "pet" / "sub-3_pet.nii.gz", 4000, 3)
    with pytest.raises(UserError, match="2 of 5 images failed: sub-1, sub-3"):
        predicted(bids, tmp_path / "out")
    made = sorted(p.parent.parent.name for p in (tmp_path / "out").rglob("*_ct.nii.gz"))
    assert made == ["sub-0", "sub-2", "sub-4"]


def test_a_fault_of_ours_costs_one_image_and_is_told_whole(tmp_path, monkeypatch, capsys):
    look = predict.core.look

    def faulty(model, pet, facts, path, began):
        return 1 / 0 if path.name.startswith("sub-0") else look(model, pet, facts, path, began)

    monkeypatch.setattr(predict.core, "look", faulty)
    with pytest.raises(UserError, match="1 of 2 images failed: sub-0. The others are written"):
        predicted(corpus.bids(tmp_path / "bids", 2), tmp_path / "out")
    assert list((tmp_path / "out").rglob("sub-1*_ct.nii.gz"))
    assert "error: sub-0: Traceback" in (said := capsys.readouterr().err) and "by zero" in said


def test_flipped_bits_pass_through_another_reader(tmp_path):
    """Accepted with other voxels: by nibabel, which does not look at the checksum, not here."""
    good = corpus.save(tmp_path / "good.nii.gz", np.rint(corpus.head()["ct"]).astype("i2"))
    truth, rng, theirs = nib.load(good).get_fdata(dtype=np.float32), np.random.default_rng(0), 0
    for at in rng.integers(10, good.stat().st_size, 200):
        bad = corpus.raw(tmp_path / "bad.nii.gz", good.read_bytes())
        flip(bad, int(at), int(rng.integers(8)))
        with contextlib.suppress(Exception):
            theirs += bool((nib.load(bad).get_fdata(dtype=np.float32) != truth).any())
        with contextlib.suppress(UserError):
            np.testing.assert_array_equal(nifti.read_volume(bad).array, truth)
    assert theirs > 100


@pytest.mark.parametrize(("dtype", "most"), [(np.int32, 2**20), (np.int16, 2**15)])
def test_scaled_integers_are_exact(tmp_path, dtype, most):
    """The reader scales slice by slice, to stay within twice the volume's memory; an image of nibabel is
    the file to the bit.
    """
    array = np.random.default_rng(0).integers(-most, most, (7, 8, 9)).astype(dtype)
    path = corpus.save(tmp_path / "a.nii", array, scl_slope=0.37, scl_inter=-2.5)
    expected = (array.astype(np.float64) * np.float64(np.float32(0.37)) - 2.5).astype(np.float32)
    np.testing.assert_array_equal(nifti.read_volume(path).array, expected)
    np.testing.assert_array_equal(nifti.from_image(nib.load(path)).array, expected)


# ---- files of others, to be mutated ----


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
    writer = shards.ShardWriter(folder / "prepared", "pet", 8)
    where = writer.add(shards.encode(np.zeros((3, 4, 4)), "uint16"))
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
        volume = nifti.read_volume(corpus.raw(folder / "m.nii.gz", data))
        assert np.isfinite(volume.array).all() and volume.array.ndim == 3
    elif kind == "dicom":
        from cldm_jax.data import dicom

        corpus.raw(folder / "2.dcm", data)
        series = dicom.read_series(folder)
        assert np.isfinite(series.volume.array).all()
        json.dumps(series.facts, allow_nan=False)
    elif kind == "manifest":
        for subject in bids.find_cohort(corpus.raw(folder / "m.csv", data)).subjects:
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


@pytest.fixture
def good(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti, "MAX_BYTES", 1 << 24)  # of what a mutant's header may declare
    return seeds(tmp_path)


def mutate(data: bytes, edits) -> bytes:
    """edits: [(operation, place 0..1, byte)]: what a damaged disk or a hostile hand does to a file."""
    data = bytearray(data)
    for operation, place, byte in edits:
        at = int(place * max(len(data) - 1, 0))
        if operation == "set" and data:
            data[at] = byte
        elif operation == "flip" and data:
            data[at] ^= 1 << (byte % 8)
        elif operation == "cut":
            del data[at:]
        elif operation == "drop":
            del data[at : at + 1 + byte]
        elif operation == "insert":
            data[at:at] = bytes([byte]) * (1 + byte % 9)
    return bytes(data)


STRANGE = (None, True, -1, 1 << 70, 1e308, "", "../../x", "a" * 5000, [], [[1]], {}, {"a": {}})


def every_value_of_another_kind(good: dict):
    """The JSON with each of its values replaced, and with each taken out."""
    for where in list(paths(good)):
        for value in (*STRANGE, KeyError):
            bad = json.loads(json.dumps(good))
            node = bad
            for key in where[:-1]:
                node = node[key]
            if value is KeyError:
                del node[where[-1]]
            else:
                node[where[-1]] = value
            yield bad


def paths(node, path=()):
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from paths(value, (*path, key))


class TestMutants:
    @pytest.mark.parametrize("kind", FUZZED)
    @FUZZ
    @given(
        edits=st.lists(
            st.tuples(
                st.sampled_from(("set", "flip", "cut", "drop", "insert")),
                st.one_of(st.floats(0, 1), st.floats(0, 0.05)),
                st.integers(0, 255),
            ),
            min_size=1,
            max_size=6,
        ),
        hashes=st.booleans(),
    )
    def test_bytes(self, tmp_path, good, kind, edits, hashes):
        data = mutate(good[kind], edits)
        if hashes and kind in ("index", "card"):
            data = with_own_hashes(kind, data)
        with contextlib.suppress(UserError):
            read_mutant(kind, data, tmp_path)

    @FUZZ
    @given(data=st.binary(max_size=200), text=st.text(max_size=80))
    def test_manifests(self, tmp_path, data, text):
        for content in (data, text.encode(errors="replace"), b"subject,pet\n" + data):
            with contextlib.suppress(UserError):
                read_mutant("manifest", content, tmp_path)

    @pytest.mark.parametrize("kind", ["index", "card"])
    def test_every_value_of_another_kind(self, tmp_path, good, kind):
        for bad in every_value_of_another_kind(json.loads(good[kind])):
            with contextlib.suppress(UserError):
                data = with_own_hashes(kind, json.dumps(bad).encode())
                read_mutant(kind, data, tmp_path)

    @pytest.mark.parametrize("kind", FUZZED)
    def test_the_unchanged_are_read(self, tmp_path, good, kind):
        read_mutant(kind, good[kind], tmp_path)
