"""A quick look at validation people while training: PSNR per target, a few images. Not the protocol."""

import jax
import numpy as np

from cldm_jax.data import pipeline
from cldm_jax.runs import inputs as inputs_lib
from cldm_jax.runtime import sharding

SHOWN = 4  # images per grid


def can_validate(config, prepared) -> bool:
    """Whether validation people have any of the targets."""
    return bool(set(inputs_lib.choose_targets(config, prepared)) & set(prepared.held("val")))


class Validation:
    """Slices of validation people and the method's first read-out of them. With nothing to validate on
    (`can_validate`) there is nothing to see.
    """

    def __init__(self, config, prepared, method):
        self._batches = []
        if not can_validate(config, prepared):
            return
        targets = inputs_lib.choose_targets(config, prepared)
        source = inputs_lib.image_source(
            prepared, "val", targets, config.data, slice_stride=config.train.val_slice_stride
        )
        self._batches = list(pipeline.eval_batches(source, config.train.batch_size))
        self._names = prepared.index.names(targets)
        # An autoencoder gives every image back, whatever the code.
        self._shows_codes = len(self._names) > 1 and config.method != "autoencoder"
        self._program = sharding.Divided(next(iter(method.predict.values())))
        self._rng = sharding.replicate(jax.random.key(config.seed))

    def compile(self, state) -> None:
        """Ahead of the first look."""
        if self._batches:
            self._program.compile(_slim(state), _given(self._batches[0]), self._rng)

    def look(self, state, stop):
        """({"val/psnr_ct": dB}, {name: images [N, H, W', 1]}), or None where a signal came meanwhile:
        what is left is not worth the seconds a stopping process has. The images are source, prediction
        and target side by side, and one source under every class code.
        """
        if not self._batches:
            return {}, {}
        state, scores, shown = _slim(state), {}, None
        for batch in self._batches:
            if stop.is_asked():
                return None
            image = self._predict(state, _given(batch))
            shown = image if shown is None else shown
            psnr, valid = _psnr(image, batch), batch["valid"]
            for code, value in zip(batch["label"][valid], psnr[valid], strict=True):
                scores.setdefault(self._names[int(code)], []).append(float(value))
        first = self._batches[0]
        middle = first["source"][..., first["source"].shape[-1] // 2, None]
        grid = np.concatenate([middle, shown, first["target"]], axis=2)[:SHOWN]
        images = {"val/source_prediction_target": grid}
        if self._shows_codes:
            if stop.is_asked():
                return None
            name = "val/source_" + "_".join(self._names.values())
            images[name] = self._every_class(state, first, middle, shown)
        scalars = {f"val/psnr_{name}": float(np.mean(v)) for name, v in scores.items()}
        return scalars, {name: np.clip((x + 1) / 2, 0, 1) for name, x in images.items()}

    def _predict(self, state, arrays: dict) -> np.ndarray:
        return np.asarray(self._program(state, arrays, self._rng).image)

    def _every_class(self, state, first: dict, middle, own) -> np.ndarray:
        """The first rows' sources, and what each class code makes of them. own: predicted as labelled."""
        made = [middle[:SHOWN]]
        for code in self._names:
            image = own
            if (first["label"][:SHOWN] != code).any():
                label = np.full_like(first["label"], code)
                image = self._predict(state, {**_given(first), "label": label})
            made.append(image[:SHOWN])
        return np.concatenate(made, axis=2)


def _slim(state):
    """Only what a read-out uses: the optimiser's state is not copied into the program's arguments."""
    return state._replace(params=(), opt_state=(), extra=())


def _given(batch: dict) -> dict:
    return {k: v for k, v in batch.items() if k not in ("valid", "mask")}


def _psnr(image, batch: dict) -> np.ndarray:
    """[B], in model range (data range 2) inside the head mask."""
    error = np.square(np.clip(image, -1, 1) - batch["target"]) * batch["mask"]
    mse = error.sum((1, 2, 3)) / np.maximum(batch["mask"].sum((1, 2, 3)), 1)
    return 10 * np.log10(4 / np.maximum(mse, 1e-10))
