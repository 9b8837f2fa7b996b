"""The modality table and the invertible intensity contract. Model range is [-1, 1] throughout.

A normaliser is fitted on training people, stored with the data, and inverted with what is known
when a prediction is made: fixed windows, or constants of the training people. Statistics of a
volume's own may scale an *input*, or a target for training and scoring; a *prediction* never
borrows its unseen target's. The one exception, "volume_minmax_oracle", exists to reproduce min-max
papers and is labelled wherever it is used.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cldm_jax.errors import UserError, rounded

HU_AIR = -500.0  # between air and anything else
FOREGROUND_FRACTION = 0.1  # of the robust maximum: above air noise, below brain, in PET and in MR
BRAIN_FRACTION = 0.25  # of a PET's robust maximum: below white matter, above scalp
OTHER_UNIT = 10.0  # times the training median, or a part of it: more than doses or gains differ by
ORACLE = "volume_minmax_oracle"
RULES = ("window", "volume_percentile", "train_percentile", ORACLE)


class Modality(NamedTuple):
    code: int  # the class code models are conditioned on
    units: str
    fill: float  # outside the field of view: air


# Codes stay as they are: models are trained on them. A PET without attenuation correction (nac) takes
# the PET's place as the source of a training, and its code.
MODALITIES = {
    "pet": Modality(0, "SUV", 0.0),
    "ct": Modality(1, "HU", -1024.0),
    "mr": Modality(2, "a.u.", 0.0),
    "nac": Modality(0, "a.u.", 0.0),
}
SOURCES = ("pet", "nac")  # of a training: PETs, scaled by one rule; all else is a target


def base_modality(name: str) -> str:
    """The modality of a stored volume: a second acquisition ("ct_reacq") is of its first's kind."""
    return name.removesuffix("_reacq")


@dataclasses.dataclass(frozen=True)
class Normaliser:
    """units -> [-1, 1] and back. Raises UserError for a rule that cannot be.

    rule        one of RULES
    low, high   "window": limits in units. Other rules: limits of value / scale, that is a fraction
                of the percentile (low is 0)
    percentile  of the foreground: a volume's scale ("window" and the oracle do not use it)
    population_scale, population_origin   medians over training volumes, the stand-in for the
                unknown scale of a prediction (None before `fit`)
    """

    modality: str
    rule: str
    low: float
    high: float
    percentile: float | None
    population_scale: float | None = None
    population_origin: float = 0.0

    def __post_init__(self):
        _check_rule(self)

    def to_json(self) -> dict:
        return {**dataclasses.asdict(self), "metric_units": metric_name(self)}


def from_json(value: dict) -> Normaliser:
    names = {f.name for f in dataclasses.fields(Normaliser)}
    return Normaliser(**{k: v for k, v in value.items() if k in names})


def make(modality: str, rule: str, *, low: float, high: float, percentile: float | None):
    """An unfitted normaliser: enough for `volume_scaling` of the per-volume rules.

    The oracle rule maps min..max to the whole range, so `low`, `high` and `percentile` are unused.
    """
    if rule == ORACLE:
        low, high, percentile = 0.0, 1.0, None
    return Normaliser(modality, rule, float(low), float(high), percentile)


def fit(spec: Normaliser, train_scales: Sequence[float], train_origins: Sequence[float] = ()):
    """`spec` with the medians over *training* volumes' own scales (and origins, for the oracle).

    Raises UserError where there are none but the rule needs them ("window" does not).
    """
    if spec.rule == "window":
        return dataclasses.replace(spec, population_scale=1.0)
    if not len(train_scales):
        reason = f"no training person has {spec.modality}, so its intensities have no known scale"
        raise UserError(spec.modality, reason, "Change the split, or leave this modality out")
    origin = float(np.median(train_origins)) if len(train_origins) else 0.0
    scale = float(np.median(train_scales))
    return dataclasses.replace(spec, population_scale=scale, population_origin=origin)


def check_units(spec: Normaliser, scales: Mapping[str, float]) -> None:
    """UserError where fitted `spec` divides everybody by one number and somebody's own scale (scales, by
    id) is far from it: that image would be black, or white, in training.
    """
    if spec.rule != "train_percentile":
        return
    median = spec.population_scale
    far = [i for i, own in scales.items() if not median / OTHER_UNIT < own < median * OTHER_UNIT]
    if far:
        reason = (
            f"one scale for all, and {len(far)} of {len(scales)} have another unit ({far[0]}: "
            f"{rounded(scales[far[0]] / median, 2)} times the training median)"
        )
        remedy = "Use volume_percentile, or bring all to one unit"
        raise UserError(f"{spec.modality}_rule=train_percentile", reason, remedy)


