"""Score trained runs on the test people by the frozen protocol and write the report.

Slice -> patient -> mean +- SD; references (floor, ceilings) and controls are scored the same way.
"""

import contextlib
import pathlib

from cldm_jax import files
from cldm_jax.data import intensity
from cldm_jax.errors import UserError
from cldm_jax.metrics import aggregate
from cldm_jax.metrics.protocol import PROTOCOLS
from cldm_jax.metrics.scores import METRICS
from cldm_jax.report.gallery import GALLERY, save_gallery
from cldm_jax.report.page import default_title, write_report
from cldm_jax.report.record import Summary, read_summary
from cldm_jax.report.spread import spread_lines
from cldm_jax.report.tables import text_table
from cldm_jax.runs import record, spread
from cldm_jax.runs.readouts import ReadOut, learning_curves, make_entrants, predict_entrant
from cldm_jax.runs.stored import Run, open_run
from cldm_jax.runtime import device, processes
from cldm_jax.runtime.progress import Progress
from cldm_jax.runtime.runlock import run_lock
from cldm_jax.scoring import controls, coverage, references
from cldm_jax.scoring.gallery import make_gallery
from cldm_jax.scoring.scorer import (
    Scorer,
    choose_targets,
    is_cldm,
    main_methods,
    shared_data,
    shared_source,
)
from cldm_jax.scoring.summary import make_summary
from cldm_jax.volumes.sidecars import model_identity


def run(config, workdir: str) -> None:
    """Evaluates `config.runs` (comma-separated: workdirs of trainings, exported folders) into `workdir`.
    All processes compute, process 0 writes. Nothing is done where `workdir` holds this evaluation: of the
    same settings, data, checkpoints and METRICS.
    """
    runs = open_runs(config)
    prepared = shared_data(config, runs)
    stamp = _stamp(config, runs, prepared)
    done = pathlib.Path(workdir) / "summary.json"
    if processes.decided(lambda: _stamp_of(done) == stamp):
        print(f"already evaluated: {workdir}/index.html")
        _print(read_summary(done))
        return
    targets = choose_targets(config, runs, prepared)
    _check_protocol(config, targets)
    # Before the hours of prediction: the folder can be written to, and nobody else does.
    with run_lock(workdir) if processes.is_main() else contextlib.nullcontext():
        summary, scores, gallery = _evaluate(config, runs, prepared, targets, stamp)
        if not processes.is_main():
            return
        done.unlink(missing_ok=True)  # the gallery too is what it vouches for
        save_gallery(pathlib.Path(workdir) / GALLERY, gallery)
        title = config.title or default_title(summary)
        page = write_report(workdir, summary, scores, gallery, title=title)
    _print(summary)
    print(f"report: {page}")


def words(text: str) -> list[str]:
    """Of a setting with commas between them."""
    return [word.strip() for word in text.split(",") if word.strip()]


def open_runs(config) -> list[Run]:
    """`config.runs`, with the sampling settings of `config` where these replace the runs' own."""
    workdirs = words(config.runs)
    if not workdirs:
        raise UserError("config.runs", "empty", "Give the workdirs of trainings, comma-separated.")
    sampling = config.sampling.to_dict() if config.replace_sampling else None
    runs = []
    for workdir in workdirs:
        try:
            runs.append(open_run(workdir, sampling))
        except UserError as error:
            if not sampling or error.what != "config.recipe":
                raise
            remedy = "Change config.sampling, or evaluate it without replace_sampling."
            raise UserError(workdir, f"cannot sample so: {error.reason}", remedy) from error
    return runs


def _print(summary: Summary) -> None:
    print(text_table(summary))
    for line in spread_lines(summary):
        print(line)


def _stamp(config, runs: list[Run], prepared) -> str:
    """What makes two evaluations the same. Metrics count by what a reader is told of them: whoever mends
    the arithmetic of one evaluates into another folder.
    """
    return files.sha256_json(
        {
            "config": config.to_json(),
            "data": prepared.index.fingerprint,
            "runs": [
                (r.workdir, model_identity(r.workdir, r))
                + ((r.calibration.to_json(),) if r.calibration else ())
                for r in runs
            ],
            "metrics": {
                name: [m.label, m.unit, m.better, m.meaning, m.per, m.needs]
                for name, m in METRICS.items()
            },
        }
    )


