"""Job: a cohort of NIfTI volumes -> audited, split, normalised slices on one grid. Never imports jax.

Two passes over the people: the first reads and audits everything and writes nothing; the second,
when no error was found, writes the shards. index.json comes last.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterable

from cldm_jax import files
from cldm_jax.data import audit, bids, grid, intensity, parallel, register, shards, splits
from cldm_jax.data import volumes as volume_files
from cldm_jax.data.convert import Facts, Settings, inspect, make_slices
from cldm_jax.errors import UserError
from cldm_jax.runtime.progress import Progress

FREE = ("job", "preset", "cohort", "workers")  # settings that do not change the data
YOUNGER = {"register": ""}  # settings that older folders do not name, and what those did
REGISTRATION, OVERLAYS = "registration.json", "overlays"


def run(config, workdir: str) -> None:
    """Prepares config.cohort (a folder or a manifest .csv) into the folder workdir.

    Does nothing when it is there already, from the same files and settings. Raises UserError for bad
    settings, for audit errors (the list goes to stdout and <workdir>/audit.json; besides it only what
    the registrations looked like is written), and for a folder of other data or settings.
    """
    root = pathlib.Path(workdir)
    settings = _settings(config)
    if settings.register:
        register.require()
    cohort = bids.find_cohort(config.cohort)
    subjects = cohort.subjects
    source = bids.provenance(config.cohort)  # said before the first image is read, if it is broken
    if (root / shards.INDEX).exists():
        _check_reuse(root, config, subjects)
        print(f"prepare: {root} is complete ({len(subjects)} subjects): nothing to do")
        return
    _check_folder(root)
    for subject in subjects:
        unknown = {intensity.base_modality(n) for n in subject.files} - set(settings.normalisers)
        if unknown:
            reason = f"{config.normalisers_from} has no {min(unknown)}, so it has no scale for it"
            raise UserError(subject.id, reason, "Leave that column out of the manifest")
    parts = splits.make_splits(
        subjects,
        mode=config.split_mode,
        fractions=tuple(config.split_fractions),
        seed=config.split_seed,
        abstract_train_groups=config.abstract_train_groups,
        fold=tuple(config.fold),
    )
    with parallel.mapper(config.workers) as mapper:
        facts = _audit(config, settings, cohort, root, mapper)
        fitted = _fit(config, settings, facts, set(parts["train"]))
        settings = dataclasses.replace(settings, normalisers=fitted)
        if config.normalisers_from:
            _check_external(config, settings, subjects, facts)
        _check_disk(root, settings.grid, facts)
        entries, written = _write_slices(root, config, settings, subjects, facts, mapper)
    index = _index(config, settings, subjects, facts, parts, entries, written, source)
    index = shards.write_index(root, index)
    _summarise(root, index, subjects)


def _summarise(root: pathlib.Path, index: dict, subjects) -> None:
    kept = sum(sum(s["keep"]) for s in index["subjects"])
    counts = ", ".join(f"{len(index['splits'][k])} {k}" for k in bids.SPLITS)
    print(f"prepare: {len(subjects)} subjects ({counts}), {kept} slices with head in {root}")
    print(f"prepare: {audit.holdings(subjects)}", end="")
    warnings = files.read_json(root / "audit.json")["findings"]
    print(f"; {len(warnings)} warnings, listed above and in {root / 'audit.json'}" * bool(warnings))


def _settings(config) -> Settings:
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
        _rules(config),
    )


def _rules(config) -> dict[str, intensity.Normaliser]:
    """Unfitted normalisers of the config, or the fitted ones of config.normalisers_from."""
    if (config.split_mode == "external") != bool(config.normalisers_from):
        raise UserError(
            "split_mode, normalisers_from",
            "a set without training people, and only such a set, takes another set's constants",
            "Give --config.split_mode=external --config.normalisers_from=<prepared folder>, or neither",
        )
    if config.normalisers_from:
        known = shards.Prepared(config.normalisers_from).index["modalities"]
        return {name: intensity.from_json(m["normaliser"]) for name, m in known.items()}
    rules = {}
    for name in intensity.MODALITIES:
        low, high = config.ct_window if name == "ct" else (0.0, config[f"{name}_high"])
        percentile = None if name == "ct" else config[f"{name}_percentile"]
        rule = config[f"{name}_rule"]
        rules[name] = intensity.make(name, rule, low=low, high=high, percentile=percentile)
    return rules


# First pass: audit


def _audit(config, settings, cohort: bids.Cohort, root: pathlib.Path, mapper) -> dict[str, Facts]:
    """Facts by subject id; raises UserError with every finding when one is an error."""
    findings, facts, record = audit.of_layout(cohort.left), {}, {}
    subjects = cohort.subjects
    tasks = [(settings, s) for s in subjects]
    with Progress(len(tasks), "prepare: audit", "subject") as progress:
        results = mapper(inspect, tasks)
        for subject, (found, fact, registered) in zip(subjects, results, strict=True):
            findings += found
            if registered:
                record[subject.id] = _draw(root, subject, registered)
            if fact is not None:
                facts[subject.id] = fact
            progress.update()
    pixels = {k: f.pixels for k, f in facts.items()}
    findings += audit.audit_cohort(subjects, pixels, config.split_mode)
    mr = {k: (f.covers["mr"], f.mr_size) for k, f in facts.items() if "mr" in f.covers}
    shown = {k: (c.stripped, n) for k, (c, n) in mr.items() if c.stripped or not c.is_partial}
    findings += audit.check_skulls(shown)
    text = audit.page(config.cohort, subjects, findings, cohort.left)
    report = {"cohort": str(config.cohort), "subjects": len(subjects)}
    report["findings"] = [dataclasses.asdict(f) for f in findings]
    report["left_aside"] = [{"path": str(x.path), "reason": x.reason} for x in cohort.left]
    files.write_json(root / "audit.json", report)
    print(text, flush=True)
    if settings.register:
        convention = "matrix: PET world mm -> target world mm, RAS+"
        files.write_json(root / REGISTRATION, {"convention": convention, "subjects": record})
        pairs = sum(map(len, record.values()))
        print(f"prepare: {pairs} pairs registered: look at {root / OVERLAYS}", flush=True)
    errors = [f for f in findings if f.severity == "error"]
    if errors:
        listing = "; ".join(f"{f.subject}: {f.what}: {f.reason}" for f in errors)
        reason = f"the audit found {len(errors)} errors: {listing}"
        remedy = f"Repair them, or leave those subjects out. The list is in {root / 'audit.json'}"
        if any(audit.REGISTER in f.remedy for f in errors):
            remedy = f"{audit.REGISTER}. {remedy}"
        raise UserError(config.cohort, reason, remedy)
    return facts


def _draw(root: pathlib.Path, subject: bids.Subject, registered) -> dict:
    """Draws each pair; returns what registration.json holds of this person."""
    from cldm_jax.report import overlay  # with matplotlib: half of the job's start, for nobody else

    for name, pair in registered.items():
        path = root / OVERLAYS / f"{subject.id}_{name}.png"
        kind = intensity.base_modality(name)
        overlay.save(path, f"{subject.id}: PET and {name}", pair.views, pair.qc, kind=kind)
    return {n: {"matrix": p.matrix.tolist(), **p.qc} for n, p in registered.items()}


def _fit(config, settings: Settings, facts: dict[str, Facts], train: set[str]):
    """Normalisers of the modalities that the cohort has, fitted on training people only.

    With config.normalisers_from nothing is fitted: a test set from elsewhere is brought to the range
    that a model was trained on.
    """
    if config.normalisers_from:
        return settings.normalisers
    fitted = {}
    for name, spec in settings.normalisers.items():
        if not any(name in f.scales for f in facts.values()):
            continue
        people = [f for k, f in sorted(facts.items()) if k in train and name in f.scales]
        scales, origins = ([getattr(f, k)[name] for f in people] for k in ("scales", "origins"))
        fitted[name] = intensity.fit(spec, scales, origins)
    return fitted


def _check_external(config, settings: Settings, subjects, facts: dict[str, Facts]) -> None:
    """An external set fits the model's data: its grid, its modalities, and none of its people."""
    home = shards.Prepared(config.normalisers_from).index
    asked = settings.grid.to_index(settings.center)
    if asked != home["grid"]:
        reason = f"{asked} is not the grid of {config.normalisers_from}"
        raise UserError("size, spacing_mm, slice_spacing_mm, center", reason, f"Use {home['grid']}")
    seen = {}
    for s in home["subjects"]:
        for name, volume in s["volumes"].items():
            if not name.startswith("mask"):
                whose = f"{s['id']} {name} ({s['split']})"
                seen[volume["sha256"]] = ("file", whose)
                # Saved again, a file has other bytes and the same voxels. Older folders do not say.
                seen[home.get("pixels", {}).get(s["id"], {}).get(name)] = ("image", whose)
    for subject in subjects:
        fact = facts[subject.id]
        for name in fact.sha256:
            for digest in (fact.sha256[name], fact.pixels[name]):
                if digest in seen:
                    what, whose = seen[digest]
                    reason = f"the same {what} as {whose} of {config.normalisers_from}"
                    remedy = "An external set needs other people"
                    raise UserError(subject.files[name], reason, remedy)


