"""One command from PET to CT and MR volumes on the PET's own grid, in physical units.

Of a NIfTI file, a DICOM series, or every PET of a BIDS dataset.
"""

import os
import pathlib
import re
import sys
import time
import traceback

import jax

from cldm_jax import files
from cldm_jax.data import layout, nifti, pet_inputs
from cldm_jax.errors import UserError
from cldm_jax.runtime import processes
from cldm_jax.runtime.progress import Progress
from cldm_jax.volumes import core, derivatives, sidecars
from cldm_jax.volumes.names import Names, check_writable, existing_folder
from cldm_jax.volumes.opened import Model, Request, open_model

LEFT_ASIDE = "left_aside.json"


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
    layout.existing(request.input)  # said before the model is read
    if os.path.realpath(request.input) == os.path.realpath(request.out):
        raise UserError(request.out, "is the input folder itself", "Give another output folder")
    existing_folder(request.out)
    model = open_model(request)
    everything = pet_inputs.find_all(request.input, model.source)
    inputs = _part(request.part, everything.found)
    if model.uncalibrated:
        words = "uncertainty: the plain SD over samples, not calibrated"
        print(f"{words}: {model.uncalibrated}", flush=True)
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
        if item.severity:
            print(f"warning: {item.path}: not predicted: {item.reason}", flush=True)
    path = pathlib.Path(request.out) / LEFT_ASIDE
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
            except OSError:  # a full disk, a reader that left: the next image meets it too
                raise
            except Exception:  # a fault of ours costs this image, not those after it
                failed.append(found.name)
                print(f"error: {found.name}: {traceback.format_exc()}", file=sys.stderr, flush=True)
            progress.update(last=found.name)
    reasons = [f"{len(failed)} of {len(inputs)} images failed: {', '.join(failed)}"] * bool(failed)
    if without:
        reasons.append(f"no PET of {len(without)} of the people: {', '.join(without)}")
    if reasons:
        remedy = "The others are written. See the lines above" if written else "See the lines above"
        raise UserError(request.input, "; ".join(reasons), remedy)
    return written


def _one(request: Request, model: Model, found: pet_inputs.PetInput, alone: bool) -> list:
    """Predicts one PET and writes its images, sidecars and report; nothing where that was done."""
    names = Names(request.out, found, model)
    if found.kind == "nifti" and _is_done(request, model, names, nifti.sha256(found.path)):
        return names.images()
    began = time.monotonic()
    pet, facts = pet_inputs.read_input(found, request.series)
    if found.kind == "dicom" and _is_done(request, model, names, pet.sha256):
        return names.images()
    check_writable(request.out)
    looked = core.look(model, pet, facts, found.path, began)
    for line in looked.warnings():
        print(f"warning: {found.name}: {line}", flush=True)
    answer = core.answer(request, model, looked, "predict" if alone else "")
    derivatives.write(names, request, model, answer)
    if alone:
        for path in [*names.data(), *[names.report()] * bool(request.report)]:
            print(f"wrote {path}", flush=True)
    return names.images()


def _is_done(request: Request, model: Model, names, input_sha256: str) -> bool:
    """Whether all outputs are there, of this input, model and settings. UserError where others are, or
    where making what lacks would take a target out of a file that has more.
    """
    if request.overwrite or any(p.exists() for p in names.partial()):
        return False
    key = sidecars.run_key(request, model, input_sha256)
    remedy = "Give --overwrite, or another output folder"
    present = [p for p in names.all(request.report) if p.exists()]
    own = [p for p in names.everything() if names.is_own(p, key)]
    strange = names.of_others(key) or [p for p in names.data() if p.exists() and p not in own]
    if strange or (present and not own):
        reason = "exists already, of another input, model or setting, or changed since"
        raise UserError((strange or present)[0], reason, remedy)
    if len(present) == len(names.all(request.report)):
        print(f"{names.found.name}: done before, skipped", flush=True)
        return True
    shared = [p for p in (names.regions(), names.report()) if p in present]
    if shared and any(p not in names.data() for p in own):
        reason = "exists already, with another target in it"
        raise UserError(shared[0], reason, f"Ask for all targets at once. {remedy}")
    return False
