"""The comparison as one job: equal CPU time, one report, resumable."""

import concurrent.futures
import time
import types

import numpy as np
import pytest

from cldm_jax import files
from cldm_jax.errors import UserError
from cldm_jax.jobs import budget, reproduce, train
from cldm_jax.runs import record
from configs import reproduce as config_file

METHODS = "cyclegan-ct,cyclegan-mr,latent_regression,ldm,ldm-plain,sdedit,bridge"


def make_config(study, **fields):
    config = config_file.get_config("tiny")
    config.prepared = str(study.prepared)
    config.methods = METHODS
    config.budget_minutes = 0.3  # the autoencoder alone costs a loaded machine 6 CPU s
    config.update(fields)
    return config


@pytest.fixture(scope="module")
def compared(study, tmp_path_factory):
    root = tmp_path_factory.mktemp("compared")
    reproduce.run(make_config(study), str(root))
    return root


def test_whoever_was_left_out_is_told_in_the_end(tmp_path):
    """From the index who has an error, from the audit what never became somebody."""
    config = config_file.get_config("tiny")
    config.cohort = "cohort"
    files.write_json(tmp_path / "index.json", {})
    found = {"severity": "warning", "subject": "", "what": "cohort/x", "reason": "not used"}
    files.write_json(tmp_path / "audit.json", {"findings": [found]})
    reproduce._tell_left_out(config, str(tmp_path))
    found |= {"severity": "error", "what": "cohort/sub-9", "reason": "not used: cannot be read"}
    own = {**found, "subject": "sub-1"}
    files.write_json(tmp_path / "audit.json", {"findings": [found, own]})
    files.write_json(tmp_path / "index.json", {"left_out": [{"id": "sub-1", "why": "pet: empty"}]})
    with pytest.raises(UserError, match=r"2 subjects: sub-1 \(pet: empty\); sub-9 \(not used"):
        reproduce._tell_left_out(config, str(tmp_path))
    config.prepared = str(tmp_path)
    reproduce._tell_left_out(config, str(tmp_path))


def test_a_preset_for_gpus_is_warned_of_before_its_data_are_made(tmp_path, monkeypatch, capsys):
    config = config_file.get_config("a6000")
    monkeypatch.setattr(reproduce, "_prepared", lambda *_: 1 / 0)
    for methods, count in (("unet", 0), ("unet,ldm", 1)):
        config.methods = methods
        with pytest.raises(ZeroDivisionError):
            reproduce.run(config, str(tmp_path))
        assert capsys.readouterr().out.count("meant for a GPU") == count


