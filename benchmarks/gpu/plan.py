"""How M minutes are divided over the parts. Standard library only."""

import math
import time

# Shares of the time, where all are asked for.
WEIGHTS = {"check": 3.0, "race": 6.0, "train": 9.0, "memory": 4.0}
END = 10.0  # seconds kept at the end for a killed part to go and the last files to be written
END_SHARE = 0.1  # of everything, where that is less
NOTICE = 8.0  # seconds between the end a part is told of and its kill
NOTICE_SHARE = 0.1  # of the part's seconds, where that is less


class Plan:
    """The clock of one run: `minutes` from `began` on, for the named parts in their order."""

    def __init__(self, minutes: float, parts: list[str], began: float | None = None):
        """Raises ValueError for minutes that are none and for parts that nobody knows."""
        if not (math.isfinite(minutes) and minutes > 0):
            raise ValueError(f"--minutes {minutes}: a number above 0")
        unknown = [name for name in parts if name not in WEIGHTS]
        if unknown or not parts:
            what = f"unknown part {unknown[0]!r}" if unknown else "no part"
            raise ValueError(f"--parts: {what}; known: {','.join(WEIGHTS)}")
        self.parts = [name for name in WEIGHTS if name in parts]
        began = time.monotonic() if began is None else began
        total = 60 * minutes
        self.end = began + total - min(END, END_SHARE * total)

    def seconds(self, part: str, now: float) -> float:
        """What `part` may take if it starts now: its share of what is left for it and its successors.
        What an earlier part left over, or took too much, is shared by all that follow.
        """
        following = self.parts[self.parts.index(part) :]
        share = WEIGHTS[part] / sum(WEIGHTS[name] for name in following)
        return max(0.0, share * (self.end - now))


def told(seconds: float) -> float:
    """The seconds a part is told of, of those after which it is killed."""
    return seconds - min(NOTICE, NOTICE_SHARE * seconds)
