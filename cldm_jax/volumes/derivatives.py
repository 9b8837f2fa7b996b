"""The files of a prediction, written: images, regions, the page, sidecars; each whole or not at all."""

import numpy as np

from cldm_jax import __version__, files
from cldm_jax.data import convert, nifti
from cldm_jax.volumes import uncertainty
from cldm_jax.volumes.names import Names, is_calibrated, sidecar
from cldm_jax.volumes.sidecars import DISCLAIMER, describe

BIDS_VERSION = "1.10.0"


def write(names: Names, request, model, answer) -> None:
    """Images, then the report, then sidecars; each whole or not at all, `names.partial()` meanwhile."""
    pet = answer.looked.pet
    about, common = describe(request, model, answer)
    replaced = names.of_others(common["RunKey"]) + names.left_over()
    for path in names.partial():
        files.write_json(path, {"RunKey": common["RunKey"]})
    _describe_dataset(names.out)
    sidecars = {}
    for (target, kind), facts in about.items():
        path, made = names.image(target, kind), answer.on_pet(target)
        values = made.image if kind == "synth" else made.sd
        dtype = np.int16 if (target, kind) == ("ct", "synth") else np.float32  # whole HU
        options = dict(dtype=dtype, like=pet, description=nifti.SYNTHETIC)
        nifti.write_volume(path, values, pet.affine, **options)
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
    _remove(names, replaced, request.report)
    for path, value in sidecars.items():
        files.write_json(path, value)
    for path in names.partial():
        path.unlink(missing_ok=True)


def _remove(names: Names, replaced: list, with_report: bool) -> None:
    """What another input, model or setting, or a run that was cut short, left under these names and is
    not written again: beside the new files it would pass for theirs.
    """
    for made in replaced:
        if made not in names.data():
            made.unlink(missing_ok=True)
            sidecar(made).unlink(missing_ok=True)
    if replaced and not with_report:
        names.report().unlink(missing_ok=True)


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


def _describe_dataset(out) -> None:
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
