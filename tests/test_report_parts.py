"""Parts of the report: its record, labels, tables, verdicts and figures."""

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest
from PIL import Image
from report_samples import KEYS, WINDOWS, make_case, make_gallery, make_scores, make_summary

from cldm_jax import files
from cldm_jax.metrics import statistics
from cldm_jax.report import charts, figures, labels, page, reading, tables
from cldm_jax.report.page import json_ready
from cldm_jax.report.record import Summary

LONG = "cyclegan_unpaired_large_batch_name_without_spaces"
RESULTS = pathlib.Path(__file__).parent.parent / "docs/results"


def opened(targets=("ct", "mr"), **sections):
    return Summary.from_json({**make_summary(targets), **sections})


def test_a_kept_summary_comes_back_and_an_old_one_opens():
    kept = files.read_json(RESULTS / "quickstart/summary.json")
    assert json.dumps(Summary.from_json(kept).to_json()) == json.dumps(kept)  # in its order too
    old = Summary.from_json(files.read_json(RESULTS / "brainweb-cpu/summary.json"))
    assert (old.chosen, old.spread, old.points, old.learning, old.seeds) == ({}, [], [], {}, [])
    assert old.tests[0].p_equivalent is None and old.rows[0].scores["psnr"]["n"] > 0
    with pytest.raises(AttributeError, match="refrences"):
        _ = old.refrences


def test_json_ready_makes_plain_values():
    value = {"a": np.float32(1.5), "b": (np.int64(2), math.nan), "c": np.array([1.0, math.inf])}
    assert json_ready(value) == {"a": 1.5, "b": [2, None], "c": [1.0, None]}


@pytest.mark.parametrize(
    "key, label",
    [
        ("unet:predict", "U-Net"),
        ("attention_unet:predict", "Attention U-Net"),
        ("ldm:onestep", "CLDM onestep"),
        ("ldm:sample", "CLDM sample"),
        ("ldm:mean4", "CLDM mean of 4"),
        ("ldm:mean16", "CLDM mean of 16"),
        ("unet-seed2:predict", "U-Net (seed 2)"),
        ("unet-1slice:mirror", "U-Net, one slice with mirrored input"),
        ("mine:fast", "mine fast"),
        ("mine", "mine"),
    ],
)
def test_method_labels(key, label):
    assert labels.method_label(key) == label


def test_spread_between_trainings_is_said_in_words():
    spread = {"method": "unet", "mode": "predict", "target": "ct", "n_seeds": 3}
    (line,) = reading.seed_lines(opened(seeds=[{**spread, "mean": 26.104, "sd": 0.231}]))
    assert line == "CT, mean PSNR ± SD between trainings: U-Net 26.10 ± 0.23 dB over 3 trainings."
    assert reading.seed_lines(opened()) == []


def test_numbers_carry_no_false_precision():
    assert labels.decimals_for("dB", [{"sd": 1.23}]) == 1
    assert labels.decimals_for("dB", [{"sd": 0.31}]) == 2
    assert labels.decimals_for("HU", [{"sd": 12.0}]) == 0
    assert labels.decimals_for("HU", [{"sd": 1.2}]) == 1
    assert labels.decimals_for("fraction", [{"sd": 0.02}]) == 3
    assert labels.decimals_for("", [{"sd": None}, None]) == 3
    assert labels.number(-0.001, 1) == "0.0"
    assert labels.number(None, 1) == "not measured" and labels.number(math.nan, 1) == "undefined"
    assert labels.duration(0.0213) == "21.3 ms" and labels.duration(75) == "75 s"
    assert labels.duration(391) == "6 min 31 s" and labels.duration(7260) == "2 h 1 min"
    assert labels.duration(119.9) == "2 min 0 s" and labels.duration(3599.8) == "1 h 0 min"
    assert labels.count(12_345_678) == "12.3 M" and labels.count(1272) == "1,272"
    assert labels.duration(0.9996) == "1000 ms" and labels.count(1.234e9) == "1230 M"
    assert labels.p_value(0.0001) == "< 0.001" and labels.p_value(0.0625) == "0.062"


def test_best_is_marked_by_direction():
    summary = opened(("ct",))
    rows = [row.scores for row in summary.rows]
    assert tables.best_row(rows, "psnr", "high") is rows[2]
    assert tables.best_row(rows, "mae", "low") is rows[2]  # lowest
    rows[0]["sharpness"]["mean"] = 1.05  # nearest to 1, not highest
    rows[1]["sharpness"]["mean"] = 3.0
    assert tables.best_row(rows, "sharpness", "one") is rows[0]
    assert tables.best_row(rows[:1], "psnr", "high") is None
    assert not any(c.best for r in tables.score_table(summary, "ct").rows[3:] for c in r.cells)


