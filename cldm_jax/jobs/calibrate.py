"""Measures on validation people what makes a CLDM's samples an honest ensemble around its point image.

At the end of a training, or later: --config=configs/calibrate.py --config.run=RUN. Writes
<run>/calibration.json, which `predict --uncertainty`, `evaluate` and `export` take up.
"""

import time
from typing import NamedTuple

import numpy as np

from cldm_jax.data import intensity
from cldm_jax.data.index import Index
from cldm_jax.data.shards import Prepared
from cldm_jax.errors import UserError
from cldm_jax.metrics import ensemble, regions
from cldm_jax.runs import calibration, spread
from cldm_jax.runs.calibration import Calibration, TargetCalibration
from cldm_jax.runs.inputs import data_of, image_source
from cldm_jax.runs.stored import Run, open_run, stored_method
from cldm_jax.runtime import processes, weights
from cldm_jax.runtime.progress import Progress


class Settings(NamedTuple):
    samples: int  # K
    slice_stride: int  # every n-th slice of a person
    people: int  # at most
    batch_size: int
    steps: int = 0  # of DDIM; 0: those of the run's own samples
    seed: int = 0


def run(config, workdir: str) -> None:
    """Calibrates `config.run`, a training's workdir; `workdir` is not used."""
    if not config.run:
        raise UserError("config.run", "empty", "Give --config.run=<workdir of a training>.")
    if weights.is_exported(config.run):
        reason = "is an exported folder, whose card lists its files"
        raise UserError(config.run, reason, "Calibrate the training, then export it again")
    if config.samples < 2:
        raise UserError(f"config.samples={config.samples}", "no spread", "Give 2 or more")
    opened = open_run(config.run)
    prepared = data_of(config, opened.config)
    reason = _lacking(opened, prepared)
    if reason:
        raise UserError(config.run, reason, "Give a CLDM with one-step rows and validation people")
    _calibrate(opened, prepared, Settings(**{k: config[k] for k in Settings._fields}))


def after_training(config, workdir: str, prepared: Prepared) -> None:
    """The end of a training: nothing where the method cannot be calibrated, where nobody is there to do
    it on, or where it was done. All processes compute, process 0 writes.
    """
    train = config.train
    has_samples = "sampling" in config.recipe and train.num_train_steps > 0
    if not has_samples or train.calibrate_samples < 2:
        return
    opened = open_run(workdir)
    if opened.calibration is not None or _lacking(opened, prepared):
        return
    _calibrate(
        opened,
        prepared,
        Settings(
            train.calibrate_samples,
            train.calibrate_slice_stride,
            train.calibrate_people,
            train.batch_size,
            train.calibrate_steps,
        ),
    )


def _lacking(opened: Run, prepared: Prepared) -> str:
    """Why a run cannot be calibrated; "" where it can."""
    if spread.point_mode(opened) is None:
        return "has no samples, or no one-step image to put them around"
    if not opened.manifest.data.is_of(prepared):
        return "was trained on other data or another split"
    return "" if prepared.subjects("val") else "has no validation people to calibrate on"


def _calibrate(opened: Run, prepared: Prepared, settings: Settings) -> None:
    began = time.monotonic()
    found = measure(opened, prepared, settings)
    if not processes.is_main():
        return
    path = calibration.write(opened.workdir, found)
    for target, t in found.targets.items():
        factors, q90 = (" / ".join(f"{v:.2f}" for v in values) for values in (t.factors, t.q90))
        print(f"calibrated {target}: spread x {factors} by band, 90 % = SD x {q90} by scale")
    seconds = time.monotonic() - began
    print(f"wrote {path} ({found.people} validation people, {seconds:.0f} s)", flush=True)


def _sampling(opened: Run, steps: int) -> dict:
    """The run's sampling settings without the younger self, who sharpens images and tells nothing of
    the spread; with `steps` of DDIM where the network tells its variance: the rescaled ensemble of few
    steps is then as good as that of many (docs/results/levers.md).
    """
    own = {**opened.config["recipe"]["sampling"], "autoguidance_scale": 1.0}
    is_sure = opened.config["recipe"]["diffusion"].get("gaussian_denoiser", False)
    return {**own, "num_sampling_steps": steps} if steps and is_sure else own


