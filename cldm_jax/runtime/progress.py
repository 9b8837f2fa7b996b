"""One progress line with an ETA: tqdm in a terminal, plain lines in a log file."""

import sys
import time

import tqdm

PLAIN_SECONDS = 10


def _clock(seconds: float) -> str:
    m, s = divmod(int(seconds + 0.5), 60)
    h, m = divmod(m, 60)
    return f"{h}h{m:02d}m" if h else f"{m}m{s:02d}s"


class Progress:
    """`with Progress(total, "train ldm", "step") as p: p.update(1, loss="0.12")`.

    In a terminal: one tqdm line. Elsewhere: a plain line every PLAIN_SECONDS and at the end, where the
    last of them does not say it already. Of nothing at all: no line.
    """

    is_shown = True  # False: another process of this run shows it

    def __init__(self, total: int, label: str, unit: str, initial: int = 0):
        self.total, self.label, self.unit = total, label, unit
        self.done = self.first = initial
        self.notes: dict[str, str] = {}
        self.printed: int | None = None  # `done` of the last plain line
        self.start = self.last = time.monotonic()
        self.bar = None
        if sys.stderr.isatty() and self.is_shown:
            self.bar = tqdm.tqdm(total=total, initial=initial, desc=label, unit=unit)

    def update(self, n: int = 1, **notes: str) -> None:
        self.done += n
        self.notes = notes or self.notes
        if self.bar is not None:
            self.bar.update(n)
            if notes:
                self.bar.set_postfix(notes, refresh=False)
        elif time.monotonic() - self.last >= PLAIN_SECONDS:
            self._plain()

    def _plain(self) -> None:
        self.last, self.printed = time.monotonic(), self.done
        if not self.is_shown:
            return
        spent, done = self.last - self.start, self.done - self.first
        eta = _clock(spent / done * (self.total - self.done)) if done else "?"
        notes = "".join(f"  {k} {v}" for k, v in self.notes.items())
        rate = f"{done / spent:.2f}" if spent > 0 else "?"
        print(
            f"{self.label}: {self.done}/{self.total} {self.unit}s  {rate} {self.unit}s/s  "
            f"elapsed {_clock(spent)}  ETA {eta}{notes}",
            file=sys.stderr,
            flush=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.bar is not None:
            self.bar.close()
        elif self.total and self.printed != self.done:
            self._plain()