# Second pass: write


def _write_slices(root, config, settings: Settings, subjects, facts, mapper):
    """(index entries of the subjects, index entries of the shards)."""
    writers: dict[str, shards.ShardWriter] = {}
    entries = []
    tasks = [(settings, s, facts[s.id]) for s in subjects]
    with Progress(len(tasks), "prepare: write", "subject") as progress:
        results = mapper(make_slices, tasks)
        for subject, made in zip(subjects, results, strict=True):
            volumes = {}
            for name, stored in made.stored.items():
                if name not in writers:
                    writers[name] = shards.ShardWriter(
                        root, name, str(stored.dtype), settings.grid.size, config.shard_items
                    )
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
        "inputs": _inputs_hash(subjects, {k: f.sha256 for k, f in facts.items()}),
        "pixels": {k: f.pixels for k, f in facts.items()},  # of the images, whatever their files
        "subjects": entries,
        "splits": parts,
        "shards": written,
    }


# Shared


def _inputs_hash(subjects: Iterable[bids.Subject], sha256: dict[str, dict[str, str]]) -> str:
    """Of who is in the cohort, in which group and split, with which files' content and PET gain."""
    rows = []
    for s in subjects:
        gain = () if s.pet_gain == 1 else (s.pet_gain,)  # older folders know of none
        rows.append([s.id, s.group, s.split, sha256[s.id], *gain])
    return files.sha256_json(rows)


