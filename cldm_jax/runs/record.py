"""What a training leaves beside its checkpoints: its config, its manifest (run.json), its best step."""

import importlib.metadata
import itertools
import json
import math
import pathlib
import subprocess
import time

import jax
import numpy as np

from cldm_jax import __version__, files
from cldm_jax.data import pet_ranges
from cldm_jax.data.shards import Prepared
from cldm_jax.errors import UserError
from cldm_jax.runs.inputs import read_manifest, read_run_config, read_run_json
from cldm_jax.runs.manifest import Data, Manifest
from cldm_jax.runtime import device, processes, weights
from cldm_jax.runtime.checkpoint import BEST, Checkpoints

# Fields a resumed run may change: cadence and plumbing, nothing that alters a number. (Steps of one call
# are compiled together, slices on the device decoded there: float rounding.)
MUTABLE = {
    "train.log_every",
    "train.val_every",
    "train.save_every",
    "train.num_threads",
    "train.num_workers",
    "train.steps_per_call",
    "data.on_device",
    "autoencoder.train.train.steps_per_call",
    "autoencoder.train.data.on_device",
    "data.root",
    "data.prepared",
    "autoencoder.workdir",  # its weights are compared
    "encode_batch_size",
    "train.cpu_step_seconds",
    "train.calibrate_samples",
    "train.calibrate_steps",
    "train.calibrate_slice_stride",
    "train.calibrate_people",
}

# Of a latent method's config: itself, and what it trains first.
SECTIONS = ("", "autoencoder.train.")
# Settings that came later -> what runs made before them had.
ADDED = {
    f"{section}{name}": value
    for section in SECTIONS
    for name, value in {
        "recipe.optim.accumulate": 1,
        "recipe.optim.optimizer": "adamw",
        "recipe.model.unet.attention": "xla",
        "recipe.model.attention": "xla",
        "recipe.generator.unet.attention": "xla",
        "recipe.model.linear": False,
        "recipe.model.lapped": False,
        "recipe.diffusion.noise_weight_power": 0.0,
        "recipe.diffusion.young_at": 0.0,
        "recipe.sampling.autoguidance_scale": 1.0,
        "recipe.sampling.jump_from": 0.0,
        "autoencoder.scale_factor": 0.0,
        "init.weights": "",
        "init.key": "",
        "data.source": "pet",
    }.items()
}
# Steps that validate so near to each other, in dB, are not told apart by the slices of a validation.
SAME_DB = 0.1
# How data are made: it is the data that must be the same (`check_same_data`).
MADE_OF = tuple(f"{section}data.{how}." for section in SECTIONS for how in ("simulate", "prepare"))


class Clock:
    """Adds this process's wall and CPU seconds of training to what earlier runs have spent."""

    def __init__(self, manifest: Manifest):
        self.manifest = manifest
        self.wall, self.cpu = time.monotonic(), time.process_time()
        self._seen: tuple[int, float] | None = None  # step, time of the last look at the speed

    def speed(self, step: int, total: int) -> dict[str, float]:
        """Steps a second since the last call, and the hours that are left at that; {} at the first."""
        now, last = time.monotonic(), self._seen
        self._seen = (step, now)
        if last is None or step <= last[0]:
            return {}
        rate = (step - last[0]) / max(now - last[1], 1e-9)
        return {
            "speed/steps_per_second": rate,
            "speed/hours_left": (total - step) / rate / 3600,
        }

    def stamp(self) -> None:
        wall, cpu = time.monotonic(), time.process_time()
        self.manifest.train_seconds += wall - self.wall
        self.manifest.train_cpu_seconds += cpu - self.cpu
        self.wall, self.cpu = wall, cpu


def comparable(config) -> dict:
    """The resolved config as plain JSON types."""
    return json.loads(json.dumps(config.to_dict()))


def flatten(tree: dict) -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    return {name.replace("/", "."): value for name, value in weights.flatten(tree).items()}


def keep_config(workdir, resolved: dict) -> None:
    """Writes the config of a new run; an older one's must be the same (`check_same_config`)."""
    check_same_config(workdir, resolved)
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        files.write_json(path, resolved)


def check_same_config(workdir, resolved: dict) -> None:
    """UserError where `workdir` holds a run of other settings."""
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        return
    old, new = flatten(read_run_config(workdir)), flatten(resolved)
    old = {**{k: v for k, v in ADDED.items() if k in new}, **old}
    differing = [
        f"{k}: {old.get(k)!r} -> {new.get(k)!r}"
        for k in sorted(old.keys() | new.keys())
        if old.get(k) != new.get(k) and k not in MUTABLE and not k.startswith(MADE_OF)
    ]
    if differing:
        raise UserError(
            workdir,
            "holds a run with another config (" + "; ".join(itertools.islice(differing, 8)) + ")",
            "Give another --workdir, or delete this one to start over.",
        )


def check_same_data(workdir, prepared: Prepared, setting: str = "--workdir") -> None:
    """UserError where `workdir`, which `setting` names, holds a run on other data or another split:
    people who are scored later could be among those that it has learned from.
    """
    old = begun(workdir)
    if old is not None and not old.data.is_of(prepared):
        raise UserError(
            workdir,
            f"holds a run on other data, or another split, than {prepared.folder}",
            f"Give the folder that it was trained on, or another {setting}.",
        )


def autoencoder(workdir) -> dict | None:
    """Keywords of the autoencoder that the run in `workdir` began with; None where there is none."""
    old = begun(workdir)
    return old and old.autoencoder


