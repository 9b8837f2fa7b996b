"""Arithmetic of the report: which samples count, ratios by round, fitted exponents."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Sample(NamedTuple):
    """Calls of one worker for about a second; the medians over them."""

    wall_s: float  # of a call
    cpu_s: float  # of the worker, per call
    cores: float  # CPU seconds / wall seconds
    others: float  # cores' worth of other processes on the worker's CPUs meanwhile


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


def best_variant(rounds: dict[str, Sequence[float]]) -> str:
    """The name with the lowest median."""
    return min(rounds, key=lambda name: statistics.median(rounds[name]))


def round_ratios(ours: Sequence[float], peer: Sequence[float]) -> list[float]:
    """ours / peer of the same round; both were measured within seconds of each other."""
    return [a / b for a, b in zip(ours, peer, strict=True)]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the least-squares line through log(values) over log(sizes): b in value = a * size^b."""
    if len(sizes) < 2:
        raise ValueError(f"{len(sizes)} points: an exponent needs two")
    x, y = [math.log(s) for s in sizes], [math.log(v) for v in values]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


def growth(sizes: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Exponents over the whole range and over its upper half, where fixed costs no longer hide it."""
    half = max(2, math.ceil(len(sizes) / 2))
    return {
        "exponent": exponent(sizes, values),
        "exponent_upper": exponent(sizes[-half:], values[-half:]),
    }
