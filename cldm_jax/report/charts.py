"""Charts of scores: every method between floor and ceiling, and every patient one by one."""

import math

import numpy as np
from matplotlib.figure import Figure

from cldm_jax.metrics.scores import METRICS
from cldm_jax.report import labels, tables
from cldm_jax.report.figures import INK, label_text, new_figure

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#999999"  # Okabe-Ito: colour-blind safe
_IS_FLOOR = "floor"


def _colour(row: dict) -> str:
    return BLUE if labels.is_latent(row) else INK


def _strip(axes) -> None:
    axes.tick_params(labelsize=8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def scale_figure(summary: dict, target: str) -> Figure | None:
    """Mean PSNR of every method between the reference rows, its sharpness beside it.

    Bars are 95 % intervals over patients. None where no row has a PSNR.
    """
    rows = [r for r in tables.rows_of(summary, target) if tables.mean_of(r, "psnr") is not None]
    if not rows:
        return None
    scales = [
        r for r in tables.references_of(summary, target) if tables.mean_of(r, "psnr") is not None
    ]
    floors = [r for r in scales if r["name"].startswith(_IS_FLOOR)]
    lines = floors + rows + [r for r in scales if r not in floors]
    names = [
        label_text(labels.row_key(r)) if "method" in r else labels.reference_label(r["name"])
        for r in lines
    ]
    figure = new_figure(8.6, 0.9 + 0.27 * len(lines))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[2.3, 1])
    for axes, metric in ((left, "psnr"), (right, "sharpness")):
        for y, row in enumerate(lines):
            _dot(axes, y, row, metric)
        axes.set_xlabel(labels.metric_label(metric, ""), fontsize=8)
        axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        _strip(axes)
    left.set_yticks(range(len(lines)), names)
    left.set_ylim(len(lines) - 0.5, -0.5)
    for row in scales:
        left.axvline(tables.mean_of(row, "psnr"), color=ORANGE, linewidth=0.8, linestyle="--")
    right.axvline(1.0, color=ORANGE, linewidth=0.8)
    for text, row in zip(left.get_yticklabels(), lines, strict=True):
        text.set_color(_colour(row) if "method" in row else ORANGE)
    return figure


def _dot(axes, y: int, row: dict, metric: str) -> None:
    mean = tables.mean_of(row, metric)
    if mean is None:
        return
    if "method" not in row:
        axes.plot([mean], [y], "D", color=ORANGE, markersize=5, markerfacecolor="white")
        return
    ci95 = row[metric].get("ci95")
    if ci95 is not None and all(map(labels.is_number, ci95)):
        axes.plot(ci95, [y, y], color=_colour(row), linewidth=2, solid_capstyle="butt")
    axes.plot([mean], [y], "o", color=_colour(row), markersize=6)


def patients_figure(
    scores: list[dict], target: str, units: str, metrics=("psnr", "mae")
) -> Figure | None:
    """One thin line per patient across the methods, the mean as a bar; None without finite scores."""
    wanted = [s for s in scores if s["target"] == target]
    keys = list(dict.fromkeys(labels.row_key(s) for s in wanted))
    values = {(labels.row_key(s), s["metric"], s["patient"]): s["value"] for s in wanted}
    patients = list(dict.fromkeys(s["patient"] for s in wanted))
    tables_of = {
        m: np.array([[values.get((k, m, p), math.nan) for k in keys] for p in patients], float)
        for m in metrics
        if any(s["metric"] == m for s in wanted)
    }
    tables_of = {m: t for m, t in tables_of.items() if np.isfinite(t).any()}
    if not tables_of:
        return None
    figure = new_figure(max(4.2, 0.62 * len(keys) + 1.4) * len(tables_of), 3.3)
    for axes, (metric, table) in zip(
        figure.subplots(1, len(tables_of), squeeze=False)[0], tables_of.items(), strict=True
    ):
        table = np.where(
            np.isfinite(table), table, np.nan
        )  # an exact score has no place on an axis
        alpha = float(np.clip(8 / len(patients), 0.15, 0.7))
        x = np.arange(len(keys))
        for line in table:
            axes.plot(x, line, "-o", color=GREY, alpha=alpha, linewidth=0.8, markersize=3)
        for i in x[np.isfinite(table).any(axis=0)]:
            mean = np.nanmean(table[:, i])
            axes.plot([i - 0.3, i + 0.3], [mean, mean], color=BLUE, linewidth=2.5)
        axes.set_xticks(x, [label_text(k) for k in keys], rotation=35, ha="right")
        axes.set_xlim(-0.6, len(keys) - 0.4)
        unit = labels.metric_unit(metric, units)
        axes.set_title(f"{METRICS[metric].label}, {unit}" if unit else METRICS[metric].label)
        axes.title.set(fontsize=9, color=INK)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
        _strip(axes)
    return figure
