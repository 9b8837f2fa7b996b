"""The page that compares trainings."""

import types

import pytest

from cldm_jax.errors import UserError
from cldm_jax.jobs import report
from cldm_jax.report import charts, runs_page
from configs import report as report_config


def training(workdir="runs/a", **settings) -> runs_page.Training:
    manifest = {
        **{
            "data": types.SimpleNamespace(fingerprint="f"),
            "method": "unet",
            "preset": "tiny",
            "params": 10,
        },
        **{"step": 3, "finished": False, "train_seconds": 7200.0, "train_cpu_seconds": 1800.0},
        **{"hardware": {"devices": ["cpu", "cpu"]}, "git": "abc"},
    }
    rows = [{"step": k, "train/loss": 1.0 / k} for k in (1, 2, 3)]
    rows += [{"step": 2, "val/psnr_ct": 20.0}, {"step": 3, "val/psnr_ct": None}]
    manifest = types.SimpleNamespace(**manifest)
    return runs_page.Training(workdir, manifest, {"train.num_train_steps": 9, **settings}, rows)


def test_two_trainings_of_a_study(study, tmp_path):
    config = report_config.get_config("tiny")
    config.runs = f"{study.unet},{study.ldm}"
    report.run(config, str(tmp_path))
    page = (tmp_path / "index.html").read_text()
    assert "Not the same data" not in page and page.count("data:image/png") == 3
    for words in ("26,817", "30,118", "recipe.diffusion.schedule", "dB at 20", "PET to CT"):
        assert words in page, words
    assert "http" not in page.replace("http-equiv", "")  # self-contained


def test_what_differs_and_what_is_best():
    a, b = training(lr=1), training("other/a", lr=2, extra="x")
    assert runs_page.differing([a, b]) == [("extra", ["-", "x"]), ("lr", ["1", "2"])]
    assert runs_page.best_validation(a, "ct") == (20.0, 2)
    assert runs_page.best_validation(a, "mr") is None
    b.manifest.data = types.SimpleNamespace(fingerprint="g")
    page = runs_page.make_page([a, b], title="<T>", command="c")
    assert "Not the same data" in page and "3 of 9, not finished" in page and "&lt;T&gt;" in page
    assert "runs/a" in page and "other/a" in page  # last parts alone would be alike
    assert "2.00" in page and "0.50" in page and "2 x cpu" in page


def test_nothing_to_draw_and_nothing_there(tmp_path):
    assert charts.curves_figure(["a"], [[]], "x", log=True) is None
    config = report_config.get_config("tiny")
    config.runs = str(tmp_path)
    with pytest.raises(UserError, match="not a run folder"):
        report.run(config, str(tmp_path / "out"))
    config.runs = " , "
    with pytest.raises(UserError, match="empty"):
        report.run(config, str(tmp_path / "out"))