def _stamp_of(summary: pathlib.Path) -> str | None:
    """None where there is no summary, or one without (pooled folds). Only that is read, so what an older
    cldm_jax wrote, or a copy cut short, is written anew.
    """
    try:
        return files.read_json(summary)["run"].get("stamp") if summary.is_file() else None
    except ValueError:
        return None


def _evaluate(config, runs: list[Run], prepared, targets: tuple[str, ...], stamp: str):
    entrants = make_entrants(runs, targets)
    scorer = Scorer(config, prepared, prepared.index.names(targets), reads=shared_source(runs))
    chosen = _choose_modes(scorer, entrants)
    # In network evaluations, so that the ETA knows that a mean of samples takes longest; the two
    # controls use the first read-out.
    per_slice = sum(
        sum(e.first.method.evaluations.values()) * len(e.runs) / len(targets) for e in entrants
    )
    main = next((e for e in entrants if is_cldm(e)), None)
    per_slice += 2 * (main is not None)
    readouts: dict[tuple[str, str], ReadOut] = {}
    controlled: list[dict] = []
    total = round(len(scorer.rows) * per_slice)
    with Progress(total, "predict test people", "evaluation") as progress:
        for e in entrants:
            source = scorer.source(e.first.config["data"]["context"])
            for mode in e.first.method.predict:
                readouts[e.name, mode] = predict_entrant(
                    e, mode, source, scorer.codes, progress=progress, **scorer.options
                )
                scorer.add(e.name, mode, readouts[e.name, mode].images, targets=e.runs)
            for key, made in recentred(e, readouts).items():
                readouts[key] = made
                scorer.add(*key, made.images, targets=e.runs)
            if e is main:
                first = readouts[e.name, next(iter(e.first.method.predict))]
                controlled += controls.measure(scorer, e, source, first.images, progress)
    references.add(scorer, runs)
    drawers = coverage.open_calibrated(scorer, entrants)
    summary = make_summary(
        scorer.scores,
        _costs(entrants, readouts),
        chosen,
        main_methods(entrants, targets),
        seed=config.seed,
        **_facts(scorer, entrants, controlled, stamp),
        **coverage.measure(scorer, entrants, drawers, chosen),
    )
    return summary, scorer.scores, make_gallery(scorer, entrants, readouts, drawers)


def read_outs(entrant) -> list[str]:
    """Names of all that a method answers; the recentred sample, made of others, is the last."""
    run = entrant.first
    point, mean = spread.point_mode(run), spread.mean_name(run)
    made = point is not None and mean is not None and is_cldm(entrant)
    own = [f"{spread.RECENTRED}{mean.removeprefix('mean')}"] if made else []
    return [*run.method.predict, *own]


def recentred(entrant, readouts) -> dict[tuple[str, str], ReadOut]:
    """{(method, its name): read-out} of a CLDM's point image with one sample's deviation from the mean of
    K, out of what it has predicted already: the samples are the same. {} of a method that lacks one.
    """
    run, made = entrant.first, read_outs(entrant)[-1]
    if made in run.method.predict:
        return {}
    count = int(made.removeprefix(spread.RECENTRED))
    used = (spread.point_mode(run), "sample", spread.mean_name(run))
    parts = [readouts[entrant.name, mode] for mode in used]
    images = spread.recentred(*(p.images for p in parts), count, 1.0)
    seconds = [p.seconds_per_slice for p in parts]
    total = None if None in seconds else sum(seconds)
    return {(entrant.name, made): ReadOut(images, None, total)}