def measure(opened: Run, prepared: Prepared, settings: Settings) -> Calibration:
    """Factors by band, then with them the multipliers, all inside the heads of validation people."""
    data, sampling = opened.config["data"], _sampling(opened, settings.steps)
    targets = tuple(t for t in data["targets"] if t not in intensity.SOURCES)
    source = image_source(prepared, "val", targets, data, slice_stride=settings.slice_stride)
    groups = [person.group for person in prepared.index.people]
    source = spread.first_people(source, settings.people, groups)
    point = spread.point_mode(opened)
    at_steps = opened._replace(drawing=stored_method(opened, sampling)[0])
    options = dict(batch_size=settings.batch_size, seed=settings.seed)
    drawer = spread.Drawer(at_steps, point, settings.samples, **options)
    with Progress(len(source) * drawer.evaluations, "calibrate", "evaluation") as progress:
        # Kept in half precision (1 HU): both passes see the same samples without drawing them again.
        drawn = [
            d._replace(samples=d.samples.astype(np.float16))
            for d in spread.volumes(drawer, source, progress)
        ]
    names = prepared.index.names(targets)
    by_target = {t: [d for d in drawn if d.code == code] for code, t in names.items()}
    return Calibration(
        version=calibration.VERSION,
        step=int(opened.step),
        config_sha256=opened.manifest.config_sha256,
        point=point,
        sampling=calibration.sampling_facts(sampling),
        samples=settings.samples,
        seed=settings.seed,
        split_hash=prepared.index.splits.hash,
        people=len({d.subject for d in drawn}),
        slices=max(sum(len(d.point) for d in own) for own in by_target.values()),
        slice_mm=settings.slice_stride * spread.slice_mm(prepared),
        scales_mm=ensemble.SCALES_MM,
        targets={
            target: _target(own, opened, target, prepared.index, settings.slice_stride)
            for target, own in by_target.items()
            if own
        },
    )


def _target(drawn, opened: Run, target: str, index: Index, stride: int) -> TargetCalibration:
    spacing, groups = index.spacing_mm, [person.group for person in index.people]
    errors, spreads = [], []
    for d in drawn:
        errors.append(ensemble.band_power(d.point - d.real, d.head, spacing))
        spreads.append(
            ensemble.band_power(ensemble.deviations(d.samples.astype(np.float32)), d.head, spacing)
        )
    factors = ensemble.factors(errors, spreads)
    ratios = [[] for _ in ensemble.SCALES_MM]
    asked = []
    for d in drawn:
        d = d._replace(samples=d.samples.astype(np.float32))
        mended = ensemble.scaled(ensemble.deviations(d.samples), factors, spacing)
        scales = zip(ratios, ensemble.SCALES_MM, ensemble.SMOOTH_MM, strict=True)
        for found, sd_mm, smooth_mm in scales:
            e, s = (ensemble.blur(x, sd_mm, spacing) for x in (d.point - d.real, mended))
            found.append(ensemble.ratios(e, ensemble.sd_map(s, spacing, smooth_mm))[d.head])
        asked.append(spread.ask_regions(d, factors, opened, target, index, stride))
    q90 = [float(np.quantile(np.concatenate(r), ensemble.LEVEL)) for r in ratios]
    if not np.isfinite(q90).all():
        reason = f"its samples of {target} do not differ, so there is no spread to scale"
        raise UserError("calibrate", reason, "Train it longer")
    return TargetCalibration(tuple(map(float, factors)), tuple(q90), _rules(drawn, asked, groups))


def _rules(drawn, asked, groups) -> dict[str, dict]:
    """groups: of every subject number. Who share a head err together and count as one; of one head alone
    nothing tells what others would do, and its people stand for them.
    """
    units = {g: i for i, g in enumerate(dict.fromkeys(groups[d.subject] for d in drawn))}
    rules = {}
    for name in asked[0].real:
        errors, sds, who = [], [], []
        for d, a in zip(drawn, asked, strict=True):
            members = a.members[name]
            errors.append(a.real[name] - members.mean(0))
            sds.append(members.std(0))
            unit = units[groups[d.subject]] if len(units) > 1 else d.subject
            who.append(np.full(len(sds[-1]), unit))
        rules[name] = regions.fit_rule(*map(np.concatenate, (errors, sds, who)))
    return rules
