"""Numbers asked of a volume: means, volumes and attenuation of slabs of the head, with intervals.

Where a region lies is told by the PET and the point image alone (`Frame`), so the same pixels are asked
of the members, of the point image and of the real one. Every number is a sum over slices, so a volume can
be gone through in parts. An interval is the members' mean, less the bias that validation people showed,
+- q SD (`fit_rule`).
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from cldm_jax.metrics import anatomy
from cldm_jax.metrics.ensemble import LEVEL
from cldm_jax.metrics.scores import BONE_HU

SLABS = 5  # of equal height, from the base of the brain in the PET to its top
ENOUGH = 9  # people for a quantile at LEVEL: below, (1 - LEVEL) (n + 1) is under one
# Name -> what it is; all of one target in its unit.
REGIONS = {
    "ct": {
        "brain_mean": "mean inside the brain",
        "shell_mean": "mean of the head around the brain",
        "bone_volume": "volume above 300 HU",
        "lateral_attenuation": "mean line integral of mu at 511 keV over rows that cross the brain",
        "frontal_attenuation": "mean line integral of mu at 511 keV over columns that cross the brain",
    },
    "mr": {
        "brain_mean": "mean inside the brain",
        "shell_mean": "mean of the head around the brain",
        "dark_volume": "volume of the darkest of three classes in the brain (CSF)",
        "middle_volume": "volume of the middle class in the brain (grey matter)",
        "bright_volume": "volume of the brightest class in the brain (white matter)",
    },
}


class Frame(NamedTuple):
    """Where the regions of one person lie, for some of the slices."""

    brain: np.ndarray  # bool [Z, H, W], from the PET
    head: np.ndarray  # bool [Z, H, W], of the point image
    spacing_mm: tuple[float, float]  # row, column
    height_mm: float  # that one slice stands for
    limits: np.ndarray | None = None  # MR: [2] in units between the three classes

    def part(self, slices) -> "Frame":
        """The same for some of the slices."""
        return self._replace(brain=self.brain[slices], head=self.head[slices])


def unit_of(name: str, units: str) -> str:
    """units: of the images' values."""
    return "mL" if name.endswith("volume") else "1" if name.endswith("attenuation") else units


def class_limits(point, brain) -> np.ndarray | None:
    """The two limits between dark, middle and bright of a point image inside the brain."""
    return anatomy.class_limits(point[brain]) if brain.any() else None