def test_verdicts_follow_direction_and_threshold():
    (test,) = opened(("ct",)).tests

    def verdict(**changes):
        return tables.verdict(dataclasses.replace(test, **{"p_holm": 0.01, **changes}))

    assert verdict() == "CLDM mean of 4 better"
    assert verdict(metric="mae") == "U-Net better"
    assert verdict(p_holm=0.06) == "no difference shown"
    assert verdict(p_holm=None) == "not tested"
    near = "equivalent within 0.1 dB (p 0.03, uncorrected)"
    assert verdict(p_holm=0.06, p_equivalent=0.03) == near
    assert verdict(p_holm=0.06, p_equivalent=0.06) == "no difference shown"
    assert verdict(p_equivalent=0.03) == "CLDM mean of 4 better"
    assert verdict(rank_biserial=-0.8) == tables.DISAGREE  # one outlier turns the mean


def test_headline_turns_the_sign_with_the_order():
    summary = opened(("ct",))
    (line,) = reading.headlines(summary)
    assert "CLDM mean of 4 has the highest mean PSNR, 26.1 dB" in line
    assert "Against U-Net: +0.43 dB [+0.12, +0.65], Holm p 0.12: no difference shown" in line
    (test,) = summary.tests
    turned = dict(a=test.b, b=test.a, mean_diff=-0.4321, ci95=[-0.6543, -0.1234])
    tests = (dataclasses.replace(test, **turned),)
    assert reading.headlines(dataclasses.replace(summary, tests=tests)) == [line]
    assert "not tested" in reading.headlines(dataclasses.replace(summary, tests=()))[0]


def test_trainings_of_one_method_are_no_rivals():
    """Tests are of their mean, under the base name."""
    summary = opened(("ct",))
    (line,) = reading.headlines(summary)
    seeds = [dataclasses.replace(r, method=f"{r.method}-seed1") for r in summary.rows]
    (more,) = reading.headlines(dataclasses.replace(summary, rows=(*summary.rows, *seeds)))
    (only,) = reading.headlines(dataclasses.replace(summary, rows=tuple(seeds)))
    assert more == line and only.partition("Against")[2] == line.partition("Against")[2]


def test_the_target_with_the_fewest_people_is_warned_of():
    summary = opened(("ct", "mr"))
    tests = tuple(dataclasses.replace(t, n=4 if t.target == "ct" else 18) for t in summary.tests)
    scores = [{**row, "group": i} for i, row in enumerate(make_scores())]
    context = page._context(dataclasses.replace(summary, tests=tests), scores, {}, {}, "")
    assert context["caveat"] == statistics.power_caveat(4, len(tests))


def test_checks_can_fail():
    statuses = {c.name: c.status for c in reading.checks(opened(("ct",)))}
    assert statuses == {
        "Source shuffle: another person's PET": "pass",
        "Class flip: same PET, both codes": "fail",
        "Every method above the floor": "pass",
        "Autoencoder 10 dB above the best CLDM": "pass",
    }
    controls = [
        {"name": "source_shuffle", "target": "ct", "psnr": {"mean": 20.0}, "drop_db": 0.2},
        {"name": "class_flip", "accuracy": 0.99, "accuracy_real": 1.0},
        {"name": "new_control"},
    ]
    summary = opened(("ct",), controls=controls)
    summary.rows[0].scores["psnr"]["mean"] = 20.0
    summary.references[1].scores["psnr"]["mean"] = 30.0
    found = {c.name: c for c in reading.checks(summary)}
    assert found["Source shuffle: another person's PET"].status == "fail"
    assert found["Class flip: same PET, both codes"].status == "pass"
    assert found["new control"].status == "unknown"
    assert found["Every method above the floor"].verdict.endswith(": U-Net")
    assert found["Autoencoder 10 dB above the best CLDM"].status == "fail"


@pytest.mark.parametrize(
    "accuracy, real, status",
    [
        (0.92, 0.94, "pass"),  # as good as the classifier is
        (0.88, 0.94, "fail"),
        (0.92, 1.0, "fail"),
        (0.6, 0.6, "unknown"),  # such a classifier judges nobody
    ],
)
def test_the_class_flip_is_judged_by_what_the_classifier_can(accuracy, real, status):
    control = {"name": "class_flip", "accuracy": accuracy, "accuracy_real": real}
    (check,) = reading.checks(opened((), controls=[control]))
    assert check.status == status


def test_terminal_tables():
    plain = tables.text_table(opened())
    assert "26.1 ± 1.2 *" in plain and "[25.7, 26.5]" in plain
    assert "PET to MR, n = 5 people" in plain


def test_the_terminal_table_fits_and_says_everything():
    summary = make_summary()
    summary["rows"][0]["method"] = LONG
    summary["rows"][1]["psnr"]["n_undefined"] = 2
    summary["references"][0]["name"] = "linear_ceiling"
    lines = tables.text_table(Summary.from_json(summary)).splitlines()
    assert max(map(len, lines)) <= 100
    words = " ".join(" ".join(line.split()) for line in lines)
    first = "".join(line[:24].strip() for line in lines)
    assert LONG[:20] in first and "undefined)" in words and "[24.7, 25.5]" in words
    cells = [line for line in lines if "24.1 ± 1.2" in line]
    assert "0.812 ± 0.046" in cells[0] and "60.0 ± 7.0" in cells[0]  # one row stays one row


