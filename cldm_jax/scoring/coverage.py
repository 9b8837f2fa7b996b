"""Does the calibrated spread hold on test people? The section "spread" of an evaluation."""

from typing import NamedTuple

import numpy as np

from cldm_jax.data import intensity
from cldm_jax.metrics import ensemble, regions
from cldm_jax.metrics.aggregate import base_name
from cldm_jax.runs import spread
from cldm_jax.runs.inputs import image_source
from cldm_jax.runs.readouts import Entrant, Run, predict_entrant


class Calibrated(NamedTuple):
    """A calibrated run of an entrant, its programs compiled."""

    run: Run
    drawer: spread.Drawer


def open_calibrated(config, entrants: list[Entrant]) -> dict[str, dict[str, Calibrated]]:
    """{entrant: {target: Calibrated}} of all that have a calibration."""
    found = {}
    for e in entrants:
        by_run = {}
        for target, run in e.runs.items():
            if run.calibration is None or target not in run.calibration.targets:
                continue
            if id(run) not in by_run:
                options = dict(batch_size=config.batch_size, seed=config.seed)
                facts = run.calibration
                drawer = spread.Drawer(run, facts.point, facts.samples, **options)
                by_run[id(run)] = Calibrated(run, drawer)
            found.setdefault(e.name, {})[target] = by_run[id(run)]
    return found


def measure(config, prepared, entrants, calibrated, chosen, codes, specs) -> dict:
    """{"spread": rows, "points": rows}: of every calibrated model, and of every method's chosen read-out
    on the same slices; both {} where no model is calibrated.

    chosen: {target: {base name: read-out}}. codes, specs: class code and metric normaliser of targets.
    A row's lists are by SCALES_MM; errors and scores in metric units, those of a region in its own.
    """
    stride = _stride(calibrated, prepared)
    rows, points = [], []
    spacing = prepared.index.spacing_mm
    for e in (e for e in entrants if e.name in calibrated):
        own = calibrated[e.name]
        for made in {id(c): c for c in own.values()}.values():
            targets = tuple(t for t, c in own.items() if c is made)
            rows += _rows(config, prepared, e.name, made, targets, codes, specs, stride, spacing)
    if rows:
        points = _points(config, prepared, entrants, chosen, codes, specs, stride, spacing)
    return {"spread": rows, "points": points}


def _stride(calibrated, prepared) -> int:
    """Slices as far apart as in the first calibration."""
    found = [c.run.calibration for own in calibrated.values() for c in own.values()]
    return max(1, round(found[0].slice_mm / spread.slice_mm(prepared))) if found else 1


def _rows(config, prepared, name, made, targets, codes, specs, stride, spacing) -> list[dict]:
    facts, data = made.run.calibration, made.run.config["data"]
    source = image_source(prepared, config.split, targets, data, slice_stride=stride)
    height = stride * spread.slice_mm(prepared)
    judged = {t: [] for t in targets}
    asked = {t: [] for t in targets}
    names = {codes[t]: t for t in targets}
    for drawn in spread.volumes(made.drawer, source):
        target = names[drawn.code]
        own = facts.targets[target]
        judged[target].append((len(drawn.point), spread.judge(drawn, own, spacing)))
        spec = made.run.manifest.data.modalities[target].normaliser
        asked[target].append(spread.ask_regions(drawn, own.factors, spec, target, spacing, height))
    return [
        {
            "method": name,
            "target": target,
            "point": facts.point,
            "samples": facts.samples,
            "calibrated_on": facts.people,
            "people": len(judged[target]),
            "slices": sum(n for n, _ in judged[target]),
            "scales_mm": list(ensemble.SCALES_MM),
            "factors": list(facts.targets[target].factors),
            **_means([j for _, j in judged[target]], _metric_scale(specs[target])),
            "regions": _regions(asked[target], facts.targets[target].regions, target),
        }
        for target in targets
        if judged[target]
    ]


def _metric_scale(spec) -> float:
    """Metric units for one of model range."""
    zero, one = intensity.metric_units(spec, np.float32([0, 1]))
    return float(one - zero)


