"""One PET volume -> CT and MR volumes on its own voxels: resample in, predict slices, resample out."""

import time
from typing import NamedTuple

import jax
import numpy as np

from cldm_jax.data import convert, coverage, grid, intensity, nifti
from cldm_jax.runs import spread
from cldm_jax.runs.inputs import source_of
from cldm_jax.runs.readouts import predict_rows
from cldm_jax.runs.spread import RECENTRED
from cldm_jax.runs.stored import Run
from cldm_jax.volumes import uncertainty

CALIBRATED = "calibrated"  # the SD of the ensemble that `uncertainty` puts together
CONTEXT_MARGIN = 1  # slices kept beyond the last one with PET


class PetSlices:
    """A new person's PET as the rows of a source for `predict_rows`: every slice for every target."""

    def __init__(self, slices: np.ndarray, picks: np.ndarray, context: int, codes, subject: int):
        """slices [Z, H, W] in model range; picks: slice numbers to predict; codes: of the targets.

        subject: keys the noise with the slice number.
        """
        self.slices, self.context, self.subject = slices, context, subject
        self.slice = np.tile(picks, len(codes))
        self.label = np.repeat(np.asarray(codes, np.int32), len(picks))

    def __len__(self) -> int:
        return len(self.slice)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        z = self.slice[rows]
        reach = np.arange(self.context) - self.context // 2
        picks = np.clip(z[:, None] + reach, 0, len(self.slices) - 1)
        blank = np.zeros((len(rows), *self.slices.shape[1:], 1), np.float32)
        return {
            "source": np.moveaxis(self.slices[picks], 1, 3),
            "target": blank,  # unknown; read-outs do not look at it
            "mask": blank,
            "label": self.label[rows],
            "subject": np.full(len(rows), self.subject, np.int32),
            "slice": z.astype(np.int32),
        }


class Source(NamedTuple):
    """A PET on a run's grid."""

    slices: np.ndarray  # [Z, H, W] model range
    affine: np.ndarray  # of the grid
    picks: np.ndarray  # slices that hold PET


class Synthetic(NamedTuple):
    """One target on the PET's voxels, in units."""

    image: np.ndarray  # float32 [x, y, z]
    sd: np.ndarray | None  # over samples, or of the calibrated ensemble
    regions: list[dict] | None = None  # rows of `uncertainty.measure`


def make_source(pet: nifti.Volume, run: Run) -> Source:
    """The PET as the run saw its training people's. Slices below and above the PET are not predicted:
    training had none of them.
    """
    data = run.manifest.data
    spec = data.modalities[source_of(run.config["data"])].normaliser
    slices, affine = convert.source_slices(pet, data.grid, data.center, spec)
    empty = intensity.to_model(spec, np.float32(coverage.PET_EMPTY), 1.0)
    filled = np.flatnonzero(slices.max((1, 2)) > empty)
    first, last = (filled[0], filled[-1]) if len(filled) else (0, len(slices) - 1)
    first = max(0, first - CONTEXT_MARGIN)
    last = min(len(slices) - 1, last + CONTEXT_MARGIN)
    return Source(slices, affine, np.arange(first, last + 1))


def synthesise(
    model, pet: nifti.Volume, source: Source, *, sharpness: float, seed: int, progress=None
) -> tuple[dict[str, Synthetic], float]:
    """({target: volumes}, seconds of prediction).

    model: of `opened`. sharpness: of mode recentredK. The noise depends on (seed, the PET file's content,
    slice, sample) alone: a patient's result is the same alone, in a dataset, and in any order.
    """
    run, data, mode, sd_mode = model.run, model.data, model.mode, model.sd_mode
    codes = [data.modalities[t].code for t in model.targets]
    specs = {t: data.modalities[t].normaliser for t in model.targets}
    subject = int(pet.sha256[:8], 16) & 0x7FFFFFFF
    rows = PetSlices(source.slices, source.picks, run.config["data"]["context"], codes, subject)
    own = jax.local_devices()  # other processes have other volumes
    options = dict(batch_size=model.batch_size, seed=seed, devices=own, progress=progress)
    began = time.monotonic()
    sd, regions = None, {}
    if mode.startswith(RECENTRED):
        images = _recentred(run, mode, rows, sharpness, options)
    else:
        images, sd, _ = predict_rows(run, mode, rows, **options)
    if sd_mode == CALIBRATED:
        sd, regions = uncertainty.measure(
            run,
            rows,
            source,
            specs,
            data.grid.spacing_mm,
            point=images if mode == run.calibration.point else None,
            **{**options, "batch_size": model.member_batch},
        )
    elif sd_mode != mode:
        sd = predict_rows(run, sd_mode, rows, **options).sd if sd_mode else None
    seconds = time.monotonic() - began
    made = {}
    for i, target in enumerate(specs):
        part = slice(i * len(source.picks), (i + 1) * len(source.picks))
        own = images[part], None if sd is None else sd[part]
        volumes = _to_pet(*own, specs[target], target, pet, source)
        made[target] = volumes._replace(regions=regions.get(target))
    return made, seconds


def _recentred(run: Run, mode: str, rows, sharpness: float, options) -> np.ndarray:
    """Mode recentredK, of the point read-out, one sample and the mean of K."""
    count = int(mode.removeprefix(RECENTRED))
    parts = [
        predict_rows(run, m, rows, **options).images
        for m in (spread.point_mode(run), "sample", f"mean{count}")
    ]
    return spread.recentred(*parts, count, sharpness)


def _to_pet(images, sd, spec, target: str, pet: nifti.Volume, source: Source) -> Synthetic:
    """Model range on the grid -> units on the PET's voxels; air where nothing was predicted."""
    affine = source.affine.copy()
    affine[:3, 3] += affine[:3, 2] * source.picks[0]
    shape, air = pet.array.shape, intensity.MODALITIES[target].fill
    image = intensity.from_model(spec, np.clip(images, -1, 1))
    image = grid.from_grid(image, affine, shape, pet.affine, fill=air)
    if sd is None:
        return Synthetic(image, None)
    zero, one = intensity.from_model(spec, np.float32([0, 1]))  # model range -> units is affine
    sd = grid.from_grid(sd * (one - zero), affine, shape, pet.affine, fill=0.0)
    return Synthetic(image, np.maximum(sd, 0))
