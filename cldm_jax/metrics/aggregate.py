"""Score rows of a report -> summary rows and paired tests, one value per patient.

A score row is {"patient", "group", "split", "method", "mode", "target", "metric", "value",
"n_slices"}. `group` names people who are not independent (one head, one family); where groups are
fewer than patients, intervals draw groups and tests count groups.
"""

import math
import re

import numpy as np

from cldm_jax.errors import UserError
from cldm_jax.metrics import statistics

MARGINS = {"psnr": 0.1}  # dB: differences below nobody sees, for tests of equivalence


def _clusters(rows) -> list[str] | None:
    groups = [str(row["group"]) for row in rows]
    return groups if len(set(groups)) < len(groups) else None


def _by_method(scores) -> dict:
    """{(method, mode, target): {metric: {patient: row}}}, in the order of first appearance."""
    table = {}
    for row in scores:
        key = (row["method"], row["mode"], row["target"])
        patients = table.setdefault(key, {}).setdefault(row["metric"], {})
        if row["patient"] in patients:
            raise UserError(
                f"score rows of {key}",
                f"patient {row['patient']} has two values of {row['metric']}",
                "Average slices within a patient before, and score each patient once",
            )
        patients[row["patient"]] = row
    return table


def summarise_scores(scores, *, seed: int) -> list[dict]:
    """Summary rows {"method", "mode", "target", "n_patients", "n_independent", <metric>: entry}.

    An entry is that of `statistics.summarise`. Raises UserError on two values for one patient.
    """
    rows = []
    for (method, mode, target), metrics in _by_method(scores).items():
        row = {"method": method, "mode": mode, "target": target}
        everyone = {p: r for patients in metrics.values() for p, r in patients.items()}
        row["n_patients"] = len(everyone)
        row["n_independent"] = len({str(r["group"]) for r in everyone.values()})
        for metric, patients in metrics.items():
            values = [r["value"] for r in patients.values()]
            clusters = _clusters(patients.values())
            row[metric] = statistics.summarise(values, seed=seed, clusters=clusters)
        rows.append(row)
    return rows


def base_name(method: str) -> str:
    """A method's name without the training seed that `jobs/reproduce` appends: unet-seed2 -> unet."""
    return re.sub(r"-seed\d+$", "", method)


def average_seeds(scores) -> list[dict]:
    """Score rows with every method's trainings averaged within each patient, under its base name.

    What is tested between methods: trainings of one method are not further patients.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in scores:
        name = base_name(row["method"])
        key = (name, row["mode"], row["target"], row["metric"], row["patient"])
        groups.setdefault(key, []).append({**row, "method": name})
    return [{**g[0], "value": math.fsum(r["value"] for r in g) / len(g)} for g in groups.values()]


def seed_spread(scores, *, metric: str) -> list[dict]:
    """Rows {"method", "mode", "target", "metric", "n_seeds", "mean", "sd"}: over trainings, of the mean
    over patients; methods with two trainings or more.

    A training without a score is none; a patient for whom one of the others has none is left out of
    all, else who is missing would pass for a difference between trainings.
    """
    trainings: dict[tuple, list[dict]] = {}
    for (method, mode, target), metrics in _by_method(scores).items():
        values = {p: r["value"] for p, r in metrics.get(metric, {}).items()}
        values = {p: v for p, v in values.items() if math.isfinite(v)}
        if values:
            trainings.setdefault((base_name(method), mode, target), []).append(values)
    means: dict[tuple, list[float]] = {}
    for key, scored in trainings.items():
        shared = [p for p in scored[0] if all(p in values for values in scored)]
        if shared:
            means[key] = [math.fsum(v[p] for p in shared) / len(shared) for v in scored]
    rows = []
    for (method, mode, target), values in means.items():
        if len(values) > 1:
            row = {"method": method, "mode": mode, "target": target, "metric": metric}
            sd = float(np.std(values, ddof=1))
            rows.append(row | {"n_seeds": len(values), "mean": float(np.mean(values)), "sd": sd})
    return rows


def paired_tests(scores, pairs, *, metrics=("psnr", "ssim", "mae"), seed: int) -> list[dict]:
    """Tests of a against b for every ("method:mode", "method:mode") in pairs, target and metric.

    pairs: a list for all targets, or {target: list}. Holm's correction runs over all returned tests.
    Raises UserError where a and b were not scored
    on the same patients. A pair or metric absent for a target is skipped.
    """
    table = _by_method(scores)
    targets = list(dict.fromkeys(target for _, _, target in table))
    tests = []
    for target in targets:
        for a, b in pairs.get(target, ()) if isinstance(pairs, dict) else pairs:
            sides = [table.get((*name.split(":", 1), target)) for name in (a, b)]
            if None in sides:
                continue
            for metric in (m for m in metrics if any(m in side for side in sides)):
                tests.append(_one_test(a, b, target, metric, sides, seed))
    adjusted = statistics.holm([t["p_wilcoxon"] for t in tests])
    for test, p in zip(tests, adjusted, strict=True):
        test["p_holm"] = p
    return tests


def _one_test(a, b, target, metric, sides, seed) -> dict:
    first, second = (side.get(metric, {}) for side in sides)
    if first.keys() != second.keys():
        odd = sorted(map(str, first.keys() ^ second.keys()))
        raise UserError(
            f"paired test of {a} and {b} on {target} {metric}",
            f"these patients were scored for one of them only: {odd[:5]}",
            "Score both methods on the same split",
        )
    rows = list(first.values())
    result = statistics.paired_test(
        [row["value"] for row in rows],
        [second[row["patient"]]["value"] for row in rows],
        seed=seed,
        clusters=_clusters(rows),
        margin=MARGINS.get(metric, math.nan),
    )
    found = result._asdict() | {"ci95": list(result.ci95)}
    return {"a": a, "b": b, "target": target, "metric": metric, **found}


def pick_cases(scores, key: str, target: str, *, metric: str = "psnr") -> dict[str, str]:
    """{"best", "median", "worst": patient} by the metric of method key "method:mode", high is good.

    The rule that chooses the people shown in figures. Fewer than three people give fewer roles.
    """
    patients = _by_method(scores).get((*key.split(":", 1), target), {}).get(metric, {})
    finite = [p for p in patients if math.isfinite(patients[p]["value"])]
    ranked = sorted(finite, key=lambda p: (-patients[p]["value"], str(p)))
    if len(ranked) < 2:
        return {"median": ranked[0]} if ranked else {}
    cases = {"best": ranked[0], "worst": ranked[-1]}
    if len(ranked) > 2:
        cases["median"] = ranked[(len(ranked) - 1) // 2]
    return cases
