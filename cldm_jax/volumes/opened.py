"""A trained model opened for whole volumes, with the read-outs, targets and samples a request means."""

import math
import pathlib
import re
from typing import NamedTuple

import jax

from cldm_jax.data import pet_ranges
from cldm_jax.data.intensity import SOURCES
from cldm_jax.errors import UserError
from cldm_jax.runs import spread
from cldm_jax.runs.inputs import source_of
from cldm_jax.runs.manifest import Data
from cldm_jax.runs.stored import Run, open_run
from cldm_jax.volumes import sidecars, synthesis

WEIGHTS = pathlib.Path(__file__).resolve().parent.parent / "weights"
SHIPPED = WEIGHTS / "heads"  # answers where no model is named
PHANTOM = WEIGHTS / "phantom"  # of the embedded phantom's people alone: what the notebooks look at
SAMPLES = 4  # K where neither the caller nor a calibration gives one
CPU_BATCH, GPU_BATCH = 16, 64  # slices, where the caller gives none


class Request(NamedTuple):
    """What is asked for, however it was asked."""

    input: str
    out: str
    checkpoint: str = ""  # workdir of a training or exported folder; "" = the one that is shipped
    targets: tuple[str, ...] = ()  # () = all that the model makes
    mode: str = ""  # a read-out, see MODES of the command line; "" = mirror where there is one
    samples: int = 0  # K of mean, recentred and the uncertainty; 0 = as calibrated, else SAMPLES
    sharpness: float = 1.0  # of recentred: 0 is the point image
    steps: int = 0  # DDIM steps; 0 = the model's own
    seed: int = 0
    uncertainty: bool = False
    batch_size: int = 0  # slices; 0 = by the device
    report: bool = False
    overwrite: bool = False
    series: str = ""  # number of a DICOM series among several; "" = the only one, or only PET
    part: str = ""  # "3/10": every tenth image of several, from the third on


class Model(NamedTuple):
    """An opened model with its read-outs chosen."""

    run: Run
    targets: tuple[str, ...]
    mode: str  # read-out of the images
    sd_mode: str  # that whose SD is given, `synthesis.CALIBRATED` for the ensemble's, "" for none
    samples: int | None  # that are drawn of each slice, at most; None: none are
    sampling: dict | None  # settings of the samplers, as they are used
    identity: str  # SHA-256 of its weights
    batch_size: int  # slices of a read-out
    member_batch: int  # of samples drawn one by one
    uncalibrated: str  # why an uncertainty is not; "" also where none is asked for
    pet_ranges: dict | None  # of training people's PETs, see `data.pet_ranges`; None: not known

    @property
    def data(self) -> Data:
        """Of its training: grid, normalisers, class codes."""
        return self.run.manifest.data

    @property
    def source(self) -> str:
        """The PET that it takes: "pet", the corrected one, or "nac"."""
        return source_of(self.run.config["data"])

    def evaluations(self) -> int:
        """Of the network, for each slice."""
        known, total = self.run.method.evaluations, spread.evaluations(self.run, self.mode)
        if self.sd_mode == synthesis.CALIBRATED:
            found = self.run.calibration
            drawing = self.run.drawing or self.run.method
            total += found.samples * drawing.evaluations["sample"]
            total += known[found.point] * (self.mode != found.point)
        elif self.sd_mode not in ("", self.mode):
            total += known[self.sd_mode]
        return total


