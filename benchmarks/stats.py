"""Samples: what is compared of them, and which count."""

from collections.abc import Callable
from typing import NamedTuple


class Sample(NamedTuple):
    """Calls of one worker for about a second; the medians over them."""

    wall_s: float  # of a call
    cpu_s: float  # of the worker, per call
    cores: float  # CPU seconds / wall seconds
    others: float  # cores' worth of other processes on the worker's CPUs meanwhile

    def scaled(self, factor: float) -> "Sample":
        return self._replace(wall_s=self.wall_s * factor, cpu_s=self.cpu_s * factor)


def seconds(sample: Sample, threads: int) -> float:
    """The time that is compared: CPU on one thread, where neighbours only cost wall time; else wall."""
    return sample.cpu_s if threads == 1 else sample.wall_s


def take_clean(measure: Callable[[], Sample], limit: float, tries: int) -> tuple[Sample, int]:
    """The first sample with at most `limit` cores taken by others, or the least disturbed of `tries`.

    Returns it with the number of disturbed samples seen, a kept one included.
    """
    seen = []
    for _ in range(tries):
        seen.append(measure())
        if seen[-1].others <= limit:
            return seen[-1], len(seen) - 1
    return min(seen, key=lambda s: s.others), len(seen)
