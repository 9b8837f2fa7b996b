"""A CLDM's samples around its point image, volume by volume, and what they are worth there."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cldm_jax.data import intensity, mask, splits
from cldm_jax.metrics import ensemble, regions
from cldm_jax.runs.calibration import TargetCalibration
from cldm_jax.runs.readouts import Predictor, Rows
from cldm_jax.runs.stored import Run

RECENTRED = "recentred"  # read-out: RECENTRED + K
NORMAL_90 = 1.6449  # SDs of a normal distribution about its mean that hold 90 %
POINTS = ("mirror", "onestep")  # read-outs that an ensemble is put around, best first


class Drawn(NamedTuple):
    """One target of one person. Images in model range, cut to [-1, 1]."""

    subject: int
    code: int
    point: np.ndarray  # [Z, H, W]
    samples: np.ndarray  # [K, Z, H, W]
    real: np.ndarray  # [Z, H, W]
    head: np.ndarray  # bool [Z, H, W], the scored mask
    pet: np.ndarray  # [Z, H, W]


def point_mode(run: Run) -> str | None:
    """The accurate read-out of a method that also draws samples; None where one of the two is missing."""
    known = run.method.predict
    return next((m for m in POINTS if m in known), None) if "sample" in known else None


class Drawer:
    """Point image and K samples of rows, these with the DDIM steps of the run's calibration; each program
    compiled once.
    """

    def __init__(
        self, run: Run, point: str, samples: int, *, batch_size: int, seed: int, devices=None
    ):
        self.run, self.samples, drawing = run, samples, run.drawing or run.method
        self.evaluations = run.method.evaluations[point] + samples * drawing.evaluations["sample"]
        self._point = Predictor(run, point, devices)
        self._sample = Predictor(run._replace(method=drawing), "sample", devices)
        self._options = dict(batch_size=batch_size, seed=seed)

    def point(self, source, progress=None) -> np.ndarray:
        """[N, H, W], in [-1, 1] as all here."""
        return np.clip(self._point(source, **self._options, progress=progress).images, -1, 1)

    def draw(self, source, progress=None) -> np.ndarray:
        """Samples [K, N, H, W]."""
        drawn = (
            self._sample(source, **self._options, member=k, progress=progress).images
            for k in range(self.samples)
        )
        return np.stack([np.clip(images, -1, 1) for images in drawn])


def first_people(source, people: int, groups) -> Rows:
    """The rows of so many people (0: of all), of as many groups as can be. groups: of every subject."""
    subjects = source.keys["subject"]
    chosen = splits.by_turns(subjects.tolist(), groups)[: people or None]
    return Rows(source, np.flatnonzero(np.isin(subjects, chosen)))


def slice_mm(prepared) -> float:
    """Distance of slices, the median over people."""
    return float(np.median([p.voxel_mm[0] for p in prepared.index.people]))


def volumes(drawer: Drawer, source, progress=None) -> Iterator[Drawn]:
    """Volume by volume: one person at a time is in memory."""
    subjects, labels = source.keys["subject"], source.keys["label"]
    for subject in dict.fromkeys(subjects.tolist()):
        rows = np.flatnonzero(subjects == subject)
        person = Rows(source, rows)
        point, samples = drawer.point(person, progress), drawer.draw(person, progress)
        batch = person.read(np.arange(len(rows)))
        middle = batch["source"].shape[-1] // 2
        real, head = batch["target"][..., 0], batch["mask"][..., 0] > 0
        for code in dict.fromkeys(labels[rows].tolist()):
            own = np.flatnonzero(labels[rows] == code)
            pet = batch["source"][own, ..., middle]
            yield Drawn(subject, code, point[own], samples[:, own], real[own], head[own], pet)


def make_frame(pet, point, target: str, spacing_mm, height_mm: float) -> regions.Frame:
    """Where regions are: brain of the PET [Z, H, W] (any units), head of the point image (units)."""
    brain = mask.brain_mask_pet(pet, spacing_mm)
    head = mask.head_mask(point, target)
    limits = regions.class_limits(point, brain) if target == "mr" else None
    return regions.Frame(brain, head | brain, tuple(spacing_mm), height_mm, limits)


def mean_name(run: Run) -> str | None:
    """The read-out of a mean of samples from which `recentred` takes their centre: that of fewest."""
    counts = {int(m[4:]): m for m in run.method.predict if re.fullmatch(r"mean\d+", m)}
    return counts[min(counts)] if counts else None


def evaluations(run: Run, mode: str) -> int:
    """Of the network for a slice; of a recentred read-out those of its parts."""
    known = run.method.evaluations
    if not mode.startswith(RECENTRED):
        return known[mode]
    parts = (point_mode(run), "sample", f"mean{mode.removeprefix(RECENTRED)}")
    return sum(known[m] for m in parts)


def recentred(point, sample, mean, count: int, sharpness: float) -> np.ndarray:
    """point + sharpness x (sample - mean of `count` samples, it among them), cut to [-1, 1].

    The deviation is brought to the size of one from the true mean (`ensemble.deviations`), and is not
    multiplied by band: what makes the spread honest makes a single image speckle, because the samples
    lack more of the finest band than of its pattern.
    """
    deviation = (sample - mean) * np.float32(np.sqrt(count / (count - 1)))
    return np.clip(point + np.float32(sharpness) * deviation, -1, 1)


class Asked(NamedTuple):
    """Regions of one volume, [slabs] of each name."""

    real: dict[str, np.ndarray]
    members: dict[str, np.ndarray]  # [K, slabs]


def ask_regions(drawn: Drawn, factors, run: Run, target: str, index, stride: int) -> Asked:
    """The rescaled ensemble's regions beside the real ones, in units; every stride-th slice was drawn."""
    spec, spacing_mm = run.manifest.data.modalities[target].normaliser, index.spacing_mm
    height_mm = stride * index.people[drawn.subject].voxel_mm[0]  # that a slice stands for
    point, real = (intensity.from_model(spec, x) for x in (drawn.point, drawn.real))
    frame = make_frame(drawn.pet, point, target, spacing_mm, height_mm)
    parts = regions.slabs(frame.brain)
    deviation = ensemble.deviations(drawn.samples)
    members = []
    for one in deviation:  # one member at a time in float64
        image = intensity.from_model(spec, drawn.point + ensemble.scaled(one, factors, spacing_mm))
        members.append(regions.values(regions.sums(image, frame, target), parts))
    found = regions.values(regions.sums(real, frame, target), parts)
    return Asked(found, {name: np.stack([m[name] for m in members]) for name in found})


