"""SIGTERM and SIGINT end a run after the current step, with a checkpoint; a second one ends it now."""

import signal


class StopRequest:
    """`with StopRequest() as stop:` ... `if stop.signal: save and leave`."""

    def __init__(self):
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    def _handle(self, signum, frame):
        if self.signal is not None:  # second signal: the default action
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.signal = signum

    def __enter__(self):
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *exc):
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    @property
    def exit_code(self) -> int:
        return 128 + (self.signal or 0)
