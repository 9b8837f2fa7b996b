"""The input half of the promises: `faults` runs these tests, with those that are marked slow."""

import contextlib
import io
import json
import os
import pathlib
import signal
import sys

import jax
import nibabel as nib
import numpy as np
import pytest
import test_methods
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cldm_jax import main
from cldm_jax import settings as law
from cldm_jax.data import audit, dicom, pet_inputs, shards
from cldm_jax.errors import UserError
from cldm_jax.volumes import derivatives

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # faults is no package of the installation

from faults import corpus, inputs, outputs, security  # noqa: E402
from faults.common import child, command, flip  # noqa: E402

FUZZ = settings(
    max_examples=int(os.environ.get("CLDM_FUZZ_EXAMPLES", 25)),  # faults.inputs: 3000
    deadline=5000,  # ms
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


SECONDS = 60  # for a kind, on a loaded machine; most take well under one


@pytest.fixture(scope="module", autouse=True)
def identity(tmp_path_factory):
    inputs.warm_up(tmp_path_factory.mktemp("warm") / "up")
    with corpus.identity_model():
        yield


def cases(values, is_slow, name=str) -> list:
    """Parameters of a test, of which some are slow."""
    slow = pytest.mark.slow
    return [pytest.param(*v, id=name(v), marks=slow if is_slow(v) else ()) for v in values]


# ---- 8: volumes ----


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
        inputs.KINDS,
        lambda case: case[1].name.startswith(inputs.SLOW),
        lambda case: f"{case[0]}: {case[1].name}",
    ),
)
def test_kind(tmp_path, where, kind, deadline):
    assert inputs.check(where, kind, tmp_path) == ""


PREDICTED = ("empty", "bomb", "a missing slice", "JPEG 2000", "bit flip in the voxels")
PREPARED = ("flipped affine", "CT without bone", "dynamic PET")


@pytest.mark.parametrize(
    "name, more",
    cases(
        [*((name, "") for name in (*PREDICTED, *PREPARED)), (PREDICTED[0], "--debug")],
        lambda case: case != (PREDICTED[0], ""),
    ),
)
def test_command(tmp_path, name, more):
    """With the model that is shipped: status 2, one line, no traceback; with --debug there is one."""
    (kind,) = (kind for _, kind in inputs.KINDS if kind.name in (name, f"tests: {name}"))
    if name in PREDICTED:
        words = ["cldm_jax.predict", "-i", kind.make(tmp_path), "-o", tmp_path / "out"]
    else:
        words = ["cldm_jax.main", "--config=configs/prepare.py:tiny", f"--workdir={tmp_path / 'w'}"]
        words += [f"--config.cohort={kind.make(tmp_path / 'cohort')}"]
    done = command(*map(str, words), *more.split())
    if more:
        assert "Traceback" in done.stderr and done.returncode
    else:
        assert inputs.is_one_line(done, kind.reason), done.stderr


def test_the_corpus_is_large():
    assert len(corpus.NIFTI) >= 75 and len(corpus.DICOM) >= 65 and len(corpus.PAIRS) >= 28
    names = [f"{where}: {kind.name}" for where, kind in inputs.KINDS]
    assert len(set(names)) == len(names)


def test_a_dataset_goes_on_and_lists_what_failed(tmp_path):
    """Two bad images of five: the good ones are written."""
    bids = corpus.bids(tmp_path / "bids", 5)
    corpus.raw(bids / "sub-1" / "pet" / "sub-1_pet.nii.gz", b"")
    corpus.flipped(bids / "sub-3" / "pet" / "sub-3_pet.nii.gz", 4000, 3)
    with pytest.raises(UserError, match="2 of 5 images failed: sub-1, sub-3"):
        inputs.predicted(bids, tmp_path / "out")
    made = sorted(p.parent.parent.name for p in (tmp_path / "out").rglob("*_ct.nii.gz"))
    assert made == ["sub-0", "sub-2", "sub-4"]


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
            np.testing.assert_array_equal(inputs.nifti.read_volume(bad).array, truth)
    assert theirs > 100


@pytest.fixture
def good(tmp_path):
    return inputs.seeds(tmp_path)


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
    @pytest.mark.parametrize("kind", inputs.FUZZED)
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
            data = inputs.with_own_hashes(kind, data)
        with contextlib.suppress(UserError):
            inputs.read_mutant(kind, data, tmp_path)

    @FUZZ
    @given(data=st.binary(max_size=200), text=st.text(max_size=80))
    def test_manifests(self, tmp_path, data, text):
        for content in (data, text.encode(errors="replace"), b"subject,pet\n" + data):
            with contextlib.suppress(UserError):
                inputs.read_mutant("manifest", content, tmp_path)

    @pytest.mark.parametrize("kind", ["index", "card"])
    def test_every_value_of_another_kind(self, tmp_path, good, kind):
        for bad in every_value_of_another_kind(json.loads(good[kind])):
            with contextlib.suppress(UserError):
                data = inputs.with_own_hashes(kind, json.dumps(bad).encode())
                inputs.read_mutant(kind, data, tmp_path)

    @pytest.mark.parametrize("kind", inputs.FUZZED)
    def test_the_unchanged_are_read(self, tmp_path, good, kind):
        inputs.read_mutant(kind, good[kind], tmp_path)