def open_model(request: Request) -> Model:
    """The model that a request asks for, with its read-outs. UserError where it cannot do that."""
    checkpoint = request.checkpoint or str(SHIPPED)
    if request.samples < 0 or request.steps < 0 or request.batch_size < 0:
        given = f"samples {request.samples}, steps {request.steps}, batch size {request.batch_size}"
        raise UserError("samples, steps, batch size", given, "Give positive numbers")
    if not 0 <= request.seed < 2**32:  # JAX takes the last 32 bits
        raise UserError(f"seed {request.seed}", "out of range", f"Give 0 to {2**32 - 1}")
    if not 0 <= request.sharpness < math.inf:
        given = f"sharpness {request.sharpness}"
        raise UserError(given, "out of range", "Give 0 (the point image) or more; 1 is a sample's")
    opened = open_run(checkpoint)
    if "reconstruct" in opened.method.predict:  # which gives the target back, and there is none
        reason = "is an autoencoder, which predicts nothing by itself"
        raise UserError(checkpoint, reason, "Give the latent method trained on it")
    sampling = opened.config["recipe"].get("sampling")
    if sampling is not None:
        steps = request.steps or sampling["num_sampling_steps"]
        calibrated = opened.calibration.samples if opened.calibration else SAMPLES
        request = request._replace(
            samples=request.samples or (calibrated if request.uncertainty else SAMPLES)
        )
        asked = {"num_samples": sorted({1, request.samples}), "num_sampling_steps": steps}
        sampling = {**sampling, **asked}
        opened = open_run(checkpoint, sampling)
    elif request.steps:
        raise UserError("steps", f"{opened.name} does not sample", "Leave them out")
    mode, sd_mode = _modes(request, opened)
    why = _why_uncalibrated(request, opened) if sd_mode else ""
    if sd_mode and not why:
        sd_mode = synthesis.CALIBRATED
    samples = _samples(mode, request.samples if sd_mode else 0)
    on_cpu = jax.default_backend() == "cpu"
    batch_size = request.batch_size or (CPU_BATCH if on_cpu else GPU_BATCH)
    return Model(
        opened,
        _targets(request, opened),
        mode,
        sd_mode,
        samples,
        sampling,
        sidecars.model_identity(checkpoint, opened),
        max(1, batch_size // (samples or 1)),  # a slice of a mean is K images in memory
        max(1, batch_size),
        why,
        pet_ranges.check_form(checkpoint, opened.manifest.pet_ranges),
    )


def _samples(mode: str, of_the_sd: int) -> int | None:
    """The most samples that are drawn of a slice; None: none are."""
    counted = re.fullmatch(r"(?:mean|recentred)(\d+)", mode)
    own = int(counted[1]) if counted else int(mode == "sample")
    return max(own, of_the_sd) or None


def _why_uncalibrated(request: Request, opened: Run) -> str:
    """Why a calibration cannot be used for the uncertainty; "" where it can."""
    found = opened.calibration
    if found is None:
        return opened.uncalibrated or "the model brings no calibration"
    if found.samples != request.samples:
        return f"it was calibrated with {found.samples} samples, not {request.samples}"
    missing = [t for t in _targets(request, opened) if t not in found.targets]
    return f"it was calibrated without {', '.join(missing)}" if missing else ""


def _targets(request: Request, opened: Run) -> tuple[str, ...]:
    made = tuple(t for t in opened.config["data"]["targets"] if t not in SOURCES)
    for target in request.targets:
        if target not in made:
            known = ", ".join(made)
            raise UserError(f"target {target!r}", "not trained for", f"This model makes: {known}")
    return tuple(dict.fromkeys(request.targets)) or made


def _modes(request: Request, opened: Run) -> tuple[str, str]:
    """(read-out of the images, read-out of the SD or "")."""
    known = opened.method.predict
    means = f"mean{request.samples}"
    mode = request.mode or ("mirror" if "mirror" in known else next(iter(known)))
    needs_mean = request.uncertainty or mode in ("mean", spread.RECENTRED)
    if needs_mean and "sample" in known and means not in known:
        raise UserError("samples", "there is no mean of one", "Give --samples 2 or more")
    if mode == "mean":
        mode = means
    if mode == spread.RECENTRED and spread.point_mode(opened) is not None:
        mode = f"{spread.RECENTRED}{request.samples}"
        known = {**known, mode: None}
    if mode not in known:
        words = ", ".join(dict.fromkeys(re.sub(r"^mean\d+$", "mean", m) for m in known))
        if spread.point_mode(opened) is not None:
            words += f", {spread.RECENTRED}"
        raise UserError(f"mode {request.mode!r}", "not a read-out of this model", f"Known: {words}")
    if not request.uncertainty:
        return mode, ""
    if means not in known:
        raise UserError("uncertainty", "this model draws no samples", "Leave it out, or use a CLDM")
    return mode, means
