"""Trained runs, opened for prediction, and the images they predict for a set of slices."""

import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from cldm_jax.data.pipeline import SliceSource
from cldm_jax.errors import UserError
from cldm_jax.methods.base import Method
from cldm_jax.methods.codec import Codec, make_codec
from cldm_jax.methods.registry import make_method
from cldm_jax.models.conv import prepare_params
from cldm_jax.runs import calibration as calibration_lib
from cldm_jax.runs import manifest as manifest_lib
from cldm_jax.runs.calibration import Calibration
from cldm_jax.runs.inputs import read_manifest, read_run_config, scheduled
from cldm_jax.runs.manifest import Manifest
from cldm_jax.runtime import sharding, weights
from cldm_jax.runtime.checkpoint import BEST, restore_for_inference
from cldm_jax.runtime.train_state import TrainState
from cldm_jax.runtime.writers import METRICS, read_rows

# Settings that trainings of earlier versions do not name, at the value they had then.
SAMPLING_BEFORE = {"noise_slices": 0.0}


class Run(NamedTuple):
    """A training's result, ready to predict with its averaged parameters."""

    workdir: str
    name: str
    config: dict[str, Any]
    manifest: Manifest
    step: int
    method: Method
    state: TrainState
    codec: Codec | None  # the frozen autoencoder of a latent method
    calibration: Calibration | None = None  # of these weights and sampling settings
    uncalibrated: str = ""  # why there is none
    # `method` at the DDIM steps of the calibrated ensemble, where these are others.
    drawing: Method | None = None


class Entrant(NamedTuple):
    """Runs scored as one method: one for all targets, or one for each (CycleGAN)."""

    name: str
    runs: dict[str, Run]  # by target

    @property
    def first(self) -> Run:
        """What its runs have in common can be read off any of them."""
        return next(iter(self.runs.values()))


class ReadOut(NamedTuple):
    """Predictions for the rows of a source, in its order."""

    images: np.ndarray  # [N, H, W] model range
    sd: np.ndarray | None  # [N, H, W]
    seconds_per_slice: float | None  # without compilation; None where one batch was all


class Stored(NamedTuple):
    """What a training or an exported folder holds of a model."""

    config: dict[str, Any]
    manifest: Manifest
    step: int
    params: dict  # averaged; as stored, in no machine's form
    frozen: dict


def open_run(workdir: str, sampling: Mapping[str, Any] | None = None) -> Run:
    """Opens a training's checkpoint with the best validation, or the newest one where nothing was
    validated (damaged ones are passed over), or a folder that `export` made. `sampling` replaces its
    sampling settings.
    """
    stored = read_stored(workdir)
    if weights.is_exported(workdir):
        _check_fit(workdir, stored)
    config, manifest, step, params, frozen = stored
    method, codec = stored_method(stored, sampling)
    # Kernels in the form that inference wants: once per checkpoint, not once per call.
    params, frozen = prepare_params(params), prepare_params(frozen)
    state = TrainState(np.int32(step), (), params, (), (), frozen)
    found, why = stored_calibration(workdir, stored, sampling)
    drawing = None
    if found is not None:
        used = config["recipe"]["sampling"] if sampling is None else sampling
        steps = found.sampling["num_sampling_steps"]
        if steps != used["num_sampling_steps"]:
            drawing, _ = stored_method(stored, {**used, "num_sampling_steps": steps})
    made = (method, state, codec, found, why, drawing)
    return Run(str(workdir), config["name"], config, manifest, step, *made)


def stored_calibration(
    workdir: str, stored: Stored, sampling: Mapping[str, Any] | None = None
) -> tuple[Calibration | None, str]:
    """(calibration of the stored weights with these sampling settings or None, why None)."""
    own = stored.config["recipe"].get("sampling")
    if own is None:
        return None, "it draws no samples"
    if weights.is_exported(workdir):
        card = weights.read_card(workdir)
        listed = calibration_lib.FILE in card["files"]
        data = weights.read_file(workdir, card, calibration_lib.FILE) if listed else None
    else:
        data = calibration_lib.read_bytes(workdir)
    found, why = calibration_lib.read(data)
    if found is None:
        return None, why
    facts = {**SAMPLING_BEFORE, **(own if sampling is None else sampling)}
    why = calibration_lib.misfit(found, stored.step, stored.manifest.config_sha256, facts)
    return (None, why) if why else (found, "")