def _means(judged: list[dict], scale: float) -> dict:
    """Means over people; what has a unit in metric units."""
    out = {}
    for key in judged[0]:
        mean = np.nanmean([j[key] for j in judged], axis=0)
        has_unit = key not in ("coverage", "coverage_raw", "rank")
        out[key] = (mean * (scale if has_unit else 1.0)).tolist()
    return out


def _regions(asked: list[spread.Asked], rules: dict, target: str) -> list[dict]:
    """Of each region over people and slabs: share inside the interval, its mean half width, and the mean
    absolute error of its centre.
    """
    out = []
    for name, rule in rules.items():
        real = np.concatenate([a.real[name] for a in asked])
        mean, low, high = regions.interval(
            np.concatenate([a.members[name] for a in asked], axis=1), rule
        )
        good = np.isfinite(real) & np.isfinite(low)
        if not good.any():
            continue
        inside = (low <= real) & (real <= high)
        out.append(
            {
                "name": name,
                "unit": regions.unit_of(target, name, "HU" if target == "ct" else "a.u."),
                "coverage": float(inside[good].mean()),
                "half_width": float(((high - low) / 2)[good].mean()),
                "mae": float(np.abs(mean - real)[good].mean()),
                "n": int(good.sum()),
            }
        )
    return out


def _points(config, prepared, entrants, chosen, codes, specs, stride, spacing) -> list[dict]:
    """MAE of every method's chosen read-out after each blur: the CRPS of a method without a spread."""
    out = []
    for e in entrants:
        targets = tuple(e.runs)
        data = e.first.config["data"]
        source = image_source(prepared, config.split, targets, data, slice_stride=stride)
        batch = source.read(np.arange(len(source)))
        real, head = batch["target"][..., 0], batch["mask"][..., 0] > 0
        by_mode = {}
        for target in targets:
            by_mode.setdefault(chosen[target][base_name(e.name)], []).append(target)
        for mode, made in by_mode.items():
            images = predict_entrant(
                e, mode, source, codes, batch_size=config.batch_size, seed=config.seed
            ).images
            for target in made:
                own = source.keys["label"] == codes[target]
                error = np.clip(images[own], -1, 1) - real[own]
                people = source.keys["subject"][own]
                maes = _mae_by_person(error, head[own], people, spacing)
                mae = (maes * _metric_scale(specs[target])).tolist()
                out.append({"method": e.name, "mode": mode, "target": target, "mae": mae})
    return out


def _mae_by_person(error, head, people, spacing) -> np.ndarray:
    """[scales], every person counts once."""
    sizes = [np.abs(ensemble.blur(error, sd, spacing)) for sd in ensemble.SCALES_MM]
    return np.mean(
        [[s[people == p][head[people == p]].mean() for s in sizes] for p in np.unique(people)],
        axis=0,
    )


def sd_maps(calibrated, scorer, rows: np.ndarray, source_of) -> dict[str, dict[int, np.ndarray]]:
    """{"method:read-out": {row: SD [H, W] in model range}} of calibrated models for rows of the scorer.

    source_of: context -> the scorer's source.
    """
    spacing = scorer.prepared.index.spacing_mm
    labels, maps = scorer.keys["label"][rows], {}
    for name, own in calibrated.items():
        for target, made in own.items():
            code = next(c for c, t in scorer.names.items() if t == target)
            wanted = rows[labels == code]
            if not len(wanted):
                continue
            source = spread.Rows(source_of(made.run.config["data"]["context"]), wanted)
            deviation = ensemble.deviations(made.drawer.draw(source))
            found = made.run.calibration.targets[target]
            mended = ensemble.scaled(deviation, found.factors, spacing)
            sd = ensemble.sd_map(mended, spacing, found.smooth_mm[0])
            key = f"{name}:{made.run.calibration.point}"
            maps.setdefault(key, {}).update(zip(wanted.tolist(), sd, strict=True))
    return maps
