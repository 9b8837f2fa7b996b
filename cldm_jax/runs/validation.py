"""A quick look at validation people while training: PSNR per target, a few images. Not the protocol."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from cldm_jax.data import pipeline
from cldm_jax.runs import inputs as inputs_lib
from cldm_jax.runtime import sharding

SHOWN = 4  # images per grid


def can_validate(config, prepared) -> bool:
    """Whether validation people have any of the targets."""
    return bool(set(inputs_lib.choose_targets(config, prepared)) & set(prepared.held("val")))


class Validation(NamedTuple):
    look: Callable  # (state, stop) -> scalars and images, or None; see `make_validation`
    compile: Callable  # (state) -> None: ahead of the first look


def make_validation(config, prepared, method) -> Validation:
    """What is looked at: called with (state, stop) it gives ({"val/psnr_ct": dB}, {name: images
    [N, H, W', 1]}), or None where a signal came meanwhile: what is left is not worth the seconds a
    stopping process has. The images are source, prediction and target side by side, and one source under
    every class code.

    PSNR in model range (data range 2) inside the head mask, mean over the chosen slices of validation
    people; method's first read-out. Nothing to validate on (no such people): empty results.
    """
    if not can_validate(config, prepared):
        return Validation(lambda state, stop: ({}, {}), lambda state: None)
    targets = inputs_lib.choose_targets(config, prepared)
    source = inputs_lib.image_source(
        prepared, "val", targets, config.data, slice_stride=config.train.val_slice_stride
    )
    batches = list(pipeline.eval_batches(source, config.train.batch_size))
    names = prepared.index.names(targets)
    predict = sharding.Divided(next(iter(method.predict.values())))
    rng = sharding.replicate(jax.random.key(config.seed))

    codes = list(names)
    if len(codes) < 2 or config.method == "autoencoder":  # which gives every image back
        codes = []

    def slim(state):
        """Only what a read-out uses: the optimiser's state is not copied into the program's arguments."""
        return state._replace(params=(), opt_state=(), extra=())

    def given(batch):
        return {k: v for k, v in batch.items() if k not in ("valid", "mask")}

    def every_class(state, first, middle, own):
        """The first rows' sources, and what each class code makes of them. own: predicted as labelled."""
        arrays = given(first)
        made = [middle[:SHOWN]]
        for code in codes:
            image = own
            if (first["label"][:SHOWN] != code).any():
                arrays["label"] = np.full_like(first["label"], code)
                image = np.asarray(predict(state, arrays, rng).image)
            made.append(image[:SHOWN])
        return np.concatenate(made, axis=2)

    def validate(state, stop):
        state = slim(state)
        scores, shown = {}, None
        for batch in batches:
            if stop.is_asked():
                return None
            image = np.asarray(predict(state, given(batch), rng).image)
            shown = image if shown is None else shown
            valid, mask = batch["valid"], batch["mask"]
            error = np.square(np.clip(image, -1, 1) - batch["target"]) * mask
            mse = error.sum((1, 2, 3)) / np.maximum(mask.sum((1, 2, 3)), 1)
            psnr = 10 * np.log10(4 / np.maximum(mse, 1e-10))
            for code, value in zip(batch["label"][valid], psnr[valid], strict=True):
                scores.setdefault(names[int(code)], []).append(float(value))
        first = batches[0]
        middle = first["source"][..., first["source"].shape[-1] // 2, None]
        grid = np.concatenate([middle, shown, first["target"]], axis=2)[:SHOWN]
        scalars = {f"val/psnr_{name}": float(np.mean(v)) for name, v in scores.items()}
        images = {"val/source_prediction_target": grid}
        if codes:
            if stop.is_asked():
                return None
            images["val/source_" + "_".join(names[c] for c in codes)] = every_class(
                state, first, middle, shown
            )
        return scalars, {name: np.clip((x + 1) / 2, 0, 1) for name, x in images.items()}

    return Validation(validate, lambda state: predict.compile(slim(state), given(batches[0]), rng))