def read_stored(workdir: str) -> Stored:
    """Of a training's workdir or an exported folder, verified. Raises UserError for anything else."""
    if weights.is_exported(workdir):
        card = weights.read_card(workdir)
        weights.read_file(workdir, card, METRICS)  # for `learning_curves`
        tree = weights.load(workdir, card)
        # People are not handed on: evaluation looks here where it is not told of a dataset.
        data = {**card["config"]["data"], "prepared": f"{workdir}/prepared", "root": ""}
        config = {**card["config"], "data": data}
        training = manifest_lib.parse(workdir, card["training"])
        config = _with_held_targets(config, training)
        return Stored(config, training, card["step"], tree["params"], tree.get("frozen", {}))
    config = read_run_config(workdir)
    found = restore_for_inference(f"{workdir}/{BEST}")
    found = found or restore_for_inference(f"{workdir}/checkpoints")
    if found is None:
        raise UserError(
            workdir, "holds no checkpoint", "Train it first (the same command that made it)."
        )
    manifest = read_manifest(workdir)
    return Stored(_with_held_targets(config, manifest), manifest, *found)


def _with_held_targets(config: dict, manifest: Manifest) -> dict:
    """Earlier versions trained for targets that no one had, and wrote them down."""
    targets = [t for t in config["data"]["targets"] if t in manifest.data.modalities]
    return {**config, "data": {**config["data"], "targets": targets}}


def stored_method(
    stored: Stored | Run, sampling: Mapping[str, Any] | None = None
) -> tuple[Method, Codec | None]:
    """The stored or opened model's method and, for a latent one, its codec."""
    config = stored.config
    recipe = scheduled(config["recipe"], config["train"]["num_train_steps"])
    if "sampling" in recipe:
        own = recipe["sampling"] if sampling is None else sampling
        recipe["sampling"] = {**SAMPLING_BEFORE, **own}
    codec = None
    if config["data"]["kind"] == "latents":
        recipe["autoencoder"] = stored.manifest.autoencoder
        codec = make_codec(recipe["autoencoder"])
    return make_method(config["method"], **recipe), codec


def _check_fit(workdir: str, stored: Stored) -> None:
    """Traces the first read-out. Raises UserError where that fails: the settings or the arrays are not
    those of this code's networks, because another version exported them.
    """
    try:
        method, _ = stored_method(stored)
        state = TrainState(np.int32(stored.step), (), stored.params, (), (), stored.frozen)
        h, w = stored.manifest.data.grid.size
        batch = {
            "source": np.zeros((1, h, w, stored.config["data"]["context"]), np.float32),
            **{key: np.zeros(1, np.int32) for key in ("label", "subject", "slice")},
        }
        predict = next(iter(method.predict.values()))
        jax.eval_shape(predict, state, batch, jax.random.key(0))
    except Exception as error:  # whatever another version's card runs into
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        reason = f"does not fit this version of the code ({message})"
        version = stored.manifest.versions["cldm_jax"]
        remedy = f"Use cldm_jax {version}, or export the run again."
        raise UserError(workdir, reason, remedy) from error


def make_entrants(runs: list[Run], targets: tuple[str, ...]) -> list[Entrant]:
    """Runs of one name become one entrant. Raises UserError where two would make the same target, or
    where a run makes none of them.
    """
    entrants: dict[str, dict[str, Run]] = {}
    for run in runs:
        made = [t for t in targets if t in run.config["data"]["targets"]]
        if not made:
            reason = f"was trained for {', '.join(run.config['data']['targets'])} only"
            raise UserError(run.workdir, reason, "Leave it out, or change config.targets.")
        by_target = entrants.setdefault(run.name, {})
        for target in made:
            if target in by_target:
                raise UserError(
                    run.workdir,
                    f"has the name {run.name!r} and the target {target} of {by_target[target].workdir}",
                    "Train one of them under another name: --config.name=NAME.",
                )
            by_target[target] = run
    return [Entrant(name, by_target) for name, by_target in entrants.items()]


