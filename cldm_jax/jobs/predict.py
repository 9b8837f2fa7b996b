"""One command from PET to CT and MR volumes on the PET's own grid, in physical units.

Of a NIfTI file, a DICOM series, or every PET of a BIDS dataset.
"""

import math
import os
import pathlib
import re
import sys
import time
from typing import NamedTuple

import jax

from cldm_jax import files
from cldm_jax.data import layout, pet_checks, pet_inputs
from cldm_jax.errors import UserError
from cldm_jax.runs import spread
from cldm_jax.runs.readouts import Run, open_run
from cldm_jax.runtime import processes
from cldm_jax.runtime.progress import Progress
from cldm_jax.volumes import derivatives, synthesis

SHIPPED = pathlib.Path(__file__).resolve().parent.parent / "weights" / "phantom"
LEFT_ASIDE = "left_aside.json"
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
    setting: synthesis.Setting
    targets: tuple[str, ...]
    mode: str
    sd_mode: str
    samples: int | None  # that are drawn of each slice, at most; None: none are
    sampling: dict | None  # settings of the samplers, as they are used
    identity: str  # SHA-256 of its weights
    batch_size: int
    member_batch: int  # of samples drawn one by one
    uncalibrated: str  # why an uncertainty is not; "" also where none is asked for

    def evaluations(self) -> int:
        """Of the network, for each slice."""
        known, total = self.run.method.evaluations, spread.evaluations(self.run, self.mode)
        if self.sd_mode == synthesis.CALIBRATED:
            found = self.run.calibration
            total += found.samples * known["sample"] + known[found.point] * (
                self.mode != found.point
            )
        elif self.sd_mode not in ("", self.mode):
            total += known[self.sd_mode]
        return total


def run(config, workdir: str) -> None:
    """The job behind configs/predict.py: fields of the config that a Request has, `out` the workdir."""
    asked = {k: v for k, v in config.to_dict().items() if k in Request._fields}
    predict(Request(**asked, out=workdir))


def predict(request: Request) -> list[pathlib.Path]:
    """Writes every image of `request.input` below `request.out` and returns the images' paths.

    UserError for a request that cannot work, and at the end where some of several inputs failed or people
    of a dataset have no PET: the others are written, and a rerun skips what is finished.
    """
    paths = ("input", "out", "checkpoint")
    request = request._replace(**{f: os.path.expanduser(getattr(request, f)) for f in paths})
    if not request.input:
        raise UserError("input", "none given", "Give a NIfTI file, DICOM series or BIDS dataset")
    if pathlib.Path(request.input).resolve() == pathlib.Path(request.out).resolve():
        raise UserError(request.out, "is the input folder itself", "Give another output folder")
    everything = pet_inputs.find_all(request.input)
    inputs = _part(request.part, everything.found)
    model = _open(request)
    aside = _tell(request, everything)
    # Several processes share the images, not an image: each is whole on one process's devices.
    own = inputs[jax.process_index() :: jax.process_count()]
    is_told = processes.is_main() and (not request.part or request.part.startswith("1/"))
    try:
        if len(inputs) == 1 and own and not everything.without:
            return _one(request, model, own[0], alone=True)
        return _each(request, model, own, everything.without if is_told else ())
    finally:
        if aside:  # last, where it is read
            print(aside, flush=True)
        processes.wait()  # whoever ends first would end the others


def _tell(request: Request, inputs: pet_inputs.Inputs) -> str:
    """What of a dataset is not predicted, and why: printed warnings and a list in the output folder.
    Returns a line that counts it, "" where there is none.
    """
    if not processes.is_main() or not inputs.left:
        return ""
    for item in inputs.left:
        if item.warn:
            print(f"warning: {item.path}: not predicted: {item.reason}", flush=True)
    path = pathlib.Path(request.out) / LEFT_ASIDE
    if path.parent.exists() and not path.parent.is_dir():
        raise UserError(request.out, "is a file", "Give a folder as the output")
    listed = [{"path": str(x.path), "reason": x.reason} for x in inputs.left]
    files.write_json(path, {"images": [str(x.path) for x in inputs.found], "left_aside": listed})
    counts = layout.counted(inputs.left)
    people = f" {len(inputs.without)} people without PET;" * bool(inputs.without)
    found = f"{len(inputs.found)} images found;{people}"
    return f"predict: {found} left aside: {counts} (listed in {path})"


def _part(part: str, inputs: list) -> list:
    """Every n-th of the inputs for part "i/n", i from 1: the tasks of a job array."""
    if not part:
        return inputs
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise UserError(f"part {part!r}", "no such part", "Give one like 3/10: the third of ten")
    if number > len(inputs):
        print(f"part {part}: nothing to do, there are {len(inputs)} images", flush=True)
    return inputs[number - 1 :: count]


def _each(request: Request, model: Model, inputs: list, without=()) -> list[pathlib.Path]:
    """Every input, whatever becomes of the others; `without`: people to name in the end."""
    written, failed = [], []
    with Progress(len(inputs), "predict", "image") as progress:
        for found in inputs:
            try:
                written += _one(request, model, found, alone=False)
            except (UserError, MemoryError) as error:
                failed.append(found.name)
                print(f"error: {found.name}: {error}", file=sys.stderr, flush=True)
            progress.update(last=found.name)
    reasons = [f"{len(failed)} of {len(inputs)} images failed: {', '.join(failed)}"] * bool(failed)
    if without:
        reasons.append(f"no PET of {len(without)} of the people: {', '.join(without)}")
    if reasons:
        remedy = "The others are written. See the lines above" if written else "See the lines above"
        raise UserError(request.input, "; ".join(reasons), remedy)
    return written


