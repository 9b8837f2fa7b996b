"""What a use of a synthetic image is: how a person's image is scored, and what a reader is told."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cldm_jax.data.shards import Prepared

FLOOR, AGAIN, REAL = "floor_mean_image", "reacquired_ceiling", "real_image"


class Measure(NamedTuple):
    label: str
    unit: str
    better: str  # "high", "low", or "" where neither is
    meaning: str


class Case(NamedTuple):
    """One target of one person: volumes [Z, H, W] on the prepared grid, all slices that count.

    CT in HU, MR and PET as fraction of the volume's own percentile.
    """

    spacing: tuple[float, float, float]  # mm of slice, row, column
    pet: np.ndarray
    real: np.ndarray
    head: np.ndarray  # bool, of the real image
    brain: np.ndarray  # bool, of the PET
    labels: np.ndarray | None  # true tissues and lesions, codes of docs/phantom.md
    lesions: np.ndarray | None


class Cohort(NamedTuple):
    """What a use may prepare itself with, once."""

    prepared: Prepared
    template: str  # path of a NIfTI, or "": the training people's mean head
    template_pet: str  # path of a PET in its space, or "": the training people's mean PET
    people: int  # training people in that mean, at most
    step: Callable[..., Any]  # called once per registration of a training person, for the progress


class Judge(NamedTuple):
    """Of one case. `score(image)`: ({measure: value}, picture [H, W] or None) of an image like
    `case.real`; raises `data.warp.NoMatch` where that image fails. `own`: the same pairs, or why it
    failed, of the rows that need no image of a method.
    """

    score: Callable[[np.ndarray], tuple[dict[str, float], np.ndarray | None]]
    own: dict[str, tuple[dict[str, float], np.ndarray | None] | str]


class Use(NamedTuple):
    """start: what may prepare itself once, then judges each case; raises NoMatch where there is nothing
    to compare with.
    """

    name: str
    target: str  # "ct" or "mr"
    title: str
    about: str
    measures: dict[str, Measure]  # the first one is tested
    images: tuple[str, ...]  # of FLOOR, AGAIN, REAL: scored like a method's
    own: dict[str, str]  # {name: label} of the judge's own rows
    rivals: tuple[str, ...]  # rows that every method is tested against
    start: Callable[[Cohort], Callable[[Case], Judge]]


def boxes(brain: np.ndarray) -> dict[str, np.ndarray]:
    """{region: bool [Z, H, W]} of a brain mask: left and right, front to back in three, lower and upper;
    twelve boxes of equal extents. {} of an empty mask.
    """
    if not brain.any():
        return {}
    low, high = (f(np.nonzero(brain), axis=1) for f in (np.min, np.max))
    part = [
        np.minimum((np.arange(n) - a).clip(0) * parts // max(1, b - a + 1), parts - 1)
        for n, a, b, parts in zip(brain.shape, low, high, (2, 3, 2), strict=True)
    ]
    z, y, x = np.meshgrid(*part, indexing="ij", sparse=True)
    sides = ("left", "right"), ("front", "middle", "back"), ("lower", "upper")
    return {
        f"{side} {depth} {level}": brain & (x == i) & (y == j) & (z == k)
        for i, side in enumerate(sides[0])
        for j, depth in enumerate(sides[1])
        for k, level in enumerate(sides[2])
    }
