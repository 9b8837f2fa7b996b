"""How a trained CLDM trades error for sharpness over K and DDIM steps; is its spread honest?"""

import pathlib

import numpy as np

from cldm_jax import files
from cldm_jax.errors import UserError
from cldm_jax.metrics import calibration
from cldm_jax.report import charts, figures
from cldm_jax.runs.readouts import open_run, predict_rows
from cldm_jax.runtime import device
from cldm_jax.runtime.progress import Progress
from cldm_jax.scoring import through_plane
from cldm_jax.scoring.scorer import Scorer, choose_targets, shared_data, shared_source

SHOWN = ("psnr", "ssim", "sharpness", "bone_edge", "sulcal_csf")


def run(config, workdir: str) -> None:
    """Samples `config.run` (a training's workdir or an exported folder) with every number of steps, and
    one whole volume with noise that is more and less correlated through plane. Writes sweep.json and its
    figures into `workdir`.

    Draws are independent: sample k of a slice comes from seed k. UserError where the run has no samples,
    or was trained on other data and `config.other_data` does not allow that.
    """
    own = open_run(config.run)
    trained = own.config
    if trained["method"] != "ldm":
        raise UserError(config.run, f"is a {trained['method']} run", "Give a latent diffusion run.")
    prepared = shared_data(config, [own])
    targets = choose_targets(config, [own], prepared)
    names = prepared.index.names(targets)
    scorer = Scorer(config, prepared, names, reads=shared_source([own]))
    source = scorer.source(trained["data"]["context"])
    points = []
    for mode in (m for m in own.method.predict if m in ("onestep", "mirror")):
        images = predict_rows(own, mode, source, batch_size=config.batch_size, seed=0).images
        points += _points(scorer, images, mode, steps=1, samples=0)
    sampled, spread = _sample(config, trained, scorer, source)
    found = through_plane.measure(config, trained, prepared, names)
    record = {
        "run": str(config.run),
        "checkpoint": own.step,
        "command": device.command_line(),
        "hardware": device.describe(),
        "people": len({s["patient"] for s in scorer.scores}),
        "slices": len(source),
        "protocol": scorer.protocol.name,
        "points": points + sampled,
        "calibration": spread,
        "through_plane": found.rows,
    }
    folder = pathlib.Path(workdir)
    files.write_json(folder / "sweep.json", record)
    for target in targets:
        figure = charts.sweep_figure(record, target)
        figures.save(figure, folder / f"{target}_sweep.png", indexed=False)
    for code, target in names.items():
        if target in found.planes:
            planes = {
                k: scorer.units(code, found.subject, v) for k, v in found.planes[target].items()
            }
            figure = figures.planes_figure(planes, config.windows[target].to_dict(), found.aspect)
            figures.save(figure, folder / f"{target}_through_plane.png", indexed=True)
    _print(record)
    print(f"sweep: {folder / 'sweep.json'}")


def _sample(config, trained: dict, scorer, source) -> tuple[list[dict], list[dict]]:
    """(points, calibration of `config.main_steps`) of every number of steps and samples."""
    draws = {n: config.num_samples for n in config.num_sampling_steps}
    draws[config.main_steps] = config.main_samples
    total = len(source) * sum(n * k for n, k in draws.items())
    points, spread = [], []
    with Progress(total, "sweep", "evaluation") as progress:
        options = dict(batch_size=config.batch_size, progress=progress)
        for steps, samples in sorted(draws.items()):
            sampling = {**trained["recipe"]["sampling"], "num_sampling_steps": steps}
            opened = open_run(config.run, {**sampling, "num_samples": (1,)})
            made = [
                predict_rows(opened, "sample", source, seed=k, **options).images
                for k in range(samples)
            ]
            stack = np.stack(made)
            for k in (2**i for i in range(int(np.log2(samples)) + 1)):
                mean = stack[:k].mean(0)
                points += _points(scorer, mean, f"mean{k}_steps{steps}", steps=steps, samples=k)
            if steps == config.main_steps:
                spread = _calibration(scorer, stack)
    return points, spread


def _points(scorer, images, name: str, **facts) -> list[dict]:
    """One row per target: means over people of the metrics in SHOWN."""
    before = len(scorer.scores)
    scorer.add("sweep", name, images)
    rows = scorer.scores[before:]
    points = []
    for target in dict.fromkeys(r["target"] for r in rows):
        point = {"name": name, "target": target, **facts}
        for metric in SHOWN:
            values = [r["value"] for r in rows if (r["target"], r["metric"]) == (target, metric)]
            values = [v for v in values if np.isfinite(v)]
            point[metric] = float(np.mean(values)) if values else None
        points.append(point)
    return points


def _calibration(scorer, stack) -> list[dict]:
    """Per target, all scored pixels in the mask, metric units."""
    out = []
    for code, target in scorer.names.items():
        errors, sds = [], []
        for subject, c, rows in scorer.patients():
            if c != code:
                continue
            samples = scorer.units(code, subject, stack[:, rows])
            real = scorer.units(code, subject, scorer.real[rows])
            mask = scorer.masks[rows]
            errors.append((samples.mean(0) - real)[mask])
            sds.append(samples.std(0, ddof=1)[mask])
        if errors:
            row = calibration.summarise(np.concatenate(errors), np.concatenate(sds), len(stack))
            out.append({"target": target, "samples": len(stack), **row})
    return out


def _print(record: dict) -> None:
    for p in record["points"]:
        print(f"{p['target']} {p['name']}: {p['psnr']:.2f} dB, sharpness {p['sharpness']:.2f}")
    for t in record["through_plane"]:
        print(
            f"{t['target']} {t['name']}: slices change {t['consistency']:.2f} times the real ones"
        )
    for c in record["calibration"]:
        print(f"{c['target']}: 90 % interval covers {100 * c['coverage']['0.9']:.0f} % of pixels")
