"""The order in which a training meets its items: a pure function of (seed, step)."""

import numpy as np


class TrainOrder:
    """Rows of every global batch: permutation after permutation, batches running across their ends.

    paired=False: targets come from permutations of their own. Picklable, safe to share by threads.
    """

    def __init__(self, length: int, batch_size: int, seed: int, paired: bool = True):
        self._batch_size = batch_size
        self._source = _Permutations(length, [seed])
        self._target = None if paired else _Permutations(length, [seed, 1])

    def rows(self, step: int, first: int = 0, count: int | None = None):
        """(source rows, target rows), int64 [count] each, of a global batch (the first is step 0): its
        items from `first` on, all of them without a count. The same array twice where they are pairs.
        """
        count = self._batch_size - first if count is None else count
        at = step * self._batch_size + first + np.arange(count)
        rows = self._source.rows(at)
        return rows, rows if self._target is None else self._target.rows(at)


class _Permutations:
    """Endless permutations of `length` rows, one per epoch, made as they are needed."""

    def __init__(self, length: int, key: list[int]):
        self._length, self._key = length, key
        self._orders: dict[int, np.ndarray] = {}

    def rows(self, at: np.ndarray) -> np.ndarray:
        """Rows at these places of the endless sequence."""
        epochs, places = np.divmod(at, self._length)
        return np.array(
            [self._epoch(e)[p] for e, p in zip(epochs.tolist(), places.tolist(), strict=True)]
        )

    def _epoch(self, epoch: int) -> np.ndarray:
        order = self._orders.get(epoch)
        if order is None:
            order = np.random.default_rng([*self._key, epoch]).permutation(self._length)
            # Threads read ahead across one epoch's end at most; a new dict is swapped in whole.
            recent = {e: o for e, o in list(self._orders.items()) if e >= epoch - 1}
            self._orders = {**recent, epoch: order}
        return order
