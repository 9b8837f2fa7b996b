"""How sure a calibrated model is of one new person: an SD map, and regions with 90 % intervals."""

import numpy as np

from cldm_jax.data import intensity
from cldm_jax.metrics import ensemble, regions
from cldm_jax.runs import spread
from cldm_jax.runs.calibration import Calibration
from cldm_jax.runs.readouts import Rows
from cldm_jax.runs.stored import Run

COLUMNS = {
    "region": "what is asked, see Regions",
    "slab": "1 at the base of the brain in the PET, upwards",
    "from_mm": "lower edge, world z in mm where the slab's middle is",
    "to_mm": "upper edge",
    "value": "mean over the ensemble, less its bias in the validation people",
    "low": "lower bound of the 90 % interval",
    "high": "upper bound",
    "unit": "of value, low and high",
}
CHUNK = 32  # slices whose samples are in memory together


def measure(
    run: Run,
    rows,
    source,
    specs: dict,
    spacing_mm,
    *,
    point: np.ndarray | None,
    progress=None,
    **options,
) -> tuple[np.ndarray, dict[str, list[dict]]]:
    """(SD [N, H, W] of the rescaled ensemble in model range, {target: rows of COLUMNS}).

    rows: of `synthesis.PetSlices`, target by target as in `specs` {target: normaliser}; source: of
    `synthesis.make_source`. point: the calibration's point read-out of all rows, where it is there.
    options: of `spread.Drawer`.

    Regions are asked of slices as far apart as in the calibration, whose multipliers are theirs.
    """
    found = run.calibration
    drawer = spread.Drawer(run, found.point, found.samples, **options)
    point = drawer.point(rows, progress) if point is None else np.clip(point, -1, 1)
    depth = len(source.picks)
    step_mm = float(np.linalg.norm(source.affine[:3, 2]))
    stride = max(1, round(found.slice_mm / step_mm))
    used = np.arange(0, depth, stride)
    sds, tables = [], {}
    for i, (target, spec) in enumerate(specs.items()):
        own = point[i * depth : (i + 1) * depth]
        pet = source.slices[source.picks[used]]
        units = intensity.from_model(spec, own[used])
        frame = spread.make_frame(pet, units, target, spacing_mm, stride * step_mm)
        calibrated = found.targets[target]
        member_sums = []
        for start in range(0, depth, CHUNK):
            at = np.arange(start, min(start + CHUNK, depth))
            deviation = ensemble.deviations(drawer.draw(Rows(rows, i * depth + at), progress))
            scaled = np.stack(
                [ensemble.scaled(d, calibrated.factors, spacing_mm) for d in deviation]
            )
            sds.append(ensemble.sd_map(scaled, spacing_mm, calibrated.smooth_mm[0]))
            here = np.flatnonzero(np.isin(used, at))
            if len(here):
                images = intensity.from_model(spec, own[used[here]] + scaled[:, used[here] - start])
                member_sums.append(regions.sums(images, frame.part(here), target))
        joined = {
            name: tuple(np.concatenate([s[name][j] for s in member_sums], -1) for j in (0, 1))
            for name in member_sums[0]
        }
        heights = _heights(source.affine, frame.brain, source.picks[used], stride)
        tables[target] = _table(joined, frame, calibrated.regions, target, spec, heights)
    return np.concatenate(sds), tables


def _heights(affine, brain, picks, stride: int) -> np.ndarray:
    """World z of slices `picks`, `stride` apart, [Z, 2] mm: lower and upper face, where the axis through
    the middle of the brain [Z, H, W] meets them. In a tilted PET a slice has no one height.
    """
    _, row, column = np.nonzero(brain)
    across = affine[2, :2] @ (column.mean(), row.mean()) if len(row) else 0.0
    middle = affine[2, 3] + across + affine[2, 2] * picks
    return middle[:, None] + affine[2, 2] * stride / 2 * np.array([-1, 1])


def _table(sums, frame, rules, target: str, spec, heights) -> list[dict]:
    """One row for every region and slab. heights: of `_heights`."""
    parts = regions.slabs(frame.brain)
    units = intensity.MODALITIES[spec.modality].units
    rows = []
    for name, members in regions.values(sums, parts).items() if parts else ():
        found = regions.interval(members, rules[name])
        if name.endswith("volume"):
            found = [np.maximum(v, 0) for v in found]
        value, low, high = found
        for number, part in enumerate(parts):
            rows.append(
                {
                    "region": name,
                    "slab": number + 1,
                    "from_mm": heights[part].min(),
                    "to_mm": heights[part].max(),
                    "value": value[number],
                    "low": low[number],
                    "high": high[number],
                    "unit": regions.unit_of(name, units),
                }
            )
    return rows


def facts(found: Calibration, target: str) -> dict:
    """Of a calibrated SD map's sidecar."""
    scales = zip(found.scales_mm, found.targets[target].q90, strict=True)
    return {
        "Calibrated": True,
        "CalibrationPeople": found.people,
        "CalibrationPoint": found.point,
        # A pixel's interval: point image +- this times the SD; after a blur with an SD of 4 mm of both
        # the image and the ensemble, the second; and so on.
        "IntervalLevel": ensemble.LEVEL,
        "IntervalMultiplier": {f"{mm:g}mm": q for mm, q in scales},
        "BandFactors": list(found.targets[target].factors),
    }


def to_tsv(tables: dict[str, list[dict]]) -> str:
    """Regions of targets as BIDS has tables: n/a for what is not there."""
    lines = [["target", *COLUMNS]]
    for target, rows in tables.items():
        lines += [[target, *(row[c] for c in COLUMNS)] for row in rows]
    return "".join("\t".join(map(_cell, line)) + "\n" for line in lines)


def _cell(value) -> str:
    if isinstance(value, str | int):
        return str(value)
    return f"{value:.6g}" if np.isfinite(value) else "n/a"


def about_table(found: Calibration, targets) -> dict:
    """Of the table's sidecar."""
    return {
        "Kind": f"regions of an ensemble around the {found.point} image, with 90 % intervals fitted to "
        f"{found.people} validation people",
        "Columns": COLUMNS,
        "Regions": {t: regions.REGIONS[t] for t in targets},
        "Rules": {t: found.targets[t].regions for t in targets},
    }
