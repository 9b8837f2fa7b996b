"""The images that opened runs predict for a set of slices, each in one of its read-outs."""

import functools
import time
from typing import NamedTuple

import jax
import numpy as np

from cldm_jax.data.pipeline import SliceSource
from cldm_jax.errors import UserError
from cldm_jax.runs.stored import Run
from cldm_jax.runtime import sharding
from cldm_jax.runtime.writers import read_rows


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
    label = source.keys["label"]
    images, sd, seconds = None, None, None
    for run in {id(r): r for r in entrant.runs.values()}.values():
        wanted = [codes[target] for target, r in entrant.runs.items() if r is run]
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