def _choose_modes(scorer: Scorer, entrants) -> dict[str, dict[str, str]]:
    """{target: {method: read-out}}: what the tests compare, chosen by PSNR on validation people; the
    method's first read-out where none has the target. A method's first training decides for all of them.
    """
    held, val = scorer.prepared.held("val"), None
    names = {code: t for code, t in scorer.names.items() if t in held}
    if names:
        val = Scorer(scorer.config, scorer.prepared, names, "val", reads=scorer.reads)
    chosen = {target: {} for target in scorer.codes}
    for e in entrants:
        base = aggregate.base_name(e.name)
        modes = [m for m in e.first.method.predict if m != "sample"]  # one sample never wins PSNR
        if base in {m for row in chosen.values() for m in row}:
            continue
        judged = [t for t in e.runs if t in held] if len(modes) > 1 else []
        if judged:
            source = val.source(e.first.config["data"]["context"])
            for mode in modes:
                images = predict_entrant(e, mode, source, scorer.codes, **scorer.options).images
                val.add(e.name, mode, images, targets=e.runs)
        for target in e.runs:
            best = modes[0] if modes else "sample"
            chosen[target][base] = val.best_mode(e, modes, target) if target in judged else best
    return chosen


def _check_protocol(config, targets: tuple[str, ...]) -> None:
    protocol = PROTOCOLS[config.protocol]
    for target in targets:
        protocol.target(target)  # raises where the protocol does not define it
    if protocol.aggregation == "volume" and config.slice_stride != 1:
        raise UserError(
            f"config.slice_stride={config.slice_stride}",
            f"protocol {protocol.name} scores whole volumes",
            "Give --config.slice_stride=1.",
        )


def _costs(entrants, readouts) -> dict[tuple, dict]:
    """{(method, mode, target): what it took}, COSTS of the summary."""
    return {
        (e.name, mode, target): {
            "params": r.manifest.params,
            "train_steps": r.manifest.step,
            "train_seconds": r.manifest.train_seconds,
            "train_cpu_seconds": r.manifest.train_cpu_seconds,
            "network_evaluations": spread.evaluations(r, mode),
            "seconds_per_slice": readouts[e.name, mode].seconds_per_slice,
        }
        for e in entrants
        for mode in (m for name, m in readouts if name == e.name)
        for target, r in e.runs.items()
    }


def run_facts(config, run: Run) -> dict:
    """Of scores of `run` and others: how they were made."""
    return {
        "command": device.command_line(),
        "preset": run.config["preset"],
        "hardware": device.describe(),
        "seed": config.seed,
        "git": run.manifest.git,
    }


def notes(config, scorer: Scorer, scored: set[str]) -> list[str]:
    """Why scores of the people `scored` are better than a user's would be: whose they are, and in which
    unit. Then the notes of `config`.
    """
    splits, found = scorer.prepared.index.splits, []
    known = scored & {*splits.train, *splits.val}
    if known:
        found.append(
            f"NO TEST PEOPLE: {len(known)} of the {len(scored)} people scored were trained on, or "
            "validated on: checkpoints, read-outs and the spread's calibration were chosen on them. "
            "Scores and coverage are better than on other people."
        )
    own = [t.upper() for t, spec in scorer.specs.items() if spec.rule == intensity.ORACLE]
    if own:
        found.append(
            f"NOT COMPARABLE with honest scores: {' and '.join(own)} is scaled by the minimum and "
            f"maximum of the real volume ({intensity.ORACLE}), which a user does not have."
        )
    return [*found, *config.notes]


def _facts(scorer: Scorer, entrants, controlled: list[dict], stamp: str) -> dict:
    index, config = scorer.prepared.index, scorer.config
    scored = {s["patient"] for s in scorer.scores}
    return {
        "protocol": scorer.protocol,
        "data": {
            "name": index.name,
            "contrast": index.contrast,
            "fingerprint": index.fingerprint,
            "split_hash": index.splits.hash,
            "train_patients": len(index.splits.train),
            "test_patients": len(scored),
            "slices": len(scorer.keys["label"]),
        },
        "controls": controlled,
        "notes": notes(config, scorer, scored),
        "learning": {e.name: learning_curves(e) for e in entrants},
        "run": {
            **run_facts(config, entrants[0].first),
            "versions": record.versions("jax", "flax", "numpy", "scipy"),
            "stamp": stamp,
        },
    }