def test_an_autoencoder_that_is_gone_is_not_trained_anew(tmp_path, monkeypatch):
    """The CLDM that began with it may refuse the new one, and that after its hours."""
    (tmp_path / "ldm-seed0").mkdir()
    data = types.SimpleNamespace(held=lambda split: ["ct", "mr"])
    monkeypatch.setattr(reproduce, "open_prepared", lambda _: data)
    monkeypatch.setattr(reproduce, "settled", lambda recipe: (recipe, data))
    monkeypatch.setattr(reproduce, "_costs", lambda *_: {})
    monkeypatch.setattr(budget, "plan", lambda *_: {})
    monkeypatch.setattr(train, "run", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(
        record, "autoencoder", lambda workdir: {} if "ldm" in str(workdir) else None
    )
    config, names = config_file.get_config("tiny"), ["latent_regression", "ldm"]
    with pytest.raises(UserError, match="ae: holds no trained autoencoder.*ldm-seed0 began"):
        reproduce._compare(config, tmp_path, tmp_path, "prepared", names)


def test_folds_side_by_side_share_their_cohort_and_their_costs(tmp_path, monkeypatch):
    """One was refused while the other simulated; the later costs replaced those by which the first had
    bought its steps, so that it could not be resumed.
    """
    config = config_file.get_config("tiny")
    config.folds, config.simulate.n_subjects = 2, 1

    def measure(*_):
        time.sleep(0.3)
        return {"cpu_seconds": time.monotonic(), "ratios": {"unet": 1.0}}

    def start(fold):
        reproduce._prepared(config, tmp_path, fold)
        recipes = {"unet": config.trainings["unet"]}
        return reproduce._costs(config, tmp_path / "costs.json", recipes, config.autoencoder)

    monkeypatch.setattr(reproduce.prepare, "make", lambda *_: "")
    monkeypatch.setattr(reproduce.budget, "measure", measure)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first, second = pool.map(start, (0, 1))
    assert first == second == files.read_json(tmp_path / "costs.json")


@pytest.mark.slow
def test_steps_of_two_latent_methods_are_measured_in_one_process(study):
    """Each has an untrained autoencoder, and a step donates its state."""
    config = make_config(study)
    config.autoencoder.data.prepared = str(study.prepared)
    steps = [
        budget.open_step(
            reproduce._on(config.trainings[name], str(study.prepared)), config.autoencoder
        )
        for name in ("ldm-plain", "ldm")
    ]
    for step in 2 * steps:
        step()


def test_the_plain_recipe_has_its_own_autoencoder_and_is_left_out_of_45_minutes():
    config = config_file.get_config("quick")
    config.autoencoder.train.num_train_steps = 7  # of both
    plain, shared = (reproduce._autoencoder(config, n, "data") for n in ("ldm-plain", "ldm"))
    assert not plain.recipe.patch_skip and shared.recipe.patch_skip
    assert plain.name != shared.name and plain.train == shared.train
    assert set(config.trainings) - set(config.methods.split(",")) == {
        "ldm-plain",
        "sdedit",
        "bridge",
    }
    assert config_file.get_config("cpu1mm").methods == ""  # all


@pytest.mark.usefixtures("study")
class TestReproduce:
    @pytest.mark.slow
    def test_every_method_is_scored_on_its_targets(self, compared):
        summary = files.read_json(compared / "report" / "summary.json")
        rows = {(r["method"], r["mode"], r["target"]): r for r in summary["rows"]}
        modes = {"cyclegan": "predict", "latent_regression": "onestep"}
        sampled = {"ldm": "sample", "ldm-plain": "mean4", "sdedit": "sample", "bridge": "mean4"}
        for method, mode in {**modes, **sampled}.items():
            for target in ("ct", "mr"):
                assert np.isfinite(rows[method, mode, target]["psnr"]["mean"])
        assert ("latent_regression", "sample", "ct") not in rows
        assert not {(m, "onestep", "ct") for m in ("ldm-plain", "sdedit", "bridge")} & set(rows)
        ceilings = {r["name"] for r in summary["references"] if r["name"].startswith("ae_")}
        assert ceilings == {"ae_ceiling", "ae_ceiling:ldm-plain"}
        pairs = {(t["a"].split(":")[0], t["b"].split(":")[0]) for t in summary["tests"]}
        assert pairs == {("ldm", rival) for rival in (*modes, "ldm-plain", "sdedit", "bridge")}
        assert {c["method"] for c in summary["controls"]} == {"ldm"}

    @pytest.mark.slow
    def test_budgets_are_equal_and_spent(self, compared):
        record = files.read_json(compared / "budget.json")
        ratios, plans = record["ratios"], record["plans"]
        whole = 60 * 0.3 / record["cpu_seconds"]
        assert plans["cyclegan-ct"]["budget"] == pytest.approx(whole / 2)
        assert plans["ldm"]["budget"] == pytest.approx(whole)
        for name, plan in plans.items():
            spent = plan["paid"] + plan["num_train_steps"] * ratios[name]
            assert plan["budget"] - ratios[name] <= spent <= plan["budget"]
            run = files.read_json(compared / f"{name}-seed0" / "run.json")
            assert run["step"] == plan["num_train_steps"] and run["finished"]
        assert plans["ldm"]["paid"] > 20 * ratios["ae"] > 0  # and the latents
        assert plans["cyclegan-ct"]["paid"] == 0

    @pytest.mark.slow
    def test_again_trains_nothing(self, study, compared, capsys):
        before = {p: p.stat().st_mtime_ns for p in compared.glob("*/checkpoints/*")}
        reproduce.run(make_config(study), str(compared))
        assert {p: p.stat().st_mtime_ns for p in compared.glob("*/checkpoints/*")} == before
        out = capsys.readouterr().out
        trained = len(METHODS.split(",")) + 3  # each latent method asks for its autoencoder
        assert out.count("already trained") == trained
        assert "already evaluated" in out

    def test_refusals(self, study, tmp_path):
        with pytest.raises(UserError, match="not known"):
            reproduce.run(make_config(study, methods="vae"), str(tmp_path))

    def test_a_folder_of_other_people_or_folds_is_refused(self, study, tmp_path):
        """It was scored again, and its report shown as that of who was asked for."""
        config = make_config(study, prepared="", cohort=str(study.data_root / "cohort"))
        made = reproduce._prepared(config, tmp_path, None)
        assert reproduce._prepared(config, tmp_path, None) == made  # the same command resumes
        config.cohort, config.simulate.n_subjects = "", 1
        with pytest.raises(UserError, match="other files or people"):
            reproduce._prepared(config, tmp_path, None)
        config.cohort, config.folds = str(study.data_root / "cohort"), 2
        for _ in range(2):
            reproduce._prepared(config, tmp_path, 0)
        config.folds = 4
        with pytest.raises(UserError, match="other settings: fold"):
            reproduce._prepared(config, tmp_path, 0)

    @pytest.mark.slow
    def test_folds_test_everyone_once(self, study, tmp_path):
        config = make_config(study, prepared="", methods="unet,unet-cells", folds=2, fold=0)
        config.budget_minutes = 0.1
        config.cohort = str(study.data_root / "cohort")
        reproduce.run(config, str(tmp_path))
        assert not (tmp_path / "report").exists()  # half of the people are not tested yet
        config.fold = -1
        reproduce.run(config, str(tmp_path))
        pooled = files.read_json(tmp_path / "report" / "summary.json")
        folds = [
            files.read_json(tmp_path / f"fold-{k}" / "report" / "summary.json") for k in (0, 1)
        ]
        assert pooled["data"]["test_patients"] == 8
        for row in pooled["rows"]:
            parts = [
                (r["n_patients"], r["psnr"]["mean"])
                for f in folds
                for r in f["rows"]
                if all(r[k] == row[k] for k in ("method", "mode", "target"))
            ]
            assert row["n_patients"] == 8
            assert row["psnr"]["mean"] == pytest.approx(sum(n * m for n, m in parts) / 8)
        assert (tmp_path / "report" / "index.html").is_file()

    def test_folds_refuse_data_that_are_split_already(self, study, tmp_path):
        with pytest.raises(UserError, match="split already"):
            reproduce.run(make_config(study, folds=2), str(tmp_path))
        with pytest.raises(UserError, match="no such fold"):
            reproduce.run(make_config(study, prepared="", folds=2, fold=2), str(tmp_path))
