"""The scoring contract: which pixels, which range, which window, in which order averaged.

A protocol is frozen, is written into every report, and `score_volume` reads nothing else.
Predictions and targets come in metric units (CT: HU; MR: fraction of the volume's own percentile,
0..1) and are never rescaled by their own statistics.
"""

import dataclasses
import json

import numpy as np

from cldm_jax.errors import UserError
from cldm_jax.metrics import image
from cldm_jax.metrics.scores import METRICS, Context, Pair


@dataclasses.dataclass(frozen=True)
class TargetProtocol:
    """How one target modality is scored.

    units: short, for column heads; scale: what one unit is, in words. clip: both images are clipped
    to it first; clip_errors: for MAE and mean error too. data_range: peak of PSNR and SSIM, equal
    to the clip's width. mask: which pixels count, in words. background: value both images get
    outside the mask before SSIM. window: a second, narrower range for `psnr_window`, or None.
    """

    units: str
    scale: str
    clip: tuple[float, float]
    clip_errors: bool
    data_range: float
    mask: str
    background: float
    window: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A named set of conventions. ct or mr is None where the protocol does not define that target.

    ssim: "gaussian2d" (Wang form, slice by slice), "uniform2d" (7^2 box) or "uniform3d" (7^3 box on the
    volume). scaling: "none", or what others do to the images of a slice before scoring, with their own
    data range and no mask: "own_mean" (each divided by its own mean), "target_minmax" (both by the
    target's range). Such scores are flattered; they are for reading other people's tables.
    aggregation: "patient" (slices averaged within a patient) or "volume" (one score per volume);
    either way every patient then counts once.
    """

    name: str
    ct: TargetProtocol | None
    mr: TargetProtocol | None
    ssim: str
    aggregation: str
    scaling: str = "none"

    def target(self, name: str) -> TargetProtocol:
        """The rule of target "ct" or "mr"; UserError where this protocol has none."""
        rule = {"ct": self.ct, "mr": self.mr}.get(name)
        if rule is None:
            known = [n for n in ("ct", "mr") if getattr(self, n) is not None]
            raise UserError(
                f"protocol {self.name}", f"it does not score target {name!r}", f"Use {known}"
            )
        return rule

    def to_json(self) -> dict:
        """Plain lists, numbers and strings; `from_json` is the inverse."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, value: dict) -> "Protocol":
        """Reports older than `scaling` have its default."""
        return cls(**value | {name: _rule(value[name]) for name in ("ct", "mr")})

    def describe(self) -> list[str]:
        """The protocol in words, one sentence or two per item."""
        lines = [f"Protocol {self.name}."]
        for name in ("ct", "mr"):
            rule = getattr(self, name)
            if rule is None:
                lines.append(f"{name.upper()} is not scored.")
                continue
            text = f"{name.upper()} in {rule.units} ({rule.scale})"
            clipped = "clipped to [{:g}, {:g}]".format(*rule.clip)
            if self.scaling != "none":
                lines.append(f"{text}, {clipped} first.")
                continue
            text += f": both images {clipped}, data range {rule.data_range:g}, "
            text += f"scored inside the {rule.mask}."
            if not rule.clip_errors:
                text += " MAE and mean error are of unclipped images."
            if rule.window is not None:
                text += " A second PSNR uses the window [{:g}, {:g}].".format(*rule.window)
            lines.append(text)
        aggregation = _AGGREGATION_WORDS[self.aggregation]
        if self.scaling != "none":
            return [*lines, _SCALING_WORDS[self.scaling], aggregation]
        return [*lines, _SSIM_WORDS[self.ssim], aggregation, _AS_WRITTEN]


def _rule(value: dict | None) -> TargetProtocol | None:
    if value is None:
        return None
    return TargetProtocol(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})


_SSIM_WORDS = {
    "gaussian2d": (
        "SSIM: Wang form per slice (Gaussian window, sigma 1.5, 11 taps, K1 0.01, K2 0.03, "
        "population covariance) on data shifted to start at 0; outside the mask both images are "
        "set to the background; the SSIM map is averaged inside the mask."
    ),
    "uniform2d": (
        "SSIM: 7x7 box window with sample covariance per slice, the map averaged without its outer 3 "
        "pixels."
    ),
    "uniform3d": (
        "SSIM: 7x7x7 box window with sample covariance on the whole volume, data shifted to start "
        "at 0; outside the mask both images are set to the background; the SSIM map without its "
        "outer 3 voxels is averaged inside the mask."
    ),
}
_AGGREGATION_WORDS = {
    "patient": (
        "Aggregation: score per slice, mean over the slices of a patient, then mean +- SD over "
        "patients: every patient counts once, however many slices."
    ),
    "volume": "Aggregation: one score per volume, then mean +- SD over patients.",
}

