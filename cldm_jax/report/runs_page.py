"""One self-contained page that compares trainings: costs, curves, settings that differ."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from cldm_jax.report import charts, figures, labels, page

_SMOOTHED = 50  # points of a loss curve, each the mean of the steps between
_OWN = {"name", "preset", "job", "method"}  # columns of the first table, or the same everywhere


class Training(NamedTuple):
    """What one training left in its folder."""

    workdir: str
    manifest: Any  # `runs.manifest.Manifest`
    settings: dict[str, Any]  # {dotted name: value}
    rows: list[dict[str, Any]]  # metrics.jsonl: "step" and scalars


def make_page(trainings: Sequence[Training], *, title: str, command: str) -> str:
    """HTML. Every training is named by its folder: names of the settings may be the same."""
    names = _short_names([t.workdir for t in trainings])
    targets = _targets(trainings)
    drawn = [("Loss of the training batches", _losses(trainings, names))]
    for target in targets:
        heading = f"Validation: PET to {labels.target_label(target)}"
        drawn.append((heading, _validations(trainings, names, target)))
    context = {
        "title": title,
        "command": command,
        "same_data": len({t.manifest.data.fingerprint for t in trainings}) == 1,
        "facts": _facts(trainings, names, targets),
        "figures": [(heading, figures.data_url(f, 110)) for heading, f in drawn if f is not None],
        "names": names,
        "settings": differing(trainings),
    }
    return page.render("runs.html", context)


def differing(trainings: Sequence[Training]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each training) of those that are not the same in all."""
    keys = sorted(set().union(*(t.settings for t in trainings)) - _OWN)
    rows = ((key, [str(t.settings.get(key, "-")) for t in trainings]) for key in keys)
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def best_validation(training: Training, target: str) -> tuple[float, int] | None:
    """(PSNR, step) of the best validation of a target."""
    key = f"val/psnr_{target}"
    found = [(row[key], row["step"]) for row in training.rows if row.get(key) is not None]
    return max(found, default=None)


def _short_names(workdirs: list[str]) -> list[str]:
    """Last parts of the folders, more of them where two are alike."""
    for parts in range(1, 1 + max(w.count("/") + 1 for w in workdirs)):
        names = ["/".join(w.rstrip("/").split("/")[-parts:]) for w in workdirs]
        if len(set(names)) == len(names):
            return names
    return workdirs


def _targets(trainings) -> list[str]:
    keys = {key for t in trainings for row in t.rows for key in row}
    return sorted(k.removeprefix("val/psnr_") for k in keys if k.startswith("val/psnr_"))


def _facts(trainings, names, targets) -> dict[str, list]:
    best = [f"best validation, {labels.target_label(t)}" for t in targets]
    header = ["training", "method", "preset", "parameters", "steps", "hours", "CPU hours", *best]
    header += ["device", "revision"]
    rows = []
    for name, t in zip(names, trainings, strict=True):
        m, total = t.manifest, t.settings.get("train.num_train_steps", 0)
        steps = f"{m.step:,}" if m.finished else f"{m.step:,} of {total:,}, not finished"
        found = [best_validation(t, target) for target in targets]
        rows.append(
            [
                *(name, m.method, m.preset, f"{m.params:,}", steps),
                *(f"{s / 3600:.2f}" for s in (m.train_seconds, m.train_cpu_seconds)),
                *("-" if f is None else f"{f[0]:.2f} dB at {f[1]:,}" for f in found),
                *(_device(m.hardware), m.git),
            ]
        )
    return {"header": header, "rows": rows}


def _device(hardware: dict) -> str:
    kinds = hardware["devices"]
    return f"{len(kinds)} x {kinds[0]}" if len(kinds) > 1 else str(kinds[0])


def _losses(trainings, names) -> Figure | None:
    curves = []
    for t in trainings:
        points = [(r["step"], r["train/loss"]) for r in t.rows if r.get("train/loss") is not None]
        size = max(1, len(points) // _SMOOTHED)
        groups = [points[i : i + size] for i in range(0, len(points), size)]
        curves.append([tuple(sum(v) / len(g) for v in zip(*g, strict=True)) for g in groups])
    return charts.curves_figure(names, curves, "Loss (its meaning is each method's own)", log=True)


def _validations(trainings, names, target: str) -> Figure | None:
    key = f"val/psnr_{target}"
    curves = [[(r["step"], r[key]) for r in t.rows if r.get(key) is not None] for t in trainings]
    return charts.curves_figure(names, curves, "PSNR on validation people, dB", log=False)
