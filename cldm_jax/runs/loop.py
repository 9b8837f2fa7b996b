"""The loop of a training: calls of the device, and what is owed between two of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from cldm_jax.data.shards import Prepared
from cldm_jax.runs import record
from cldm_jax.runs.feed import make_batches
from cldm_jax.runs.manifest import Manifest
from cldm_jax.runs.validation import Validation
from cldm_jax.runtime import device, processes
from cldm_jax.runtime.checkpoint import Checkpoints
from cldm_jax.runtime.saving import Saves
from cldm_jax.runtime.signals import StopRequest
from cldm_jax.runtime.train_state import TrainState


def is_due(step: int, total: int, every: int) -> bool:
    return step > 0 and (step == total or step % every == 0)


@dataclasses.dataclass(kw_only=True, eq=False)
class Loop:
    """One training, moved on by `run`: calls, and after each logs, validates, saves. To be closed."""

    config: Any
    workdir: str
    manifest: Manifest
    source: Any  # with `prepared`: to name the slices of a step whose update is not finite
    prepared: Prepared
    state: TrainState
    first_bad: jax.Array
    step: int
    checkpoints: Checkpoints
    writer: Any  # of `open_writer`
    validation: Validation
    stop: StopRequest
    progress: Any  # of `runtime.progress`

    def __post_init__(self):
        self.total, self.is_stopping = self.config.train.num_train_steps, False
        self._saves = Saves(self.checkpoints, self._written)
        self._clock = record.Clock(self.manifest)
        self._unwritten = None  # (step, metrics, first_bad) of a log line

    def close(self) -> None:
        self._saves.close()

    def run(self, programs: dict[int, Callable], feed, rng) -> bool:
        """Whether it came to the last step with nothing owed; False where a signal ended it before.

        programs: steps of a call -> its program, of `steps.make_step`.
        """
        every = self.config.train
        items = feed.next()
        while items is not None and not self.is_stopping:
            length, arrays = items
            self.state, self.first_bad, metrics = programs[length](
                self.state, self.first_bad, arrays, rng, *feed.tables
            )
            self.step += length
            items = feed.next()  # on its way while the device computes
            self._write_log()  # of the call before: the device never waits for a log line
            self._saves.look()
            self.progress.update(length)
            self.is_stopping = self.stop.is_asked()
            if self._is_due(every.log_every):
                self._unwritten = (self.step, metrics, self.first_bad)
            if self._is_due(every.val_every) and not self.is_stopping:
                self.validate()
            if self._is_due(every.save_every) or self.is_stopping:
                self._save()
        return self.step == self.total and not self.is_stopping

    def _is_due(self, every: int) -> bool:
        return is_due(self.step, self.total, every)

    def _write_log(self) -> None:
        if self._unwritten is not None:
            (step, metrics, bad), self._unwritten = self._unwritten, None
            scalars = {f"train/{k}": float(v) for k, v in metrics.items()}
            self.writer.write_scalars(step, scalars)
            self.writer.write_events(step, self._clock.speed(step, self.total))
            self.progress.update(0, loss=f"{scalars['train/loss']:.4f}")
            self._check(bad)

    def _settle(self) -> None:
        """Before the state is looked at or kept: no log line waits, and it is finite."""
        self._write_log()
        self._check(self.first_bad)

    def validate(self) -> None:
        """Left to the resumed run where a signal cuts it short."""
        self._settle()
        found = self.validation.look(self.state, self.stop)
        device.trim_heap()
        if found is None:
            self.is_stopping = True
        elif found[0]:
            scalars = processes.shared(found[0])
            self._saves.wait()  # one at a time
            at = (self.config, self.workdir, self.manifest, self.step)
            record.keep_best(*at, scalars, self.state)
            self.writer.write_validation(self.step, scalars, found[1])

    def _save(self) -> None:
        """Beside the next steps where it may be; at the end and before a stop, first."""
        self._settle()
        self._clock.stamp()
        self._saves.begin(self.step, self.state)
        if self.is_stopping or self.step == self.total:
            self._saves.wait()

    def _written(self, step: int) -> None:
        record.write_manifest(self.workdir, self.manifest, step, finished=False)

    def _check(self, first_bad) -> None:
        """Raises the error of a step whose update was not applied: the state is that before it."""
        bad = int(first_bad)
        if not bad:
            return
        if bad > 1:
            self._saves.begin(bad - 1, self.state)
            self._saves.wait()
        batch = next(make_batches(self.config, self.source, bad - 1, whole=True))
        record.refuse_nonfinite(self.workdir, bad, batch, self.prepared)
