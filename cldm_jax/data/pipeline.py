"""Prepared slices -> batches of numpy arrays, in an order that depends on (seed, step) only.

Records are (subject, target modality, slice with head in it). Grain does the reading ahead, in threads
or spawned processes; its elements here are whole batches, numbered by global step. So a run resumes
by its step alone, with any number of threads, workers or processes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np

from cldm_jax.data import intensity
from cldm_jax.data.shards import Prepared
from cldm_jax.errors import UserError

_MAX_STEPS = 1 << 40  # a length for Grain; permutations are made as they are needed
ITEM = ("source", "target", "label", "mask", "subject", "slice")
OF_TARGET = ("target", "label", "mask")  # what goes with the target where it is no pair's


class Places(NamedTuple):
    """Where one part of every item lies: compact, and picklable to workers."""

    folder: Prepared
    shards: np.ndarray  # int32 [N], places in its index
    rows: np.ndarray  # int32 [N, K], in the shard; K neighbours of a source, else 1


class SliceSource:
    """Random access to training items. See `make_source`.

    places: of "source", "target" and "mask". keys: what the items are, without reading them: subject,
    slice, label, int32 [N] each.
    """

    def __init__(self, places: dict[str, Places], keys: dict[str, np.ndarray]):
        self.places, self.keys = places, keys

    def __len__(self) -> int:
        return len(self.keys["label"])

    def read(self, rows: np.ndarray, names: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
        """Items `rows` as one batch, keys and shapes of `make_source` with a leading [B]; with `names`
        only those.
        """
        out = {}
        for name in ITEM if names is None else names:
            if name in self.keys:
                out[name] = self.keys[name][rows]
                continue
            part = self.places[name]
            found = _gather(part.folder, part.shards[rows], part.rows[rows])
            # [B, K, h, w(, C)] -> channels last, neighbours in order, a neighbour's C together.
            found = np.moveaxis(found, 1, 3)
            out[name] = found.reshape(*found.shape[:3], -1)
        return out


def make_source(
    prepared: Prepared,
    *,
    split: str,
    targets: tuple[str, ...],
    context: int,
    latents: Prepared | None,
    source_kind: str,
    source: str = "pet",
    slice_stride: int = 1,
    slice_run: int = 1,
    people_per_group: int = 0,
) -> SliceSource:
    """The items of a split, ordered by subject, target (as given), slice.

    Keys: source float32 [H, W, context] in [-1, 1] (source_kind "image"; neighbours clamp at the
    volume's ends) or [h, w, context * C] ("latent"); target float32 [H, W, 1], or [h, w, C] when
    `latents` is given; label int32, the target's modality code; mask float32 [H, W, 1], the head as
    far as the target shows it; subject int32, its index; slice int32. `source`: the volume that is read
    as such, "pet" or "nac". A subject without it has no items, one without a target modality no such
    items, nor have slices in which the target was not measured.
    `slice_stride` keeps every n-th slice, `slice_run` of them together (neighbours);
    `people_per_group` the first so many of each group (0: all). Raises UserError if nothing is left,
    or if `latents` were made from other images.
    """
    if context not in (1, 3, 5):
        raise ValueError(f"context {context}: 1, 3 or 5 slices")
    if source_kind not in ("image", "latent") or (source_kind == "latent" and latents is None):
        raise ValueError(f"source_kind {source_kind!r} with latents {latents}")
    if latents is not None:
        _check_latents(prepared, latents)
    rows = []  # (subject, target, slice numbers)
    seen: dict[str, int] = {}
    for subject in prepared.subjects(split):
        group = prepared.index.people[subject].group
        if not prepared.has(subject, source):
            continue
        seen[group] = seen.get(group, 0) + 1
        if 0 < people_per_group < seen[group]:
            continue
        for target in (t for t in targets if prepared.has(subject, t)):
            keep = np.flatnonzero(prepared.keep(subject, target))
            keep = keep[np.arange(len(keep)) % slice_stride < slice_run]
            rows += [(subject, target, keep)] if len(keep) else []
    if not rows:
        of = "" if source == "pet" else f" of {source}"
        reason = f"no {split} slices{of} with target {' or '.join(targets)}"
        raise UserError(prepared.folder, reason, "Check the split and the modalities of the cohort")
    folders = {"target": latents or prepared, "mask": prepared}
    folders["source"] = latents if source_kind == "latent" else prepared
    return _locate(rows, context, source, folders)


def make_train_iterator(
    source: SliceSource,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    num_threads: int,
    num_workers: int,
    paired: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    names: tuple[str, ...] | None = None,
):
    """Endless iterator of shuffled batches (dicts of numpy arrays) from global step `start_step` on; with
    `names` only those arrays. `close()` ends its threads.

    paired=False: target, label and mask of every item come from another permutation.

    `batch_size` is global; each of `process_count` processes gets its own batch_size / process_count
    consecutive items of the same global batch. `num_threads` 0 reads in the caller's thread;
    `num_workers` > 0 reads in that many spawned processes.
    """
    if batch_size % process_count:
        reason = f"{batch_size} is not a multiple of the {process_count} processes"
        raise UserError("batch_size", reason, "Change one of the two")
    local = batch_size // process_count
    order = TrainOrder(len(source), batch_size, seed, paired)
    batches = _ShuffledBatches(source, order, local * process_index, local, names)
    dataset = grain.MapDataset.source(batches)[start_step:]
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(2, num_threads))
    dataset = dataset.to_iter_dataset(options)
    if num_workers:
        workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(workers)
    return iter(dataset)


def eval_batches(source: SliceSource, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Every item once, in order, in batches of one size, so that a compiled step is compiled once. The
    last one repeats the last item; `valid` bool [B] tells.
    """
    n = len(source)
    for start in range(0, n, batch_size):
        rows = np.arange(start, start + batch_size)
        yield {**source.read(np.minimum(rows, n - 1)), "valid": rows < n}


class TrainOrder:
    """Rows of every global batch, a pure function of (seed, step): permutation after permutation, batches
    running across their ends, so that no item is dropped.

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


class _ShuffledBatches:
    """Grain source whose element s is this process's part of global batch s."""

    def __init__(self, source, order: TrainOrder, first: int, local: int, names):
        self._source, self._order, self._names = source, order, names or ITEM
        self._part = (first, local)

    def __len__(self) -> int:
        return _MAX_STEPS

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        rows, target_rows = self._order.rows(step, *self._part)
        if target_rows is rows:
            return self._source.read(rows, self._names)
        of_target = tuple(n for n in self._names if n in OF_TARGET)
        batch = self._source.read(rows, tuple(n for n in self._names if n not in of_target))
        return batch | self._source.read(target_rows, of_target)


def _gather(folder: Prepared, shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Decoded float32 [B, K, ...] from shard numbers [B] and row numbers [B, K]."""
    names = list(folder.index.shards)
    first = folder.shard(names[shards[0]])
    out = np.empty((*rows.shape, *first.shape[1:]), first.dtype)
    for i, (shard, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
        data = folder.shard(names[shard])
        for k, z in enumerate(row):
            out[i, k] = data[z]
    return folder.decode(out)


def _locate(rows, context: int, source: str, folders: dict[str, Prepared]) -> SliceSource:
    """rows: (subject, target, slice numbers), a volume at a time: a cohort may have a million slices.
    folders: of source, target and mask.
    """
    images, counts = folders["mask"], [len(z) for _, _, z in rows]

    def each(values) -> np.ndarray:
        return np.repeat(np.asarray(values, np.int32), counts)

    z = np.concatenate([z for _, _, z in rows]).astype(np.int32)
    last = each([images.index.people[s].n_slices - 1 for s, _, _ in rows])
    reach = np.arange(context, dtype=np.int32) - context // 2
    at = {"source": np.clip(z[:, None] + reach, 0, last[:, None])}
    places = {}
    for part, folder in folders.items():
        number = {name: i for i, name in enumerate(folder.index.shards)}
        volumes = []
        for subject, target, _ in rows:
            name = {"source": source, "target": target}.get(part) or images.mask_of(subject, target)
            volumes.append(folder.index.people[subject].volumes[name])
        first = each([v.offset for v in volumes])[:, None]
        shards = each([number[v.shard] for v in volumes])
        places[part] = Places(folder, shards, first + at.get(part, z[:, None]))
    label = each([images.index.code(intensity.base_modality(t)) for _, t, _ in rows])
    return SliceSource(
        places, {"label": label, "subject": each([s for s, _, _ in rows]), "slice": z}
    )


def _check_latents(images: Prepared, latents: Prepared) -> None:
    ids = [[s.id for s in p.index.people] for p in (images, latents)]
    same = latents.index.images_fingerprint == images.index.fingerprint
    if not same or ids[0] != ids[1]:
        reason = f"these latents were not encoded from {images.folder}"
        raise UserError(latents.folder, reason, "Run encode again for these images")
