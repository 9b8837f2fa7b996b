"""Segmentation: the same simple segmenter on the real and on the synthetic image.

MR: three classes by k-means of the intensities inside the brain (`anatomy.three_classes`); CT: a limit.
"""

import numpy as np

from cldm_jax.metrics import anatomy, image
from cldm_jax.metrics.scores import BONE_HU
from cldm_jax.uses.base import AGAIN, FLOOR, REAL, Case, Judge, Measure, Use

TISSUES = {"csf": anatomy.CSF, "grey": anatomy.GREY, "white": anatomy.WHITE}


def segment(mr, brain) -> np.ndarray:
    """uint8 [Z, H, W]: 0 outside the brain, 1 dark (CSF), 2 middle (grey), 3 bright (white matter)."""
    found = np.zeros(brain.shape, np.uint8)
    if brain.any():
        found[brain] = 1 + anatomy.three_classes(mr[brain])
    return found


def truth(case: Case) -> np.ndarray:
    """The same codes from the true labels; without them the real MR's segmentation in the PET's brain."""
    if case.labels is None:
        return segment(case.real, case.brain)
    found = np.zeros(case.labels.shape, np.uint8)
    for i, codes in enumerate(TISSUES.values()):
        found[np.isin(case.labels, codes)] = i + 1
    return found


def _judge_mr(case: Case) -> Judge:
    true = truth(case)
    brain, voxel = true > 0, float(np.prod(case.spacing)) / 1000  # mL
    middle = len(true) // 2

    def score(mr):
        found, values = segment(mr, brain), {}
        for i, name in enumerate(TISSUES):
            a, b = found == i + 1, true == i + 1
            values[f"dice_{name}"] = image.dice(a, b)
            values[f"volume_{name}"] = a.sum() * voxel
            values[f"error_{name}"] = _percent(a.sum(), b.sum())
        if case.lesions is not None:
            for name in ("missed", "invented"):
                count = getattr(anatomy, f"lesions_{name}")
                values[f"lesions_{name}"] = 100 * count(mr, case.real, case.lesions, case.labels)
        return values, found[middle] / 3

    return Judge(score, {})


def _judge_ct(case: Case) -> Judge:
    def score(hu):
        a, b = ((ct > BONE_HU) & case.head for ct in (hu, case.real))
        values = {"dice_bone": image.dice(a, b), "error_bone": _percent(a.sum(), b.sum())}
        return values, a[len(a) // 2].astype(np.float32)

    return Judge(score, {})


def _percent(found, true) -> float:
    return float(100 * abs(found - true) / true) if true else float("nan")


_NAMES = {"grey": "grey matter", "white": "white matter", "csf": "CSF"}  # grey matter is tested
_EITHER = "of the volume, either way"
_MR = {
    **{f"dice_{k}": Measure(f"Dice {v}", "", "high", "overlap") for k, v in _NAMES.items()},
    **{f"error_{k}": Measure(f"{v}, volume error", "%", "low", _EITHER) for k, v in _NAMES.items()},
    **{f"volume_{k}": Measure(f"{v}, volume", "mL", "", "as segmented") for k, v in _NAMES.items()},
    "lesions_missed": Measure("lesions missed", "%", "low", "tumours, white-matter lesions"),
    "lesions_invented": Measure("lesions invented", "%", "low", "PET-only defects that appear"),
}
TISSUE = Use(
    "tissue",
    "mr",
    "Tissue segmentation of the MR",
    "Three classes by k-means of the intensities inside the brain, the same on every row. Compared with "
    "the phantom's true labels in their brain; of real people with the segmentation of the real MR in "
    "the PET's brain.",
    _MR,
    (FLOOR, REAL, AGAIN),
    {},
    (FLOOR,),
    lambda cohort: _judge_mr,
)
BONE = Use(
    "bone",
    "ct",
    "Bone of the CT",
    f"Above {BONE_HU:g} HU inside the real head, against the real CT.",
    {
        "dice_bone": Measure("Dice bone", "", "high", "overlap"),
        "error_bone": Measure("bone, volume error", "%", "low", _EITHER),
    },
    (FLOOR, AGAIN),
    {},
    (FLOOR,),
    lambda cohort: _judge_ct,
)
