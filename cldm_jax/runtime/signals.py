"""SIGTERM and SIGINT end a run after the current step, with a checkpoint; a second one ends it now."""

import signal
import sys

from cldm_jax.runtime import processes


class StopRequest:
    """`with StopRequest() as stop:` prepare; `stop.hold()`; then `if stop.is_asked(): save and leave`.

    Before `hold` there is nothing to save, and a signal ends the process at once.
    """

    def __init__(self):
        self.signal: int | None = None
        self._is_held = False
        self._vote: processes.Vote | None = None
        self._previous: dict[int, object] = {}

    def _handle(self, signum, frame):
        if self.signal is not None:  # second signal: the default action
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.signal = signum
        if not self._is_held:
            self._end(signum)

    def _end(self, signum) -> None:
        print(f"stopped by signal {signum}; nothing new to save", flush=True)
        processes.leave(self.exit_code)
        sys.exit(self.exit_code)

    def hold(self) -> None:
        """From here on a signal waits in `signal` for the step to end."""
        self._is_held, self._vote = True, processes.Vote()

    def release(self) -> None:
        """There is nothing more to save: a signal ends the process at once, and so does one that came."""
        asked = self.is_asked()
        self._is_held = False
        if asked:
            self._end(self.signal)

    def is_asked(self) -> bool:
        """Whether a signal came, to whichever process of this run: all ask at the same places and hear
        the same. `signal` is then that one.
        """
        if self._vote is None:
            return bool(self.signal)
        asked = self._vote(self.signal or 0)
        self.signal = asked or self.signal
        return bool(asked)

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
