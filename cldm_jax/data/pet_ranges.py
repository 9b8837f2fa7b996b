"""What kind of PET enters a network, in nine numbers, and the ranges that training people's PETs span.

All are measured after normalisation, on slices of the model's grid: on what the network sees, not on the
file. "Brain" is the largest bright piece (`mask.brain_mask_pet`), whatever the tracer; the same rule
measures the training people, so the numbers compare even where the name does not fit.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from cldm_jax.data import intensity, mask
from cldm_jax.data.pet_checks import Check
from cldm_jax.errors import UserError, rounded

PERCENTILES = (1.0, 99.0)  # of training people: a measure outside is said
MIN_PEOPLE = 8  # fewer span no range
MAX_PEOPLE = 128  # of training people, evenly over their order: seconds, however many there are
STEP_MM = (4.0, 2.0, 2.0)  # measured on every n-th voxel of the grid, about this far apart
SCALP_MM = (8.0, 16.0)  # outside the brain's edge: fluid and skull are behind, scalp is there
AIR_MM = 30.0  # outside the brain's edge, above its centre: no head is there
CORTEX_MM = (4.0, 12.0)  # inside the brain's edge
INNER_MM, DEEP_MM = 6.0, 20.0  # inside the brain's edge: past the blurred rim; white matter, nuclei
RIM_MM, EDGE_REACH_MM = 6.0, 10.0  # where edges are sought, how far a step reaches
LEVEL_MM = 30.0  # from the brain's centre up: its walls are steep, so a slice shows them unslanted
ONE_SIDED = ("air_level", "air_noise")  # less than in training is no harm: no lower limit
FEW = 50  # voxels: fewer make no number
MIN_HEAD_ML, MIN_CONTRAST = 100.0, 1.5  # less is no head: the brain, its mean over all around it


class Measure(NamedTuple):
    words: str
    unit: str


MEASURES = {
    "brain_ml": Measure("bright region", "ml"),
    "brain_p50": Measure("median of the brain", "of the scale"),
    "brain_p90": Measure("90th percentile of the brain", "of the scale"),
    "contrast": Measure("bright over dim brain (p90 / p25)", ""),
    "cortex_over_depth": Measure("brain's outside over its depth (tracer)", ""),
    "scalp": Measure("uptake around the brain", "of the brain's median"),
    "air_level": Measure("level of the air", "of the brain's median"),
    "air_noise": Measure("noise in the air", "of the brain's median"),
    "resolution_mm": Measure("apparent resolution in the plane", "mm FWHM"),
}


def measure(slices: np.ndarray, spec: intensity.Normaliser, spacing_mm) -> dict[str, float | None]:
    """{name: number} of a PET, slices [Z, H, W] in model range, inferior to superior; None where too
    little of the head is there to tell. spacing_mm: (slice, row, column).

    Beside MEASURES "brain_over_rest", for `refuse_no_head`: mean of the brain over that of all else.
    """
    steps = [max(1, int(1.001 * a / b)) for a, b in zip(STEP_MM, spacing_mm, strict=True)]
    u = intensity.metric_units(spec, slices[tuple(slice(None, None, n) for n in steps)])
    mm = [n * s for n, s in zip(steps, spacing_mm, strict=True)]
    brain = mask.brain_mask_pet(u, mm[1:])
    found = dict.fromkeys([*MEASURES, "brain_over_rest"])
    found["brain_ml"] = float(brain.sum() * math.prod(mm) / 1000)
    middle = float(np.median(u[brain])) if brain.any() else 0.0
    if middle <= 0:
        return found
    found["brain_p50"], found["brain_p90"] = middle, float(np.percentile(u[brain], 90))
    rest = float(u[~brain].mean()) if not brain.all() else middle
    found["brain_over_rest"] = float(u[brain].mean()) / max(rest, 1e-6)
    outside = ndimage.distance_transform_edt(~brain, sampling=mm)
    inside = ndimage.distance_transform_edt(brain, sampling=mm)
    found |= _of_tracer(u, inside)
    centre = float(np.nonzero(brain)[0].mean())
    above = slice(math.ceil(centre), None)  # below are face and neck
    found |= _of_surroundings(u[above], outside[above], middle)
    level = slice(math.ceil(centre), math.ceil(centre + LEVEL_MM / mm[0]))
    rim = np.maximum(outside, inside)[level] <= RIM_MM
    found["resolution_mm"] = _resolution(u[level], rim, mm[1:])
    return found


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size >= FEW else None


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _of_tracer(u, inside) -> dict:
    inner = u[inside >= INNER_MM]
    high, low = np.percentile(inner, (90, 25)) if inner.size >= FEW else (None, None)
    cortex = u[(inside >= CORTEX_MM[0]) & (inside < CORTEX_MM[1])]
    return {
        "contrast": _ratio(high, low) and float(high / low),
        "cortex_over_depth": _ratio(_mean(cortex), _mean(u[inside >= DEEP_MM])),
    }


def _of_surroundings(u, outside, middle: float) -> dict:
    near, far = SCALP_MM
    air = u[outside > AIR_MM]
    if air.size >= FEW:  # a head holder is bright, and is not what is meant
        air = air[air <= np.percentile(air, 99)]
    return {
        "scalp": _ratio(_mean(u[(outside >= near) & (outside <= far)]), middle),
        "air_level": _ratio(_mean(air), middle),
        "air_noise": float(air.std()) / middle if air.size >= FEW else None,
    }


def _resolution(u, rim, spacing_mm) -> float | None:
    """FWHM in mm that the sharpest tenth of the edges in `rim` would have as blurred steps: a step of
    height h under a Gaussian of SD s has the slope h / (s sqrt(2 pi)) in its middle. Noise looks sharp.
    """
    if rim.sum() < FEW:
        return None
    rows, columns = spacing_mm
    # Slopes at the corner between four pixels: over one pixel, not two.
    down = np.diff(u, axis=1) / rows
    across = np.diff(u, axis=2) / columns
    down = (down[:, :, 1:] + down[:, :, :-1]) / 2
    across = (across[:, 1:] + across[:, :-1]) / 2
    reach = (1, *(2 * max(1, round(EDGE_REACH_MM / s)) + 1 for s in spacing_mm))
    step = ndimage.maximum_filter(u, reach) - ndimage.minimum_filter(u, reach)
    slope = np.hypot(down, across) / np.maximum(step[:, :-1, :-1], 1e-6)
    steep = float(np.percentile(slope[rim[:, :-1, :-1]], 90))
    if steep <= 0:
        return None
    return math.sqrt(8 * math.log(2)) / (steep * math.sqrt(2 * math.pi))


def of_people(prepared, source: str = "pet") -> dict | None:
    """{"people", "percentiles", "measures": {name: [low, high]}} over training people's PETs (`source`:
    which of them), at most MAX_PEOPLE; None where there are fewer than MIN_PEOPLE. prepared:
    `shards.Prepared`.
    """
    people = [s for s in prepared.subjects("train") if prepared.has(s, source)]
    if len(people) < MIN_PEOPLE:
        return None
    count = min(MAX_PEOPLE, len(people))
    chosen = [people[i * len(people) // count] for i in range(count)]
    spec = prepared.index.modalities[source].normaliser
    rows = []
    for subject in chosen:
        spacing = prepared.index.people[subject].voxel_mm
        rows.append(measure(prepared.read(subject, source), spec, spacing))
    ranges = {}
    for name in MEASURES:
        values = [row[name] for row in rows if row[name] is not None]
        if len(values) >= MIN_PEOPLE:
            low, high = np.percentile(values, PERCENTILES)
            low = 0.0 if name in ONE_SIDED else low
            ranges[name] = [float(f"{v:.4g}") for v in (low, high)]
    return {"people": count, "percentiles": list(PERCENTILES), "measures": ranges}


def check_form(where, ranges) -> dict | None:
    """`ranges` as `of_people` makes them. Raises UserError for anything else: they come with a model."""
    if ranges is None:
        return None
    try:
        pairs = {name: tuple(map(float, pair)) for name, pair in ranges["measures"].items()}
        sound = all(len(p) == 2 and -math.inf < p[0] <= p[1] < math.inf for p in pairs.values())
        sound = sound and set(pairs) <= set(MEASURES) and ranges["people"] > 0
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        reason = "its ranges of training PETs (pet_ranges) are not of this program's form"
        raise UserError(where, reason, "Export the run again")
    return ranges


def outside(measured: dict, ranges: dict | None) -> list[dict] | None:
    """[{"Measure", "Value", "Unit", "Trained"}] of what lies outside; None where ranges are not known."""
    if ranges is None:
        return None
    found = []
    for name, (low, high) in ranges["measures"].items():
        value = measured[name]
        if value is not None and not low <= value <= high:
            trained = {"Value": float(f"{value:.4g}"), "Unit": MEASURES[name].unit}
            found.append({"Measure": name, **trained, "Trained": [low, high]})
    return found


def checks(found: list[dict] | None) -> list[Check]:
    """What `outside` found as lines of the console and of the report."""
    lines = []
    for item in found or ():
        words, unit = MEASURES[item["Measure"]]
        low, high = item["Trained"]
        value = f"{rounded(item['Value'])} {unit}".strip()
        trained = f"the model was trained on {rounded(low)} to {rounded(high)}"
        warning = f"{trained}; how it answers here is not known"
        lines.append(Check(words, value, warning))
    return lines


def refuse_no_head(where, measured: dict) -> None:
    """UserError where the PET shows no head: nothing large enough stands out from what is around it."""
    ml, contrast = measured["brain_ml"], measured["brain_over_rest"] or 0.0
    if ml >= MIN_HEAD_ML and contrast >= MIN_CONTRAST:
        return
    facts = f"{ml:.0f} ml, {contrast:.1f} times as bright as the rest"
    reason = f"no head stands out in it (its largest bright piece: {facts})"
    raise UserError(where, reason, "Check that this is a brain PET, whole and in mm")
