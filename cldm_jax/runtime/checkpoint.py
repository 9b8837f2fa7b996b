"""Orbax checkpoints with a SHA-256 manifest, and a walk back past damaged ones.

Orbax writes atomically but restores flipped bits without a word, so every file's hash is written after
the save and checked before a restore. The only module that imports orbax.
"""

import contextlib
import errno
import gc
import io
import logging
import os
import pathlib
import re
import shutil
import sys
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from cldm_jax import files
from cldm_jax.errors import UserError, rounded
from cldm_jax.runtime import processes

MANIFEST = "sha256-{step}.json"
CORRUPT = "{step}.corrupt"  # a damaged step, set aside with its manifest inside
NONE = -1  # no step; 0 is one, of weights that were imported and not trained
LATE_SECONDS = 0.5  # in which TensorStore's threads are through with a save that failed
BEST = "best"  # folder beside "checkpoints": the step kept for inference by its validation


class Checkpoints:
    """Saves and restores a tree of arrays by step under `folder`; keeps the latest `keep`. For the one
    process group that holds the run's lock: opening clears what an interrupted save left behind.
    """

    def __init__(self, folder, keep: int = 2):
        self.folder = pathlib.Path(folder).absolute()
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.LatestN(n=keep),
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
            ),
        )

    def save(self, step: int, state) -> None:
        """Returns when the step is on disk with its manifest. A sound one of that step is kept as it is.

        OSError, with the last good step untouched, where it cannot be written or the disk has less than
        twice the room it needs (an old step is only dropped once the new one is whole).
        """
        if processes.decided(lambda: self._keep_sound([step])) == step:
            return
        self._reload()
        needed = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            reason = (
                f"{rounded(free / 1e6)} MB are free and a save needs {rounded(needed / 1e6)} MB"
            )
            raise OSError(errno.ENOSPC, reason, str(self.folder))
        failure = ""
        with _quiet() as said:
            try:
                self.manager.save(step, args=ocp.args.StandardSave(state), force=True)
                self.manager.wait_until_finished()
            except (RuntimeError, ValueError) as error:  # TensorStore's, which names file and errno
                failure = str(error)
            if failure:
                _wait_for_late_words()
        if failure:
            raise _os_error(failure, self.folder)
        sys.stderr.write(said.getvalue())
        if processes.is_main():
            self._write_manifest(step)
        processes.wait()

    def _write_manifest(self, step: int) -> None:
        files.write_json(self.folder / MANIFEST.format(step=step), _hashes(self.folder / str(step)))
        alive = set(self.manager.all_steps())
        for path in self.folder.glob("sha256-*.json"):
            if int(path.stem.removeprefix("sha256-")) not in alive:
                path.unlink()

    def restore_latest(self, abstract):
        """(step, state) of the newest sound checkpoint, or None. Damaged ones are set aside, not deleted.

        abstract: a tree of ShapeDtypeStruct with shardings, or None for plain NumPy arrays in dicts.
        UserError where there was a whole checkpoint and none is sound: nothing starts over unasked.
        """
        step = processes.decided(
            lambda: self._keep_sound(sorted(self.manager.all_steps(), reverse=True))
        )
        self._reload()
        if step != NONE and abstract is None:
            return step, _restore_numpy(self.folder, step)
        if step != NONE:
            return step, self.manager.restore(step, args=ocp.args.StandardRestore(abstract))
        if processes.decided(lambda: any(self.folder.glob("*.corrupt*/sha256.json"))):
            raise UserError(
                self.folder,
                "no checkpoint is sound; the damaged ones are kept as *.corrupt",
                "Restore this folder from a copy, or give another --workdir to start over.",
            )
        return None

    def _keep_sound(self, steps: list[int]) -> int:
        """The first of the steps that is there and sound, or NONE; damaged ones before it: set aside."""
        known = self.manager.all_steps()
        for step in (s for s in steps if s in known):
            reason = _damage(self.folder, step)
            if reason is None:
                return step
            self._set_aside(step, reason)
        return NONE

    def _reload(self) -> None:
        """Process 0 may have set something aside."""
        if processes.count() > 1:
            self.manager.reload()

    def _set_aside(self, step: int, reason: str) -> None:
        aside = self.folder / CORRUPT.format(step=step)
        number = 1
        while aside.exists():
            number += 1
            aside = self.folder / f"{CORRUPT.format(step=step)}-{number}"
        logging.error("checkpoint %d is damaged (%s): set aside as %s", step, reason, aside)
        manifest = self.folder / MANIFEST.format(step=step)
        if manifest.is_file():
            manifest.rename(self.folder / str(step) / "sha256.json")
        (self.folder / str(step)).rename(aside)
        self.manager.reload()

    def close(self) -> None:
        self.manager.close()


