"""One self-contained page per evaluation: summary.json, scores.csv, figures and index.html."""

import csv
import io
import math
import pathlib
import re

import jinja2
import numpy as np

from cldm_jax import files
from cldm_jax.metrics.scores import METRICS
from cldm_jax.metrics.statistics import power_caveat
from cldm_jax.report import charts, figures, reading, spread, tables
from cldm_jax.report.record import Summary

SCORE_COLUMNS = (
    *("patient", "group", "split", "method", "mode", "target"),
    *("metric", "value", "n_slices"),
)
_ROLES = {"best": 0, "median": 1, "worst": 2}


def write_report(folder, summary: Summary, scores: list[dict], gallery: dict, *, title: str) -> str:
    """Writes the report into `folder` and returns the path of its index.html.

    None is printed as "not measured", and what is not finite is stored as null. scores: rows with
    SCORE_COLUMNS, those of "reference" for the file alone. gallery: {target: {"units",
    "window", "error_window", "rule" (in words), "cases"}}, cases as in `figures`; may be empty.
    summary.json goes first and is written last: where it is, the report is whole and of one evaluation.
    """
    folder, stored = pathlib.Path(folder), json_ready(summary.to_json())
    (folder / "summary.json").unlink(missing_ok=True)
    summary = Summary.from_json(stored)  # the page says what the file does
    files.write_text(folder / "scores.csv", scores_csv(scores))
    scores = [row for row in scores if row["method"] != "reference"]
    drawn = _draw(folder / "figures", summary, scores, gallery)
    page = render("page.html", _context(summary, scores, gallery, drawn, title))
    files.write_text(folder / "index.html", page)
    files.write_json(folder / "summary.json", stored)
    return str(folder / "index.html")


def default_title(summary: Summary) -> str:
    """Of a report that was given none: what was made of PET."""
    return "PET to " + " and ".join(target.upper() for target in summary.chosen)


def render(template: str, context: dict) -> str:
    """The page of a template; every name of it must be given."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cldm_jax.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(context)


def json_ready(value):
    """The value with numpy types made plain and non-finite numbers made None (JSON has neither)."""
    if isinstance(value, dict):
        return {str(k): json_ready(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return json_ready(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def scores_csv(scores: list[dict], columns=SCORE_COLUMNS) -> str:
    """Undefined scores stay in the file, as "nan" or "inf"."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(scores)
    return text.getvalue()


def read_scores(path) -> list[dict]:
    """The rows of a report's scores.csv, as `write_report` took them: value a float ("nan" and "inf" are
    scores that are not defined), n_slices an int, everything else text. References are among them.
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{**r, "value": float(r["value"]), "n_slices": int(r["n_slices"])} for r in rows]


def _file_name(*parts) -> str:
    return "_".join(re.sub(r"[^A-Za-z0-9-]+", "-", str(p)) for p in parts) + ".png"


def _draw(folder: pathlib.Path, summary: Summary, scores, gallery) -> dict:
    """Saves every figure. {target: {"scale", "patients", "cases": [(case, name)]}}, names or None."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for target in summary.targets:
        rule = summary.protocol.target(target)
        entry = {
            "scale": charts.scale_figure(summary, target),
            "patients": charts.patients_figure(scores, target, rule.units),
            "learning": charts.learning_figure(summary, target),
        }
        for key, figure in entry.items():
            path = folder / _file_name(target, key)
            entry[key] = figure and figures.as_url(figures.save(figure, path, indexed=False))
        look = {"clip": rule.clip, **gallery.get(target, {})}
        cases = sorted(look.get("cases", []), key=lambda c: _ROLES.get(c["role"], 3))
        entry["cases"] = []
        for i, case in enumerate(cases):
            path = folder / _file_name(target, case["role"], i)
            png = figures.save(figures.case_figure(look, case), path, indexed=True)
            entry["cases"].append((case, figures.as_url(png)))
        drawn[target] = entry
    if any(target["cases"] for target in gallery.values()):
        figures.save(figures.overview_figure(gallery), folder / "overview.png", indexed=True)
    return drawn


def _context(summary: Summary, scores, gallery, drawn, title) -> dict:
    data, run = summary.data, summary.run
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    independent = len({str(row["group"]) for row in scores}) or data["test_patients"]
    independent = min((test.n for test in summary.tests), default=independent)
    return {
        "title": title,
        "simulated": data["contrast"] == "simulated",
        "headlines": reading.headlines(summary),
        "caveat": power_caveat(independent, len(summary.tests)),
        "run": [
            *run_facts(run),
            ("Data", data["name"]),
            ("Contrast", data["contrast"]),
            ("People", f"{data['train_patients']} train, {data['test_patients']} test"),
            ("Data fingerprint", data["fingerprint"][:16]),
            ("Split hash", data["split_hash"][:16]),
            ("Versions", versions),
        ],
        "targets": [
            {
                "name": target.upper(),
                "id": re.sub(r"[^A-Za-z0-9]+", "-", target),
                "people": tables.people_of([r.n_patients for r in summary.rows_of(target)]),
                "scores": tables.score_table(summary, target),
                "details": tables.detail_table(summary, target),
                **{k: entry[k] for k in ("scale", "patients", "learning")},
                "rule": gallery.get(target, {}).get("rule"),
                "calibrated": any(case.get("calibrated") for case, _ in entry["cases"]),
                "cases": [
                    {"image": image, **{k: case[k] for k in ("role", "patient", "slice")}}
                    for case, image in entry["cases"]
                ],
            }
            for target, entry in drawn.items()
        ],
        "tests": tables.test_table(summary),
        "spread": {
            "about": spread.about(summary),
            "scores": spread.spread_table(summary),
            "regions": spread.region_table(summary),
        },
        "checks": reading.checks(summary),
        "protocol": summary.protocol.describe(),
        "metrics": list(METRICS.values()),
        "notes": [*reading.seed_lines(summary), *summary.notes],
    }


def _hardware(found: dict) -> str:
    """`runtime.device.describe` in words."""
    values = {k: "+".join(map(str, v)) if isinstance(v, list) else v for k, v in found.items()}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())


def run_facts(run: dict) -> list[tuple[str, str]]:
    """(name, text) pairs of a page's head."""
    return [
        ("Command", run["command"]),
        ("Preset", run["preset"]),
        ("Hardware", _hardware(run["hardware"])),
        ("Seed", str(run["seed"])),
        ("Git revision", run["git"]),
    ]
