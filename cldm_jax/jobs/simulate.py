"""Job: write a simulated cohort of NIfTI volumes with its truth. Never imports jax."""

import csv
import functools
import io
import json
import math
import pathlib
import shutil

import cldm_jax
from cldm_jax.data.bids import SIMULATED as SETTINGS
from cldm_jax.data.parallel import mapper
from cldm_jax.errors import UserError, rounded
from cldm_jax.files import read_json, sha256_file, write_json, write_text
from cldm_jax.phantom import labels
from cldm_jax.phantom.cohort import plan_cohort
from cldm_jax.phantom.subject import Plan, embedded_grid, hash_person, write_person
from cldm_jax.runtime.progress import Progress
from cldm_jax.runtime.runlock import run_lock

COLUMNS = ("pet", "ct", "mr", "ct_reacq", "mr_reacq")
FREE = ("job", "workers")  # fields that do not change a single voxel
RANDOMISED = ("randomised", "randomised_share", "pets_per_person")  # no part of other modes
# What older cohorts had, unsaid.
YOUNGER = {"mr_target": "acquired", "ct_target": "acquired", "nac": False}
BYTES_PER_VOXEL = 14.0  # compressed, all volumes of a person with re-acquisition: measured 9 to 12
BYTES_PER_PET = 4.0  # the most that one more PET takes


def run(config, workdir: str) -> None:
    """Simulates config.n_subjects people (or the variants of config.labels) into the folder workdir.

    Resumes an interrupted cohort; does nothing when it is finished. UserError: bad settings, a folder
    that belongs to other settings or in which another process writes, too little disk.
    """
    root = pathlib.Path(workdir)
    plans = plan_cohort(config)
    settings = _settings(config)
    _check_folder(root, settings)
    if (root / "manifest.json").exists():
        print(f"simulate: {root} is complete ({len(plans)} people): nothing to do")
        return
    with run_lock(root):
        for stale in root.glob(".tmp-*"):  # nobody's: this is the only writer
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        todo = [p for p in plans if not (root / p.id).is_dir()]
        _check_disk(root, todo)
        write_json(root / SETTINGS, settings)  # first: what an unfinished folder belongs to
        if len(todo) < len(plans):
            print(f"simulate: {len(plans) - len(todo)} of {len(plans)} people are there, resuming")
        _write_people(todo, root, len(plans), config.workers)
        _write_manifest(root, plans, config, settings)
    print(f"simulate: {len(plans)} people in {root} (simulated contrast, not patients)")


def _settings(config) -> dict:
    """The settings that decide the voxels, as JSON; includes the hash of each label volume."""
    settings = {k: v for k, v in config.to_dict().items() if k not in FREE}
    if config.mode != "randomised":
        settings = {k: v for k, v in settings.items() if k not in RANDOMISED}
    settings = {k: v for k, v in settings.items() if YOUNGER.get(k) != v}
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    if config.labels:
        heads = labels.find_heads(config.labels)
        settings["label_files"] = {head: sha256_file(path) for head, path in heads.items()}
    return settings


def _check_folder(root: pathlib.Path, settings: dict) -> None:
    """UserError if the folder holds anything but a cohort of these settings."""
    if not root.exists():
        return
    if not (root / SETTINGS).exists():
        if any(not p.name.startswith((".tmp-", ".lock")) for p in root.iterdir()):
            raise UserError(root, "holds other files", "Give a new or empty folder as the workdir")
        return
    old = read_json(root / SETTINGS)
    differing = sorted(k for k in old.keys() | settings.keys() if old.get(k) != settings.get(k))
    if differing:
        raise UserError(
            root,
            f"holds a cohort with other settings: {', '.join(differing)}",
            "Give another workdir, or delete this folder",
        )


def _check_disk(root: pathlib.Path, todo: list[Plan]) -> None:
    """UserError if the volumes will not fit; reads (so checks) every label volume before any work."""
    shapes = {}
    for plan in todo:
        if plan.source not in shapes:
            grid = embedded_grid(plan.shape, plan.spacing)
            if plan.source:
                grid = labels.covering_grid(labels.read_labels(plan.source).grid, plan.spacing)
            shapes[plan.source] = grid.shape
    need = sum(
        (BYTES_PER_VOXEL + BYTES_PER_PET * (plan.pets - 1 + ("nac" in plan.modalities)))
        * math.prod(shapes[plan.source])
        for plan in todo
    )
    free = shutil.disk_usage(root).free
    if need > free:
        raise UserError(
            root,
            f"needs about {rounded(need / 1e6)} MB and has {rounded(free / 1e6)} MB free",
            "Free space, give a workdir on another disk, or simulate fewer people",
        )


def _write_people(todo: list[Plan], root: pathlib.Path, total: int, workers: int) -> None:
    """Writes each person's folder; the files do not depend on the number of workers or the order."""
    if not todo:
        return
    with Progress(total, "simulate", "person", initial=total - len(todo)) as progress:
        with mapper(min(workers, len(todo))) as each:
            for written in each(functools.partial(write_person, cohort=str(root)), todo):
                progress.update(subject=written)


def _rows(plan: Plan, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The manifest's rows of a person: one per PET, each with the same targets."""
    rows = []
    for number, pet in enumerate(plan.pet_names(), 1):
        names = [pet, *columns[1:]]
        cells = [f"{plan.id}/{m}.nii.gz" if m in plan.modalities or m == pet else "" for m in names]
        gain = () if plan.ranges is None else (f"{plan.pet_gain(number):.4f}",)
        subject = plan.id if number == 1 else f"{plan.id}_pet{number}"
        rows.append((subject, plan.group, "", *cells, *gain))
    return rows


def _write_manifest(root: pathlib.Path, plans: list[Plan], config, settings: dict) -> None:
    """manifest.csv and dataset_description.json, then manifest.json: its presence means complete."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    gains = ("pet_gain",) if config.mode == "randomised" else ()
    columns = (*COLUMNS, "nac") if config.nac else COLUMNS
    writer.writerow(("subject", "group", "split", *columns, *gains))
    files: dict[str, str] = {}
    for plan in plans:
        for row in _rows(plan, columns):
            writer.writerow(row)
        files |= hash_person(str(root), plan.id)
    write_text(root / "manifest.csv", table.getvalue())
    description = {
        "Name": config.name,
        "BIDSVersion": "1.9.0",
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "cldm_jax simulate", "Version": cldm_jax.__version__}],
        "Description": "Simulated PET, CT and T1w MR: no patient was scanned.",
    }
    write_json(root / "dataset_description.json", description)
    for name in ("manifest.csv", "dataset_description.json"):
        files[name] = sha256_file(root / name)
    manifest = {
        "name": config.name,
        "seed": int(config.seed),
        "mode": config.mode,
        "contrast": "simulated",
        "anatomy": "label volumes" if config.labels else "embedded",
        "config": settings,
        "files": files,
    }
    write_json(root / "manifest.json", manifest)