# ---- 9 to 11: code, paths, names ----


@pytest.mark.parametrize(
    "place, payload",
    cases(
        [(place, name) for place, (_, names) in security.PLACES.items() for name in names],
        lambda case: case[0].startswith("checkpoint"),
    ),
)
def test_data_are_never_run(tmp_path, place, payload):
    inputs.seeds(tmp_path)
    read, canary = security.PLACES[place][0], tmp_path / "touched"
    with contextlib.suppress(Exception):  # what is refused, and how, is promise 8's
        read(security.payloads(canary)[payload], tmp_path)
    assert not canary.exists()


def test_a_loader_that_unpickles_runs_them(tmp_path):
    data = security.payloads(tmp_path / "touched")["objects"]
    with contextlib.suppress(Exception):
        np.load(io.BytesIO(data), allow_pickle=True)
    assert (tmp_path / "touched").exists()


@pytest.fixture
def outside(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("mine")
    return tmp_path / "outside"


@pytest.mark.parametrize("name", security.ESCAPES)
def test_no_path_leads_out(tmp_path, outside, name):
    """Whatever names and links data hold, files are written below the output folder only."""
    own = tmp_path / "own"
    own.mkdir()
    before, taken = security.listing(tmp_path, own), False
    with contextlib.suppress(UserError):
        taken = security.ESCAPES[name](own, outside)
    assert not taken and security.listing(tmp_path, own) == before


def test_without_the_check_a_link_is_followed(tmp_path, outside, monkeypatch):
    monkeypatch.setattr(derivatives.Names, "_check_inside", lambda self: None)
    security.linked_out(tmp_path, outside, "sub-0/ct")
    assert len(list(outside.iterdir())) > 1


def test_nobody_is_named(tmp_path):
    with contextlib.redirect_stderr(io.StringIO()):
        (tmp_path / "own").mkdir()
        outcome = security.nobody_named(tmp_path / "own", True)
    assert outcome.survived == outcome.injected and outcome.negative_control, outcome.notes


# ---- 13: leaks ----


def double(person: pathlib.Path, other: pathlib.Path) -> None:
    """The images of `person` in the place of another's: other axes, number type and compression."""
    for name in ("pet", "ct", "mr"):
        image = nib.load(person / f"{name}.nii.gz")
        turned = image.as_reoriented(np.array([[0, -1], [1, -1], [2, 1]]))
        again = nib.Nifti1Image(np.asarray(turned.dataobj, np.float64), turned.affine)
        nib.save(again, other / f"{name}.nii.gz")


@pytest.fixture
def doubled(tmp_path):
    """A cohort in which one person is another one, turned to other axes and saved anew."""
    cohort = corpus.cohort(tmp_path / "c")
    double(cohort / "p0", cohort / "p3")
    return cohort


def test_without_the_audit_the_double_passes(tmp_path, doubled, monkeypatch):
    monkeypatch.setattr(audit, "audit_cohort", lambda *_: [])
    inputs.prepared(doubled, tmp_path / "w")


class TestLeaks:
    """Promise 13, as far as no test of the audit or of `prepare` asserts it."""

    def test_a_double_turned_and_saved_anew(self, tmp_path, doubled):
        with pytest.raises(UserError, match="the same image"):
            inputs.prepared(doubled, tmp_path / "w")
        assert not (tmp_path / "w" / shards.INDEX).exists()

    def test_a_training_person_saved_anew_in_an_external_set(self, tmp_path):
        home = corpus.cohort(tmp_path / "home")
        inputs.prepared(home, tmp_path / "prepared")
        away = corpus.cohort(tmp_path / "away", people=2, first=20)
        double(home / "p0", away / "p1")
        changes = dict(split_mode="external", normalisers_from=str(tmp_path / "prepared"))
        with pytest.raises(UserError, match="same"):
            inputs.prepared(away, tmp_path / "w", **changes)
        assert not (tmp_path / "w" / shards.INDEX).exists()

    def test_an_edited_index(self, tmp_path):
        """A prepared folder in which somebody moved a test person into training as well."""
        index = inputs.prepared(corpus.cohort(tmp_path / "c"), tmp_path / "w").json
        index["splits"]["train"] += index["splits"]["test"][:1]
        shards.write_index(tmp_path / "w", index)
        with pytest.raises(UserError, match="in another split"):
            shards.Prepared(tmp_path / "w")

    def test_targets_beside_the_pet_change_nothing(self, tmp_path):
        made = []
        for name in ("with", "without"):
            own = tmp_path / name / "sub-1"
            (own / "pet").mkdir(parents=True)
            corpus.save(own / "pet" / "sub-1_pet.nii.gz")
            for target, sub, end in (("ct", "ct", "ct"), ("mr", "anat", "T1w")):
                (own / sub).mkdir()
                if name == "with":
                    corpus.save(own / sub / f"sub-1_{end}.nii.gz", corpus.head()[target])
            paths = inputs.predicted(tmp_path / name, tmp_path / f"out-{name}")
            made.append([p.read_bytes() for p in paths])
        assert made[0] == made[1]

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["ldm", "unet", "attention_unet", "pix2pix", "cyclegan"])
    def test_read_outs_can_be_traced_without_a_target(self, name):
        method, state, batch = test_methods.start(name)
        unseen = {k: v for k, v in batch.items() if k not in ("target", "mask")}
        for read_out in method.predict.values():
            jax.eval_shape(read_out, state, unseen, jax.random.key(0))


