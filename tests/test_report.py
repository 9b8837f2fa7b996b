"""The report: every number shown is the summary's, the page stands alone, odd input survives."""

import base64
import csv
import html.parser
import io
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from cldm_jax.metrics.protocol import PROTOCOLS
from cldm_jax.report import charts, figures, labels, reading, tables
from cldm_jax.report.page import SCORE_COLUMNS, json_ready, write_report

KEYS = ("unet:predict", "ldm:onestep", "ldm:mean4")
ODD = '<script>alert("x")</script> $\\frac{1}$ & co'


def entry(mean, sd):
    return {
        "mean": mean,
        "sd": sd,
        "median": mean + sd / 10,
        "iqr": [mean - sd / 2, mean + sd / 2],
        "ci95": [mean - sd / 3, mean + sd / 3],
        "n": 5,
        "n_undefined": 0,
    }


def make_summary(targets=("ct", "mr")):
    rows, references, tests = [], [], []
    for target in targets:
        mae = (60.0, 7.0) if target == "ct" else (0.06, 0.007)
        for i, key in enumerate(KEYS):
            method, mode = key.split(":")
            rows.append(
                {
                    "method": method,
                    "mode": mode,
                    "target": target,
                    "n_patients": 5,
                    "psnr": entry(24.123 + i, 1.234),
                    "ssim": entry(0.8123 + i / 50, 0.0456),
                    "mae": entry(mae[0] - i / 1e3, mae[1]),
                    "sharpness": entry(0.31 + i / 10, 0.05),
                    "psnr_whole": entry(29.876 + i, 1.1),
                    "params": 547_123,
                    "train_steps": 1429,
                    "train_seconds": 4000.0,
                    "network_evaluations": 1 + 19 * (mode == "mean4"),
                    "seconds_per_slice": 0.0213,
                }
            )
        references += [
            {"name": "floor_mean_image", "target": target, "psnr": entry(20.9, 0.8)},
            {"name": "ae_ceiling", "target": target, "psnr": entry(37.77, 0.8)},
            {"name": "reacquired_ceiling", "target": target, "psnr": entry(31.5, 0.8)},
        ]
        tests.append(
            {
                "a": "ldm:mean4",
                "b": "unet:predict",
                "target": target,
                "metric": "psnr",
                "n": 5,
                "mean_diff": 0.4321,
                "ci95": [0.1234, 0.6543],
                "p_wilcoxon": 0.0625,
                "p_holm": 0.125,
                "rank_biserial": 0.8,
            }
        )
    return {
        "protocol": PROTOCOLS["cldm"].to_json(),
        "data": {
            "name": "unit",
            "contrast": "simulated",
            "fingerprint": "f" * 64,
            "split_hash": "s" * 64,
            "train_patients": 10,
            "test_patients": 5,
        },
        "rows": rows,
        "references": references,
        "tests": tests,
        "controls": [
            {"name": "source_shuffle", "target": "ct", "psnr": {"mean": 19.87}, "drop_db": 4.56},
            {"name": "class_flip", "accuracy": 0.5},
        ],
        "notes": ["One training seed."],
        "run": {
            "command": "python -m cldm_jax.main --config=configs/eval.py",
            "preset": "tiny",
            "hardware": "1 CPU core",
            "seed": 7,
            "git": "abc1234",
            "versions": {"jax": "9.9.9"},
        },
    }


def make_scores(targets=("ct", "mr"), people=5):
    rng = np.random.default_rng(0)
    return [
        {
            "patient": f"sub-{p}",
            "group": f"head-{p}",
            "split": "test",
            "method": key.split(":")[0],
            "mode": key.split(":")[1],
            "target": target,
            "metric": metric,
            "value": float(rng.normal(25, 1)),
            "n_slices": 4,
        }
        for target in targets
        for key in KEYS
        for metric in ("psnr", "mae")
        for p in range(people)
    ]


