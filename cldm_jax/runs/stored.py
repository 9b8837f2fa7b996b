"""Trained runs and exported folders: read, verified, opened for prediction."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from cldm_jax.errors import UserError
from cldm_jax.methods import latent_diffusion
from cldm_jax.methods.base import Method
from cldm_jax.methods.codec import Codec, make_codec
from cldm_jax.methods.registry import make_method
from cldm_jax.models.conv import prepare_params
from cldm_jax.runs import calibration as calibration_lib
from cldm_jax.runs import manifest as manifest_lib
from cldm_jax.runs.calibration import Calibration
from cldm_jax.runs.inputs import read_manifest, read_run_config, scheduled
from cldm_jax.runs.manifest import Manifest
from cldm_jax.runtime import weights
from cldm_jax.runtime.checkpoint import BEST, restore_for_inference
from cldm_jax.runtime.train_state import TrainState
from cldm_jax.runtime.writers import METRICS


class Stored(NamedTuple):
    """What a training or an exported folder holds of a model."""

    config: dict[str, Any]
    manifest: Manifest
    step: int
    params: dict  # averaged; as stored, in no machine's form
    frozen: dict


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
    # `method` with the sampling settings of the calibrated ensemble's own, where these are others.
    drawing: Method | None = None


def open_run(workdir: str, sampling: Mapping[str, Any] | None = None) -> Run:
    """Opens the checkpoint that a training kept (`record.keep_best`), or the newest one where nothing was
    validated (damaged ones are passed over), or a folder that `export` made. `sampling` replaces its
    sampling settings.
    """
    stored = read_stored(workdir)
    if weights.is_exported(workdir):
        _check_fit(workdir, stored)
    config, manifest, step, params, frozen = stored
    method, codec = stored_method(stored, sampling)
    # Kernels in the form that inference wants: once per checkpoint, not once per call. Of the younger
    # self in every call: only samples need it, and everyone would pay 4 times its memory.
    params = prepare_params(params)
    frozen = {k: v if k == latent_diffusion.YOUNG else prepare_params(v) for k, v in frozen.items()}
    state = TrainState(np.int32(step), (), params, (), (), frozen)
    found, why = stored_calibration(workdir, stored, sampling)
    drawing = None
    if found is not None:
        used = _sampling(stored, sampling)
        own = {k: found.sampling[k] for k in calibration_lib.OWN}
        if any(used[k] != value for k, value in own.items()):
            drawing, _ = stored_method(stored, {**used, **own})
    made = (method, state, codec, found, why, drawing)
    return Run(str(workdir), config["name"], config, manifest, step, *made)


def stored_calibration(
    workdir: str, stored: Stored, sampling: Mapping[str, Any] | None = None
) -> tuple[Calibration | None, str]:
    """(calibration of the stored weights with these sampling settings or None, why None)."""
    used = _sampling(stored, sampling)
    if used is None:
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
    why = calibration_lib.misfit(found, stored.step, stored.manifest.config_sha256, used)
    return (None, why) if why else (found, "")


def _sampling(stored: Stored | Run, replaced: Mapping[str, Any] | None) -> dict | None:
    """The sampling settings of a model, or those in their place; None where it draws no samples."""
    own = stored.config["recipe"].get("sampling")
    if own is None:
        return None
    return {**calibration_lib.SAMPLING_BEFORE, **(own if replaced is None else replaced)}


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
        return Stored(config, training, card["step"], tree["params"], tree.get("frozen", {}))
    config = read_run_config(workdir)
    found = restore_for_inference(f"{workdir}/{BEST}")
    found = found or restore_for_inference(f"{workdir}/checkpoints")
    if found is None:
        raise UserError(
            workdir, "holds no checkpoint", "Train it first (the same command that made it)."
        )
    manifest = read_manifest(workdir)
    if manifest.best and manifest.best["step"] != found[0]:
        had = f"step {manifest.best['step']}, which was kept"
        logging.warning("%s: %s, is not in %s/: step %d answers", workdir, had, BEST, found[0])
    return Stored(config, manifest, *found)


def stored_method(
    stored: Stored | Run, sampling: Mapping[str, Any] | None = None
) -> tuple[Method, Codec | None]:
    """The stored or opened model's method and, for a latent one, its codec."""
    config = stored.config
    recipe = scheduled(config["recipe"], config["train"]["num_train_steps"])
    if used := _sampling(stored, sampling):
        recipe["sampling"] = used
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