def judge(drawn: Drawn, calibration: TargetCalibration, spacing_mm) -> dict:
    """Scores of one volume inside its head, model range; lists are by SCALES_MM.

    coverage: share of pixels in their 90 % interval; coverage_raw: of the samples' own SD about their
    mean, taken as normal. crps, crps_raw: of the rescaled ensemble and of the samples as they are. mae:
    of the point image, its CRPS. energy, energy_raw: mean over slices. rank: of the SD map with |error|.
    """
    deviation = ensemble.deviations(drawn.samples)
    mended = ensemble.scaled(deviation, calibration.factors, spacing_mm)
    mean = drawn.samples.mean(0)
    plain = drawn.samples - mean
    error, raw_error = drawn.point - drawn.real, mean - drawn.real
    found = {k: [] for k in ("coverage", "coverage_raw", "crps", "crps_raw", "mae")}
    head = drawn.head
    scales = zip(ensemble.SCALES_MM, calibration.q90, calibration.smooth_mm, strict=True)
    for sd_mm, q90, smooth_mm in scales:
        e, d, raw_e, raw = (
            ensemble.blur(x, sd_mm, spacing_mm) for x in (error, mended, raw_error, plain)
        )
        inside = np.abs(e) <= q90 * ensemble.sd_map(d, spacing_mm, smooth_mm)
        e, d, raw_e, raw = (x[..., head] for x in (e, d, raw_e, raw))
        raw_inside = np.abs(raw_e) <= NORMAL_90 * raw.std(0, ddof=1)
        found["coverage"].append(float(inside[head].mean()))
        found["coverage_raw"].append(float(raw_inside.mean()))
        found["crps"].append(float(ensemble.crps(e, d).mean()))
        found["crps_raw"].append(float(ensemble.crps(raw_e, raw, centred=False).mean()))
        found["mae"].append(float(np.abs(e).mean()))
    sd = ensemble.sd_map(mended, spacing_mm, calibration.smooth_mm[0])
    energy = ensemble.energy_score(error, mended, head)
    energy_raw = ensemble.energy_score(raw_error, plain, head, centred=False)
    return found | {
        "energy": float(np.nanmean(energy)),
        "energy_raw": float(np.nanmean(energy_raw)),
        "rank": ensemble.rank_correlation(sd[head], error[head]),
    }