def sums(images, frame: Frame, target: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{region: (numerators [..., Z], denominators [Z])} of images [..., Z, H, W] in units."""
    images, brain = np.asarray(images, np.float32), frame.brain
    shell = frame.head & ~brain
    found = {
        "brain_mean": (_sum(images, brain), _count(brain)),
        "shell_mean": (_sum(images, shell), _count(shell)),
    }
    one = np.ones(len(brain))
    voxel = np.prod(frame.spacing_mm) * frame.height_mm / 1000  # mL
    if target == "ct":
        found["bone_volume"] = _count((images > BONE_HU) & frame.head) * voxel, one
        mu = anatomy.mu_511(images) * frame.head
        for name, axis in (("lateral_attenuation", -1), ("frontal_attenuation", -2)):
            crosses = brain.any(axis)  # [Z, lines]
            lines = mu.sum(axis) * frame.spacing_mm[axis] / 10  # mu is per cm
            found[name] = (lines * crosses).sum(-1), crosses.sum(-1)
    else:
        limits = np.zeros(2) if frame.limits is None else frame.limits
        classes = np.searchsorted(limits, images)
        for i, name in enumerate(("dark_volume", "middle_volume", "bright_volume")):
            found[name] = _count((classes == i) & brain) * voxel, one
    return found


def _sum(images, mask):
    return (images * mask).sum((-2, -1), dtype=np.float64)


def _count(mask):
    return mask.sum((-2, -1)).astype(np.float64)


def slabs(brain) -> list[np.ndarray]:
    """Slice numbers of each of SLABS slabs, base first, of a brain mask [Z, H, W]; fewer where it has
    fewer slices.
    """
    inside = np.flatnonzero(np.asarray(brain).any((1, 2)))
    return [part for part in np.array_split(inside, SLABS) if len(part)]


def values(found: dict, parts: list[np.ndarray]) -> dict[str, np.ndarray]:
    """{region: [..., slabs]} of `sums`; NaN where a slab has none of the region."""
    out = {}
    for name, (above, below) in found.items():
        if name.endswith("volume"):
            out[name] = np.stack([above[..., p].sum(-1) for p in parts], -1)
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            each = [above[..., p].sum(-1) / below[p].sum() for p in parts]
        out[name] = np.stack(each, -1)
    return out


def fit_rule(errors, sds, people) -> dict:
    """What covers 90 % of people, from signed errors (real - members' mean) and SDs [N] of one region,
    slabs of all people; people [N]: whose.

    {"bias": mean error, "pooled": root mean square SD, "q", "people", "n", "effective", "rule"}; q is
    None where fewer than two people, or members without spread, leave nothing to learn from. An SD of
    few members is itself unsure: its square counts half, the pooled one's the other half. A person's
    slabs err together: the N errors are worth `_effective` independent ones. Below ENOUGH people no
    quantile can be read off: then Student's t for one more normal error, bias and variance estimated
    from so many. From ENOUGH on, the quantile of |error - bias| / SD at 0.9 (1 + 1 / people): split
    conformal, people as the exchangeable units.
    """
    errors, sds, people = (np.asarray(v, np.float64).ravel() for v in (errors, sds, people))
    good = np.isfinite(errors) & np.isfinite(sds)
    errors, sds, people = errors[good], sds[good], people[good]
    count = len(np.unique(people))
    rule = {"bias": 0.0, "pooled": 0.0, "q": None, "people": count, "n": int(good.sum())}
    if count < 2 or not sds.any():
        return rule | {"effective": float(count), "rule": "none"}
    rule |= {"bias": float(errors.mean()), "pooled": float(np.sqrt(np.mean(np.square(sds))))}
    ratio = (errors - rule["bias"]) / _width(sds, rule["pooled"])
    worth = _effective(ratio, people)
    if count >= ENOUGH:
        level = LEVEL * (1 + 1 / count)
        q, name = np.quantile(np.abs(ratio), level, method="higher"), "quantile"
    else:
        scale = np.sqrt(np.mean(np.square(ratio)) * worth / (worth - 1) * (1 + 1 / worth))
        q, name = stats.t.ppf((1 + LEVEL) / 2, worth - 1) * scale, "student"
    return rule | {"q": float(q), "effective": worth, "rule": name}


def _effective(ratio, people) -> float:
    """How many independent values the N are worth: n / (1 + (slabs - 1) correlation), with the mean
    product of two slabs of one person over the mean square. At least the people, and at most twice as
    many: few people say little of that correlation.
    """
    found = np.unique(people)
    slabs_each = len(ratio) / len(found)
    pairs = products = 0.0
    for person in found:
        own = ratio[people == person]
        products += own.sum() ** 2 - np.square(own).sum()
        pairs += len(own) * (len(own) - 1)
    square = np.mean(np.square(ratio))
    correlation = np.clip(products / pairs / square, 0, 1) if pairs and square > 0 else 0.0
    worth = len(ratio) / (1 + (slabs_each - 1) * correlation)
    return float(np.clip(worth, len(found), 2 * len(found)))


def _width(sd, pooled: float):
    return np.sqrt((np.square(sd) + pooled**2) / 2)


def interval(members, rule: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(centre, low, high) [...] of members [K, ...] with a rule of `fit_rule`; NaN bounds where it has no
    q. Members stem from `ensemble.deviations`: their SD needs no correction. A volume's bounds are cut at
    0 by the caller.
    """
    centre = members.mean(0) + rule["bias"]
    half = np.full_like(centre, np.nan)
    if rule["q"] is not None:
        half = rule["q"] * _width(members.std(0), rule["pooled"])
    return centre, centre - half, centre + half