def versions(*packages: str) -> dict[str, str]:
    """Of cldm_jax and of `packages`."""
    return {"cldm_jax": __version__, **{p: importlib.metadata.version(p) for p in packages}}


def git_revision(root=pathlib.Path(__file__).parents[2]) -> str:
    """Of the checkout that this package lies in; installed, it may lie in somebody else's."""
    if not (root / ".git").exists():  # a folder, or a file in a worktree
        return "not a git checkout"
    command = ["git", "describe", "--always", "--dirty"]
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine: an image of a cluster, say
        return "git cannot be run"
    return result.stdout.strip() or "not a git checkout"


def make_manifest(config, workdir, inputs, state, resolved) -> Manifest:
    path = pathlib.Path(workdir) / "run.json"
    old = read_run_json(workdir, path.name) if path.is_file() else {}
    index, source = inputs.prepared.index, config.data.source
    return Manifest(
        method=config.method,
        name=config.name,
        preset=config.preset,
        command=device.command_line(),
        config_sha256=files.sha256_json(resolved),
        git=git_revision(),
        versions=versions("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy"),
        hardware=device.describe(),
        data=Data(
            index.name,
            index.fingerprint,
            index.splits.hash,
            len(index.splits.train),
            index.contrast,
            index.grid,
            index.center,
            index.modalities,
        ),
        autoencoder=inputs.recipe.get("autoencoder"),
        params=int(sum(p.size for p in jax.tree.leaves(state.params))),
        train_seconds=old.get("train_seconds", 0.0),
        train_cpu_seconds=old.get("train_cpu_seconds", 0.0),
        step=old.get("step", 0),
        best=old.get("best"),
        imported=old.get("imported"),
        pet_ranges=old.get("pet_ranges") or pet_ranges.of_people(inputs.prepared, source),
        finished=False,
    )


def first_whole_step(config) -> int:
    """The first step of training `config` that may be its best. A CLDM may learn its mean first and its
    samples, from noisy rows, after it: half of those steps must be done; and it needs its younger self.
    """
    diffusion = config.recipe.get("diffusion", {})
    steps, (first, last) = config.train.num_train_steps, diffusion.get("onestep_share", (0, 0))
    young = math.ceil(diffusion.get("young_at", 0) * steps)
    if last >= first:
        return young
    return max(young, math.ceil((diffusion["onestep_ramp"][1] + 1) / 2 * steps))


def keep_best(config, workdir, manifest: Manifest, step: int, scalars: dict, state) -> None:
    """Keeps the averaged parameters of the latest step that validates within `SAME_DB` of the best, by
    mean PSNR over targets.

    The best alone is chance: a few slices tell steps apart by hundredths of a dB, and the earlier one's
    samples are worse (docs/results/levers.md). What is validated is the mean image, so a step whose
    samples are noise could win: those before `first_whole_step` are passed over. A resumed run meets the
    same validations again and comes to the same choice.
    """
    best = manifest.best or {"step": 0, "psnr": -math.inf}
    psnr = [v for k, v in scalars.items() if k.startswith("val/psnr_") and math.isfinite(v)]
    if not psnr or step < first_whole_step(config) or step <= best["step"]:
        return
    mean = float(np.mean(psnr))
    highest = max(mean, best.get("highest", best["psnr"]))
    if mean < highest - SAME_DB:
        return
    checkpoints = Checkpoints(pathlib.Path(workdir) / BEST, keep=1)
    checkpoints.save(step, {"ema_params": state.ema_params, "frozen": state.frozen})
    checkpoints.close()
    manifest.best = {"step": step, "psnr": mean, "highest": highest}
    write_manifest(workdir, manifest, manifest.step, finished=False)


def refuse_nonfinite(workdir, step: int, batch: dict, prepared) -> None:
    """Raises the UserError of a step whose update is not finite, after naming its slices in
    <workdir>/nonfinite-step-<step>.json.
    """
    people = [prepared.index.people[int(i)].id for i in batch["subject"]]
    slices, labels = batch["slice"].tolist(), batch["label"].tolist()
    is_sound = np.isfinite(batch["source"]).all((1, 2, 3)) & np.isfinite(batch["target"]).all(
        (1, 2, 3)
    )
    items = [
        {"subject": who, "slice": z, "class": label, "input_is_finite": bool(sound)}
        for who, z, label, sound in zip(people, slices, labels, is_sound, strict=True)
    ]
    path = pathlib.Path(workdir) / f"nonfinite-step-{step}.json"
    if processes.is_main():
        files.write_json(path, {"step": step, "items": items})
    bad = sorted({item["subject"] for item in items if not item["input_is_finite"]})
    where = f"in the images of {', '.join(bad)}" if bad else "in the loss or its gradient"
    raise UserError(
        f"step {step}",
        f"NaN or infinity {where}; its update was not applied"
        + (f" and step {step - 1} is saved" if step > 1 else ""),
        f"{path} names the slices. Check them with configs/prepare.py, or lower "
        "config.recipe.optim.learning_rate in a new --workdir.",
    )


def write_manifest(workdir, manifest: Manifest, step: int, finished: bool) -> None:
    manifest.step, manifest.finished = step, finished
    if processes.is_main():
        files.write_json(pathlib.Path(workdir) / "run.json", manifest.to_json())


def begun(workdir) -> Manifest | None:
    """The record of the run in `workdir`; None where there is none yet."""
    path = pathlib.Path(workdir) / "run.json"
    return read_manifest(workdir) if path.is_file() else None


def is_finished(workdir) -> bool:
    old = begun(workdir)
    return old is not None and old.finished