@pytest.mark.parametrize("keys", [(), ("unet:predict",), ("mine:a", "mine:b", "mine:c", "d:e")])
def test_figures_cope_with_other_methods(keys, tmp_path):
    gallery = make_gallery(("mr",), keys=keys, roles=("worst",))
    case = gallery["mr"]["cases"][0]
    case["sd"] = {"absent:method": case["real"], **{k: None for k in keys[:1]}}
    figures.save(figures.case_figure(gallery["mr"], case), tmp_path / "case.png", indexed=True)
    figures.save(figures.overview_figure(gallery), tmp_path / "all.png", indexed=True)
    for name in ("case.png", "all.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 300


def boxes(figure, texts):
    """Where the texts stand, in pixels, after the figure was laid out."""
    figure.canvas.draw()
    return [t.get_window_extent() for t in texts if t.get_text()]


def assert_apart_and_whole(figure, texts):
    found = boxes(figure, texts)
    width, height = figure.bbox.width, figure.bbox.height
    for box in found:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    for i, a in enumerate(found):
        assert not any(a.overlaps(b) for b in found[i + 1 :])


def test_long_names_are_neither_cut_nor_over_each_other():
    keys = (f"{LONG}:predict", "unet-cells:mirror", "latent_regression:mirror", "ldm:mean4")
    names = {old: new for old, new in zip(KEYS, keys, strict=False)}
    scores = make_scores()
    for row in scores:
        row["method"], row["mode"] = names[f"{row['method']}:{row['mode']}"].split(":")
    figure = charts.patients_figure(scores, "ct", "HU")
    assert_apart_and_whole(figure, figure.axes[0].get_yticklabels())
    plots = sum(axes.get_window_extent().width for axes in figure.axes)
    assert plots > 0.6 * figure.bbox.width
    summary = make_summary(("ct",))
    summary["rows"][0]["method"] = LONG
    figure = charts.scale_figure(Summary.from_json(summary), "ct")
    assert_apart_and_whole(figure, figure.axes[0].get_yticklabels())
    case = make_case("best", keys=keys)
    figure = figures.case_figure(WINDOWS, case)
    assert_apart_and_whole(figure, [axes.title for axes in figure.axes])


def test_floors_are_drawn_above_the_methods_and_ceilings_below():
    summary = make_summary(("ct",))
    summary["references"] += [
        {**summary["references"][0], "name": name} for name in ("source_identity", "linear_ceiling")
    ]
    figure = charts.scale_figure(Summary.from_json(summary), "ct")
    kinds = [t.get_text().partition(":")[0] for t in figure.axes[0].get_yticklabels()]
    assert kinds == [*["Floor"] * 2, "U-Net", "CLDM onestep", "CLDM mean of 4", *["Ceiling"] * 3]


def test_each_autoencoder_is_checked_against_the_methods_that_use_it():
    summary = make_summary(("ct",))
    plain = {"name": "ae_ceiling:ldm-plain", "psnr": {"mean": 27.0}}
    summary["references"].append({**summary["references"][0], **plain})
    summary["rows"] += [
        {**summary["rows"][-1], "method": f"ldm-plain{seed}", "psnr": {"mean": mean}}
        for seed, mean in (("", 21.0), ("-seed1", 22.0))
    ]
    found = reading.checks(Summary.from_json(summary))
    checks = [c for c in found if c.name.startswith("Autoencoder")]
    shared, own = checks
    assert shared.status == "pass" and "37.8 dB, best CLDM 26.1" in shared.measured
    assert own.status == "fail" and "27.0 dB, best CLDM 22.0" in own.measured
    assert "CLDM, plain recipe" in own.name
    assert labels.reference_label(plain["name"]) == (
        "Ceiling: autoencoder reconstruction (CLDM, plain recipe)"
    )


def test_charts_are_none_without_numbers():
    assert charts.scale_figure(opened(()), "ct") is None
    assert charts.patients_figure([], "ct", "HU") is None
    lost = [dict(s, value=math.nan) for s in make_scores(("ct",))]
    assert charts.patients_figure(lost, "ct", "HU") is None


def test_large_noisy_figures_stay_small(tmp_path):
    keys = tuple(f"m{i}:predict" for i in range(6))
    case = make_case("best", keys=keys, size=256)
    rng = np.random.default_rng(0)
    case["mask"] = np.ones((256, 256), bool)
    case["predictions"] = {k: rng.random((256, 256)) for k in keys}
    figures.save(figures.case_figure(WINDOWS, case), tmp_path / "noise.png", indexed=True)
    assert 20_000 < (tmp_path / "noise.png").stat().st_size < 300_000


def test_indexed_figures_keep_the_colours_of_the_scale(tmp_path):
    """A palette made from the picture once turned the top of the SD scale orange."""
    gallery = make_gallery(("mr",), roles=("best",))
    figure = figures.case_figure(gallery["mr"], gallery["mr"]["cases"][0])
    figures.save(figure, tmp_path / "p.png", indexed=True)
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    with Image.open(tmp_path / "p.png") as picture:
        stored = np.asarray(picture.convert("RGB")).astype(int)
    difference = np.abs(drawn - stored).max(axis=-1)
    assert difference.max() <= 80  # edges of letters only
    assert np.mean(difference > 4) < 0.01
