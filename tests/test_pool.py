"""Pooling the reports of folds."""

import contextlib
import types
from unittest import mock

import numpy as np
import pytest
from report_samples import make_gallery
from report_samples import make_summary as sample

from cldm_jax import files
from cldm_jax.errors import UserError
from cldm_jax.metrics.protocol import PROTOCOLS
from cldm_jax.report import page, spread
from cldm_jax.report.gallery import GALLERY, load_gallery, save_gallery
from cldm_jax.report.page import read_scores, write_report
from cldm_jax.report.record import Summary
from cldm_jax.scoring import pool
from cldm_jax.scoring.references import REFERENCE
from cldm_jax.scoring.summary import COSTS, make_summary

MODES = {"ldm": ("onestep", "mirror"), "unet": ("predict",)}
PSNR = {("ldm", "onestep"): 24.0, ("ldm", "mirror"): 24.5, ("unet", "predict"): 23.0}


def undrawn():
    """Reports without figures meanwhile, which take most of the time of writing one."""

    def nothing(folder, summary, scores, gallery):
        parts = ("scale", "patients", "learning")
        return {target: {**dict.fromkeys(parts), "cases": []} for target in gallery}

    return mock.patch.object(page, "_draw", nothing)


def score_rows(people, fold, methods):
    rows = []
    for i, patient in enumerate(people):
        for method in methods:
            for mode in MODES[method]:
                for metric, value in (("psnr", PSNR[method, mode]), ("ssim", 0.5)):
                    value += 0.1 * i + fold + (0.01 * i if method == "ldm" else 0)
                    rows.append((patient, method, mode, metric, value))
        rows.append((patient, REFERENCE, "ae_ceiling", "psnr", 35.0 + fold))
    return [
        {
            "patient": patient,
            "group": patient,
            "split": "test",
            "method": method,
            "mode": mode,
            "target": "ct",
            "metric": metric,
            "value": value,
            "n_slices": 3,
        }
        for patient, method, mode, metric, value in rows
    ]


def write_fold(folder, fold, chosen="mirror", methods=("ldm", "unet")):
    people = [f"sub-{fold}{i}" for i in range(5)]
    scores = score_rows(people, fold, methods)
    costs = {
        (m, mode, "ct"): {c: 10.0 * (fold + 1) for c in COSTS} for m in methods for mode in MODES[m]
    }
    control = {"name": "source_shuffle", "method": "ldm", "mode": "onestep", "target": "ct"}
    summary = make_summary(
        scores,
        costs,
        {"ct": {"ldm": chosen, "unet": "predict"} if len(methods) == 2 else {"ldm": chosen}},
        {"ct": "ldm"},
        seed=0,
        protocol=PROTOCOLS["cldm"],
        data={
            "name": "x",
            "contrast": "simulated",
            "fingerprint": f"f{fold}",
            "split_hash": f"s{fold}",
            "train_patients": 10,
            "test_patients": len(people),
            "slices": 15,
        },
        controls=[{**control, "psnr": {"mean": 20.0 + fold}, "drop_db": 4.0 + fold}],
        spread=[],
        points=[],
        learning={"ldm": {"ct": [(0.5, 20.0 + fold), (1.0, 22.0 + fold)]}},
        notes=["the same everywhere", f"steps {fold}"],
        run=sample()["run"],
    )
    gallery = make_gallery(targets=("ct",), keys=("ldm:mirror", "unet:predict"))
    gallery["ct"]["chosen_by"] = "ldm:mirror"
    for case, patient in zip(gallery["ct"]["cases"], people, strict=False):
        case["patient"] = patient
    save_gallery(folder / GALLERY, gallery)
    with undrawn():
        write_report(folder, summary, scores, gallery, title=f"fold {fold}")
    return folder


def pooled(tmp_path, drawn=False, title="All", **second):
    folders = [write_fold(tmp_path / "a", 0), write_fold(tmp_path / "b", 1, **second)]
    with contextlib.nullcontext() if drawn else undrawn():
        pool.run_folders(folders, str(tmp_path / "all"), seed=0, title=title)
    return files.read_json(tmp_path / "all" / "summary.json")


def test_everyone_counts_once(tmp_path):
    summary = pooled(tmp_path, drawn=True)
    rows = {(r["method"], r["mode"]): r for r in summary["rows"]}
    assert rows["unet", "predict"]["n_patients"] == 10
    assert rows["unet", "predict"]["psnr"]["mean"] == pytest.approx(23.0 + 0.2 + 0.5)
    assert rows["ldm", "mirror"]["train_seconds"] == 15.0
    assert summary["references"][0]["psnr"]["mean"] == pytest.approx(35.5)
    assert summary["data"]["test_patients"] == 10 and summary["data"]["folds"] == 2
    tests = {t["metric"]: t for t in summary["tests"]}
    assert tests["psnr"]["a"] == "ldm:mirror" and tests["psnr"]["n"] == 10
    assert tests["psnr"]["mean_diff"] == pytest.approx(1.5 + 0.02)
    assert (tmp_path / "all" / "index.html").stat().st_size > 10_000
    assert len(list((tmp_path / "all" / "figures").iterdir())) > 4


