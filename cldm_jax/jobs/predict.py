"""One PET volume in, CT and MR volumes out, on the PET's own grid and in physical units."""

import json
import pathlib
import re
import time
from typing import NamedTuple

import numpy as np

from cldm_jax import __version__, files
from cldm_jax.data import convert, grid, intensity, nifti
from cldm_jax.errors import UserError
from cldm_jax.jobs.readouts import Run, open_run, predict_rows
from cldm_jax.runtime.progress import Progress

DISCLAIMER = "Synthetic image. Research use only, not for clinical use."
SUFFIX = {"ct": "ct", "mr": "T1w"}


class PetSlices:
    """A new person's PET as the rows of a source: what `predict_rows` reads."""

    def __init__(self, slices: np.ndarray, context: int, code: int):
        """slices [Z, H, W] in model range; every slice is a row, asked for as modality `code`."""
        self.slices, self.context, self.code = slices, context, code

    def __len__(self) -> int:
        return len(self.slices)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        reach = np.arange(self.context) - self.context // 2
        picks = np.clip(rows[:, None] + reach, 0, len(self.slices) - 1)
        blank = np.zeros((len(rows), *self.slices.shape[1:], 1), np.float32)
        return {
            "source": np.moveaxis(self.slices[picks], 1, 3),
            "target": blank,  # unknown; read-outs do not look at it
            "mask": blank,
            "label": np.full(len(rows), self.code, np.int32),
            "subject": np.zeros(len(rows), np.int32),
            "slice": rows.astype(np.int32),
        }


class Setting(NamedTuple):
    """The run's own grid and normalisers, as its manifest keeps them."""

    grid: grid.ModelGrid
    center: str
    normalisers: dict[str, intensity.Normaliser]
    codes: dict[str, int]


def run(config, workdir: str) -> None:
    """Predicts `config.targets` for the NIfTI file `config.input` with the training in `config.run`.

    Writes <workdir>/<stem>_desc-synth_{ct,T1w}.nii.gz (CT int16 HU, MR float32 in arbitrary units of a
    typical training scan), `_desc-synthsd_` beside it where the read-out has several samples, and a
    JSON sidecar for each.
    """
    if not config.input or not config.run:
        raise UserError(
            "config.input, config.run",
            "both are needed",
            "Give --config.input=pet.nii.gz --config.run=<workdir of a training>.",
        )
    trained = open_run(config.run, config.sampling.to_dict() if config.replace_sampling else None)
    mode = config.mode or next(iter(trained.method.predict))
    if mode not in trained.method.predict:
        known = ", ".join(trained.method.predict)
        raise UserError(f"config.mode={mode!r}", "not a read-out of this run", f"Known: {known}.")
    setting = _setting(trained)
    pet = nifti.read_volume(config.input)
    slices, affine = convert.source_slices(
        pet, setting.grid, setting.center, setting.normalisers["pet"]
    )
    stem = re.sub(r"\.nii(\.gz)?$", "", pathlib.Path(config.input).name)
    total = len(slices) * len(config.targets) * trained.method.evaluations[mode]
    with Progress(total, "predict", "evaluation") as progress:
        for target in config.targets:
            if target not in setting.codes:
                known = ", ".join(t for t in setting.codes if t != "pet")
                raise UserError(f"target {target!r}", "not trained for", f"Known: {known}.")
            source = PetSlices(slices, trained.config["data"]["context"], setting.codes[target])
            began = time.monotonic()
            readout = predict_rows(
                trained,
                mode,
                source,
                batch_size=config.batch_size,
                seed=config.seed,
                progress=progress,
            )
            seconds = time.monotonic() - began
            _write(
                config, workdir, stem, pet, trained, setting, mode, target, readout, affine, seconds
            )


def _setting(trained: Run) -> Setting:
    data = trained.manifest["data"]
    model_grid = grid.ModelGrid.from_index(data["grid"])
    modalities = data["modalities"]
    return Setting(
        model_grid,
        data["grid"]["center"],
        {name: intensity.from_json(m["normaliser"]) for name, m in modalities.items()},
        {name: m["code"] for name, m in modalities.items()},
    )


def _write(config, workdir, stem, pet, trained, setting, mode, target, readout, affine, seconds):
    spec = setting.normalisers[target]
    air = intensity.MODALITIES[target].fill
    images = {"synth": (intensity.from_model(spec, np.clip(readout.images, -1, 1)), air)}
    if readout.sd is not None:
        unit = intensity.from_model(spec, np.float32([0, 1]))  # model range -> units is affine
        images["synthsd"] = (readout.sd * (unit[1] - unit[0]), 0.0)
    for kind, (slices, fill) in images.items():
        volume = grid.from_grid(slices, affine, pet.array.shape, pet.affine, fill=fill)
        path = pathlib.Path(workdir) / f"{stem}_desc-{kind}_{SUFFIX[target]}.nii.gz"
        dtype = np.int16 if target == "ct" else np.float32
        nifti.write_volume(
            path,
            volume,
            pet.affine,
            dtype=dtype,
            like=pet,
            description="synthetic, not for clinical use",
        )
        sidecar = {
            "Description": DISCLAIMER,
            "Units": intensity.MODALITIES[target].units,
            "Kind": "standard deviation over samples" if kind == "synthsd" else "image",
            "TrainedOnContrast": trained.manifest["data"]["contrast"],
            "Method": trained.name,
            "Mode": mode,
            "Sampling": trained.config["recipe"].get("sampling"),
            "ClassCode": setting.codes[target],
            "Seed": config.seed,
            "ModelConfigSHA256": trained.manifest["config_sha256"],
            "ModelStep": trained.step,
            "InputSHA256": pet.sha256,
            "SecondsForTheVolume": round(seconds, 2),
            "GeneratedBy": {"Name": "cldm_jax", "Version": __version__},
        }
        if trained.config["recipe"].get("sampling") and config.replace_sampling:
            sidecar["Sampling"] = json.loads(config.sampling.to_json())
        files.write_json(path.with_name(path.name.replace(".nii.gz", ".json")), sidecar)
        rate = len(readout.images) / seconds
        print(f"wrote {path} ({seconds:.1f} s, {rate:.1f} slices/s)", flush=True)
