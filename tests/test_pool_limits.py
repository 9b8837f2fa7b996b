"""Pooling: costs, controls and records of folds; what is refused. Nothing is drawn."""

import pytest
from test_pool import undrawn, write_fold

from cldm_jax import files
from cldm_jax.errors import UserError
from cldm_jax.report.page import read_scores
from cldm_jax.scoring import pool
from cldm_jax.scoring.summary import COSTS


@pytest.fixture(autouse=True)
def nothing_is_drawn():
    with undrawn():
        yield


def edit(folder, change):
    summary = files.read_json(folder / "summary.json")
    change(summary)
    files.write_json(folder / "summary.json", summary)


def run(folders, tmp_path):
    pool.run_folders(folders, str(tmp_path / "all"), seed=0, title="All")
    return files.read_json(tmp_path / "all" / "summary.json")


@pytest.fixture
def folds(tmp_path):
    return [write_fold(tmp_path / "a", 0), write_fold(tmp_path / "b", 1)]


def test_all_costs_are_means_and_the_unmeasured_is_left_out(folds, tmp_path):
    def forget(summary):
        for row in summary["rows"]:
            row["train_cpu_seconds"] = None

    edit(folds[0], forget)
    for row in run(folds, tmp_path)["rows"]:
        assert [row[c] for c in COSTS] == [
            20.0 if c == "train_cpu_seconds" else 15.0 for c in COSTS
        ]


def test_what_is_pooled_is_counted_and_named_anew(folds, tmp_path):
    data = run(folds, tmp_path)["data"]
    assert data["slices"] == 30 and data["train_patients"] == "10, 10"
    first = files.read_json(folds[0] / "summary.json")["data"]
    assert data["split_hash"] != first["split_hash"]
    assert data["fingerprint"] != first["fingerprint"]


def test_controls_are_told_apart_by_target(folds, tmp_path):
    for k, folder in enumerate(folds):

        def add(summary, k=k):
            row = {**summary["controls"][0], "target": "mr", "drop_db": 10.0 + k}
            summary["controls"].append(row)

        edit(folder, add)
    found = {c["target"]: c["drop_db"] for c in run(folds, tmp_path)["controls"]}
    assert found == {"ct": 4.5, "mr": 10.5}


def test_a_person_tested_twice_and_another_protocol_are_refused(folds, tmp_path):
    with pytest.raises(UserError, match="sub-00 has two values"):
        run([folds[0], folds[0]], tmp_path)
    edit(folds[1], lambda s: s["protocol"].update(name="other"))
    with pytest.raises(UserError, match="another protocol"):
        run(folds, tmp_path)


def test_a_report_of_an_early_version_is_refused(folds, tmp_path):
    edit(folds[1], lambda summary: summary["rows"][0].pop("params"))
    with pytest.raises(UserError, match="an early version .KeyError: 'params'."):
        run(folds, tmp_path)


def test_no_person_is_shown_twice(folds):
    scores = [row for f in folds for row in read_scores(f / "scores.csv")]
    ldm = [r for r in scores if (r["method"], r["mode"]) == ("ldm", "mirror")]
    for row in ldm:
        row["value"] = 20.0
    cases = [c["patient"] for c in pool._gallery(folds, ldm)["ct"]["cases"]]
    assert len(cases) == len(set(cases)) == 3


def test_a_read_out_chosen_per_fold_costs_what_was_chosen(tmp_path):
    folders = [
        write_fold(tmp_path / "a", 0, chosen="onestep"),
        write_fold(tmp_path / "b", 1, chosen="mirror"),
    ]

    def price(summary):
        for row in summary["rows"]:
            row["network_evaluations"] = {"onestep": 1, "mirror": 2, "predict": 1}[row["mode"]]

    for folder in folders:
        edit(folder, price)
    row = next(r for r in run(folders, tmp_path)["rows"] if r["mode"] == "chosen")
    assert row["network_evaluations"] == 1.5