@pytest.mark.parametrize("title, said", [("All", "All: 2 folds"), ("", "PET to CT: 2 folds")])
def test_the_page_has_a_title(tmp_path, title, said):
    pooled(tmp_path, title=title)
    assert f"<h1>{said}</h1>" in (tmp_path / "all" / "index.html").read_text()


def test_controls_and_curves_are_averaged_and_notes_told_apart(tmp_path):
    summary = pooled(tmp_path)
    assert summary["controls"][0]["drop_db"] == 4.5
    assert summary["controls"][0]["psnr"]["mean"] == 20.5
    assert summary["learning"]["ldm"]["ct"] == [[0.5, 20.5], [1.0, 22.5]]
    assert summary["notes"] == ["the same everywhere", "Fold 0: steps 0", "Fold 1: steps 1"]


def test_folds_that_chose_differently_keep_their_own_read_out(tmp_path):
    summary = pooled(tmp_path, chosen="onestep")
    assert summary["chosen"]["ct"]["ldm"] == "chosen"
    row = next(r for r in summary["rows"] if r["mode"] == "chosen")
    first = 24.5 + 0.2 + 0.02  # mirror
    second = 24.0 + 0.2 + 0.02 + 1.0  # onestep
    assert row["psnr"]["mean"] == pytest.approx((first + second) / 2)
    assert {t["a"] for t in summary["tests"]} == {"ldm:chosen"}


def test_pictures_come_from_all_folds(tmp_path):
    pooled(tmp_path)
    folders = [tmp_path / "a", tmp_path / "b"]
    scores = [row for f in folders for row in read_scores(f / "scores.csv")]
    cases = {c["role"]: c["patient"] for c in pool._gallery(folders, scores)["ct"]["cases"]}
    assert cases["best"].startswith("sub-1") and cases["worst"] == "sub-00"


def test_folds_of_other_methods_are_refused(tmp_path):
    with pytest.raises(UserError, match="other methods"):
        pooled(tmp_path, methods=("ldm",))


def test_gallery_comes_back(tmp_path):
    gallery = make_gallery(targets=("mr",))
    save_gallery(tmp_path / GALLERY, gallery)
    found = load_gallery(tmp_path / GALLERY)
    case, again = gallery["mr"]["cases"][0], found["mr"]["cases"][0]
    assert again["mask"].dtype == bool
    np.testing.assert_array_equal(again["mask"], case["mask"])
    np.testing.assert_allclose(again["real"], case["real"], rtol=1e-6)
    assert again["predictions"].keys() == case["predictions"].keys()
    assert list(again) == list(case)


def spread_row(people, coverage, **changes):
    region = {"name": "brain_mean", "unit": "HU", "half_width": 3.0, "mae": 1.0}
    return {
        "method": "ldm",
        "target": "ct",
        "point": "mirror",
        "samples": 8,
        "calibrated_on": 4 + people,
        "people": people,
        "slices": 10 * people,
        "scales_mm": [0.0, 4.0, 16.0],
        "factors": [1.0, 1.0, 1.0],
        **dict.fromkeys(("coverage", "coverage_raw"), [coverage] * 3),
        **dict.fromkeys(("crps", "crps_raw", "mae"), [10.0 * coverage] * 3),
        **dict.fromkeys(("energy", "energy_raw", "rank"), coverage),
        "regions": [{**region, "coverage": coverage, "n": 5 * people}],
        **changes,
    }


def test_spread_of_folds_counts_every_person_once():
    point = {"method": "unet", "mode": "predict", "target": "ct"}
    summaries = [
        types.SimpleNamespace(spread=[spread_row(*row)], points=[{**point, "mae": mae}])
        for row, mae in (((1, 0.6), [1.0, 2.0, 3.0]), ((3, 1.0), [3.0, 2.0, 1.0]))
    ]
    (row,) = pool._spread(summaries)
    assert (row["people"], row["slices"], row["calibrated_on"]) == (4, 40, 5)
    assert row["coverage"] == pytest.approx([0.9] * 3) and row["rank"] == pytest.approx(0.9)
    assert row["regions"][0]["coverage"] == pytest.approx(0.9) and row["regions"][0]["n"] == 20
    (found,) = pool._points(summaries)
    assert found["mae"] == [2.0, 2.0, 2.0] and found["mode"] == "predict"
    # Not of a model that one fold lacks, nor from reports of before there was such a section.
    for rows in ([spread_row(3, 1.0, target="mr")], []):
        assert pool._spread([summaries[0], types.SimpleNamespace(spread=rows)]) == []


def test_spread_in_words_and_tables():
    point = {"method": "unet", "mode": "predict", "target": "ct", "mae": [5.0, 99.0, 99.0]}
    summary = Summary.from_json({**sample(), "spread": [spread_row(3, 0.9)], "points": [point]})
    lines = spread.spread_lines(summary)
    assert len(lines) == 3 and "CT 90/90/90, regions 90 (3 people)" in lines[0]
    table = spread.spread_table(summary)
    best = {row.cells[1].text: [c.best for c in row.cells[2:5]] for row in table.rows}
    assert best["U-Net (no spread)"] == [True, False, False]
    assert best["CLDM, calibrated spread around mirror"] == [False, True, True]
    assert [c.text for c in spread.region_table(summary).rows[0].cells][2:4] == [
        "brain mean",
        "90 %",
    ]
    none = Summary.from_json(sample())
    assert spread.spread_lines(none) == [] and spread.spread_table(none) is None
