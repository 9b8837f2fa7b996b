"""The first pass of prepare: every file read and judged, and nothing made of it yet."""

import dataclasses
import pathlib
from typing import NoReturn

from cldm_jax import files
from cldm_jax.data import audit, bids, intensity, left_out
from cldm_jax.data.convert import Settings, inspect
from cldm_jax.data.prepared_folder import OVERLAYS, REGISTRATION
from cldm_jax.errors import UserError
from cldm_jax.runtime.progress import Progress


def run(config, settings: Settings, cohort: bids.Cohort, root: pathlib.Path, mapper, split):
    """(facts by subject id, what is left out). UserError with every finding where they stop the cohort,
    or where `split` cannot part the subjects that are left.

    Writes the list to stdout and <root>/audit.json, and what the registrations looked like.
    """
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
    between = audit.audit_cohort(subjects, pixels, config.split_mode)
    findings += between
    mr = {k: (f.covers["mr"], f.mr_size) for k, f in facts.items() if "mr" in f.covers}
    shown = {k: (c.stripped, n) for k, (c, n) in mr.items() if c.stripped or not c.is_partial}
    findings += audit.check_skulls(shown)
    errors = [f for f in findings if f.severity == "error"]
    out = left_out.find(subjects, {k: set(f.sha256) for k, f in facts.items()}, errors)
    stops = left_out.stopping(subjects, out, errors) + [f for f in between if f in errors]
    cause = "" if stops or not out else _problem(split, subjects, left_out.remaining(subjects, out))
    _report(config, cohort, root, findings, [] if stops or cause else out)
    if settings.register:
        convention = "matrix: PET world mm -> target world mm, RAS+"
        files.write_json(root / REGISTRATION, {"convention": convention, "subjects": record})
        pairs = sum(map(len, record.values()))
        print(f"prepare: {pairs} pairs registered: look at {root / OVERLAYS}", flush=True)
    if stops or cause:
        _stop(config, root, errors, cause)
    return facts, out


def _report(config, cohort: bids.Cohort, root: pathlib.Path, findings, out) -> None:
    """audit.json, and its page on the screen."""
    text = audit.page(config.cohort, cohort.subjects, findings, cohort.left)
    report = {"cohort": str(config.cohort), "subjects": len(cohort.subjects)}
    report["findings"] = [dataclasses.asdict(f) for f in findings]
    aside = [{"path": str(x.path), "reason": x.reason} for x in cohort.left]
    report["left_aside"] = aside + [row for item in out for row in item.rows()]
    files.write_json(root / "audit.json", report)
    print(text, flush=True)


def _problem(split, subjects, kept) -> str:
    """Why those who are kept cannot be split: "" where they can, and nobody's part is empty now."""
    try:
        before, now = split(subjects), split(kept)
    except UserError as e:
        return f"; without those images, {e.what}: {e.reason}"
    emptied = [k for k in bids.SPLITS if before[k] and not now[k]]
    return f"; without those images, nobody is in {' and '.join(emptied)}" if emptied else ""


def _stop(config, root: pathlib.Path, errors, cause: str) -> NoReturn:
    listing = "; ".join(f"{f.subject}: {f.what}: {f.reason}" for f in errors)
    reason = f"the audit found {len(errors)} errors: {listing}{cause}"
    remedy = f"Repair them, or leave those subjects out. The list is in {root / 'audit.json'}"
    if any(audit.REGISTER in f.remedy for f in errors):
        remedy = f"{audit.REGISTER}. {remedy}"
    raise UserError(config.cohort, reason, remedy)


def _draw(root: pathlib.Path, subject: bids.Subject, registered) -> dict:
    """Draws each pair; returns what registration.json holds of this person."""
    from cldm_jax.report import overlay  # with matplotlib: half of the job's start, for nobody else

    for name, pair in registered.items():
        path = root / OVERLAYS / f"{subject.id}_{name}.png"
        kind = intensity.base_modality(name)
        overlay.save(path, f"{subject.id}: PET and {name}", pair.views, pair.qc, kind=kind)
    return {n: {"matrix": p.matrix.tolist(), **p.qc} for n, p in registered.items()}