def volume_scaling(spec: Normaliser, volume: np.ndarray) -> tuple[float, float]:
    """(scale, origin): what `volume` (units) is divided by under `spec`, and subtracted before.

    1 for "window"; the foreground percentile for "volume_percentile" (and for "train_percentile"
    while it is not fitted: that is what is fitted on), then the training median; from 0, all of them.
    max - min for the oracle, from the minimum. Raises ValueError for a volume without a foreground.
    """
    if spec.rule == "window":
        return 1.0, 0.0
    if spec.rule == ORACLE:
        low = float(volume.min())
        return float(volume.max()) - low, low
    if spec.rule == "train_percentile" and spec.population_scale is not None:
        return spec.population_scale, 0.0
    return float(np.percentile(volume[foreground(volume)], spec.percentile)), 0.0


def to_model(spec: Normaliser, volume: np.ndarray, scale: float, origin: float = 0.0) -> np.ndarray:
    """Units -> float32 in [-1, 1], clipped to the normaliser's limits."""
    u = (np.asarray(volume, np.float32) - np.float32(origin)) / np.float32(scale)
    low, high = np.float32(spec.low), np.float32(spec.high)
    return (np.clip(u, low, high) - low) * (np.float32(2) / (high - low)) - np.float32(1)


def from_model(spec: Normaliser, x: np.ndarray, scale: float | None = None, origin: float = 0.0):
    """[-1, 1] -> float32 in units: the inverse of `to_model` inside the limits.

    `scale` None means unknown, as for a prediction: the training medians are used, so MR comes out
    in the arbitrary units of a typical training scan.
    """
    if scale is None:
        if spec.population_scale is None:
            raise ValueError(f"{spec.modality}: not fitted, no population scale")
        scale, origin = spec.population_scale, spec.population_origin
    u = _fractions(spec, x) * np.float32(scale) + np.float32(origin)
    return u.astype(np.float32)


def metric_units(spec: Normaliser, x: np.ndarray, scale: float | None = None, origin: float = 0.0):
    """[-1, 1] -> float32 in the units in which scores are made.

    CT: HU. PET, MR: fraction of the volume's own percentile (0 .. high), so a prediction and its
    target are compared without either's arbitrary gain. `scale` and `origin` matter only for CT
    under the oracle rule, which needs the true target's.
    """
    if spec.modality == "ct":
        return from_model(spec, x, scale, origin)
    return _fractions(spec, x)


def _fractions(spec: Normaliser, x: np.ndarray) -> np.ndarray:
    """[-1, 1] -> value / scale."""
    return (np.asarray(x, np.float32) + 1) * np.float32((spec.high - spec.low) / 2) + spec.low


def metric_name(spec: Normaliser) -> str:
    if spec.modality == "ct":
        return "HU"
    if spec.rule == ORACLE:
        return "fraction of the volume's own range"
    return f"fraction of the {_whose(spec)} percentile"


def metric_scale(spec: Normaliser) -> str:
    """What one unit of `metric_units` of a PET or MR is a fraction of, in words."""
    if spec.rule == ORACLE:
        return "of the volume's own range"
    return f"of the {_whose(spec)} {spec.percentile:g}th foreground percentile"


def _whose(spec: Normaliser) -> str:
    return "volume's own" if spec.rule == "volume_percentile" else "training people's"


def foreground(volume: np.ndarray, fraction: float = FOREGROUND_FRACTION) -> np.ndarray:
    """bool mask: above this part of the 99.9th percentile of the positive voxels. PET and MR, not CT.

    Raises ValueError when no voxel is positive.
    """
    positive = volume[volume > 0]
    if not positive.size:
        raise ValueError("no voxel is positive")
    return volume > fraction * np.percentile(positive, 99.9)


def share_of_air(volume: np.ndarray) -> float:
    """Share of voxels below HU_AIR where the volume looks like CT in HU: there is a peak at -1000. Noise
    about 0, in whatever unit, falls off from there and has none: then 0.
    """
    peak = np.count_nonzero((volume > -1100) & (volume < -900))
    valley = np.count_nonzero((volume > -700) & (volume < HU_AIR))
    return float((volume < HU_AIR).mean()) if peak > valley else 0.0


def _check_rule(spec: Normaliser) -> None:
    field = f"{spec.modality}_rule"
    if spec.rule == "slice_minmax":
        reason = (
            "scaling each slice by its own minimum and maximum cannot be inverted without the "
            "target, and loses HU and the intensity order between slices"
        )
        raise UserError(field, reason, "Use window (CT) or volume_percentile (PET, MR)")
    if spec.rule not in RULES:
        raise UserError(field, f"unknown rule {spec.rule!r}", f"Known: {', '.join(RULES)}")
    if spec.rule != ORACLE and (spec.rule == "window") != (spec.modality == "ct"):
        reason = f"{spec.rule} does not fit: HU are calibrated, PET and MR have no fixed units"
        raise UserError(field, reason, "Use window (CT) or volume_percentile (PET, MR)")
    if spec.rule.endswith("_percentile") and not (spec.percentile and 0 < spec.percentile <= 100):
        reason = f"percentile {spec.percentile}"
        raise UserError(f"{spec.modality}_percentile", reason, "Give a number above 0, up to 100")
    if not spec.high > spec.low:
        raise UserError(field, f"limits {spec.low} .. {spec.high} are empty", "Give low < high")
