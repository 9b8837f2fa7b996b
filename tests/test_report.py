"""The page: every number shown is the summary's, it stands alone, odd input survives."""

import base64
import csv
import html.parser
import io
import json
import math
import re

import pytest
from PIL import Image
from report_samples import entry, make_gallery, make_scores, make_summary

from cldm_jax.metrics.protocol import PROTOCOLS
from cldm_jax.report import figures, labels, tables
from cldm_jax.report.page import SCORE_COLUMNS, read_scores, write_report
from cldm_jax.report.record import Summary

ODD = '<script>alert("x")</script> $\\frac{1}$ & co'


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
    summary = Summary.from_json(make_summary())
    path = write_report(folder, summary, make_scores(), make_gallery(), title="A title & more")
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
    assert "people who share a head or family count as one (n)" in words
    for line in PROTOCOLS["cldm"].describe():
        assert line in words


def test_banners_go_when_they_do_not_apply(tmp_path):
    summary = make_summary(("ct",))
    summary["data"]["contrast"] = "acquired"
    summary["tests"] = [{**test, "n": 12} for test in summary["tests"]]
    summary = Summary.from_json(summary)
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
    write_report(tmp_path, Summary.from_json(make_summary(("ct",))), scores, {}, title="t")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "scores.csv").read_text())))
    assert tuple(rows[0]) == SCORE_COLUMNS and len(rows) == len(scores)
    assert rows[0]["value"] == "nan" and rows[1]["value"] == "inf"
    assert float(rows[2]["value"]) == scores[2]["value"]
    again = read_scores(tmp_path / "scores.csv")
    assert math.isnan(again[0]["value"]) and again[1:] == scores[1:]


def test_odd_names_are_escaped_everywhere(tmp_path):
    summary, scores = make_summary(("ct",)), make_scores(("ct",))
    for row in [*summary["rows"][:1], *scores[:5]]:
        row["method"] = ODD
    summary["notes"] = [ODD]
    summary["run"]["command"] = ODD
    gallery = make_gallery(("ct",), keys=(f"{ODD}:predict", "ldm:onestep"), roles=("best",))
    gallery["ct"]["cases"][0]["patient"] = ODD
    write_report(tmp_path, Summary.from_json(summary), scores, gallery, title=ODD)
    page = (tmp_path / "index.html").read_text()
    reader = Reader(page)
    assert "<script" not in page and "script" not in reader.tags
    assert reader.words.count("$\\frac{1}$ & co") >= 5
    assert (tmp_path / "figures" / "ct_best_0.png").exists()


def test_a_folder_whose_name_is_no_utf8_can_be_reported(tmp_path):
    """Python reads such bytes of a name as lone surrogates; after hours of scoring they ended the job."""
    summary = make_summary()
    summary["data"]["name"] = b"B\xe4rbel".decode(errors="surrogateescape")
    write_report(tmp_path, Summary.from_json(summary), [], {}, title="t")
    assert "B\\udce4rbel" in (tmp_path / "index.html").read_text()


def test_missing_parts_say_so(tmp_path):
    summary = make_summary(("ct",))
    for row in summary["rows"]:
        for key in ("params", "seconds_per_slice"):
            row[key] = None
        row.pop("sharpness")
        row.pop("ssim")
    summary["rows"][0]["psnr"] = entry(23.0, 1.0) | {"sd": math.nan, "n_undefined": 2}
    for key in ("tests", "controls", "notes"):
        summary[key] = []
    write_report(tmp_path, Summary.from_json(summary), [], {}, title="bare")
    words = Reader((tmp_path / "index.html").read_text()).words
    assert words.count("not measured") >= 4 * 3
    assert "23.00 (2 undefined)" in words or "23.0 (2 undefined)" in words
    assert "Paired tests" not in words
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored["rows"][0]["psnr"]["sd"] is None


def test_summary_is_the_last_file_written(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(figures, "save", fail)
    summary = Summary.from_json(make_summary())
    (tmp_path / "summary.json").write_text("of another evaluation, whose scores.csv is replaced\n")
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, summary, make_scores(), make_gallery(), title="t")
    assert not (tmp_path / "summary.json").exists()
    assert not (tmp_path / "index.html").exists()
