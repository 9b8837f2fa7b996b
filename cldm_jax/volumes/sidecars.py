"""What the sidecars of a prediction say: input, model, settings, units, and the key of what decides."""

import datetime
import importlib.metadata
import pathlib

from cldm_jax import __version__, files
from cldm_jax.data import intensity
from cldm_jax.runs import spread
from cldm_jax.runs.spread import RECENTRED
from cldm_jax.runtime import device
from cldm_jax.volumes import uncertainty
from cldm_jax.volumes.names import is_calibrated, kinds

DISCLAIMER = "Synthetic image. Research use only, not for clinical use."


def model_identity(checkpoint, run) -> str:
    """SHA-256 of an export's card (which holds its files'), or of the hashes of the opened checkpoint."""
    folder = pathlib.Path(checkpoint)
    if (folder / "model.json").is_file():
        return files.read_json(folder / "model.json")["card_sha256"]
    for name in ("best", "checkpoints"):
        hashes = folder / name / f"sha256-{run.step}.json"
        if hashes.is_file():
            return files.sha256_json(files.read_json(hashes))
    raise FileNotFoundError(f"{checkpoint}: no hashes of step {run.step}")


def run_key(request, model, input_sha256: str) -> str:
    """Hash of all that decides the images' content: input, weights, read-outs and their settings."""
    sampling = model.sampling and {**model.sampling, "num_samples": model.samples}
    decided = {
        "input": input_sha256,
        "model": model.identity,
        "modes": [model.mode, model.sd_mode],
        "sampling": sampling if model.samples else None,
        "seed": request.seed,
        "version": __version__,
    }
    if model.mode.startswith(RECENTRED):
        decided["sharpness"] = request.sharpness
    if is_calibrated(model):
        decided["calibration"] = model.run.calibration.to_json()
    return files.sha256_json(decided)


def describe(request, model, answer) -> tuple[dict[tuple[str, str], dict], dict]:
    """({(target, kind): sidecar}, what they have in common); kinds as in `Names.kinds`. Without SHA256,
    which is of a file.
    """
    key = run_key(request, model, answer.looked.pet.sha256)
    common = _provenance(request, model, answer) | {"RunKey": key}
    made = [(target, kind) for target in answer.volumes for kind in kinds(model)]
    return {(t, k): {**_about(t, k, model), **common} for t, k in made}, common


def _about(target: str, kind: str, model) -> dict:
    units = intensity.MODALITIES[target].units
    if target == "mr":
        units = "a.u. of a typical training scan: contrast is meant, absolute values are not"
    about = {
        "Description": DISCLAIMER,
        "Units": units,
        "Kind": "image" if kind == "synth" else _sd_words(model),
        "ClassCode": model.data.modalities[target].code,
    }
    if kind == "synthsd":
        about |= (
            uncertainty.facts(model.run.calibration, target)
            if is_calibrated(model)
            else {"Calibrated": False, "CalibratedWhyNot": model.uncalibrated}
        )
    return about


def _sd_words(model) -> str:
    if not is_calibrated(model):
        return f"standard deviation over samples ({model.sd_mode}), not a confidence interval"
    found = model.run.calibration
    return (
        f"standard deviation of an ensemble around the {found.point} image, its spread fitted band by "
        f"band to the error in {found.people} validation people"
    )


def _provenance(request, model, answer) -> dict:
    data, looked = model.data, answer.looked
    measured = {k: v and float(f"{v:.4g}") for k, v in looked.measured.items()}
    return {
        "Method": model.run.name,
        "Mode": model.mode,
        "Samples": model.samples,
        "SamplingSteps": _steps(model),
        "Sharpness": request.sharpness if model.mode.startswith(RECENTRED) else None,
        "Seed": request.seed,
        "ModelSHA256": model.identity,
        "ModelStep": model.run.step,
        "TrainedOn": data.name,
        "TrainedOnContrast": data.contrast,
        "InputSHA256": looked.pet.sha256,
        "InputFacts": looked.facts,
        "InputChecks": [
            {"Name": c.name, "Value": c.value, "Warning": c.warning} for c in looked.checks
        ],
        "HeadBox": looked.crop and [[b.start, b.stop] for b in looked.crop.box],
        "InputMeasures": measured,
        "OutsideTrainingRange": "not known" if looked.outside is None else looked.outside,
        "SpatialReference": "orig",
        "Seconds": answer.timings,
        "Hardware": device.describe(),
        "Written": datetime.date.today().isoformat(),
        "GeneratedBy": [
            {"Name": "cldm_jax", "Version": __version__},
            *({"Name": n, "Version": importlib.metadata.version(n)} for n in ("jax", "nibabel")),
        ],
    }


def _steps(model) -> int | None:
    """DDIM steps of a sample: of the image if it is one, else of the ensemble. None: nothing is drawn."""
    if is_calibrated(model) and model.mode in spread.POINTS:
        return model.run.calibration.sampling["num_sampling_steps"]
    return model.sampling["num_sampling_steps"] if model.samples else None