def make_case(role, keys=KEYS, size=48):
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:size, :size] / size - 0.5
    mask = np.hypot(x, y) < 0.4
    real = np.where(mask, 0.6, 0.0)
    return {
        "role": role,
        "patient": f"sub-{role}",
        "slice": 12,
        "source": rng.uniform(-1, 1, real.shape),
        "real": real,
        "mask": mask,
        "predictions": {k: real + rng.normal(0, 0.1, real.shape) for k in keys},
        "sd": {"ldm:mean4": np.abs(rng.normal(0, 0.1, real.shape))} if "ldm:mean4" in keys else {},
    }


def make_gallery(targets=("ct", "mr"), keys=KEYS, roles=("best", "median", "worst")):
    units = {"ct": "HU", "mr": "fraction"}
    return {
        t: {"units": units[t], "error_window": 0.3, "cases": [make_case(r, keys) for r in roles]}
        for t in targets
    }


class Reader(html.parser.HTMLParser):
    """Visible text, image sources, tags and table rows of a page."""

    def __init__(self, page):
        super().__init__()
        self.text, self.tags, self.images, self.links, self.stack = [], [], [], [], []
        self.feed(page)
        self.words = re.sub(r"\s+", " ", " ".join(self.text))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "img", "link", "br"):
            self.stack.append(tag)
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs["src"])
            assert attrs["alt"]
        if tag == "a":
            self.links.append(attrs["href"])

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if not self.stack or self.stack[-1] != "style":
            self.text.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path = write_report(
        folder, make_summary(), make_scores(), make_gallery(), title="A title & more"
    )
    return folder, (folder / "index.html").read_text(), path


def test_every_method_and_number_is_on_the_page(report):
    folder, page, path = report
    assert path == str(folder / "index.html")
    words = Reader(page).words
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == make_summary()
    for row in summary["rows"]:
        units = summary["protocol"][row["target"]]["units"]
        assert labels.method_label(f"{row['method']}:{row['mode']}") in words
        for metric in tables.MAIN_METRICS:
            places = labels.decimals_for(labels.metric_unit(metric, units), [row[metric]])
            mean, sd = row[metric]["mean"], row[metric]["sd"]
            low, high = row[metric]["ci95"]
            cell = f"{mean:.{places}f} ± {sd:.{places}f} [{low:.{places}f}, {high:.{places}f}]"
            assert cell in words, metric
        for text in ("547,123", "1,429", "1 h 6 min", "21.3 ms"):
            assert text in words
    for text in ("+0.43 [+0.12, +0.65]", "0.062", "0.12", "+0.80", "37.8", "4.56 dB", "50 %"):
        assert text in words, text
    for text in ("One training seed.", "python -m cldm_jax.main", "abc1234", "jax 9.9.9", "tiny"):
        assert text in words, text
    assert "no difference shown" in words and "the class code is not obeyed" in words


def test_page_says_simulated_research_only_and_few_people(report):
    words = Reader(report[1]).words
    assert "Research use only, not for clinical use" in words
    assert "contrast is simulated" in words
    assert "Only 5 independent test people" in words
    for line in PROTOCOLS["cldm"].describe():
        assert line in words


def test_banners_go_when_they_do_not_apply(tmp_path):
    summary = make_summary(("ct",))
    summary["data"]["contrast"] = "acquired"
    write_report(tmp_path, summary, make_scores(("ct",), people=12), {}, title="t")
    words = Reader((tmp_path / "index.html").read_text()).words
    assert "Research use only" in words
    assert "simulated" not in words and "Few test people" not in words
    assert "MR" not in Reader((tmp_path / "index.html").read_text()).words.split("How this")[0]


def test_page_stands_alone(report):
    folder, page, _ = report
    reader = Reader(page)
    assert not reader.stack[:-1] and "script" not in reader.tags and "link" not in reader.tags
    assert reader.images and all(i.startswith("data:image/png;base64,") for i in reader.images)
    assert set(reader.links) == {"summary.json", "scores.csv"}
    assert "http" not in page and "url(" not in page and "@import" not in page
    on_disk = {p.read_bytes() for p in (folder / "figures").glob("*.png")}
    inlined = {base64.b64decode(i.split(",")[1]) for i in reader.images}
    assert inlined < on_disk and len(on_disk - inlined) == 1  # only overview.png is not shown


