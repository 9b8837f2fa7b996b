"""Does the calibrated spread hold on test people? The section "spread" of an evaluation."""

import numpy as np

from cldm_jax.data import intensity
from cldm_jax.metrics import ensemble, regions
from cldm_jax.metrics.aggregate import base_name
from cldm_jax.runs import spread
from cldm_jax.runs.inputs import image_source
from cldm_jax.runs.readouts import Entrant, predict_entrant
from cldm_jax.scoring.scorer import Scorer


def open_calibrated(scorer: Scorer, entrants: list[Entrant]) -> dict[str, dict[str, spread.Drawer]]:
    """{entrant: {target: drawer of its run}} of all that have a calibration."""
    drawers, found = {}, {}
    for e in entrants:
        for target, run in e.runs.items():
            facts = run.calibration
            if facts is None or target not in facts.targets:
                continue
            if id(run) not in drawers:
                drawer = spread.Drawer(run, facts.point, facts.samples, **scorer.options)
                drawers[id(run)] = drawer
            found.setdefault(e.name, {})[target] = drawers[id(run)]
    return found


def measure(scorer: Scorer, entrants: list[Entrant], drawers: dict, chosen: dict) -> dict:
    """{"spread": rows, "points": rows}: of every calibrated model, and of every method's chosen read-out
    on the same slices; both empty where no model is calibrated.

    drawers: of `open_calibrated`. chosen: {target: {base name: read-out}}. A row's lists are by
    SCALES_MM; errors and scores in metric units, those of a region in its own.
    """
    rows, stride = [], _stride(drawers, scorer.prepared)
    for name, own in drawers.items():
        for drawer in dict.fromkeys(own.values()):
            targets = tuple(t for t, d in own.items() if d is drawer)
            rows += _rows(scorer, name, drawer, targets, stride)
    return {"spread": rows, "points": _points(scorer, entrants, chosen, stride) if rows else []}


def _stride(drawers: dict, prepared) -> int:
    """Slices as far apart as in the first calibration."""
    found = [d.run.calibration.slice_mm for own in drawers.values() for d in own.values()]
    return max(1, round(found[0] / spread.slice_mm(prepared))) if found else 1


def _source(scorer: Scorer, run, targets: tuple, stride: int):
    data = run.config["data"]
    people = scorer.config.people_per_group
    chosen = dict(slice_stride=stride, people_per_group=people)
    return image_source(scorer.prepared, scorer.split, targets, data, **chosen)


def _rows(scorer: Scorer, name: str, drawer: spread.Drawer, targets, stride: int) -> list[dict]:
    run, index = drawer.run, scorer.prepared.index
    facts, spacing = run.calibration, index.spacing_mm
    judged = {t: [] for t in targets}
    asked = {t: [] for t in targets}
    for drawn in spread.volumes(drawer, _source(scorer, run, targets, stride)):
        target = scorer.names[drawn.code]
        own = facts.targets[target]
        judged[target].append((len(drawn.point), spread.judge(drawn, own, spacing)))
        asked[target].append(spread.ask_regions(drawn, own.factors, run, target, index, stride))
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
            **_means([j for _, j in judged[target]], _metric_scale(scorer.specs[target])),
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
    """Of each region over people and slabs: coverage, half width, mean absolute error of the centre."""
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
                "unit": regions.unit_of(name, "HU" if target == "ct" else "a.u."),
                "coverage": float(inside[good].mean()),
                "half_width": float(((high - low) / 2)[good].mean()),
                "mae": float(np.abs(mean - real)[good].mean()),
                "n": int(good.sum()),
            }
        )
    return out


def _points(scorer: Scorer, entrants, chosen, stride: int) -> list[dict]:
    """MAE of every method's chosen read-out after each blur: the CRPS of a method without a spread."""
    out = []
    for e in entrants:
        source = _source(scorer, e.first, tuple(e.runs), stride)
        batch = source.read(np.arange(len(source)))
        real, head = batch["target"][..., 0], batch["mask"][..., 0] > 0
        by_mode = {}
        for target in e.runs:
            by_mode.setdefault(chosen[target][base_name(e.name)], []).append(target)
        for mode, made in by_mode.items():
            images = predict_entrant(e, mode, source, scorer.codes, **scorer.options).images
            for target in made:
                own = source.keys["label"] == scorer.codes[target]
                error = np.clip(images[own], -1, 1) - real[own]
                people, spacing = source.keys["subject"][own], scorer.prepared.index.spacing_mm
                maes = _mae_by_person(error, head[own], people, spacing)
                mae = (maes * _metric_scale(scorer.specs[target])).tolist()
                out.append({"method": e.name, "mode": mode, "target": target, "mae": mae})
    return out


def _mae_by_person(error, head, people, spacing) -> np.ndarray:
    """[scales], every person counts once."""
    sizes = [np.abs(ensemble.blur(error, sd, spacing)) for sd in ensemble.SCALES_MM]
    return np.mean(
        [[s[people == p][head[people == p]].mean() for s in sizes] for p in np.unique(people)],
        axis=0,
    )


def sd_maps(scorer: Scorer, drawers: dict, rows: np.ndarray) -> dict[str, dict[int, np.ndarray]]:
    """{"method:read-out": {row: SD [H, W] in model range}} of calibrated models, for `rows`."""
    spacing = scorer.prepared.index.spacing_mm
    labels, maps = scorer.keys["label"][rows], {}
    for name, own in drawers.items():
        for target, drawer in own.items():
            wanted = rows[labels == scorer.codes[target]]
            if not len(wanted):
                continue
            run = drawer.run
            source = spread.Rows(scorer.source(run.config["data"]["context"]), wanted)
            deviation = ensemble.deviations(drawer.draw(source))
            found = run.calibration.targets[target]
            mended = ensemble.scaled(deviation, found.factors, spacing)
            sd = ensemble.sd_map(mended, spacing, found.smooth_mm[0])
            key = f"{name}:{run.calibration.point}"
            maps.setdefault(key, {}).update(zip(wanted.tolist(), sd, strict=True))
    return maps
