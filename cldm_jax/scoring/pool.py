"""The reports of cross-validation folds as one: every person was a test person once."""

import math
import pathlib

import numpy as np

from cldm_jax import files
from cldm_jax.errors import UserError
from cldm_jax.metrics import aggregate
from cldm_jax.report.gallery import GALLERY, load_gallery
from cldm_jax.report.page import default_title, read_scores, write_report
from cldm_jax.report.record import Row, read_summary
from cldm_jax.report.tables import text_table
from cldm_jax.runtime import device
from cldm_jax.scoring.scorer import HEADLINE
from cldm_jax.scoring.summary import COSTS, make_summary

CHOSEN = "chosen"  # read-out of a method whose folds chose different ones

# Lists of a spread row that are means over people.
BY_SCALE = ("coverage", "coverage_raw", "crps", "crps_raw", "mae", "factors")


def run_folders(reports: list[pathlib.Path], workdir: str, *, seed: int, title: str) -> None:
    """Pools finished reports into `workdir`: scores, tests, references and pictures of all people.

    UserError where they are not folds of one comparison: other protocols, other methods, a person
    tested twice.
    """
    summaries = [read_summary(r / "summary.json") for r in reports]
    _check(reports, summaries)
    scores = [read_scores(r / "scores.csv") for r in reports]
    chosen = _chosen(summaries, scores)
    flat = [row for fold in scores for row in fold]
    run = {**summaries[0].run, "command": device.command_line()}
    run.pop("stamp", None)  # of one fold's evaluation
    summary = make_summary(
        flat,
        _costs(summaries, chosen),
        chosen,
        {t.target: aggregate.base_name(t.a.split(":")[0]) for s in summaries for t in s.tests},
        seed=seed,
        protocol=summaries[0].protocol,
        data=_data(summaries),
        controls=_controls(summaries),
        spread=_spread(summaries),
        points=_points(summaries),
        learning=_learning(summaries),
        notes=pool_notes([s.notes for s in summaries]),
        run=run,
    )
    title = f"{title or default_title(summary)}: {len(reports)} folds"
    page = write_report(workdir, summary, flat, _gallery(reports, flat), title=title)
    print(text_table(summary))
    print(f"pooled report of {len(reports)} folds: {page}")


def _check(reports, summaries) -> None:
    def facts(s):
        return s.protocol, {(r.key, r.target) for r in s.rows}

    for report, summary in zip(reports, summaries, strict=True):
        if facts(summary) != facts(summaries[0]):
            reason = f"has other methods or another protocol than {reports[0]}"
            raise UserError(report, reason, "Evaluate every fold with the same settings.")


def _chosen(summaries, scores) -> dict[str, dict[str, str]]:
    """The folds' choice of read-outs. Where they differ, each fold's own rows are scored once more
    under the name CHOSEN: nobody's read-out was chosen on test people.
    """
    chosen: dict[str, dict[str, str]] = {}
    for target, modes in summaries[0].chosen.items():
        chosen[target] = {}
        for method in modes:
            found = [s.chosen[target][method] for s in summaries]
            same = len(set(found)) == 1
            chosen[target][method] = found[0] if same else CHOSEN
            if same:
                continue
            for mode, fold in zip(found, scores, strict=True):
                fold += [
                    {**r, "mode": CHOSEN}
                    for r in fold
                    if aggregate.base_name(r["method"]) == method
                    and (r["mode"], r["target"]) == (mode, target)
                ]
    return chosen


def _mean(values):
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _costs(summaries, chosen) -> dict[tuple, dict]:
    """Means over folds, those of a CHOSEN read-out over what each fold chose; None where nothing was
    measured.
    """
    found: dict[tuple, list[Row]] = {}
    for summary in summaries:
        for row in summary.rows:
            method, mode, target = row.method, row.mode, row.target
            found.setdefault((method, mode, target), []).append(row)
            base = aggregate.base_name(method)
            if chosen[target][base] == CHOSEN and summary.chosen[target][base] == mode:
                found.setdefault((method, CHOSEN, target), []).append(row)
    return {k: {c: _mean([getattr(r, c) for r in v]) for c in COSTS} for k, v in found.items()}


def _data(summaries) -> dict:
    data = [s.data for s in summaries]
    return {
        **data[0],
        "fingerprint": files.sha256_json([d["fingerprint"] for d in data]),
        "split_hash": files.sha256_json([d["split_hash"] for d in data]),
        "train_patients": ", ".join(str(d["train_patients"]) for d in data),
        "test_patients": sum(d["test_patients"] for d in data),
        "slices": sum(d["slices"] for d in data),
        "folds": len(data),
    }


