"""One self-contained page of what synthetic images are good for (jobs/tasks.py)."""

import math

import numpy as np

from cldm_jax.metrics.statistics import power_caveat
from cldm_jax.report import figures, labels, page
from cldm_jax.report.record import mean_of
from cldm_jax.report.tables import (
    DIFFERENCE,
    Cell,
    Row,
    Table,
    compared,
    difference_cells,
    people_of,
    score_rows,
)

_DECIMALS = {"%": 1, "mm": 2, "mL": 0, "HU": 0, "": 3}
_LABELS = {"real_image": "Ceiling: the real image itself"}
_ACROSS = 6  # panels of a row


def make_page(summary: dict, pictures: dict, *, title: str) -> str:
    """HTML. summary: of jobs/tasks.py. pictures: {use: (person, {(method, mode): [H, W]})}."""
    data = summary["data"]
    folds = f" of {data['folds']} folds" if "folds" in data else ""
    facts = [
        *page.run_facts(summary["run"]),
        ("Data", f"{data['name']}, {data['split']} people{folds}, contrast {data['contrast']}"),
        ("Template", data["template"]),
        ("Its PET", data["template_pet"]),
    ]
    context = {
        "title": title,
        "simulated": data["contrast"] == "simulated",
        "caveat": " ".join(filter(None, map(_caveat, summary["uses"]))),
        "headlines": (),
        "run": facts,
        "uses": [_section(use, pictures.get(use["name"])) for use in summary["uses"]],
        "notes": summary["notes"],
    }
    return page.render("uses.html", context)


def _caveat(use: dict) -> str | None:
    """Holm's correction runs over the tests of one use."""
    people = max((row["n_independent"] for row in use["rows"]), default=0)
    people = min((test["n"] for test in use["tests"]), default=people)
    text = power_caveat(people, len(use["tests"]))
    return text and f"{use['title']}: {text}"


def _section(use: dict, drawn) -> dict:
    patient, images = drawn or ("", {})
    return {
        **{k: use[k] for k in ("name", "title", "about")},
        "failures": failures(use),
        "people": people_of([row["n_patients"] for row in use["rows"]]),
        "scores": score_table(use),
        "tests": test_table(use),
        "patient": patient,
        "image": _strip(use, images) if images else "",
        "measures": list(use["measures"].values()),
    }


def row_label(use: dict, row: dict) -> str:
    if row["method"] != "reference":
        return labels.method_label(labels.row_key(row))
    known = {**_LABELS, **use["labels"]}
    return known.get(row["mode"]) or labels.reference_label(row["mode"])


def failures(use: dict) -> list[dict]:
    """What could not be scored, its row named as in the tables."""
    named = {f"{r['method']} {r['mode']}": row_label(use, r) for r in use["rows"]}
    return [{**f, "row": named.get(f["row"], f["row"])} for f in use["failures"]]


def score_table(use: dict) -> Table:
    """Methods, then reference rows: mean ± SD with 95 % CI of every measure that anybody has."""
    kinds = ("method", "reference")
    scored = [(kinds[r["method"] == "reference"], row_label(use, r), r) for r in use["rows"]]
    scored.sort(key=lambda row: kinds.index(row[0]))
    shown = {
        name: m
        for name, m in use["measures"].items()
        if any(mean_of(r, name) is not None for r in use["rows"])
    }
    columns = {name: (_DECIMALS[m["unit"]], m["better"]) for name, m in shown.items()}
    return Table(["Method", *map(_head, shown.values())], score_rows(scored, columns))


def test_table(use: dict) -> Table | None:
    """The paired tests; None where there are none."""
    if not use["tests"]:
        return None
    header = ["A − B", "Score", *DIFFERENCE, "Reading"]
    rows = []
    for test in use["tests"]:
        measure = use["measures"][test["metric"]]
        keys = (dict(zip(("method", "mode"), test[k].split(":", 1), strict=True)) for k in "ab")
        cells = [
            Cell(" − ".join(row_label(use, key) for key in keys)),
            Cell(_head(measure)),
            *difference_cells(test, _DECIMALS[measure["unit"]]),
            Cell(compared(test, measure["better"], "A", "B")),
        ]
        rows.append(Row("method", cells))
    return Table(header, rows)


def text_lines(use: dict) -> list[str]:
    """For a terminal: the first measure of every row."""
    table = score_table(use)
    lines = [f"{use['title']}: {table.header[1] if len(table.header) > 1 else 'nothing scored'}"]
    for row in table.rows:
        lines.append("  " + "  ".join(f"{c.text} {c.detail}".strip() for c in row.cells[:2]))
    lines += [f"  failed: {f['patient']}, {f['row']}: {f['why']}" for f in failures(use)]
    return lines


def _head(measure: dict) -> str:
    return labels.column_head(measure["label"], measure["unit"], measure["better"])


def _strip(use: dict, images: dict) -> str:
    """A data URL: every row's picture beside the others, one window."""
    across = min(len(images), _ACROSS)
    rows = math.ceil(len(images) / across)
    figure = figures.new_figure(1.6 * across, 2.1 * rows)
    grid = figure.subplots(rows, across, squeeze=False).ravel()
    top = max(float(np.max(image)) for image in images.values()) or 1.0
    for axes in grid:
        axes.set_axis_off()
    for axes, ((method, mode), image) in zip(grid, images.items(), strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=top)
        label = row_label(use, {"method": method, "mode": mode})
        axes.set_title(figures.fold_text(label, 24), fontsize=6, color=figures.INK)
    return figures.data_url(figure, 110)