def test_figures_are_small_whole_and_of_both_targets(report):
    names = {p.name for p in (report[0] / "figures").iterdir()}
    for target in ("ct", "mr"):
        for part in ("scale", "patients", "best_0", "median_1", "worst_2"):
            assert f"{target}_{part}.png" in names
    assert "overview.png" in names
    for path in (report[0] / "figures").iterdir():
        assert path.stat().st_size < 300_000
        with Image.open(path) as picture:
            picture.load()
            assert picture.width > 300


def test_scores_csv_keeps_every_row_and_undefined_values(tmp_path):
    scores = make_scores(("ct",))
    scores[0]["value"], scores[1]["value"] = math.nan, math.inf
    write_report(tmp_path, make_summary(("ct",)), scores, {}, title="t")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "scores.csv").read_text())))
    assert tuple(rows[0]) == SCORE_COLUMNS and len(rows) == len(scores)
    assert rows[0]["value"] == "nan" and rows[1]["value"] == "inf"
    assert float(rows[2]["value"]) == scores[2]["value"]


def test_odd_names_are_escaped_everywhere(tmp_path):
    summary, scores = make_summary(("ct",)), make_scores(("ct",))
    for row in [*summary["rows"][:1], *scores[:5]]:
        row["method"] = ODD
    summary["notes"] = [ODD]
    summary["run"]["command"] = ODD
    gallery = make_gallery(("ct",), keys=(f"{ODD}:predict", "ldm:onestep"), roles=("best",))
    gallery["ct"]["cases"][0]["patient"] = ODD
    write_report(tmp_path, summary, scores, gallery, title=ODD)
    page = (tmp_path / "index.html").read_text()
    reader = Reader(page)
    assert "<script" not in page and "script" not in reader.tags
    assert reader.words.count("$\\frac{1}$ & co") >= 5
    assert (tmp_path / "figures" / "ct_best_0.png").exists()


def test_missing_parts_say_so(tmp_path):
    summary = make_summary(("ct",))
    for row in summary["rows"]:
        for key in ("params", "seconds_per_slice"):
            row[key] = None
        row.pop("sharpness")
        row["ssim"] = None
    summary["rows"][0]["psnr"] = entry(23.0, 1.0) | {"sd": math.nan, "n_undefined": 2}
    for key in ("tests", "controls", "notes", "run", "protocol"):
        summary.pop(key)
    write_report(tmp_path, summary, [], {}, title="bare")
    words = Reader((tmp_path / "index.html").read_text()).words
    assert words.count("not measured") >= 4 * 3
    assert "23.00 (2 undefined)" in words or "23.0 (2 undefined)" in words
    assert "not recorded" in words and "Paired tests" not in words
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored["rows"][0]["psnr"]["sd"] is None


def test_summary_keeps_the_public_keys(report):
    stored = json.loads((report[0] / "summary.json").read_text())
    assert {"protocol", "data", "rows", "references", "tests"} <= set(stored)
    row = stored["rows"][0]
    assert {"method", "mode", "target", "n_patients", "psnr", "ssim", "mae", "sharpness"} <= set(
        row
    )
    assert {"mean", "sd", "ci95"} <= set(row["psnr"])


def test_summary_is_the_last_file_written(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(figures, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, make_summary(), make_scores(), make_gallery(), title="t")
    assert not (tmp_path / "summary.json").exists()
    assert not (tmp_path / "index.html").exists()


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
        ("mine:fast", "mine fast"),
        ("mine", "mine"),
    ],
)
def test_method_labels(key, label):
    assert labels.method_label(key) == label


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
    assert labels.p_value(0.0001) == "< 0.001" and labels.p_value(0.0625) == "0.062"


