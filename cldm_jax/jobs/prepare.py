"""Job: a cohort of NIfTI volumes -> audited, split, normalised slices on one grid. Never imports jax.

Two passes over the people: the first reads and audits everything and writes nothing; the second
writes the shards of whoever passed. index.json comes last.
"""

import dataclasses
import functools
import pathlib
import shutil

import numpy as np

from cldm_jax import files
from cldm_jax.data import (
    audit,
    bids,
    grid,
    intensity,
    left_out,
    parallel,
    prepared_folder,
    register,
    shards,
    splits,
)
from cldm_jax.data.convert import Facts, Settings, make_slices
from cldm_jax.errors import UserError, rounded
from cldm_jax.jobs import external, first_pass
from cldm_jax.runtime.progress import Progress
from cldm_jax.runtime.runlock import run_lock


def run(config, workdir: str) -> None:
    """`make`, and in the end a UserError where somebody or an image was left out."""
    if said := make(config, workdir):
        remedy = "Repair them for a new workdir, or take them out of the cohort"
        raise UserError(config.cohort, f"{said}. The others are prepared in {workdir}", remedy)


def make(config, workdir: str) -> str:
    """Prepares config.cohort (a folder or a manifest .csv) into the folder workdir.

    Does nothing when it is there already, from the same files and settings. An image with an error is
    left out, and the person with it where no PET with a target remains. Returns who was, "" for nobody.
    Raises UserError for bad settings, for what concerns the whole cohort (`left_out.stopping`; the list
    goes to stdout and <workdir>/audit.json; besides it only what the registrations looked like is
    written), and for a folder of other data or settings, or in which another process writes.
    """
    if not config.cohort:
        remedy = "Give a folder (BIDS, or with manifest.csv) or a manifest .csv"
        raise UserError("--config.cohort", "names no people", remedy)
    root = pathlib.Path(workdir)
    home = external.open_home(config.normalisers_from) if config.normalisers_from else None
    settings = _settings(config, home)
    if settings.register:
        register.require()
    cohort = bids.find_cohort(config.cohort)
    subjects = cohort.subjects
    source = bids.provenance(config.cohort)  # said before the first image is read, if it is broken
    if (root / shards.INDEX).exists():
        kept, said = prepared_folder.check_reuse(root, config, cohort)
        print(f"prepare: {root} is complete ({len(kept)} subjects): nothing to do")
        return said
    prepared_folder.leftovers(root)
    for subject in subjects:
        unknown = {intensity.base_modality(n) for n in subject.files} - set(settings.normalisers)
        if unknown:
            reason = f"{config.normalisers_from} has no {min(unknown)}, so it has no scale for it"
            raise UserError(subject.id, reason, "Leave that column out of the manifest")
    split = functools.partial(_split, config)
    split(subjects)  # said before an image is read, if it cannot be
    with run_lock(root), parallel.mapper(config.workers) as mapper:
        prepared_folder.sweep(root)
        facts, out = first_pass.run(config, settings, cohort, root, mapper, split)
        # From here on as if the cohort had been without what is left out.
        subjects = left_out.remaining(subjects, out)
        parts = split(subjects)
        fitted = _fit(config, settings, facts, set(parts["train"]))
        settings = dataclasses.replace(settings, normalisers=fitted)
        if home:
            external.check_people(home, config.normalisers_from, subjects, facts)
        _check_disk(root, settings.grid, facts)
        train = set(parts["train"])
        entries, written = _write_slices(root, config, settings, subjects, facts, train, mapper)
        index = _index(config, settings, subjects, facts, parts, entries, written, source)
        if home:
            index["modalities"] = {name: m.to_json() for name, m in home.modalities.items()}
        if out:
            index["left_out"] = [prepared_folder.recorded(item) for item in out]
        index = shards.write_index(root, index)
    said = left_out.counted(out, len(cohort.subjects), cohort.left)
    _summarise(root, index, subjects, said)
    return said


def _split(config, subjects) -> dict:
    return splits.make_splits(
        subjects,
        mode=config.split_mode,
        fractions=tuple(config.split_fractions),
        seed=config.split_seed,
        abstract_train_groups=config.abstract_train_groups,
        fold=tuple(config.fold),
    )


def _summarise(root: pathlib.Path, index: dict, subjects, said: str) -> None:
    kept = 0
    for s in index["subjects"]:
        lists = [s["keep"], *(v["keep"] for v in s["volumes"].values() if "keep" in v)]
        kept += int(np.any(lists, 0).sum())
    counts = ", ".join(f"{len(index['splits'][k])} {k}" for k in bids.SPLITS)
    print(f"prepare: {len(subjects)} subjects ({counts}), {kept} slices with head in {root}")
    print(f"prepare: {audit.holdings(subjects)}", end="")
    found = files.read_json(root / "audit.json")["findings"]
    warnings = [f for f in found if f["severity"] == "warning"]
    print(f"; {len(warnings)} warnings, listed above and in {root / 'audit.json'}" * bool(warnings))
    if said:
        print(f"prepare: {said} (each is listed in {root / 'audit.json'})", flush=True)


