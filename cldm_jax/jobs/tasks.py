"""Scores trained runs by what their images are used for: whole volumes, one person at a time.

A use is an entry of USES (`uses/base.py` says what that is); nothing else here knows one from another.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from cldm_jax import files
from cldm_jax.data import intensity, mask, splits
from cldm_jax.data.warp import NoMatch
from cldm_jax.errors import UserError
from cldm_jax.jobs.evaluate import notes, open_runs, read_outs, recentred, run_facts, words
from cldm_jax.metrics import aggregate
from cldm_jax.report import uses_page
from cldm_jax.report.page import SCORE_COLUMNS, json_ready, scores_csv
from cldm_jax.runs.readouts import Predictor, Rows, make_entrants
from cldm_jax.runs.spread import RECENTRED
from cldm_jax.runtime.progress import Progress
from cldm_jax.runtime.runlock import run_lock
from cldm_jax.scoring import pool_uses, references
from cldm_jax.scoring.references import REFERENCE
from cldm_jax.scoring.scorer import Scorer, choose_targets, main_methods, shared_data, shared_source
from cldm_jax.uses import attenuation, normalisation, tissue
from cldm_jax.uses.base import AGAIN, FLOOR, REAL, Case, Cohort, Use

USES: dict[str, Use] = {
    use.name: use for use in (normalisation.USE, tissue.TISSUE, tissue.BONE, attenuation.USE)
}
COLUMNS = ("use", *SCORE_COLUMNS)


class Opened(NamedTuple):
    """What the scores of all people have in common."""

    scorer: Scorer
    entrants: list
    predictors: dict  # {(id of a run, read-out): Predictor}
    sources: dict  # {number of slices seen at once: source}
    images: dict[str, np.ndarray]  # {FLOOR, AGAIN, REAL: all rows [N, H, W], model range}


def run(config, workdir: str) -> None:
    """Scores `config.runs` by `config.uses` into `workdir`: tasks.json (last), tasks.csv, index.html;
    or, with `config.pool`, makes one of what it wrote of every fold.

    What fails (a registration that finds nothing) is named and counted; UserError at the end then.
    """
    folder = pathlib.Path(workdir)
    if config.pool:
        folders = [pathlib.Path(f) for f in words(config.pool)]
        if folder.resolve() in (f.resolve() for f in folders):
            raise UserError(folder, "is a fold itself", "Give the pooled page another --workdir.")
        rows, summary = pool_uses.pool_folders(folders, seed=config.seed)
        _write(folder, rows, summary, {}, config.title)
        return
    uses = _chosen_uses(config)
    opened, uses = _open(config, open_runs(config), uses)
    with run_lock(folder):  # before the hours of scoring: the folder can be written to
        rows, pictures, failures, people = _score(opened, uses)
        summary = _summary(opened, uses, rows, failures, people)
        _write(folder, rows, summary, pictures, config.title)
    if failures:
        first = failures[0]
        what = f"{len(failures)} of the scores ({first['use']}, {first['row']}, {first['patient']})"
        raise UserError(what, f"could not be made: {first['why']}", f"All: {folder / 'tasks.json'}")


def _write(folder: pathlib.Path, rows, summary: dict, pictures: dict, title: str) -> None:
    (folder / "tasks.json").unlink(missing_ok=True)  # until the rest is of this scoring
    files.write_text(folder / "tasks.csv", scores_csv(rows, COLUMNS))
    page = uses_page.make_page(summary, pictures, title=title)
    files.write_text(folder / "index.html", page)
    files.write_json(folder / "tasks.json", json_ready(summary))
    for use in summary["uses"]:
        for line in uses_page.text_lines(use):
            print(line)
    print(f"report: {folder / 'index.html'}")


def _chosen_uses(config) -> list[Use]:
    names = words(config.uses)
    for name in (n for n in names if n not in USES):
        known = ", ".join(sorted(USES))
        raise UserError(f"config.uses={name}", "no such use", f"Known: {known}")
    return [USES[name] for name in names]


def _open(config, runs, uses: list[Use]) -> tuple[Opened, list[Use]]:
    if config.slice_stride != 1:
        raise UserError(
            f"config.slice_stride={config.slice_stride}",
            "a use needs whole volumes",
            "Leave it at 1; --config.max_people=2 makes it shorter",
        )
    prepared = shared_data(config, runs)
    made = choose_targets(config, runs, prepared)
    for use in uses:
        if use.target not in made:
            print(f"{use.name}: nothing makes {use.target} here, so it is not scored", flush=True)
    uses = [use for use in uses if use.target in made]
    if not uses:
        raise UserError("config.uses", f"none is of {' or '.join(made)}", "Name another use")
    targets = tuple(t for t in made if any(use.target == t for use in uses))
    names = prepared.index.names(targets)
    entrants = _entrants(config, runs, targets)
    scorer = Scorer(config, prepared, names, reads=shared_source(runs))
    images = {REAL: scorer.real, AGAIN: references.reacquired(prepared, scorer.rows, names)[0]}
    if references.has_floor(prepared, names):
        images[FLOOR] = references.population_mean(prepared, scorer.rows, names)
    images = {name: found for name, found in images.items() if found is not None}
    sources = {k: scorer.source(k) for k in {e.first.config["data"]["context"] for e in entrants}}
    return Opened(scorer, entrants, {}, sources, images), uses


def _entrants(config, runs, targets: tuple[str, ...]) -> list:
    """The methods that make one of `targets` and have one of `config.modes`; the others are printed."""
    makers = []
    for r in runs:
        if {*targets} & {*r.config["data"]["targets"]}:
            makers.append(r)
        else:
            print(f"{r.name}: makes no {' or '.join(targets)}, so it is not scored", flush=True)
    entrants, wanted = make_entrants(makers, targets), words(config.modes)
    known = {m: None for e in entrants for m in read_outs(e)}
    for mode in (m for m in wanted if m not in known):
        raise UserError(f"config.modes={mode}", "no such read-out", f"Known: {', '.join(known)}")
    lacking = [e.name for e in entrants if wanted and not {*wanted} & {*read_outs(e)}]
    for name in lacking:
        print(f"{name}: has no {' or '.join(wanted)}, so it is not scored", flush=True)
    return [e for e in entrants if e.name not in lacking]


def _score(opened: Opened, uses: list[Use]):
    """(score rows, {use: (person, its pictures)}, failures, ids of people) of everybody."""
    scorer, enrolled = opened.scorer, opened.scorer.prepared.index.people
    groups = [person.group for person in enrolled]
    turns = splits.by_turns((s for s, _, _ in scorer.patients()), groups)
    people = sorted(turns[: scorer.config.max_people or None])
    volumes = [v for v in scorer.patients() if v[0] in people]
    starts = _start(opened, uses)
    rows, pictures, failures = [], {}, []
    with Progress(len(volumes), "score volumes", "volume") as progress:
        for subject, code, own in volumes:
            person, target = enrolled[subject], scorer.names[code]
            images = {}
            for entrant in (e for e in opened.entrants if target in e.runs):
                images |= _predict(opened, entrant, target, own)
            case = _case(opened, subject, code, own)
            who = {"patient": person.id, "group": person.group, "split": scorer.split}
            for use in (u for u in uses if u.target == target):
                found, failed = _judge(
                    opened, use, starts[use.name], case, images, subject, code, own
                )
                rows += _rows(use, who, found, len(own))
                drawn = {key: picture for key, (_, picture) in found.items() if picture is not None}
                if drawn and use.name not in pictures:
                    pictures[use.name] = person.id, drawn
                failures += [
                    {"use": use.name, "patient": person.id, "row": row, "why": why}
                    for row, why in failed
                ]
            progress.update()
    return rows, pictures, failures, [enrolled[s].id for s in people]


def _start(opened: Opened, uses: list[Use]) -> dict:
    """{use: its judge of a case}."""
    config, prepared = opened.scorer.config, opened.scorer.prepared
    count = min(len(prepared.subjects("train")), config.template_people)
    count *= 1 if config.template else normalisation.ROUNDS
    count *= any(use.name == normalisation.USE.name for use in uses) and not config.template_pet
    with Progress(count, "template", "registration") as progress:
        given = config.template, config.template_pet
        cohort = Cohort(prepared, *given, config.template_people, progress.update)
        return {use.name: use.start(cohort) for use in uses}


def _predict(opened: Opened, entrant, target: str, own) -> dict[tuple, np.ndarray]:
    """{(method, read-out): images of the rows `own`}, in model range."""
    run = entrant.runs[target]
    source = Rows(opened.sources[run.config["data"]["context"]], own)
    found, wanted = {}, words(opened.scorer.config.modes)
    with_parts = not wanted or any(mode.startswith(RECENTRED) for mode in wanted)
    for mode in (m for m in run.method.predict if with_parts or m in wanted):
        key = id(run), mode
        if key not in opened.predictors:
            opened.predictors[key] = Predictor(run, mode)
        found[entrant.name, mode] = opened.predictors[key](source, **opened.scorer.options)
    if with_parts:
        found |= recentred(entrant, found)
    return {k: readout.images for k, readout in found.items() if not wanted or k[1] in wanted}


def _case(opened: Opened, subject: int, code: int, own) -> Case:
    scorer, prepared = opened.scorer, opened.scorer.prepared
    air = intensity.MODALITIES[scorer.names[code]].fill
    z, context = scorer.keys["slice"][own], scorer.context(subject, code)
    spec = prepared.index.modalities["pet"].normaliser
    pet = intensity.metric_units(spec, prepared.read(subject, "pet")[z])
    spacing = prepared.index.people[subject].voxel_mm
    return Case(
        spacing,
        _whole(pet, z, 0.0),
        _whole(scorer.units(code, subject, scorer.real[own]), z, air),
        _whole(scorer.masks[own], z, False),
        mask.brain_mask_pet(_whole(pet, z, 0.0), spacing[1:]),
        *(None if v is None else _whole(v, z, 0) for v in (context.labels, context.lesions)),
    )


def _whole(values, z, fill):
    """Slices `z` in their places from the first to the last: those between are `fill`."""
    out = np.full((z[-1] - z[0] + 1, *values.shape[1:]), fill, values.dtype)
    out[z - z[0]] = values
    return out


def _judge(opened: Opened, use: Use, start, case: Case, images, subject: int, code: int, own):
    """({(method, mode): (values, picture)}, [(row, why it failed)]) of one person.

    A row that fails has NaN for every value. Where the real image does, the person has no rows at all.
    """
    try:
        judge = start(case)
    except NoMatch as error:
        return {}, [("the real image, so the person is left out", str(error))]
    z = opened.scorer.keys["slice"][own]
    asked = {(REFERENCE, n): opened.images[n][own] for n in use.images if n in opened.images}
    asked = {k: v for k, v in asked.items() if not np.isnan(v).any()}  # of targets that have it
    nothing = dict.fromkeys(use.measures, np.nan), None
    found, failed = {}, []
    for key, image in {**images, **asked}.items():
        units = opened.scorer.units(code, subject, np.clip(image, -1, 1))
        try:
            found[key] = judge.score(_whole(units, z, intensity.MODALITIES[use.target].fill))
        except NoMatch as error:
            found[key] = nothing
            failed.append((" ".join(key), str(error)))
    for name, own_row in judge.own.items():
        found[REFERENCE, name] = nothing if isinstance(own_row, str) else own_row
        if isinstance(own_row, str):
            failed.append((f"{REFERENCE} {name}", own_row))
    return found, failed


def _rows(use: Use, who: dict, found: dict, count: int) -> list[dict]:
    return [
        {"use": use.name, **who, "method": method, "mode": mode, "target": use.target}
        | {"metric": metric, "value": float(value), "n_slices": count}
        for (method, mode), (values, _) in found.items()
        for metric, value in values.items()
    ]


def _summary(opened: Opened, uses: list[Use], rows, failures, people) -> dict:
    """The schema of tasks.json (docs/uses.md)."""
    config, data = opened.scorer.config, opened.scorer.prepared.index
    return {
        "uses": [
            {
                "name": use.name,
                "target": use.target,
                "title": use.title,
                "about": use.about,
                "measures": {name: m._asdict() for name, m in use.measures.items()},
                "labels": use.own,
                "rows": aggregate.summarise_scores(own, seed=config.seed),
                "tests": _tests(opened, use, own),
                "failures": [f for f in failures if f["use"] == use.name],
            }
            for use in uses
            for own in [[r for r in rows if r["use"] == use.name]]
        ],
        "people": people,
        "notes": notes(config, opened.scorer, {*people}),
        "data": {
            "name": data.name,
            "contrast": data.contrast,
            "fingerprint": data.fingerprint,
            "split": opened.scorer.split,
            "template": config.template or "mean of training people",
            "template_pet": config.template_pet or "mean of training people",
        },
        "run": {
            **run_facts(config, opened.entrants[0].first),
            "read_outs_tested": "first of each method",
        },
    }


def _tests(opened: Opened, use: Use, rows) -> list[dict]:
    """Every method's first read-out against the use's rivals, and the CLDM's against the other methods';
    the measure that stands first; Holm over the use.
    """
    config = opened.scorer.config
    there = {f"{r['method']}:{r['mode']}" for r in aggregate.average_seeds(rows)}
    firsts = {}
    for e in (e for e in opened.entrants if use.target in e.runs):
        known, name = read_outs(e), aggregate.base_name(e.name)
        modes = [m for m in words(config.modes) or known if m in known]
        if modes:
            firsts.setdefault(name, f"{name}:{modes[0]}")
    main = main_methods(opened.entrants, (use.target,)).get(use.target)
    pairs = [(a, f"{REFERENCE}:{b}") for a in firsts.values() for b in use.rivals]
    pairs += [(firsts[main], firsts[b]) for b in firsts if main in firsts and b != main]
    pairs = [p for p in pairs if there.issuperset(p)]
    return aggregate.paired_tests(
        aggregate.average_seeds(rows), pairs, metrics=(next(iter(use.measures)),), seed=config.seed
    )
