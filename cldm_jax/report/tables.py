"""Score tables of a summary as plain structures and terminal text."""

import itertools
import textwrap
from typing import NamedTuple

from cldm_jax.metrics.aggregate import MARGINS
from cldm_jax.metrics.scores import METRICS
from cldm_jax.report import labels

EQUIVALENT = "equivalent within"
MAIN_METRICS = ("psnr", "ssim", "mae", "sharpness")
_COSTS = (  # key, head, format
    ("params", "Params", labels.count),
    ("train_steps", "Train steps", labels.count),
    ("train_seconds", "Train time", labels.duration),
    ("network_evaluations", "Net evals per slice", labels.count),
    ("seconds_per_slice", "Time per slice", labels.duration),
)
_NAME_WIDTH, _GAP = 24, "  "  # of a text table: least width of the methods' column; between columns


class Cell(NamedTuple):
    text: str
    detail: str = ""  # second line: the interval
    best: bool = False


class Row(NamedTuple):
    kind: str  # "method" or "reference"
    cells: list[Cell]


class Table(NamedTuple):
    header: list[str]
    rows: list[Row]


def targets_of(summary: dict) -> list[str]:
    """Targets in the order of the summary's rows, then of its references."""
    entries = [*summary["rows"], *summary.get("references", [])]
    return list(dict.fromkeys(e["target"] for e in entries if "target" in e))


def units_of(summary: dict, target: str) -> str:
    """Short units of a target from the summary's protocol, or "" where it does not say."""
    return ((summary.get("protocol") or {}).get(target) or {}).get("units", "")


def rows_of(summary: dict, target: str) -> list[dict]:
    return [row for row in summary["rows"] if row["target"] == target]


def references_of(summary: dict, target: str) -> list[dict]:
    return [row for row in summary.get("references", []) if row.get("target") == target]


def mean_of(row: dict, metric: str):
    """The mean of a metric in a row, or None."""
    mean = (row.get(metric) or {}).get("mean")
    return mean if labels.is_number(mean) else None


def best_row(rows: list[dict], metric: str, better: str) -> dict | None:
    """The row with the best mean of a metric; None where fewer than two have one or none is better."""
    scored = [row for row in rows if mean_of(row, metric) is not None]
    if len(scored) < 2 or not better:
        return None
    distance = {
        "high": lambda v: -v,
        "low": lambda v: v,
        "one": lambda v: abs(v - 1),
        "zero": abs,
    }[better]
    return min(scored, key=lambda row: distance(mean_of(row, metric)))


def people_of(rows: list[dict]) -> str:
    """ "n = 12", or the range where rows differ; "" where unknown."""
    sizes = [row["n_patients"] for row in rows if row.get("n_patients") is not None]
    if not sizes:
        return ""
    low, high = min(sizes), max(sizes)
    return f"n = {low}" if low == high else f"n = {low} to {high}"


def score_table(summary: dict, target: str) -> Table:
    """Methods, then reference rows: mean ± SD with 95 % CI of the main metrics, then the costs."""
    rows, references = rows_of(summary, target), references_of(summary, target)
    units = units_of(summary, target)
    header = ["Method"] + [labels.metric_label(m, units) for m in MAIN_METRICS]
    header += [head for _, head, _ in _COSTS]
    best = {metric: best_row(rows, metric, METRICS[metric].better) for metric in MAIN_METRICS}
    decimals = {
        metric: labels.decimals_for(
            labels.metric_unit(metric, units), [r.get(metric) for r in rows + references]
        )
        for metric in MAIN_METRICS
    }

    def score_cells(row):
        for metric in MAIN_METRICS:
            entry, places = row.get(metric), decimals[metric]
            detail = labels.interval((entry or {}).get("ci95"), places)
            yield Cell(labels.mean_sd(entry, places), detail, row is best[metric])

    table = []
    for row in rows:
        costs = [Cell(form(row.get(key))) for key, _, form in _COSTS]
        name = Cell(labels.method_label(labels.row_key(row)))
        table.append(Row("method", [name, *score_cells(row), *costs]))
    for row in references:
        name = Cell(labels.reference_label(row["name"]))
        table.append(Row("reference", [name, *score_cells(row), *[Cell("")] * len(_COSTS)]))
    return Table(header, table)


