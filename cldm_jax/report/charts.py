"""Charts of scores: every method between floor and ceiling, and every patient one by one."""

import math

import numpy as np
from matplotlib.figure import Figure

from cldm_jax.metrics import aggregate
from cldm_jax.metrics.scores import METRICS
from cldm_jax.report import labels
from cldm_jax.report.figures import INK, fold_text, label_text, new_figure
from cldm_jax.report.record import Reference, Row, Summary

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#999999"  # Okabe-Ito: colour-blind safe
PALETTE = (INK, BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def _colour(row: Row | Reference) -> str:
    if isinstance(row, Reference):
        return ORANGE
    return BLUE if labels.is_latent(row.method) else INK


def _strip(axes, lines: str = "x") -> None:
    axes.grid(axis=lines, color="#e5e5e5", linewidth=0.6)
    axes.tick_params(which="both", labelsize=8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def scale_figure(summary: Summary, target: str) -> Figure | None:
    """Mean PSNR of every method, floors listed above them and ceilings below; sharpness beside it.

    Bars are 95 % intervals over patients. None where no row has a PSNR.
    """
    rows = [r for r in summary.rows_of(target) if r.mean("psnr") is not None]
    if not rows:
        return None
    scales = [r for r in summary.references_of(target) if r.mean("psnr") is not None]
    floors = [r for r in scales if r.name in labels.FLOORS]
    lines = floors + rows + [r for r in scales if r not in floors]
    figure = new_figure(8.6, 0.9 + 0.3 * len(lines))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[2.3, 1])
    for axes, metric in ((left, "psnr"), (right, "sharpness")):
        for y, row in enumerate(lines):
            _dot(axes, y, row, metric)
        axes.set_xlabel(labels.metric_label(metric, ""), fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        _strip(axes)
    left.set_yticks(range(len(lines)), [fold_text(r.label) for r in lines], linespacing=1.0)
    left.set_ylim(len(lines) - 0.5, -0.5)
    for row in scales:
        left.axvline(row.mean("psnr"), color=ORANGE, linewidth=0.8, linestyle="--")
    right.axvline(1.0, color=ORANGE, linewidth=0.8)
    for text, row in zip(left.get_yticklabels(), lines, strict=True):
        text.set_color(_colour(row))
    return figure


def _dot(axes, y: int, row: Row | Reference, metric: str) -> None:
    mean = row.mean(metric)
    if mean is None:
        return
    if isinstance(row, Reference):
        axes.plot([mean], [y], "D", color=ORANGE, markersize=5, markerfacecolor="white")
        return
    ci95 = row.scores[metric]["ci95"]
    if ci95 is not None:
        axes.plot(ci95, [y, y], color=_colour(row), linewidth=2, solid_capstyle="butt")
    axes.plot([mean], [y], "o", color=_colour(row), markersize=6)


def patients_figure(scores: list[dict], target: str, units: str) -> Figure | None:
    """One thin line per patient from method to method, top to bottom, the mean as a bar; None without
    finite scores.
    """
    wanted = [s for s in scores if s["target"] == target]
    keys = list(dict.fromkeys(labels.row_key(s) for s in wanted))
    values = {(labels.row_key(s), s["metric"], s["patient"]): s["value"] for s in wanted}
    patients = list(dict.fromkeys(s["patient"] for s in wanted))
    tables_of = {
        m: np.array([[values.get((k, m, p), math.nan) for k in keys] for p in patients], float)
        for m in ("psnr", "mae")
    }
    tables_of = {m: t for m, t in tables_of.items() if np.isfinite(t).any()}
    if not tables_of:
        return None
    figure = new_figure(2.4 + 3.4 * len(tables_of), 0.9 + 0.34 * len(keys))
    grid = figure.subplots(1, len(tables_of), squeeze=False, sharey=True)[0]
    for axes, (metric, table) in zip(grid, tables_of.items(), strict=True):
        table = np.where(np.isfinite(table), table, np.nan)  # no axis has a place for exact scores
        alpha = float(np.clip(8 / len(patients), 0.15, 0.7))
        y = np.arange(len(keys))
        for line in table:
            axes.plot(line, y, "-o", color=GREY, alpha=alpha, linewidth=0.8, markersize=3)
        for i in y[np.isfinite(table).any(axis=0)]:
            mean = np.nanmean(table[:, i])
            axes.plot([mean, mean], [i - 0.3, i + 0.3], color=BLUE, linewidth=2.5)
        axes.set_yticks(y, [label_text(k) for k in keys], linespacing=1.0)
        axes.set_ylim(len(keys) - 0.5, -0.5)
        unit = labels.metric_unit(metric, units)
        axes.set_title(f"{METRICS[metric].label}, {unit}" if unit else METRICS[metric].label)
        axes.title.set(fontsize=9, color=INK)
        _strip(axes)
    return figure


def learning_figure(summary: Summary, target: str) -> Figure | None:
    """PSNR on validation people against the share of the training done, one line per method.

    The first read-out of each method and model range, so not the numbers of the tables. None without
    validations.
    """
    curves = {
        method: curve[target]
        for method, curve in summary.learning.items()
        if any(y is not None for _, y in curve.get(target, ()))
    }
    if not curves:
        return None
    figure = new_figure(6.4, 3.4)
    axes = figure.subplots()
    bases = list(dict.fromkeys(aggregate.base_name(m) for m in curves))
    for method, points in curves.items():
        base = aggregate.base_name(method)
        label = label_text(f"{method}:") if base == method else None
        x, y = zip(*(p for p in points if p[1] is not None), strict=True)
        turn, number = divmod(bases.index(base), len(PALETTE))
        look = dict(marker="o", markersize=3, linewidth=1.2, color=PALETTE[number], label=label)
        axes.plot(x, y, ("-", "--", ":")[turn % 3], **look)
    axes.set_ylim(bottom=max(axes.get_ylim()[0], axes.get_ylim()[1] - 8))
    axes.set_xlabel("Share of the budget's steps", fontsize=8)
    axes.set_ylabel("PSNR on validation people, dB", fontsize=8)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _strip(axes, "both")
    return figure