def _controls(summaries) -> list[dict]:
    """Means over folds of every control's numbers."""
    found: dict[tuple, list[dict]] = {}
    for summary in summaries:
        for row in summary.controls:
            key = (row["name"], row["method"], row["mode"], row.get("target"))
            found.setdefault(key, []).append(row)
    return [_average(rows) for rows in found.values()]


def _average(rows: list[dict]) -> dict:
    out = {}
    for key, value in rows[0].items():
        values = [r[key] for r in rows]
        if isinstance(value, dict):
            out[key] = _average(values)
        else:
            out[key] = value if isinstance(value, str) else _mean(values)
    return out


def _common(folds: list[list[dict]], *keys: str) -> list[list[dict]]:
    """Of each model (or region) that every fold has, its rows."""
    known = [{tuple(r[k] for k in keys): r for r in fold} for fold in folds]
    return [[f[key] for f in known] for key in known[0] if all(key in f for f in known)]


def _spread(summaries) -> list[dict]:
    """Of each model and target calibrated in every fold: means over all people, each tested once."""
    pooled = []
    for rows in _common([s.spread for s in summaries], "method", "target"):
        scored = [k for k, v in rows[0].items() if isinstance(v, float) or k in BY_SCALE]
        means = _weighted(rows, scored, "people")
        counted = {k: sum(r[k] for r in rows) for k in ("people", "slices")}
        fewest = min(r["calibrated_on"] for r in rows)
        regions = _pool_regions([r["regions"] for r in rows])
        pooled.append({**rows[0], **means, **counted, "calibrated_on": fewest, "regions": regions})
    return pooled


def _pool_regions(folds: list[list[dict]]) -> list[dict]:
    """Regions that every fold has, each value counted once."""
    pooled = []
    for found in _common(folds, "name"):
        means = _weighted(found, ("coverage", "half_width", "mae"), "n")
        pooled.append({**found[0], **means, "n": sum(g["n"] for g in found)})
    return pooled


def _weighted(rows: list[dict], keys, count: str) -> dict:
    """Means of numbers, or of each in a list, over rows that stand for so many."""
    weights = [r[count] for r in rows]
    return {k: np.average([r[k] for r in rows], axis=0, weights=weights).tolist() for k in keys}


def _points(summaries) -> list[dict]:
    """MAE of every method on the same slices; folds of nearly as many people count alike."""
    return [
        {
            **rows[0],
            "mode": rows[0]["mode"] if len({r["mode"] for r in rows}) == 1 else CHOSEN,
            "mae": np.mean([r["mae"] for r in rows], axis=0).tolist(),
        }
        for rows in _common([s.points for s in summaries], "method", "target")
    ]


def _learning(summaries) -> dict:
    """Mean validation PSNR over folds at each validation."""
    out = {}
    for method, curves in summaries[0].learning.items():
        out[method] = {}
        for target in curves:
            folds = [s.learning[method][target] for s in summaries]
            points = zip(*folds, strict=False)  # folds validate equally often, but for one
            out[method][target] = [tuple(_mean(v) for v in zip(*p, strict=True)) for p in points]
    return out


def pool_notes(folds: list[list[str]]) -> list[str]:
    """Each note once, with its fold where not all have it."""
    notes = []
    for k, own in enumerate(folds):
        for note in own:
            same = all(note in others for others in folds)
            text = note if same else f"Fold {k}: {note}"
            if text not in notes:
                notes.append(text)
    return notes


def _gallery(reports, scores) -> dict:
    """Of all folds' pictures, those nearest to the best, median and worst person of all."""
    for report in reports:
        if not (report / GALLERY).is_file():
            raise UserError(
                report / GALLERY, "is missing", "Delete that report and evaluate again."
            )
    galleries = [load_gallery(r / GALLERY) for r in reports]
    out = {}
    for target, first in galleries[0].items():
        cases = {}
        for gallery in galleries:
            for case in gallery.get(target, {}).get("cases", ()):
                cases[case["patient"]] = case
        key = first["chosen_by"].split(":")
        psnr = {
            r["patient"]: r["value"]
            for r in scores
            if [r["method"], r["mode"]] == key
            and (r["target"], r["metric"]) == (target, HEADLINE)
            and math.isfinite(r["value"])
        }
        if not psnr:  # nothing to rank people by
            continue
        middle = float(np.median(list(psnr.values())))
        shown = [p for p in cases if p in psnr]
        wanted = {"best": max(psnr.values()), "median": middle, "worst": min(psnr.values())}
        picked = []
        for role, value in wanted.items():
            if shown:
                patient = min(shown, key=lambda p: abs(psnr[p] - value))
                shown.remove(patient)
                picked.append({**cases[patient], "role": role})
        out[target] = {**first, "cases": picked}
    return out