def detail_table(summary: dict, target: str) -> Table | None:
    """Median [IQR] of the main metrics, mean ± SD of every other metric; None if nothing there."""
    rows, units = rows_of(summary, target), units_of(summary, target)
    medians = [m for m in MAIN_METRICS if any((r.get(m) or {}).get("median") for r in rows)]
    others = [m for m in METRICS if m not in MAIN_METRICS and any(r.get(m) for r in rows)]
    if not medians and not others:
        return None
    columns = [(m, labels.median_iqr) for m in medians] + [(m, labels.mean_sd) for m in others]
    header = ["Method"]
    header += [f"{labels.metric_label(m, units)} median [IQR]" for m in medians]
    header += [labels.metric_label(m, units) for m in others]
    table = []
    for row in rows:
        cells = [Cell(labels.method_label(labels.row_key(row)))]
        for metric, form in columns:
            unit = labels.metric_unit(metric, units)
            places = labels.decimals_for(unit, [r.get(metric) for r in rows])
            cells.append(Cell(form(row.get(metric), places)))
        table.append(Row("method", cells))
    return Table(header, table)


def test_table(summary: dict) -> Table | None:
    """The paired tests; None where there are none."""
    tests = summary.get("tests") or []
    if not tests:
        return None
    header = ["Target", "Metric", "A − B", "Mean difference [95 % CI]", "n"]
    header += ["p (Wilcoxon)", "p (Holm)", "Rank-biserial", "Reading"]
    table = []
    for test in tests:
        target, metric = test["target"], test["metric"]
        unit = labels.metric_unit(metric, units_of(summary, target))
        places = {"dB": 2, "HU": 1, "fraction": 4}.get(unit, 3)
        a, b = labels.method_label(test["a"]), labels.method_label(test["b"])
        difference = labels.number(test["mean_diff"], places, signed=True)
        n = test.get("n")
        table.append(
            Row(
                "method",
                [
                    Cell(labels.target_label(target)),
                    Cell(METRICS[metric].label + (f" ({unit})" if unit else "")),
                    Cell(f"{a} − {b}"),
                    Cell(difference, labels.interval(test.get("ci95"), places, signed=True)),
                    Cell(labels.NOT_MEASURED if n is None else str(n)),
                    Cell(labels.p_value(test.get("p_wilcoxon"))),
                    Cell(labels.p_value(test.get("p_holm"))),
                    Cell(labels.number(test.get("rank_biserial"), 2, signed=True)),
                    Cell(verdict(test)),
                ],
            )
        )
    return Table(header, table)


def verdict(test: dict) -> str:
    """What a paired test lets one say, at 0.05 after Holm: which method is better, or not shown."""
    p, difference = test.get("p_holm"), test.get("mean_diff")
    if not labels.is_number(p) or not labels.is_number(difference):
        return "not tested"
    better = METRICS[test["metric"]].better
    same, margin = test.get("p_equivalent"), MARGINS.get(test["metric"])
    if p >= 0.05 and labels.is_number(same) and same < 0.05:
        unit = METRICS[test["metric"]].unit
        return f"{EQUIVALENT} {margin:g} {unit} (p {labels.p_value(same)}, uncorrected)"
    if p >= 0.05 or better not in ("high", "low"):
        return "no difference shown" if p >= 0.05 else "differ"
    winner = test["a"] if (difference > 0) == (better == "high") else test["b"]
    return f"{labels.method_label(winner)} better"


def text_table(summary: dict, width: int = 100) -> str:
    """The main scores for a terminal: one aligned block per target, at most `width` characters wide, best
    means marked with *. Intervals stand below their means; a text too long for its column goes on below.
    """
    blocks = []
    columns = 1 + len(MAIN_METRICS)
    for target in targets_of(summary):
        table = score_table(summary, target)
        grid = [[[head] for head in table.header[:columns]]]
        for row in table.rows:
            grid.append([[c.text + " *" * c.best, c.detail] for c in row.cells[:columns]])
        most = (width - _NAME_WIDTH) // len(MAIN_METRICS) - len(_GAP)
        widths = [max(len(text) for line in grid for text in line[i]) for i in range(columns)]
        widths[1:] = [min(w, most) for w in widths[1:]]
        widths[0] = min(widths[0], width - sum(w + len(_GAP) for w in widths[1:]))
        people = people_of(rows_of(summary, target))
        title = f"PET to {labels.target_label(target)}" + (f", {people} people" if people else "")
        blocks.append("\n".join([title, *(text for line in grid for text in _fold(line, widths))]))
    return "\n\n".join(blocks) + "\n"


def _fold(cells: list[list[str]], widths: list[int]) -> list[str]:
    """One row of a table as lines: every cell's texts below each other, wrapped at its column's width."""
    wrapped = [
        [line for text in cell for line in textwrap.wrap(text, width)]
        for cell, width in zip(cells, widths, strict=True)
    ]
    lines = itertools.zip_longest(*wrapped, fillvalue="")
    return [
        _GAP.join(t.ljust(w) for t, w in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
