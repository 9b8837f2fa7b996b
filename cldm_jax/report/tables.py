"""Score tables of a summary as plain structures and terminal text."""

import itertools
import textwrap
from typing import NamedTuple

from cldm_jax.metrics.aggregate import MARGINS
from cldm_jax.metrics.scores import METRICS
from cldm_jax.report import labels, record
from cldm_jax.report.record import Summary, mean_of

UNDECIDED = "no difference shown"
DISAGREE = "differ, and mean and ranks disagree which is better"
MAIN_METRICS = ("psnr", "ssim", "mae", "sharpness")
_COSTS = (  # key, head, format
    ("params", "Params", labels.count),
    ("train_steps", "Train steps", labels.count),
    ("train_seconds", "Train time", labels.duration),
    ("network_evaluations", "Net evals per slice", labels.count),
    ("seconds_per_slice", "Time per slice", labels.duration),
)
DIFFERENCE = ("Mean difference [95 % CI]", "n", "p (Wilcoxon)", "p (Holm)")
# Of a text table: its width, the least of the methods' column, what is between columns.
_WIDTH, _NAME_WIDTH, _GAP = 100, 24, "  "


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


def best_row(rows: list[dict], metric: str, better: str) -> dict | None:
    """Of rows {metric: entry} the one with the best mean; None where fewer than two have one or none is
    better.
    """
    scored = [row for row in rows if mean_of(row, metric) is not None]
    if len(scored) < 2 or not better:
        return None
    distance = {"high": lambda v: -v, "low": lambda v: v, "one": lambda v: abs(v - 1), "zero": abs}
    return min(scored, key=lambda row: distance[better](mean_of(row, metric)))


def people_of(sizes: list[int]) -> str:
    """ "n = 12", or the range where rows differ; "" of no rows."""
    if not sizes:
        return ""
    low, high = min(sizes), max(sizes)
    return f"n = {low}" if low == high else f"n = {low} to {high}"


def score_table(summary: Summary, target: str) -> Table:
    """Methods, then reference rows: mean ± SD with 95 % CI of the main metrics, then the costs."""
    rows, references = summary.rows_of(target), summary.references_of(target)
    units = summary.units(target)
    header = ["Method"] + [labels.metric_label(m, units) for m in MAIN_METRICS]
    header += [head for _, head, _ in _COSTS]
    everybody = [r.scores for r in rows + references]
    columns = {m: (_decimals(everybody, m, units), METRICS[m].better) for m in MAIN_METRICS}
    scored = [("method", r.label, r.scores) for r in rows]
    scored += [("reference", r.label, r.scores) for r in references]
    table = score_rows(scored, columns)
    for who, line in itertools.zip_longest(rows, table):
        texts = [form(getattr(who, name)) if who else "" for name, _, form in _COSTS]
        line.cells.extend(map(Cell, texts))
    return Table(header, table)


def score_rows(scored: list[tuple[str, str, dict]], columns: dict) -> list[Row]:
    """mean ± SD with 95 % CI of (kind of row, label, {metric: entry}), the best of the methods marked.

    columns: {metric: (decimals, which way is better)}.
    """
    methods = [scores for kind, _, scores in scored if kind == "method"]
    best = {metric: best_row(methods, metric, better) for metric, (_, better) in columns.items()}
    rows = []
    for kind, label, scores in scored:
        cells = [Cell(label)]
        for metric, (places, _) in columns.items():
            entry = scores.get(metric) or {}
            detail = labels.interval(entry.get("ci95"), places)
            cells.append(Cell(labels.mean_sd(entry, places), detail, scores is best[metric]))
        rows.append(Row(kind, cells))
    return rows


