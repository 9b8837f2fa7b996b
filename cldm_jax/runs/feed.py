"""What the calls of a training are fed with: batches from the reader, or rows of slices on the device.

Either way the same items in the same order. A call takes one step, or several in one scan.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from cldm_jax.data import pipeline, resident
from cldm_jax.data.pipeline import TrainOrder
from cldm_jax.errors import UserError
from cldm_jax.runtime import device, processes, sharding

SHARE = 0.4  # of a GPU's free memory that slices may take; an assumption, the rest is for the step
ON_DEVICE = ("auto", "always", "never")


def call_length(train) -> int:
    """Steps of one call: the most that `steps_per_call` allows and all cadences are multiples of, so that
    no call runs across a step at which something is due.
    """
    common = math.gcd(train.log_every, train.val_every, train.save_every)
    return max(n for n in range(1, min(train.steps_per_call, common) + 1) if common % n == 0)


def call_lengths(start: int, total: int, length: int):
    """Lengths of the calls from `start` to `total`: whole ones begin at multiples of `length`, whatever
    the run was resumed from, and what is between is taken one by one. So two programs are enough, and
    each step always belongs to the same one.
    """
    step = start
    while step < total:
        whole = step % length == 0 and step + length <= total
        yield length if whole else 1
        step += length if whole else 1


def make_feed(config, source, reads: tuple[str, ...], start: int) -> "Feed":
    """The feed of a training from step `start` on, by config.data.on_device: "auto" is on the device
    where that is a GPU and has room. A CPU's memory is the host's: a copy of the slices saves nothing.

    On the device all slices of the training lie as they are stored, and a call brings row numbers; else
    the reader's threads make batches, each call's on their way while the one before it runs. Raises
    UserError for "always" with several processes, each of which reads its own rows.
    """
    mode = config.data.on_device
    if mode == "always" and processes.count() > 1:
        reason = f"{processes.count()} processes read their own rows each"
        raise UserError("config.data.on_device=always", reason, "Use auto or never.")
    if mode == "never" or (mode == "auto" and not _fits(source, reads)):
        batches = make_batches(config, source, start, names=reads)
        return Feed(config, start, batches, close=batches.close)
    layout = resident.lay_out(source, reads)
    tables = (sharding.replicate(layout.tables()),)
    rows = _row_numbers(config, source, start)
    return Feed(config, start, rows, tables=tables, read=_make_read(layout))


def _fits(source, reads) -> bool:
    if processes.count() > 1:
        return False
    free = device.free_bytes()
    return free is not None and resident.lay_out(source, reads).nbytes <= SHARE * free


class Feed:
    """`next()` -> (steps of the call, what is put on the devices for it), or None after the last.

    items: of the steps from `start` on. tables: more arguments of every call. read(item, *tables) ->
    batch, in the step; None: an item is one.
    """

    def __init__(self, config, start: int, items, *, tables=(), read=None, close=lambda: None):
        self._lengths = list(
            call_lengths(start, config.train.num_train_steps, call_length(config.train))
        )
        self._items, self._calls = items, iter(self._lengths)
        self._rows, _ = sharding.make_shardings()
        self.tables, self.read, self.close = tables, read, close

    def lengths(self) -> set[int]:
        """Of all calls: one program each."""
        return set(self._lengths)

    def shapes(self, length: int) -> dict:
        """Of what `next` puts on the devices for a call of so many steps."""
        where = self._rows if length == 1 else sharding.stacked(self._rows)

        def shape(x):
            rows = len(x) * jax.process_count()
            lead = (rows,) if length == 1 else (length, rows)
            return jax.ShapeDtypeStruct((*lead, *x.shape[1:]), x.dtype, sharding=where)

        first = next(self._items)
        self._items = itertools.chain([first], self._items)
        return jax.tree.map(shape, first)

    def next(self):
        length = next(self._calls, None)
        if length is None:
            return None
        items = list(itertools.islice(self._items, length))
        if length == 1:
            return 1, sharding.put_batch(items[0], self._rows)
        stacked = {k: np.stack([item[k] for item in items]) for k in items[0]}
        return length, sharding.put_batch(stacked, sharding.stacked(self._rows))


def _row_numbers(config, source, start: int):
    order = TrainOrder(len(source), config.train.batch_size, config.seed, config.data.paired)
    for step in itertools.count(start):
        rows, target_rows = (r.astype(np.int32) for r in order.rows(step))
        yield {"row": rows, "target_row": target_rows}


def _make_read(layout: resident.Layout):
    """read(item, tables) -> the batch that the reader would make."""
    images = [name for name in resident.IMAGES if name in layout.folder_of]
    encodings = {name: layout.encoding(name) for name in images}

    def read(item, tables):
        batch = {}
        for name, places in tables["records"].items():
            row = item["row"] if name == "source" else item["target_row"]
            found = jnp.take(places, row, axis=0, mode="clip")
            if name in images:
                slices = tables["slices"][layout.folder_of[name]]
                stored = jnp.take(slices, found, axis=0, mode="clip")  # [B, K, h, w(, C)]
                stored = jnp.moveaxis(stored, 1, 3)
                found = decode(stored.reshape(*stored.shape[:3], -1), *encodings[name])
            batch[name] = found
        return batch

    return read


def decode(stored, scale, offset):
    """Stored numbers -> float32, as `data.shards` does it, to the last bit or the one rounding less."""
    x = stored.astype(jnp.float32)
    return x if stored.dtype == jnp.uint8 else x * scale + offset


def make_batches(config, source, start: int, *, names=None, whole: bool = False):
    """Batches from step `start` on: this process's rows, or with `whole` those of all."""
    return pipeline.make_train_iterator(
        source,
        batch_size=config.train.batch_size,
        seed=config.seed,
        start_step=start,
        num_threads=0 if whole else config.train.num_threads,
        num_workers=0 if whole else config.train.num_workers,
        paired=config.data.paired,
        process_index=0 if whole else jax.process_index(),
        process_count=1 if whole else jax.process_count(),
        names=names,
    )
