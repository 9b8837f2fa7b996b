"""The table of scores: one function of a pair of images, one row in METRICS.

A rule is a `protocol.TargetProtocol`; which of these scores a target gets is decided by `applies`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cldm_jax.metrics import anatomy, image

AIR_HU, BONE_HU = -500.0, 300.0  # tissue limits of the CT-only scores


class Context(NamedTuple):
    """What some scores need beside the images. Everything is optional; a score whose need is None is not
    computed.
    """

    spacing_mm: tuple[float, float] | None = None  # of a pixel: row, column
    slices: np.ndarray | None = None  # [Z] int, positions in the volume: neighbours differ by 1
    labels: np.ndarray | None = None  # [Z, H, W] true tissues, codes of docs/phantom.md
    lesions: np.ndarray | None = None  # [Z, H, W] true lesions


class Pair(NamedTuple):
    """A prediction and target with their mask: [H, W], or [Z, H, W] for a volume.

    pred, target: clipped to the rule's range. error_pred, error_target: those that the absolute and
    signed errors see, clipped or not as the rule says.
    """

    pred: np.ndarray
    target: np.ndarray
    error_pred: np.ndarray
    error_target: np.ndarray
    mask: np.ndarray
    rule: object  # protocol.TargetProtocol
    ssim: str  # protocol.Protocol.ssim
    context: Context = Context()


class Metric(NamedTuple):
    """One score: how it is computed and how a reader is told about it."""

    compute: Callable[[Pair], float]
    label: str
    unit: str  # "target" stands for the target's own units
    better: str  # "high", "low", "one" or "zero"
    meaning: str
    per: str = "slice"  # or "volume": all slices of a patient pooled
    applies: Callable[[object], bool] = lambda rule: True
    needs: tuple[str, ...] = ()  # fields of Context


def _psnr(pair: Pair) -> float:
    return image.psnr(pair.pred, pair.target, data_range=pair.rule.data_range, mask=pair.mask)


def _psnr_window(pair: Pair) -> float:
    low, high = pair.rule.window
    pred, target = np.clip(pair.pred, low, high), np.clip(pair.target, low, high)
    return image.psnr(pred, target, data_range=high - low, mask=pair.mask)


def _ssim(pair: Pair) -> float:
    if not pair.mask.any():
        return float("nan")
    low, data_range = pair.rule.clip[0], pair.rule.data_range
    # Non-negative data with one constant outside the mask: bed and air noise cannot count.
    pred = np.where(pair.mask, pair.pred, pair.rule.background) - low
    target = np.where(pair.mask, pair.target, pair.rule.background) - low
    if pair.ssim in ("uniform2d", "uniform3d"):
        crop = image.UNIFORM_SIZE // 2
        return image.ssim(
            pred, target, data_range=data_range, window="uniform", crop=crop, mask=pair.mask
        )
    # A slice is cut to its mask plus one window radius of background, all that a scored pixel can
    # see: the size of the field of view cannot change the score, and there is less to filter.
    box = tuple(slice(np.min(i), np.max(i) + 1) for i in np.nonzero(pair.mask))
    pad, fill = image.GAUSSIAN_RADIUS, pair.rule.background - low
    return image.ssim(
        np.pad(pred[box], pad, constant_values=fill),
        np.pad(target[box], pad, constant_values=fill),
        data_range=data_range,
        window="gaussian",
        crop=0,
        mask=np.pad(pair.mask[box], pad),
    )


def _mae_where(counts):
    """counts: real HU -> bool, where the error is asked for."""
    return lambda p: image.mae(p.error_pred, p.error_target, mask=p.mask & counts(p.target))


def _is_mr(rule) -> bool:
    return rule.units == "fraction"


def _is_hu(rule) -> bool:
    return rule.units == "HU"


# fmt: off
METRICS = {
    "psnr": Metric(_psnr, "PSNR", "dB", "high", "error power against the fixed range, in the mask"),
    "ssim": Metric(_ssim, "SSIM", "", "high", "local structure; nearly blind to blur"),
    "mae": Metric(lambda p: image.mae(p.error_pred, p.error_target, mask=p.mask),
        "MAE", "target", "low", "mean absolute error in the mask"),
    "mean_error": Metric(lambda p: image.mean_error(p.error_pred, p.error_target, mask=p.mask),
        "Mean error", "target", "zero", "bias: prediction minus real, in the mask"),
    "sharpness": Metric(lambda p: image.sharpness(p.pred, p.target, mask=p.mask),
        "Sharpness", "", "one", "gradient energy, prediction over real; < 1 is blurred"),
    "psnr_affine": Metric(
        lambda p: image.psnr_affine(p.pred, p.target, data_range=p.rule.data_range, mask=p.mask),
        "PSNR, gain and offset fitted", "dB", "high",
        "had the image's gain and offset been known; looks at the real image, so never a result"),
    "psnr_whole": Metric(lambda p: image.psnr(p.pred, p.target, data_range=p.rule.data_range),
        "PSNR, whole image", "dB", "high", "the empty background counts too"),
    "psnr_window": Metric(_psnr_window, "PSNR, brain window", "dB", "high",
        "soft tissue: both images clipped to the narrow window",
        applies=lambda rule: rule.window is not None),
    "psnr_volume": Metric(
        _psnr, "PSNR, pooled", "dB", "high", "of the patient's pooled squared error", "volume"),
    "mae_air": Metric(_mae_where(lambda hu: hu < AIR_HU), "MAE, air", "target", "low",
        "where the real CT is < -500 HU", "volume", _is_hu),
    "mae_soft": Metric(_mae_where(lambda hu: (hu >= AIR_HU) & (hu <= BONE_HU)),
        "MAE, soft tissue", "target", "low", "-500 to 300 HU", "volume", _is_hu),
    "mae_bone": Metric(_mae_where(lambda hu: hu > BONE_HU), "MAE, bone", "target", "low",
        "where the real CT is > 300 HU", "volume", _is_hu),
    "dice_bone": Metric(
        lambda p: image.dice(p.pred > BONE_HU, p.target > BONE_HU, mask=p.mask),
        "Dice, bone", "", "high", "overlap of the voxels > 300 HU", "volume", _is_hu),
    "bone_edge": Metric(
        lambda p: anatomy.bone_edge(p.pred, p.target, p.mask, BONE_HU, p.context.spacing_mm),
        "Bone edge", "", "one",
        "mean gradient on the prediction's own bone surface over the real one's; < 1 is blunted",
        "volume", _is_hu, ("spacing_mm",)),
    "attenuation": Metric(
        lambda p: anatomy.attenuation_error(
            p.error_pred, p.error_target, p.mask, p.context.spacing_mm),
        "PET error, 511 keV", "%", "low",
        "mean PET error in soft tissue, were the image used to correct attenuation (rays in the slice)",
        "volume", _is_hu, ("spacing_mm",)),
    "consistency": Metric(
        lambda p: anatomy.consistency(p.pred, p.target, p.mask, p.context.slices),
        "Slice to slice", "", "one",
        "change between neighbouring slices, prediction over real; > 1 flickers",
        "volume", needs=("slices",)),
    **{
        f"dice_{name}": Metric(
            lambda p, tissue=tissue: anatomy.tissue_dice(p.pred, p.context.labels, tissue),
            f"Dice, {words}", "", "high",
            "three-class k-means of the image in the true brain, against the true tissue",
            "volume", _is_mr, ("labels",))
        for name, words, tissue in (
            ("csf", "CSF", anatomy.CSF),
            ("grey", "grey matter", anatomy.GREY),
            ("white", "white matter", anatomy.WHITE),
        )
    },
    "sulcal_csf": Metric(
        lambda p: anatomy.sulcal_csf(p.pred, p.target, p.context.labels, p.context.spacing_mm),
        "Sulcal CSF", "", "one",
        "share as dark as the real CSF in the outer 20 mm of the brain, over real; < 1: sulci filled in",
        "volume", _is_mr, ("labels", "spacing_mm")),
    "lesions_missed": Metric(
        lambda p: anatomy.lesions_missed(p.pred, p.target, p.context.lesions, p.context.labels),
        "Lesions missed", "", "low",
        "share of tumour and white-matter lesion sections with less than half their real contrast",
        "volume", _is_mr, ("labels", "lesions")),
    "lesions_invented": Metric(
        lambda p: anatomy.lesions_invented(p.pred, p.target, p.context.lesions, p.context.labels),
        "Lesions invented", "", "low",
        "share of PET-only (hypometabolic) sections with a contrast in the MR that is not there",
        "volume", _is_mr, ("labels", "lesions")),
}
# fmt: on