def learning_curves(entrant: Entrant) -> dict[str, list[tuple[float, float]]]:
    """{target: [(share of training, PSNR on validation people)]}, as the trainings logged it."""
    curves = {}
    for target, run in entrant.runs.items():
        rows, total = read_rows(run.workdir), run.config["train"]["num_train_steps"]
        key = f"val/psnr_{target}"
        curves[target] = [(r["step"] / total, r[key]) for r in rows if r.get(key) is not None]
    return curves


class Rows:
    """Some rows of a source."""

    def __init__(self, source: SliceSource, rows: np.ndarray):
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return self._source.read(self._rows[rows])

    @functools.cached_property
    def keys(self) -> dict[str, np.ndarray]:
        return {k: v[self._rows] for k, v in self._source.keys.items()}


def predict_entrant(
    entrant: Entrant, mode: str, source: SliceSource, codes: dict[str, int], **options
) -> ReadOut:
    """`predict_rows` with each target's own run; rows of a target it has none for are NaN.

    codes: class code of each target. options: of `predict_rows`.
    """
    by_run = {id(r): (r, []) for r in entrant.runs.values()}
    for target, run in entrant.runs.items():
        by_run[id(run)][1].append(codes[target])
    label = source.keys["label"]
    images, sd, seconds = None, None, None
    for run, wanted in by_run.values():
        rows = np.flatnonzero(np.isin(label, wanted))
        if not len(rows):  # nobody here has this target
            continue
        out = predict_rows(run, mode, Rows(source, rows), **options)
        if images is None:
            images = np.full((len(label), *out.images.shape[1:]), np.nan, np.float32)
            sd = None if out.sd is None else images.copy()
        images[rows] = out.images
        if sd is not None:
            sd[rows] = out.sd
        seconds = out.seconds_per_slice if seconds is None else seconds
    if images is None:
        reason = f"none of these people has {' or '.join(entrant.runs)}"
        raise UserError(entrant.first.workdir, reason, "Leave the run out.")
    return ReadOut(images, sd, seconds)


def predict_rows(run: Run, mode: str, source: SliceSource, *, devices=None, **options) -> ReadOut:
    """Read-out `mode` of `run` for every row of `source`: see `Predictor`."""
    return Predictor(run, mode, devices)(source, **options)


class Predictor:
    """A read-out of a run, compiled once, on `devices` (default all of all processes, which must then
    make the same calls together).
    """

    def __init__(self, run: Run, mode: str, devices=None):
        self._evaluations, self._devices = run.method.evaluations[mode], devices
        self._predict = sharding.Divided(run.method.predict[mode], devices)
        self._state = sharding.replicate(run.state, devices)

    def __call__(
        self,
        source: SliceSource,
        *,
        batch_size: int,
        seed: int,
        member: int = 0,
        labels: np.ndarray | None = None,
        source_rows: np.ndarray | None = None,
        progress=None,
    ) -> ReadOut:
        """For every row of `source`.

        labels [N]: class codes instead of the rows' own. source_rows [N]: rows whose source image is
        given instead of the row's own (the source-shuffle control). The noise of a row depends on (seed,
        member, subject, slice) only; member 0 is what a single sample is.
        """
        key = jax.random.key(seed)
        rng = sharding.replicate(jax.random.fold_in(key, member) if member else key, self._devices)
        count = len(source)
        images, sds, times = [], [], []
        for start in range(0, count, batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), count - 1)
            batch = source.read(rows)
            if labels is not None:
                batch["label"] = labels[rows]
            if source_rows is not None:
                batch["source"] = source.read(source_rows[rows])["source"]
            began = time.monotonic()
            prediction = jax.block_until_ready(self._predict(self._state, batch, rng))
            times.append(time.monotonic() - began)
            keep = min(batch_size, count - start)
            images.append(np.asarray(prediction.image)[:keep, ..., 0])
            if prediction.sd is not None:
                sds.append(np.asarray(prediction.sd)[:keep, ..., 0])
            if progress is not None:
                progress.update(keep * self._evaluations)
        timed = times[1:]  # the first batch compiles
        seconds = float(np.median(timed)) / batch_size if timed else None
        return ReadOut(np.concatenate(images), np.concatenate(sds) if sds else None, seconds)
