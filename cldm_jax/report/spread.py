"""What a calibrated spread is worth on test people, as tables and as three lines for a terminal."""

from cldm_jax.report import labels, tables
from cldm_jax.report.tables import Cell, Row, Table


def spread_lines(summary: dict) -> list[str]:
    """Of each calibrated model: coverage, CRPS beside the MAE, whether SD and error agree in place."""
    lines = []
    for name in dict.fromkeys(r["method"] for r in summary.get("spread") or []):
        rows = [r for r in summary["spread"] if r["method"] == name]
        first = rows[0]
        scales = "/".join(_scale(mm) for mm in first["scales_mm"])
        covered = "; ".join(
            f"{labels.target_label(r['target'])} {_percents(r['coverage'])}, regions "
            f"{_percent(_region_coverage(r))}"
            for r in rows
        )
        lines.append(
            f"{labels.method_label(name)}: 90 % intervals cover, % at {scales}: {covered} "
            f"({first['people']} people)"
        )
        crps = "; ".join(
            f"{labels.target_label(r['target'])} {_numbers(r['crps'], r, summary)} (as sampled "
            f"{_numbers(r['crps_raw'], r, summary)}; MAE of its {r['point']} "
            f"{_numbers(r['mae'], r, summary)})"
            for r in rows
        )
        lines.append(f"  CRPS at {scales}: {crps}")
        sure = "; ".join(
            f"{labels.target_label(r['target'])} {labels.number(r['rank'], 2)}, "
            f"{labels.number(r['energy'], _places(r, summary))} (as sampled "
            f"{labels.number(r['energy_raw'], _places(r, summary))})"
            for r in rows
        )
        lines.append(f"  rank correlation of SD and |error|, energy score: {sure}")
    return lines


def spread_table(summary: dict) -> Table | None:
    """CRPS of calibrated ensembles and MAE of all methods on the same slices, by blur."""
    rows = summary.get("spread") or []
    if not rows:
        return None
    scales = [_scale(mm) for mm in rows[0]["scales_mm"]]
    header = ["Target", "Method", *(f"CRPS or MAE, {s}" for s in scales)]
    header += [f"in the 90 % interval, {s}" for s in scales] + ["Energy score", "Rank correlation"]
    found = []
    for target in dict.fromkeys(r["target"] for r in rows):
        scored = []
        for r in (r for r in rows if r["target"] == target):
            name, places = labels.method_label(r["method"]), _places(r, summary)
            end = [labels.number(r["energy"], places), labels.number(r["rank"], 2)]
            raw = [labels.number(r["energy_raw"], places), ""]
            percents = [f"{_percent(c)} %" for c in r["coverage"]]
            raw_percents = [f"{_percent(c)} %" for c in r["coverage_raw"]]
            title = f"{name}, calibrated spread around {r['point']}"
            scored.append((title, r["crps"], [*percents, *end]))
            scored.append((f"{name}, {r['samples']} samples as they are", r["crps_raw"],
                           [*raw_percents, *raw]))  # fmt: skip
        for p in (p for p in summary.get("points") or [] if p["target"] == target):
            blank = [""] * (len(scales) + 2)
            scored.append(
                (f"{labels.method_label(labels.row_key(p))} (no spread)", p["mae"], blank)
            )
        best = [min(s[1][i] for s in scored) for i in range(len(scales))]
        places = _places({"target": target}, summary)
        for title, values, rest in scored:
            numbers = [
                Cell(labels.number(v, places), best=v == b)
                for v, b in zip(values, best, strict=True)
            ]
            cells = [Cell(labels.target_label(target)), Cell(title), *numbers, *map(Cell, rest)]
            found.append(Row("method", cells))
    return Table(header, found)


def region_table(summary: dict) -> Table | None:
    """Coverage of the regions' 90 % intervals."""
    rows = summary.get("spread") or []
    if not rows:
        return None
    header = ["Target", "Method", "Region", "in the 90 % interval", "Mean half width",
              "Mean absolute error", "Values"]  # fmt: skip
    found = []
    for r in rows:
        for g in r["regions"]:
            unit = "" if g["unit"] == "1" else f" {g['unit']}"
            texts = [
                labels.target_label(r["target"]),
                labels.method_label(r["method"]),
                g["name"].replace("_", " "),
                f"{_percent(g['coverage'])} %",
                f"{g['half_width']:.3g}{unit}",
                f"{g['mae']:.3g}{unit}",
                str(g["n"]),
            ]
            found.append(Row("method", [Cell(t) for t in texts]))
    return Table(header, found)


def about(summary: dict) -> str:
    """What the tables rest on."""
    rows = summary.get("spread") or []
    if not rows:
        return ""
    first = rows[0]
    return (
        f"Calibrated on {first['calibrated_on']} validation people, tested on {first['people']} test "
        f"people: {first['samples']} samples a slice, {first['slices']} slices of each target."
    )


def _region_coverage(row: dict) -> float | None:
    total = sum(g["n"] for g in row["regions"])
    return sum(g["coverage"] * g["n"] for g in row["regions"]) / total if total else None


def _places(row: dict, summary: dict) -> int:
    return 1 if tables.units_of(summary, row["target"]) == "HU" else 4


def _numbers(values, row: dict, summary: dict) -> str:
    return "/".join(labels.number(v, _places(row, summary)) for v in values)


def _scale(mm: float) -> str:
    return "pixel" if mm == 0 else f"{mm:g} mm"


def _percent(share) -> str:
    return f"{100 * share:.0f}" if labels.is_number(share) else labels.NOT_MEASURED


def _percents(shares) -> str:
    return "/".join(map(_percent, shares))