def test_best_is_marked_by_direction():
    summary = make_summary(("ct",))
    rows = tables.rows_of(summary, "ct")
    assert tables.best_row(rows, "psnr") is rows[2]
    assert tables.best_row(rows, "mae") is rows[2]  # lowest
    rows[0]["sharpness"]["mean"] = 1.05  # nearest to 1, not highest
    rows[1]["sharpness"]["mean"] = 3.0
    assert tables.best_row(rows, "sharpness") is rows[0]
    assert tables.best_row(rows[:1], "psnr") is None
    assert not any(c.best for r in tables.score_table(summary, "ct").rows[3:] for c in r.cells)


def test_verdicts_follow_direction_and_threshold():
    test = {"a": "ldm:onestep", "b": "unet:predict", "metric": "psnr", "mean_diff": 0.5}
    test["p_holm"] = 0.01
    assert tables.verdict(test) == "CLDM onestep better"
    assert tables.verdict(test | {"metric": "mae"}) == "U-Net better"
    assert tables.verdict(test | {"p_holm": 0.06}) == "no difference shown"
    assert tables.verdict(test | {"p_holm": None}) == "not tested"


def test_headline_turns_the_sign_with_the_order():
    summary = make_summary(("ct",))
    (line,) = reading.headlines(summary)
    assert "CLDM mean of 4 has the highest mean PSNR, 26.1 dB" in line
    assert "Against U-Net: +0.43 dB [+0.12, +0.65], Holm p 0.12: no difference shown" in line
    test = summary["tests"][0]
    test.update(a=test["b"], b=test["a"], mean_diff=-0.4321, ci95=[-0.6543, -0.1234])
    assert reading.headlines(summary) == [line]
    summary["tests"] = []
    assert "not tested" in reading.headlines(summary)[0]


def test_checks_can_fail():
    summary = make_summary(("ct",))
    statuses = {c.name: c.status for c in reading.checks(summary)}
    assert statuses == {
        "Source shuffle: another person's PET": "pass",
        "Class flip: same PET, both codes": "fail",
        "Every method above the floor": "pass",
        "Autoencoder 10 dB above the best CLDM": "pass",
    }
    summary["controls"] = [
        {"name": "source_shuffle", "target": "ct", "drop_db": 0.2},
        {"name": "class_flip", "accuracy": 0.99},
        {"name": "new_control"},
    ]
    summary["rows"][0]["psnr"]["mean"] = 20.0
    summary["references"][1]["psnr"]["mean"] = 30.0
    found = {c.name: c for c in reading.checks(summary)}
    assert found["Source shuffle: another person's PET"].status == "fail"
    assert found["Class flip: same PET, both codes"].status == "pass"
    assert found["new control"].status == "unknown"
    assert found["Every method above the floor"].verdict.endswith(": U-Net")
    assert found["Autoencoder 10 dB above the best CLDM"].status == "fail"


def test_markdown_and_terminal_tables():
    summary = make_summary()
    summary["rows"][0]["method"] = "a|b"
    text = tables.markdown_table(summary)
    blocks = [b for b in text.split("\n\n") if b.startswith("|")]
    assert len(blocks) == 2 and "**PET to CT** (n = 5)" in text
    for block in blocks:
        lines = block.strip().splitlines()
        assert len(lines) == 2 + 3 + 3
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "**26.1 ± 1.2 [25.7, 26.5]**" in text and "*Floor: population mean image*" in text
    plain = tables.text_table(summary)
    assert "26.1 ± 1.2 [25.7, 26.5] *" in plain and "PET to MR, n = 5 people" in plain


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


def test_charts_are_none_without_numbers():
    assert charts.scale_figure({"rows": []}, "ct") is None
    assert charts.patients_figure([], "ct", "HU") is None
    lost = [dict(s, value=math.nan) for s in make_scores(("ct",))]
    assert charts.patients_figure(lost, "ct", "HU") is None


def test_large_noisy_figures_stay_small(tmp_path):
    keys = tuple(f"m{i}:predict" for i in range(6))
    case = make_case("best", keys=keys, size=256)
    rng = np.random.default_rng(0)
    case["mask"] = np.ones((256, 256), bool)
    case["predictions"] = {k: rng.random((256, 256)) for k in keys}
    target = {"units": "fraction"}
    figures.save(figures.case_figure(target, case), tmp_path / "noise.png", indexed=True)
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