def restore_for_inference(folder) -> tuple[int, dict, dict] | None:
    """(step, EMA parameters, frozen constants) of the newest sound checkpoint as NumPy trees, or None
    where no save was finished. Only reads: the training may be running.

    UserError where there are whole checkpoints and none is sound.
    """
    folder = pathlib.Path(folder).absolute()
    steps = sorted(_steps(folder), reverse=True)
    for step in steps:
        reason = _damage(folder, step)
        if reason is None:
            tree = _restore_numpy(folder, step)
            return step, tree["ema_params"], tree.get("frozen") or {}
        logging.error("checkpoint %d of %s is passed over: %s", step, folder, reason)
    if any((folder / MANIFEST.format(step=step)).is_file() for step in steps):
        reason = f"none of its {len(steps)} checkpoints is sound"
        raise UserError(folder, reason, "Train again, or restore this folder from a copy.")
    return None


def newest_sound(folder) -> int | None:
    """The newest step that can be resumed from; only reads."""
    folder = pathlib.Path(folder).absolute()
    sound = (s for s in sorted(_steps(folder), reverse=True) if _damage(folder, s) is None)
    return next(sound, None)


@contextlib.contextmanager
def _quiet():
    """Without what Orbax and TensorStore say of a save that fails: a thousand lines of tracebacks, and
    the error comes anyway. Yields what is said on stderr meanwhile. One at a time.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, shown = [logger.level for logger in loggers], sys.stderr
    sys.stderr = _Said(shown)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield sys.stderr
    finally:
        sys.stderr = shown
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Said(io.StringIO):
    """Keeps what is said, but for the words of a main thread that goes on while another one saves."""

    def __init__(self, shown):
        super().__init__()
        self._shown, self._saver = shown, threading.current_thread()

    def write(self, text: str) -> int:
        speaker = threading.current_thread()
        if speaker is threading.main_thread() and speaker is not self._saver:
            return self._shown.write(text)
        return super().write(text)


def _wait_for_late_words() -> None:
    """When one write fails Orbax closes its event loop. TensorStore's threads go on reporting the others
    to it, each with a traceback, and asyncio reports those that nobody asked after when they are dropped.
    """
    asyncio = logging.getLogger("asyncio")
    asyncio.addFilter(lambda record: "exception was never retrieved" not in record.getMessage())
    gc.collect()
    time.sleep(LATE_SECONDS)


def _os_error(text: str, folder: pathlib.Path) -> OSError:
    """What the system said, in TensorStore's long line; else an EIO with the line's beginning."""
    code = re.search(r"os_error_code='(\d+)'|OS error code: (\d+)", text)
    if code:
        number = int(next(filter(None, code.groups())))
        return OSError(number, os.strerror(number), str(folder))
    return OSError(errno.EIO, text.splitlines()[0][:200], str(folder))


def _steps(folder: pathlib.Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(p.name) for p in folder.iterdir() if p.name.isdecimal() and p.is_dir()]


def _restore_numpy(folder: pathlib.Path, step: int):
    """As NumPy arrays, whatever devices wrote them: a run is opened on other machines too."""
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as checkpointer:
        path = folder / str(step) / "default"
        tree = handler.metadata(path).tree
        wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=wanted))


def _hashes(root: pathlib.Path) -> dict[str, str]:
    paths = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): files.sha256_file(p) for p in paths}


def _damage(folder: pathlib.Path, step: int) -> str | None:
    """Why the step cannot be trusted, None where it can."""
    manifest = folder / MANIFEST.format(step=step)
    if not manifest.is_file():
        return "no manifest: the save was interrupted"
    try:
        expected = files.read_json(manifest)
    except ValueError as error:  # flipped bits: not UTF-8, or not JSON
        return f"its manifest cannot be read ({error})"
    found = _hashes(folder / str(step))
    if not isinstance(expected, dict) or not expected:
        return "its manifest lists no files"
    wrong = sorted(k for k in expected.keys() | found.keys() if found.get(k) != expected.get(k))
    return f"{len(wrong)} files differ from the manifest, first {wrong[0]}" if wrong else None