def _settings(config, home: external.Home | None = None) -> Settings:
    # From a notebook no law of the settings has looked at them, and another word would count as fov.
    if config.center not in ("pet", "fov"):
        raise UserError("center", f"unknown centre {config.center!r}", "Known: pet, fov")
    if config.register not in ("", "rigid"):
        reason = f"unknown registration {config.register!r}"
        raise UserError("register", reason, "Known: rigid, or nothing")
    if config.register and config.allow_misaligned:
        reason = "one moves the targets, the other takes their affines as right"
        raise UserError("register, allow_misaligned", reason, "Give one of them")
    height, width = config.size
    if min(height, width) < 8 or min(config.spacing_mm) <= 0:
        reason = f"size {config.size}, spacing {config.spacing_mm} mm"
        raise UserError("size, spacing_mm", reason, "Give (rows, columns), at least 8, and mm > 0")
    model_grid = grid.ModelGrid((height, width), tuple(config.spacing_mm), config.slice_spacing_mm)
    return Settings(
        model_grid,
        config.center,
        config.allow_misaligned,
        config.register,
        config.mi_threshold,
        config.min_head_fraction,
        _rules(config, home, model_grid.to_index(config.center)),
    )


def _rules(config, home: external.Home | None, asked: dict) -> dict[str, intensity.Normaliser]:
    """Unfitted normalisers of the config, or `home`'s fitted ones where `asked` is its grid."""
    if (config.split_mode == "external") != bool(config.normalisers_from):
        raise UserError(
            "split_mode, normalisers_from",
            "a set without training people, and only such a set, takes another set's constants",
            "Give --config.split_mode=external --config.normalisers_from=<prepared folder, run or "
            "exported model>, or neither",
        )
    if home:
        external.check_grid(home, config.normalisers_from, asked)
        return external.normalisers(home)
    rules = {}
    for name in intensity.MODALITIES:
        kind = "pet" if name in intensity.SOURCES else name
        low, high = config.ct_window if name == "ct" else (0.0, config[f"{kind}_high"])
        percentile = None if name == "ct" else config[f"{kind}_percentile"]
        rule = config[f"{kind}_rule"]
        rules[name] = intensity.make(name, rule, low=low, high=high, percentile=percentile)
    return rules


# Between the passes


def _fit(config, settings: Settings, facts: dict[str, Facts], train: set[str]):
    """Normalisers of the modalities that the cohort has: fitted on training people only, or the given."""
    if config.normalisers_from:
        return settings.normalisers
    fitted = {}
    for name, spec in settings.normalisers.items():
        if not any(name in f.scales for f in facts.values()):
            continue
        people = [f for k, f in sorted(facts.items()) if k in train and name in f.scales]
        scales, origins = ([getattr(f, k)[name] for f in people] for k in ("scales", "origins"))
        fitted[name] = intensity.fit(spec, scales, origins)
        own = {i: f.scales[name] for i, f in sorted(facts.items()) if name in f.scales}
        intensity.check_units(fitted[name], own)
    return fitted


# Second pass: write


def _write_slices(root, config, settings: Settings, subjects, facts, train: set[str], mapper):
    """(index entries of the subjects, index entries of the shards). train: ids of training people."""
    writers: dict[str, shards.ShardWriter] = {}
    entries = []
    training = dataclasses.replace(settings, min_head_fraction=config.train_min_head_fraction)
    tasks = [(training if s.id in train else settings, s, facts[s.id]) for s in subjects]
    with Progress(len(tasks), "prepare: write", "subject") as progress:
        results = mapper(make_slices, tasks)
        for subject, made in zip(subjects, results, strict=True):
            volumes = {}
            for name, stored in made.stored.items():
                if name not in writers:
                    writers[name] = shards.ShardWriter(root, name, config.shard_items)
                shard, offset = writers[name].add(stored)
                volumes[name] = {"shard": shard, "offset": offset}
                if name in made.keeps:
                    volumes[name]["keep"] = made.keeps[name]
                if not name.startswith("mask"):
                    fact = facts[subject.id]
                    volumes[name]["scale"] = made.scales[name]
                    volumes[name]["origin"] = fact.origins[name]
                    volumes[name]["sha256"] = fact.sha256[name]
            n_slices = len(made.keep)
            entry = {"id": subject.id, "group": subject.group, "n_slices": n_slices}
            entry |= {"keep": made.keep, "grid_affine": made.grid_affine, "volumes": volumes}
            entries.append(entry)
            progress.update()
    written = {}
    for writer in writers.values():
        written |= writer.close()
    return entries, written


def _index(config, settings: Settings, subjects, facts, parts, entries, written, source) -> dict:
    home = {i: k for k in ("train", "val", "test") for i in parts[k]}  # abstract mode: "test"
    entries = [{**e, "split": home[e["id"]]} for e in entries]
    name, contrast = source
    modalities = {
        m: {
            "code": intensity.MODALITIES[m].code,
            "units": intensity.MODALITIES[m].units,
            "normaliser": spec.to_json(),
        }
        for m, spec in settings.normalisers.items()
    }
    oracle = any(spec.rule == intensity.ORACLE for spec in settings.normalisers.values())
    return {
        "kind": "images",
        "name": name,
        "contrast": contrast,
        "protocol": "abstract-oracle" if oracle else "cldm",
        "config": config.to_dict(),
        "grid": settings.grid.to_index(settings.center),
        "modalities": modalities,
        "encoding": shards.ENCODINGS["uint16"],
        "inputs": prepared_folder.inputs_hash(subjects, {k: f.sha256 for k, f in facts.items()}),
        "pixels": {k: f.pixels for k, f in facts.items()},  # of the images, whatever their files
        "subjects": entries,
        "splits": parts,
        "shards": written,
    }


def _check_disk(root: pathlib.Path, model_grid: grid.ModelGrid, facts: dict[str, Facts]) -> None:
    pixels = sum(f.n_slices * (2 * len(f.scales) + 1) for f in facts.values())
    need = pixels * model_grid.size[0] * model_grid.size[1]
    free = shutil.disk_usage(root).free
    if need > free:
        reason = f"needs {rounded(need / 1e6)} MB and has {rounded(free / 1e6)} MB free"
        raise UserError(root, reason, "Free space, or give a workdir on another disk")
