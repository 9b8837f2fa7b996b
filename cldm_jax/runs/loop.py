"""The loop of a training: calls of the device, and what is owed between two of them."""

import functools
from collections.abc import Callable

from cldm_jax.runs import record
from cldm_jax.runs.feed import make_batches
from cldm_jax.runtime import device, processes
from cldm_jax.runtime.saving import Saves


class Loop:
    """State and step of one training, moved on by `run`.

    hooks are looked at after every call and paid what they are owed, in their order: `Log`, `Validate`,
    `Save`. `refuse(step)` raises the error of a step whose update is not finite.
    """

    def __init__(self, state, first_bad, step: int, total: int, stop):
        self.state, self.first_bad = state, first_bad
        self.step, self.total, self.stop = step, total, stop
        self.is_stopping = False
        self.hooks: list = []

    def run(self, programs: dict[int, Callable], feed, rng, progress) -> bool:
        """Whether it came to the last step with nothing owed; False where a signal ended it before.

        programs: steps of a call -> its program, of `steps.make_step`.
        """
        items = feed.next()
        while items is not None and not self.is_stopping:
            length, arrays = items
            self.state, self.first_bad, metrics = programs[length](
                self.state, self.first_bad, arrays, rng, *feed.tables
            )
            self.step += length
            items = feed.next()  # on its way while the device computes
            for hook in self.hooks:
                hook.look(self)
            progress.update(length)
            self.is_stopping = self.stop.is_asked()
            for hook in self.hooks:
                hook.pay(self, metrics)
        return self.step == self.total and not self.is_stopping

    def is_due(self, every: int) -> bool:
        return is_due(self.step, self.total, every)


def is_due(step: int, total: int, every: int) -> bool:
    return step > 0 and (step == total or step % every == 0)


class Log:
    """Scalars of a step. They are fetched after the next call is handed over: the device never waits for
    a log line.
    """

    def __init__(self, every: int, writer, clock, progress, refuse: Callable[[int], None]):
        self.every, self._writer, self._clock = every, writer, clock
        self._progress, self._refuse = progress, refuse
        self._pending = None  # (step, metrics, first_bad)

    def look(self, loop: Loop) -> None:
        """Writes what waits."""
        if self._pending is not None:
            (step, metrics, bad), self._pending = self._pending, None
            scalars = {f"train/{k}": float(v) for k, v in metrics.items()}
            self._writer.write_scalars(step, scalars)
            self._writer.write_events(step, self._clock.speed(step, loop.total))
            self._progress.update(0, loss=f"{scalars['train/loss']:.4f}")
            self.check(bad)

    def pay(self, loop: Loop, metrics) -> None:
        if loop.is_due(self.every):
            self._pending = (loop.step, metrics, loop.first_bad)

    def settle(self, loop: Loop) -> None:
        """Before the state is looked at or kept: nothing waits, and it is finite."""
        self.look(loop)
        self.check(loop.first_bad)

    def check(self, bad) -> None:
        if int(bad):
            self._refuse(int(bad))


class Validate:
    """Validation, and the best step so far; left to the resumed run where a signal cuts it short.

    settle: of `Log`. keep(step, scalars, state) keeps the best step.
    """

    def __init__(self, every: int, settle, validation, writer, keep, saves):
        self.every, self._settle, self._validation = every, settle, validation
        self._writer, self._keep, self._saves = writer, keep, saves

    def look(self, loop: Loop) -> None:
        pass

    def pay(self, loop: Loop, metrics=None) -> None:
        if not loop.is_due(self.every) or loop.is_stopping:
            return
        self._settle(loop)
        found = self._validation(loop.state, loop.stop)
        device.trim_heap()
        if found is None:
            loop.is_stopping = True
        elif found[0]:
            scalars = processes.shared(found[0])
            self._saves.wait()  # one at a time
            self._keep(loop.step, scalars, loop.state)
            self._writer.write_validation(loop.step, scalars, found[1])


class Save:
    """Checkpoints, where they may beside the next steps; at the end and before a stop, first."""

    def __init__(self, every: int, settle, clock, saves):
        self.every, self._settle, self._clock, self._saves = every, settle, clock, saves

    def look(self, loop: Loop) -> None:
        self._saves.look()

    def pay(self, loop: Loop, metrics=None) -> None:
        if loop.is_stopping or loop.is_due(self.every):
            self._settle(loop)
            self._clock.stamp()
            self._saves.begin(loop.step, loop.state)
            if loop.is_stopping or loop.step == loop.total:
                self._saves.wait()


class Kept:
    """What a training leaves on the disk on its way: the hooks of its loop, and its end at a NaN."""

    def __init__(self, config, workdir, manifest, source, prepared, loop: Loop, checkpoints):
        self.config, self.workdir, self.manifest = config, workdir, manifest
        self.source, self.prepared, self.loop = source, prepared, loop
        self.saves = Saves(checkpoints, self._written)

    def hooks(self, writer, validation, progress) -> Validate:
        """Gives the loop its hooks; returns the one that a resumed run may owe something at once."""
        every, clock = self.config.train, record.Clock(self.manifest)
        log = Log(every.log_every, writer, clock, progress, self.refuse)
        keep = functools.partial(record.keep_best, self.config, self.workdir, self.manifest)
        validate = Validate(every.val_every, log.settle, validation, writer, keep, self.saves)
        save = Save(every.save_every, log.settle, clock, self.saves)
        self.loop.hooks = [log, validate, save]
        return validate

    def refuse(self, bad: int) -> None:
        """Raises the error of step `bad`, whose update was not applied: the state is that before it."""
        good = bad - 1
        if good:
            self.saves.begin(good, self.loop.state)
            self.saves.wait()
        batch = next(make_batches(self.config, self.source, good, whole=True))
        record.refuse_nonfinite(self.workdir, bad, batch, self.prepared)

    def _written(self, step: int) -> None:
        record.write_manifest(self.workdir, self.manifest, step, finished=False)
