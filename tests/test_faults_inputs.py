"""Promises 12 to 14: settings, leaks, whole outputs. `faults` runs these tests, slow ones too."""

import contextlib
import json
import os
import pathlib
import sys

import jax
import nibabel as nib
import numpy as np
import pytest
import test_methods
from hypothesis import given
from hypothesis import strategies as st
from test_data_dicom import _set
from test_faults_volumes import FUZZ, cases

from cldm_jax import files, main
from cldm_jax import settings as law
from cldm_jax.data import audit, dicom, pet_inputs, shards
from cldm_jax.errors import UserError
from cldm_jax.jobs import predict
from cldm_jax.metrics import aggregate
from cldm_jax.volumes import derivatives
from cldm_jax.volumes import names as names_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # faults is no package of the installation

from faults import corpus, inputs, outputs  # noqa: E402
from faults.common import child, command, is_one_line  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def identity():
    with corpus.identity_model():
        yield


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
    mine = f".tmp-{files.HOST}"
    dead, alive = (out / f"{mine}-{n}-pet_desc-synth_ct.nii.gz" for n in (4194304 + 7, 1))
    for left in (dead, alive, out / ".tmp-x-pet_desc-synth_ct.nii.gz", out / ".tmp-1-other.nii.gz"):
        left.write_bytes(b"half")
    inputs.predicted(path, out)
    assert not dead.exists() and len(list(out.glob(".tmp-*"))) == 3
    assert names_lib.sidecar(out / "pet_desc-synth_ct.nii.gz").is_file()


class TestNames:
    def test_long_names_that_begin_alike_stay_apart(self, tmp_path):
        names = [
            pet_inputs.find_all(corpus.raw(tmp_path / ("n" * 230 + f"{i}.nii"), b"x")).found[0].name
            for i in range(2)
        ]
        assert len(set(names)) == 2 and max(map(len, names)) < 200

    def test_a_lone_dicom_file_is_called_one(self, tmp_path):
        path = next(corpus.series(tmp_path / "s", keep=[0]).iterdir())
        assert dicom.is_dicom(path)
        with pytest.raises(UserError, match="one DICOM file, not a series"):
            pet_inputs.read_input(pet_inputs.find_all(path).found[0])


class TestSettings:
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
        known = law.names(main._load_config(["main", "--config=configs/ldm.py:tiny"]))
        with pytest.raises(UserError) as refused:
            law.check_settings({**known, name: value}, known)
        assert fragment in str(refused.value) and "\n" not in str(refused.value)

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
            assert is_one_line(done, fragment) and not (tmp_path / "work").exists()

    @pytest.mark.parametrize("name", ["ldm:wide", "reference"])
    def test_a_name_that_reports_would_not_find_is_refused(self, name):
        """Its scores were in the table, and its paired tests and pictures left out in silence."""
        with pytest.raises(UserError, match="without a colon"):
            law.check_settings({"name": name}, {"name": "ldm"})
        key = f"{name}:mirror"
        rows = [
            dict(
                patient=i,
                group=i,
                method=m,
                mode="mirror",
                target="ct",
                metric="psnr",
                value=20 + i,
            )
            for m in (name, "unet")
            for i in range(6)
        ]
        made = aggregate.paired_tests(rows, [(key, "unet:mirror")], seed=0)
        assert (len(made) == 1) == (":" not in name)

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


@pytest.mark.parametrize("dataset", [False, True])
@pytest.mark.parametrize("place", ["file", "file/below", "nothing", "loop", "locked"])
def test_an_output_folder_that_cannot_be_is_said_before_the_work(
    tmp_path, monkeypatch, place, dataset
):
    (tmp_path / "file").write_text("")
    (tmp_path / "nothing").symlink_to("gone/further")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setattr(predict.core, "answer", lambda *_: pytest.fail("predicted"))
    if place == "locked":  # root may write anywhere
        monkeypatch.setattr(os, "access", lambda *_: False)
    path = corpus.bids(tmp_path / "b") if dataset else corpus.save(tmp_path / "pet.nii.gz")
    if dataset:  # so that a list of what is left aside is to be written
        corpus.save(path / "beside.nii.gz")
    reason = "Permission denied" if place == "locked" else "a file or a link to nothing"
    with pytest.raises((UserError, OSError), match=reason):
        inputs.predicted(path, tmp_path / place)


def test_an_input_that_is_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "pet.nii.gz").symlink_to("pet.nii.gz")
    with pytest.raises(UserError, match="levels of symbolic links"):
        inputs.predicted(tmp_path / "pet.nii.gz", tmp_path / "out")


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


def test_what_a_full_disk_left_does_not_pass_for_another_persons(tmp_path, monkeypatch):
    """SD maps and a page without a sidecar, beside the images of the next PET of that name."""
    one, other, out = (tmp_path / name for name in ("one", "other", "out"))
    for seed, folder in enumerate((one, other)):
        folder.mkdir()
        corpus.save(folder / "pet.nii.gz", corpus.head(seed=seed)["pet"])

    def full(*arguments):
        raise OSError(28, "No space left on device")

    first = predict.Request(str(one / "pet.nii.gz"), str(out), report=True)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(derivatives, "_remove", full)  # images and page are there, no sidecar
        predict.predict(first._replace(uncertainty=True, samples=2))
    assert len(list(out.glob("*_desc-synthsd_*"))) == 2 and list(out.glob("*.html"))
    inputs.predicted(other / "pet.nii.gz", out)
    left = sorted(p.name for p in out.glob("pet*") if p.suffix != ".json")
    assert left == ["pet_desc-synth_T1w.nii.gz", "pet_desc-synth_ct.nii.gz"]


def test_sidecars_say_what_was_noted(tmp_path):
    """Burned-in text reaches the person who might share the images."""
    edit = _set(BurnedInAnnotation="YES")
    (path, *_) = inputs.predicted(corpus.series(tmp_path / "s", edit), tmp_path / "out")
    found = json.loads(names_lib.sidecar(path).read_text())
    assert any("burned" in check["Warning"] for check in found["InputChecks"])