def _open(request: Request) -> Model:
    checkpoint = request.checkpoint or str(SHIPPED)
    if request.samples < 0 or request.steps < 0 or request.batch_size < 0:
        given = f"samples {request.samples}, steps {request.steps}, batch size {request.batch_size}"
        raise UserError("samples, steps, batch size", given, "Give positive numbers")
    if not 0 <= request.sharpness < math.inf:
        given = f"sharpness {request.sharpness}"
        raise UserError(given, "out of range", "Give 0 (the point image) or more; 1 is a sample's")
    if not pathlib.Path(checkpoint).is_dir():
        raise UserError(checkpoint, "no such folder", "Give a training's workdir or an export")
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
    setting = synthesis.read_setting(opened)
    mode, sd_mode = _modes(request, opened)
    why = _why_uncalibrated(request, opened) if sd_mode else ""
    if sd_mode and not why:
        sd_mode = synthesis.CALIBRATED
    elif why:
        print(f"uncertainty: the plain SD over samples, not calibrated: {why}", flush=True)
    samples = _samples(mode, request.samples if sd_mode else 0)
    on_cpu = jax.default_backend() == "cpu"
    batch_size = request.batch_size or (CPU_BATCH if on_cpu else GPU_BATCH)
    return Model(
        opened,
        setting,
        _targets(request, opened),
        mode,
        sd_mode,
        samples,
        sampling,
        derivatives.model_identity(checkpoint, opened),
        max(1, batch_size // (samples or 1)),  # a slice of a mean is K images in memory
        max(1, batch_size),
        why,
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
    made = tuple(t for t in opened.config["data"]["targets"] if t != "pet")
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
    if mode == "mean":
        mode = means
    if mode == spread.RECENTRED and spread.point_mode(opened) is not None:
        if means not in known:
            raise UserError("samples", "no mean to recentre from", "Give --samples 2 or more")
        mode = f"{spread.RECENTRED}{request.samples}"
        known = {**known, mode: None}
    if mode not in known:
        if mode == "mean1":
            raise UserError("samples", "a mean of one", "Give --samples 2 or more")
        words = ", ".join(dict.fromkeys(re.sub(r"^mean\d+$", "mean", m) for m in known))
        if spread.point_mode(opened) is not None:
            words += f", {spread.RECENTRED}"
        raise UserError(f"mode {request.mode!r}", "not a read-out of this model", f"Known: {words}")
    if not request.uncertainty:
        return mode, ""
    if means not in known or request.samples < 2:
        reason = (
            "needs at least two samples" if "sample" in known else "this model draws no samples"
        )
        raise UserError("uncertainty", reason, "Leave it out, or use a CLDM and --samples 4")
    return mode, means


def _one(request: Request, model: Model, found: pet_inputs.PetInput, alone: bool) -> list:
    """Predicts one PET and writes its images, sidecars and report; nothing where that was done."""
    has_regions = model.sd_mode == synthesis.CALIBRATED
    names = derivatives.Names(
        request.out, found, model.targets, bool(model.sd_mode), has_regions=has_regions
    )
    if found.kind == "nifti" and _is_done(request, model, names, pet_inputs.sha256(found)):
        return names.images()
    began = time.monotonic()
    pet, facts = pet_inputs.read_input(found, request.series)
    if found.kind == "dicom" and _is_done(request, model, names, pet.sha256):
        return names.images()
    if pet.array.max() <= 0:
        raise UserError(found.path, "no voxel is positive", "Check that this is the PET")
    source = synthesis.make_source(pet, model.setting)
    checks = pet_checks.check_pet(pet, model.setting.grid, source.affine, len(source.slices))
    for check in checks:
        if check.warning:
            print(f"warning: {found.name}: {check.name} {check.value}: {check.warning}", flush=True)
    read_seconds = time.monotonic() - began
    options = dict(
        targets=model.targets,
        mode=model.mode,
        sd_mode=model.sd_mode,
        sharpness=request.sharpness,
        batch_size=model.batch_size,
        member_batch=model.member_batch,
        seed=request.seed,
    )
    if alone:
        total = len(source.picks) * len(model.targets) * model.evaluations()
        with Progress(total, "predict", "evaluation") as progress:
            made = synthesis.synthesise(
                model.run, model.setting, pet, source, **options, progress=progress
            )
    else:
        made = synthesis.synthesise(model.run, model.setting, pet, source, **options)
    volumes, seconds = made
    timings = {"ReadAndResample": round(read_seconds, 2), "Predict": round(seconds, 2)}
    derivatives.write(names, request, model, pet, facts, checks, volumes, timings)
    if alone:
        for path in names.data():
            print(f"wrote {path}", flush=True)
    return names.images()


def _is_done(request: Request, model: Model, names, input_sha256: str) -> bool:
    """Whether all outputs are there, of this input, model and settings. UserError where others are."""
    present = [p for p in names.all(request.report) if p.exists()]
    if request.overwrite or not present or names.partial().exists():
        return False
    if names.is_whole(derivatives.run_key(request, model, input_sha256), request.report):
        print(f"{names.found.name}: done before, skipped", flush=True)
        return True
    reason = "exists already, of another input, model or setting"
    raise UserError(present[0], reason, "Give --overwrite, or another output folder")