_AS_WRITTEN = (
    "Predictions are scored as the model wrote them, never rescaled by their own or the "
    "target's statistics (the fitted PSNR apart, which says so). A slice with an empty "
    "mask, or an exact prediction (infinite PSNR), is left out of its patient's mean."
)
_SCALING_WORDS = {
    "own_mean": (
        "NOT COMPARABLE with honest scores: each image is brought to [0, 1] by the range above, divided "
        "by its own mean, and scored over the whole slice with the target's maximum as data range. That "
        "forgives a wrong scale. SSIM: 7x7 box window, sample covariance, less 3 border pixels."
    ),
    "target_minmax": (
        "NOT COMPARABLE with honest scores: both images are brought to [0, 1] by the minimum and maximum "
        "of the real slice, which a user does not have, and scored over the whole slice, background "
        "included, with data range 1. SSIM: Wang form."
    ),
}
_HEAD = (
    "head mask of the real image (CT > -500 HU, or MR above its Otsu threshold where there is no CT; "
    "largest component, filled, grown 2 pixels)"
)
PROTOCOLS = {
    "cldm": Protocol(
        name="cldm",
        ct=TargetProtocol(
            units="HU",
            scale="Hounsfield units",
            clip=(-1024.0, 3000.0),
            clip_errors=True,
            data_range=4024.0,
            mask=_HEAD,
            background=-1024.0,
            window=(0.0, 80.0),
        ),
        mr=TargetProtocol(
            units="fraction",
            scale="of the volume's own 99.5th foreground percentile",
            clip=(0.0, 1.0),
            clip_errors=True,
            data_range=1.0,
            mask=_HEAD,
            background=0.0,
            window=None,
        ),
        ssim="gaussian2d",
        aggregation="patient",
    ),
}
_CLDM = PROTOCOLS["cldm"]
# SynthRAD2023 challenge, evaluation code of 2023-07-14.
PROTOCOLS["synthrad2023"] = Protocol(
    name="synthrad2023",
    ct=dataclasses.replace(_CLDM.ct, clip_errors=False, mask="given mask", window=None),
    mr=None,
    ssim="uniform3d",
    aggregation="volume",
)
# Other people's conventions, to read their tables by. Labelled in every report.
PROTOCOLS["selfrdb"] = dataclasses.replace(
    _CLDM, name="selfrdb", ssim="uniform2d", scaling="own_mean"
)
PROTOCOLS["abstract-oracle"] = dataclasses.replace(
    _CLDM, name="abstract-oracle", scaling="target_minmax"
)


def _rescaled(pred, target, rule: TargetProtocol, protocol: Protocol) -> Pair:
    """A slice as a convention of others sees it."""
    low, high = rule.clip
    pred, target = (np.clip(v, low, high) - low for v in (pred, target))
    if protocol.scaling == "own_mean":
        pred, target = (v / (v.mean() or 1.0) for v in (pred, target))
        data_range = float(target.max()) or 1.0
    else:
        start, width = target.min(), float(np.ptp(target)) or 1.0
        pred, target = ((v - start) / width for v in (pred, target))
        data_range = 1.0
    own = dataclasses.replace(
        rule, clip=(0.0, data_range), data_range=data_range, background=0.0, window=None
    )
    return Pair(pred, target, pred, target, np.ones(pred.shape, bool), own, protocol.ssim)


def _computed(metric: str, pairs: list[Pair]) -> np.ndarray:
    return np.array([METRICS[metric].compute(pair) for pair in pairs], np.float64)


def _checked(pred, target, mask):
    pred, target = np.asarray(pred, np.float64), np.asarray(target, np.float64)
    mask = np.asarray(mask) > 0
    if pred.ndim != 3 or not pred.shape == target.shape == mask.shape:
        raise UserError(
            "volumes to score",
            f"prediction {pred.shape}, target {target.shape} and mask {mask.shape} are not one "
            "[Z, H, W] shape",
            "Score images on one grid",
        )
    for name, array in (("prediction", pred), ("target", target)):
        if not np.isfinite(array).all():
            raise UserError(
                name,
                "it has NaN or infinite values",
                "Score finite images; check the model's output",
            )
    return pred, target, mask


def score_volume(
    pred, target, mask, protocol: Protocol, target_name: str, context: Context | None = None
) -> dict[str, np.ndarray]:
    """Scores one patient's prediction.

    pred, target: [Z, H, W] in metric units; mask: [Z, H, W], true where scored; context: what some scores
    need beside. Returns {metric: float64 array}: [Z] for per-slice metrics, and [1] for per-volume
    metrics (all of them where the protocol's aggregation is "volume"). A slice without mask pixels is
    NaN, an exact prediction has PSNR +inf; `statistics.patient_mean` leaves both out. Raises UserError on
    unequal shapes, non-finite values or a target the protocol does not score.
    """
    rule = protocol.target(target_name)
    pred, target, mask = _checked(pred, target, mask)
    if protocol.scaling != "none":
        slices = [_rescaled(*planes, rule, protocol) for planes in zip(pred, target, strict=True)]
        # Tissue limits, units and masks mean nothing after rescaling.
        return {name: _computed(name, slices) for name in ("psnr", "ssim")}
    if protocol.aggregation == "volume" and min(pred.shape) < image.UNIFORM_SIZE:
        raise UserError(
            "volume to score",
            f"shape {pred.shape} is smaller than the 3-D SSIM window",
            f"Give at least {image.UNIFORM_SIZE} voxels along each axis or another protocol",
        )
    clipped = np.clip(pred, *rule.clip), np.clip(target, *rule.clip)
    images = (*clipped, *(clipped if rule.clip_errors else (pred, target)), mask)
    context = context or Context()
    volume = Pair(*images, rule, protocol.ssim, context)
    slices = [Pair(*planes, rule, protocol.ssim) for planes in zip(*images, strict=True)]
    scores = {}
    for name, metric in METRICS.items():
        if not metric.applies(rule) or any(getattr(context, n) is None for n in metric.needs):
            continue
        per_volume = metric.per == "volume" or protocol.aggregation == "volume"
        scores[name] = _computed(name, [volume] if per_volume else slices)
    return scores
