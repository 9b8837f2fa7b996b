"""The comparison as one job: equal CPU time, one report, resumable."""

import numpy as np
import pytest

from cldm_jax import files
from cldm_jax.errors import UserError
from cldm_jax.jobs import reproduce
from configs import reproduce as config_file

METHODS = "cyclegan-ct,cyclegan-mr,latent_regression,ldm"


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


@pytest.mark.usefixtures("study")
class TestReproduce:
    @pytest.mark.slow
    def test_every_method_is_scored_on_its_targets(self, compared):
        summary = files.read_json(compared / "report" / "summary.json")
        rows = {(r["method"], r["mode"], r["target"]): r for r in summary["rows"]}
        modes = {"cyclegan": "predict", "latent_regression": "onestep"}
        for method, mode in {**modes, "ldm": "sample"}.items():
            for target in ("ct", "mr"):
                assert np.isfinite(rows[method, mode, target]["psnr"]["mean"])
        assert ("latent_regression", "sample", "ct") not in rows
        pairs = {(t["a"].split(":")[0], t["b"].split(":")[0]) for t in summary["tests"]}
        assert pairs == {("ldm", rival) for rival in (*modes,)}
        assert {c["method"] for c in summary["controls"]} == {"ldm"}

    @pytest.mark.slow
    def test_budgets_are_equal_and_spent(self, compared):
        budgets = {p.parent.name: files.read_json(p) for p in compared.glob("*/budget.json")}
        whole = 60 * 0.3
        assert budgets["cyclegan-ct-seed0"]["budget_cpu_seconds"] == pytest.approx(whole / 2)
        cost = files.read_json(compared / "ae-cost.json")
        left = whole - cost["training"] - cost["encoding"]
        assert budgets["ldm-seed0"]["budget_cpu_seconds"] == pytest.approx(left)
        for name, budget in budgets.items():
            run = files.read_json(compared / name / "run.json")
            assert run["step"] == budget["num_train_steps"] and run["finished"]

    @pytest.mark.slow
    def test_again_trains_nothing(self, study, compared, capsys):
        before = {p: p.stat().st_mtime_ns for p in compared.glob("*/checkpoints/*")}
        reproduce.run(make_config(study), str(compared))
        assert {p: p.stat().st_mtime_ns for p in compared.glob("*/checkpoints/*")} == before
        out = capsys.readouterr().out
        assert out.count("already trained") == 1 + len(METHODS.split(","))
        assert "already evaluated" in out

    def test_refusals(self, study, tmp_path):
        with pytest.raises(UserError, match="not known"):
            reproduce.run(make_config(study, methods="vae"), str(tmp_path))
        with pytest.raises(UserError, match="buys unet 0 steps"):
            config = make_config(study, methods="unet", budget_minutes=1e-6)
            reproduce.run(config, str(tmp_path))