def detail_table(summary: Summary, target: str) -> Table | None:
    """Median [IQR] of the main metrics, mean ± SD of every other metric; None if nothing there."""
    rows, units = summary.rows_of(target), summary.units(target)
    scores = [r.scores for r in rows]
    medians = [m for m in MAIN_METRICS if any(s.get(m, {}).get("median") for s in scores)]
    others = [m for m in METRICS if m not in MAIN_METRICS and any(m in s for s in scores)]
    if not medians and not others:
        return None
    columns = [(m, labels.median_iqr) for m in medians] + [(m, labels.mean_sd) for m in others]
    header = ["Method", *(f"{labels.metric_label(m, units)} median [IQR]" for m in medians)]
    header += [labels.metric_label(m, units) for m in others]
    table = []
    for row in rows:
        texts = (form(row.scores.get(m), _decimals(scores, m, units)) for m, form in columns)
        table.append(Row("method", [Cell(row.label), *map(Cell, texts)]))
    return Table(header, table)


def _decimals(scores: list[dict], metric: str, units: str) -> int:
    entries = [s.get(metric) for s in scores]
    return labels.decimals_for(labels.metric_unit(metric, units), entries)


def test_table(summary: Summary) -> Table | None:
    """The paired tests; None where there are none."""
    if not summary.tests:
        return None
    header = ["Target", "Metric", "A − B", *DIFFERENCE, "Rank-biserial", "Reading"]
    table = []
    for test in summary.tests:
        unit = labels.metric_unit(test.metric, summary.units(test.target))
        places = {"dB": 2, "HU": 1, "fraction": 4}.get(unit, 3)
        a, b = labels.method_label(test.a), labels.method_label(test.b)
        cells = [
            Cell(test.target.upper()),
            Cell(labels.column_head(METRICS[test.metric].label, unit)),
            Cell(f"{a} − {b}"),
            *difference_cells(vars(test), places),
            Cell(labels.number(test.rank_biserial, 2, signed=True)),
            Cell(verdict(test)),
        ]
        table.append(Row("method", cells))
    return Table(header, table)


def difference_cells(test: dict, places: int) -> list[Cell]:
    """Of a paired test, under the heads DIFFERENCE."""
    difference = labels.number(test["mean_diff"], places, signed=True)
    ps = [Cell(labels.p_value(test[k])) for k in ("p_wilcoxon", "p_holm")]
    interval = labels.interval(test["ci95"], places, signed=True)
    return [Cell(difference, interval), Cell(str(test["n"])), *ps]


def verdict(test: record.Test) -> str:
    """`compared` by the methods' names; or that they are equivalent."""
    names = (labels.method_label(key) for key in (test.a, test.b))
    said, same = compared(vars(test), METRICS[test.metric].better, *names), test.p_equivalent
    if said == UNDECIDED and labels.is_number(same) and same < 0.05:
        margin = f"{MARGINS[test.metric]:g} {METRICS[test.metric].unit}"
        return f"equivalent within {margin} (p {labels.p_value(same)}, uncorrected)"
    return said


def compared(test: dict, better: str, a: str, b: str) -> str:
    """What a paired test lets one say, at 0.05 after Holm: which of both is better, or not shown."""
    p, difference = test["p_holm"], test["mean_diff"]
    if not labels.is_number(p) or not labels.is_number(difference):
        return "not tested"
    if p >= 0.05:
        return UNDECIDED
    if difference * test["rank_biserial"] < 0:
        return DISAGREE
    return f"{a if (difference > 0) == (better == 'high') else b} better"


def text_table(summary: Summary) -> str:
    """The main scores for a terminal: one aligned block per target, at most _WIDTH characters wide, best
    means marked with *. Intervals stand below their means; a text too long for its column goes on below.
    """
    blocks = []
    columns = 1 + len(MAIN_METRICS)
    for target in summary.targets:
        table = score_table(summary, target)
        grid = [[[head] for head in table.header[:columns]]]
        for row in table.rows:
            grid.append([[c.text + " *" * c.best, c.detail] for c in row.cells[:columns]])
        most = (_WIDTH - _NAME_WIDTH) // len(MAIN_METRICS) - len(_GAP)
        widths = [max(len(text) for line in grid for text in line[i]) for i in range(columns)]
        widths[1:] = [min(w, most) for w in widths[1:]]
        widths[0] = min(widths[0], _WIDTH - sum(w + len(_GAP) for w in widths[1:]))
        people = people_of([r.n_patients for r in summary.rows_of(target)])
        title = f"PET to {target.upper()}" + (f", {people} people" if people else "")
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