def _check_reuse(root: pathlib.Path, config, subjects) -> None:
    """UserError naming what differs between the finished folder and this request."""
    old = shards.Prepared(root).index
    asked = json.loads(json.dumps(config.to_dict()))  # tuples become lists, as in the index
    # A setting that the folder's version did not know yet has no say: its default changes nothing.
    # One that is asked for by name, in vain, is another matter.
    known = YOUNGER | old["config"]
    differing = sorted(k for k, v in known.items() if v != asked.get(k))
    differing = [k for k in differing if k not in FREE]
    if differing:
        reason = f"was prepared with other settings: {', '.join(differing)}"
        raise UserError(root, reason, "Give another workdir, or delete this folder")
    sha256 = {}
    for s in subjects:
        missing = [str(p) for p in s.files.values() if not p.exists()]
        if missing:
            raise UserError(missing[0], "no such file", "Check the path in the manifest")
        sha256[s.id] = {m: volume_files.sha256(p) for m, p in s.files.items()}
    if _inputs_hash(subjects, sha256) != old["inputs"]:
        reason = f"was prepared from other files or people than {config.cohort} holds now"
        raise UserError(root, reason, "Give another workdir, or delete this folder")


def _check_folder(root: pathlib.Path) -> None:
    """An unfinished attempt is swept away; anything else in the folder is somebody's."""
    if root.exists() and not root.is_dir():
        raise UserError(root, "is a file", "Give a folder as the workdir")
    leftovers = [*root.glob("*-[0-9][0-9][0-9][0-9][0-9].npy"), *root.glob("audit.json")]
    leftovers += [*root.glob(".tmp-*"), *root.glob(REGISTRATION)]
    folder = root / OVERLAYS
    pictures = [p for name in bids.VOLUMES for p in folder.glob(f"*_{name}.png")]
    ours = {*leftovers, *pictures}
    if folder.is_dir() and set(folder.iterdir()) <= ours:
        ours.add(folder)
    if root.exists() and set(root.iterdir()) - ours:
        raise UserError(root, "holds other files", "Give a new or empty folder as the workdir")
    for path in [*leftovers, *pictures]:
        path.unlink()


def _check_disk(root: pathlib.Path, model_grid: grid.ModelGrid, facts: dict[str, Facts]) -> None:
    pixels = sum(f.n_slices * (2 * len(f.scales) + 1) for f in facts.values())
    need = pixels * model_grid.size[0] * model_grid.size[1]
    free = shutil.disk_usage(root).free
    if need > free:
        reason = f"needs {need / 1e9:.1f} GB and has {free / 1e9:.1f} GB free"
        raise UserError(root, reason, "Free space, or give a workdir on another disk")