def test_killed_while_preparing(tmp_path):
    outputs._set_up("prepare", tmp_path)
    outputs._job("prepare", tmp_path)
    truth = outputs._finals(tmp_path / "out")
    assert outputs._attempt("prepare", tmp_path, truth, 9, 0.0) == ""


def test_what_a_killed_prediction_left_is_swept(tmp_path):
    path = corpus.save(tmp_path / "pet.nii.gz")
    out = tmp_path / "out"
    out.mkdir()
    dead, alive = (out / f".tmp-{n}-pet_desc-synth_ct.nii.gz" for n in (4194304 + 7, 1))
    for left in (dead, alive, out / ".tmp-x-pet_desc-synth_ct.nii.gz", out / ".tmp-1-other.nii.gz"):
        left.write_bytes(b"half")
    inputs.predicted(path, out)
    assert not dead.exists() and len(list(out.glob(".tmp-*"))) == 3
    assert derivatives.sidecar(out / "pet_desc-synth_ct.nii.gz").is_file()


class TestNames:
    def test_long_names_that_begin_alike_stay_apart(self, tmp_path):
        names = [
            pet_inputs.find_inputs(corpus.raw(tmp_path / ("n" * 230 + f"{i}.nii"), b"x"))[0].name
            for i in range(2)
        ]
        assert len(set(names)) == 2 and max(map(len, names)) < 200

    def test_a_lone_dicom_file_is_called_one(self, tmp_path):
        path = next(corpus.series(tmp_path / "s", keep=[0]).iterdir())
        assert dicom.is_dicom(path)
        with pytest.raises(UserError, match="one DICOM file, not a series"):
            pet_inputs.read_input(pet_inputs.find_inputs(path)[0])


