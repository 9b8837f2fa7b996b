"""What a calibrated spread is worth on test people, as tables and as three lines for a terminal."""

from cldm_jax.errors import rounded
from cldm_jax.report import labels
from cldm_jax.report.record import Summary
from cldm_jax.report.tables import Cell, Row, Table


def spread_lines(summary: Summary) -> list[str]:
    """Of each calibrated model: coverage, CRPS beside the MAE, whether SD and error agree in place."""
    lines = []
    for name in dict.fromkeys(r["method"] for r in summary.spread):
        rows = [r for r in summary.spread if r["method"] == name]
        covered, crps, sure = [], [], []
        for r in rows:
            target, places = r["target"].upper(), _places(r["target"], summary)
            regions = _percent(_region_coverage(r))
            covered.append(f"{target} {'/'.join(map(_percent, r['coverage']))}, regions {regions}")
            own, raw, mae = (
                "/".join(labels.number(v, places) for v in r[k])
                for k in ("crps", "crps_raw", "mae")
            )
            crps.append(f"{target} {own} (as sampled {raw}; MAE of its {r['point']} {mae})")
            own, raw = (labels.number(r[k], places) for k in ("energy", "energy_raw"))
            sure.append(f"{target} {labels.number(r['rank'], 2)}, {own} (as sampled {raw})")
        scales = "/".join(map(_scale, rows[0]["scales_mm"]))
        lines += [
            f"{labels.method_label(name)}: 90 % intervals cover, % at {scales}: {'; '.join(covered)} "
            f"({rows[0]['people']} people)",
            f"  CRPS at {scales}: {'; '.join(crps)}",
            f"  rank correlation of SD and |error|, energy score: {'; '.join(sure)}",
        ]
    return lines


def spread_table(summary: Summary) -> Table | None:
    """CRPS of calibrated ensembles and MAE of all methods on the same slices, by blur."""
    rows = summary.spread
    if not rows:
        return None
    scales = [_scale(mm) for mm in rows[0]["scales_mm"]]
    header = ["Target", "Method", *(f"CRPS or MAE, {s}" for s in scales)]
    header += [f"in the 90 % interval, {s}" for s in scales] + ["Energy score", "Rank correlation"]
    found = []
    for target in dict.fromkeys(r["target"] for r in rows):
        scored, places = [], _places(target, summary)
        for r in (r for r in rows if r["target"] == target):
            for raw, words, rank in (
                ("", f"calibrated spread around {r['point']}", labels.number(r["rank"], 2)),
                ("_raw", f"{r['samples']} samples as they are", ""),
            ):
                rest = [f"{_percent(share)} %" for share in r[f"coverage{raw}"]]
                rest += [labels.number(r[f"energy{raw}"], places), rank]
                title = f"{labels.method_label(r['method'])}, {words}"
                scored.append((title, r[f"crps{raw}"], rest))
        for p in (p for p in summary.points if p["target"] == target):
            title = f"{labels.method_label(labels.row_key(p))} (no spread)"
            scored.append((title, p["mae"], [""] * (len(scales) + 2)))
        best = [min(s[1][i] for s in scored) for i in range(len(scales))]
        for title, values, rest in scored:
            pairs = zip(values, best, strict=True)
            numbers = [Cell(labels.number(v, places), best=v == low) for v, low in pairs]
            cells = [Cell(target.upper()), Cell(title), *numbers, *map(Cell, rest)]
            found.append(Row("method", cells))
    return Table(header, found)


def region_table(summary: Summary) -> Table | None:
    """Coverage of the regions' 90 % intervals."""
    if not summary.spread:
        return None
    header = ["Target", "Method", "Region", "in the 90 % interval", "Mean half width",
              "Mean absolute error", "Values"]  # fmt: skip
    found = []
    for r in summary.spread:
        for g in r["regions"]:
            unit = "" if g["unit"] == "1" else f" {g['unit']}"
            texts = [
                r["target"].upper(),
                labels.method_label(r["method"]),
                g["name"].replace("_", " "),
                f"{_percent(g['coverage'])} %",
                f"{rounded(g['half_width'])}{unit}",
                f"{rounded(g['mae'])}{unit}",
                str(g["n"]),
            ]
            found.append(Row("method", [Cell(t) for t in texts]))
    return Table(header, found)


def about(summary: Summary) -> str:
    """What the tables rest on."""
    if not summary.spread:
        return ""
    first = summary.spread[0]
    return (
        f"Calibrated on {first['calibrated_on']} validation people, tested on {first['people']} test "
        f"people: {first['samples']} samples a slice, {first['slices']} slices of each target."
    )


def _region_coverage(row: dict) -> float | None:
    total = sum(g["n"] for g in row["regions"])
    return sum(g["coverage"] * g["n"] for g in row["regions"]) / total if total else None


def _places(target: str, summary: Summary) -> int:
    return 1 if summary.units(target) == "HU" else 4


def _scale(mm: float) -> str:
    return "pixel" if mm == 0 else f"{mm:g} mm"


def _percent(share) -> str:
    return f"{100 * share:.0f}" if labels.is_number(share) else labels.NOT_MEASURED
