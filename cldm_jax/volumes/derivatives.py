"""The files of a prediction: BIDS-derivative names, images, sidecars, and what says they are whole."""

import datetime
import importlib.metadata
import os
import pathlib

import numpy as np

from cldm_jax import __version__, files
from cldm_jax.data import convert, intensity, nifti
from cldm_jax.errors import UserError
from cldm_jax.runs import spread
from cldm_jax.runs.spread import RECENTRED
from cldm_jax.runtime import device
from cldm_jax.volumes import uncertainty
from cldm_jax.volumes.synthesis import CALIBRATED

DISCLAIMER = "Synthetic image. Research use only, not for clinical use."
SUFFIX = {"ct": ("ct", "ct"), "mr": ("anat", "T1w")}  # BIDS folder of a dataset, suffix
BIDS_VERSION = "1.10.0"


class Names:
    """Paths of what `model` makes of the input `found` below the folder `out`. Of a lone file all lie in
    that folder itself.

    UserError where one of them would lie outside: a folder in there may be a link to elsewhere.
    """

    def __init__(self, out, found, model):
        self.out, self.found, self.targets = pathlib.Path(out), found, model.targets
        self.kinds, self.has_regions = _kinds(model), is_calibrated(model)
        self._check_inside()

    def _check_inside(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise UserError(self.out, "is a file", "Give a folder as the output")
        root = self.out.resolve()
        for path in self.all(with_report=True):
            if not path.parent.resolve().is_relative_to(root):
                reason = f"leads out of the output folder, to {path.parent.resolve()}"
                raise UserError(path.parent, reason, "Remove the link, or give another folder")

    def image(self, target: str, kind: str) -> pathlib.Path:
        folder, suffix = SUFFIX[target]
        below = pathlib.Path(self.found.folder, folder) if self.found.folder else pathlib.Path()
        return self.out / below / f"{self.found.name}_desc-{kind}_{suffix}.nii.gz"

    def images(self) -> list[pathlib.Path]:
        return [self.image(target, kind) for target in self.targets for kind in self.kinds]

    def regions(self) -> pathlib.Path:
        """The table of regions of all targets."""
        return self.out / self.found.folder / f"{self.found.name}_desc-synth_regions.tsv"

    def data(self) -> list[pathlib.Path]:
        """Whatever has a sidecar."""
        return [*self.images(), *([self.regions()] if self.has_regions else [])]

    def report(self) -> pathlib.Path:
        return self.out / self.found.folder / f"{self.found.name}_desc-synth_report.html"

    def partial(self) -> pathlib.Path:
        """There while the files are being written: what lies beside it may be overwritten."""
        return self.out / self.found.folder / f"{self.found.name}_desc-synth_unfinished.json"

    def all(self, with_report: bool) -> list[pathlib.Path]:
        paths = [p for made in self.data() for p in (made, sidecar(made))]
        return [*paths, self.report()] if with_report else paths

    def is_whole(self, key: str, with_report: bool) -> bool:
        """Every file is there, of the run `key`, and the data are the bytes that were written."""
        if not all(p.is_file() for p in self.all(with_report)):
            return False
        for made in self.data():
            try:
                found = files.read_json(sidecar(made))
            except (ValueError, RecursionError):
                return False
            if not isinstance(found, dict) or found.get("RunKey") != key:
                return False
            if found.get("SHA256") != files.sha256_file(made):
                return False
        return True


def sidecar(made: pathlib.Path) -> pathlib.Path:
    return made.with_name(made.name.removesuffix(".nii.gz").removesuffix(".tsv") + ".json")


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


def is_calibrated(model) -> bool:
    """Whether the SD is that of the calibrated ensemble."""
    return model.sd_mode == CALIBRATED


def _kinds(model) -> tuple[str, ...]:
    return ("synth", "synthsd") if model.sd_mode else ("synth",)


def describe(request, model, answer) -> tuple[dict[tuple[str, str], dict], dict]:
    """({(target, kind): sidecar}, what they have in common); kinds as in `Names.kinds`. Without SHA256,
    which is of a file.
    """
    key = run_key(request, model, answer.looked.pet.sha256)
    common = _provenance(request, model, answer) | {"RunKey": key}
    made = [(target, kind) for target in answer.volumes for kind in _kinds(model)]
    return {(t, k): {**_about(t, k, model), **common} for t, k in made}, common


def write(names: Names, request, model, answer) -> None:
    """Images, then the report, then sidecars; each whole or not at all, `names.partial()` meanwhile."""
    pet = answer.looked.pet
    about, common = describe(request, model, answer)
    _sweep(names)
    files.write_json(names.partial(), {"RunKey": common["RunKey"]})
    _describe_dataset(names.out)
    sidecars = {}
    for (target, kind), facts in about.items():
        path = names.image(target, kind)
        made = answer.on_pet(target)
        whole_hu = target == "ct" and kind == "synth"
        nifti.write_volume(
            path,
            made.image if kind == "synth" else made.sd,
            pet.affine,
            dtype=np.int16 if whole_hu else np.float32,
            like=pet,
            description=nifti.SYNTHETIC,
        )
        sidecars[sidecar(path)] = {**facts, "SHA256": files.sha256_file(path)}
    if names.has_regions:
        path = names.regions()
        rows = {t: v.regions for t, v in answer.volumes.items()}
        files.write_text(path, uncertainty.to_tsv(rows))
        sidecars[sidecar(path)] = {
            "Description": DISCLAIMER,
            **uncertainty.about_table(model.run.calibration, model.targets),
            **common,
            "SHA256": files.sha256_file(path),
        }
    if request.report:
        people = model.run.calibration.people if is_calibrated(model) else 0
        _write_page(names, answer, common, people)
    for path, value in sidecars.items():
        files.write_json(path, value)
    names.partial().unlink()


def _sweep(names: Names) -> None:
    """Removes what a killed process left of these files: see `files.atomic_path` for the name."""
    for path in (*names.all(with_report=True), names.partial()):
        for left in path.parent.glob(f".tmp-*-{path.name}"):
            number = left.name.removeprefix(".tmp-").removesuffix(f"-{path.name}")
            if number.isdecimal() and not _is_running(int(number)):
                left.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _write_page(names: Names, answer, provenance: dict, calibrated: int) -> None:
    from cldm_jax.report import volume_page

    pet, volumes = answer.looked.head, answer.volumes
    ras = nifti.canonical(pet)

    def turn(array):
        return None if array is None else nifti.to_canonical(array, pet)

    views = volume_page.make_views(
        ras.array,
        {t: {"image": turn(v.image), "sd": turn(v.sd)} for t, v in volumes.items()},
        (provenance["InputFacts"] or {}).get("units", volume_page.AS_GIVEN),
    )
    centre = np.linalg.solve(ras.affine, [*convert.pet_center_mm(ras), 1.0])[:3]
    last = np.array(ras.array.shape) - 1
    hidden = ("InputChecks", "InputMeasures", "OutsideTrainingRange")  # are among the checks
    hidden += ("GeneratedBy", "SpatialReference")
    facts = {k: _words(v) for k, v in provenance.items() if k not in hidden and v not in (None, {})}
    volume_page.write(
        names.report(),
        names.found.name,
        views,
        (ras.affine, answer.looked.pet.affine),
        np.clip(np.rint(centre), 0, last).astype(int),
        answer.looked.checks,
        facts | {"Software": f"cldm_jax {__version__}"},
        simulated=provenance["TrainedOnContrast"] == "simulated",
        calibrated=calibrated,
    )


def _words(value) -> str:
    """A value for people: {"a": 1, "b": [2, 3]} -> "a 1, b 2 3"."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {_words(v)}" for k, v in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


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


def _describe_dataset(out: pathlib.Path) -> None:
    path = out / "dataset_description.json"
    if path.exists():  # the user's own, or ours from the image before
        return
    value = {
        "Name": "cldm_jax: synthetic CT and MR from PET",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "cldm_jax", "Version": __version__}],
        "Description": DISCLAIMER,
    }
    files.write_json(path, value)