class TestSettings:
    def refuse(self, config: str, fragment: str, **changes):
        with pytest.raises(UserError) as refused:
            loaded = main._load_config(["main", f"--config={config}"])
            known = law.names(loaded)
            law.check_settings({**known, **changes}, known)
        assert fragment in str(refused.value) and "\n" not in str(refused.value)

    @pytest.mark.parametrize(
        "config, fragment",
        [
            ("configs/ldm.py:tny", "Did you mean the preset tiny?"),
            ("configs/ldn.py:tiny", "Did you mean --config=configs/ldm.py?"),
            ("", "like --config=configs/ldm.py:quick"),
        ],
    )
    def test_file_and_preset(self, config, fragment, monkeypatch):
        monkeypatch.chdir(ROOT)
        self.refuse(config, fragment)

    @pytest.mark.parametrize(
        "name, value, fragment",
        [
            ("train.batch_size", 0, "Give 1 or more"),
            ("recipe.optim.learning_rate", float("nan"), "above 0"),
            ("recipe.optim.ema_decay", 1.5, "from 0 to 1"),
            ("recipe.diffusion.schedule", "cosin", "Did you mean cosine?"),
            ("data.targets", ("ct", "flair"), "Known: pet, ct, mr"),
            ("data.prepare.size", (40,), "needs 2 values"),
            ("data.prepare.size", (40, "wide"), "needs numbers"),
            ("job", "trian", "Did you mean train?"),
        ],
    )
    def test_value(self, name, value, fragment, monkeypatch):
        monkeypatch.chdir(ROOT)
        self.refuse("configs/ldm.py:tiny", fragment, **{name: value})

    @pytest.mark.parametrize(
        "name, meant",
        [
            ("train.batch_sise", "train.batch_size"),
            ("batch_size", "train.batch_size"),
            ("recipe.optim.learnig_rate", "recipe.optim.learning_rate"),
            ("sede", "seed"),
        ],
    )
    def test_the_nearest_name(self, name, meant, monkeypatch):
        monkeypatch.chdir(ROOT)
        known = law.names(main._load_config(["main", "--config=configs/ldm.py:tiny"]))
        assert law.nearest(name, known, "--config.") == f"Did you mean --config.{meant}?"

    @pytest.mark.parametrize("path", sorted(p.stem for p in (ROOT / "configs").glob("*.py")))
    def test_every_preset_passes(self, path, monkeypatch):
        monkeypatch.chdir(ROOT)
        if "def get_config" not in (ROOT / "configs" / f"{path}.py").read_text():
            pytest.skip("no config")
        for preset in ("tiny", "a6000"):
            config = main._load_config(["main", f"--config=configs/{path}.py:{preset}"])
            law.check_settings(law.names(config), law.names(config))
            law.check_sampling(config, "")

    @FUZZ
    @given(data=st.data())
    def test_any_value_is_taken_or_refused_by_name(self, data):
        from configs import ldm

        known = law.names(ldm.get_config("tiny"))
        name = data.draw(st.sampled_from(sorted(known)))
        strange = st.one_of(
            st.integers(), st.floats(), st.text(max_size=20), st.none(), st.booleans(),
            st.tuples(st.integers(), st.text(max_size=5)), st.tuples(),
        )  # fmt: skip
        with contextlib.suppress(UserError):
            law.check_settings({**known, name: data.draw(strange)}, known)

    @pytest.mark.parametrize(
        "module, words, fragment",
        cases(
            [
                *(("cldm_jax.main", *case) for case in outputs.TYPOS),
                *(("cldm_jax.predict", *case) for case in outputs.OPTIONS),
            ],
            lambda case: case[1:] not in (*outputs.TYPOS[::8], outputs.OPTIONS[0]),
            lambda case: case[1],
        ),
    )
    def test_through_the_real_command(self, tmp_path, module, words, fragment):
        """Status 2, one line with the nearest valid name or range, and nothing is made."""
        more = [f"--workdir={tmp_path / 'work'}"] if module == "cldm_jax.main" else []
        if outputs.PREPARE in words:
            more += [f"--config.cohort={corpus.cohort(tmp_path / 'cohort', people=1)}"]
        done = command(module, *words.split(), *more)
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 2 and fragment in last and "Traceback" not in done.stderr, last
        if module == "cldm_jax.main":
            assert inputs.is_one_line(done, fragment) and not (tmp_path / "work").exists()

    def test_absl_alone_takes_them(self):
        code = (
            "import sys; from absl import flags; from cldm_jax import main; "
            "flags.FLAGS(sys.argv); print('taken')"
        )
        done = child([sys.executable, "-c", code, outputs.LDM, "--config.train.batch_size=-4"])
        assert "taken" in done.stdout


def test_predict_names_the_nearest_option(capsys):
    from cldm_jax import predict

    with pytest.raises(SystemExit):
        predict.main(["-i", "x", "-o", "y", "--smaples", "4"])
    assert "did you mean --samples?" in capsys.readouterr().err


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    from cldm_jax import predict
    from cldm_jax.data import nifti

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device", str(tmp_path / "out" / "x.nii.gz"))

    monkeypatch.setattr(nifti, "write_volume", full)
    path = corpus.save(tmp_path / "pet.nii.gz")
    words = ["-i", str(path), "-o", str(tmp_path / "out"), "--checkpoint", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        predict.main([*words, "--mode", "onestep"])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2 and line.startswith("error: ") and "No space left" in line


def test_sidecars_say_what_was_noted(tmp_path):
    """Burned-in text reaches the person who might share the images."""
    edit = corpus._set(BurnedInAnnotation="YES")
    (path, *_) = inputs.predicted(corpus.series(tmp_path / "s", edit), tmp_path / "out")
    found = json.loads(derivatives.sidecar(path).read_text())
    assert any("burned" in check["Warning"] for check in found["InputChecks"])


def test_scaled_integers_are_exact(tmp_path):
    """The reader scales slice by slice, to stay within twice the volume's memory."""
    array = np.random.default_rng(0).integers(-(2**20), 2**20, (7, 8, 9)).astype(np.int32)
    path = corpus.save(tmp_path / "a.nii", array, scl_slope=0.37, scl_inter=-2.5)
    expected = (array.astype(np.float64) * np.float64(np.float32(0.37)) - 2.5).astype(np.float32)
    np.testing.assert_array_equal(inputs.nifti.read_volume(path).array, expected)
