"""What every promise hands in, and what several of them need: children, configs, hashes."""

import contextlib
import hashlib
import importlib
import io
import logging
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

from faults import ROOT


class Outcome(NamedTuple):
    """Counts of one promise. It is kept where all injected survived, nothing was lost and the negative
    control (the same check with the protection taken away) saw the fault.
    """

    injected: int
    survived: int
    lost: int  # steps, files or values that are gone or silently wrong
    negative_control: bool | None  # True: it failed as it should; None: the promise has none
    notes: list[str]


class Promise(NamedTuple):
    """run(folder, quick) -> Outcome; `folder` exists, is empty and is the promise's own."""

    id: int
    name: str
    run: Callable[[pathlib.Path, bool], Outcome]


def tally(count: int, wrong: list[str], control: bool | None, *notes: str, lost=None) -> Outcome:
    """Of `count` cases, of which those in `wrong` (one line each) fell short; all of them lost, if not
    fewer.
    """
    short = min(len(wrong), count)
    lost = short if lost is None else lost
    return Outcome(count, count - short, lost, control, [*notes, *wrong])


# ---- children ----


def environment(**more: str) -> dict[str, str]:
    """Huge pages would start every child a second time; nothing here measures speed."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    base = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths, "CLDM_HUGE_PAGES": "0"}
    return {**os.environ, **base, **more}


def child(words: list[str], timeout: float = 300, **more: str) -> subprocess.CompletedProcess:
    """What a command said, from the repository's root."""
    options = dict(capture_output=True, text=True, timeout=timeout, check=False)
    return subprocess.run(words, cwd=ROOT, env=environment(**more), **options)


def command(*words: str, **options) -> subprocess.CompletedProcess:
    """`python -m ...`."""
    return child([sys.executable, "-m", *words], **options)


@contextlib.contextmanager
def at_file_event(folder, number: int, act: Callable[[], None]):
    """Does `act` at the n-th thing done to a file below `folder` (opened to write, renamed, made,
    removed); yields a function that says how many there were. For children only: it cannot be undone.
    """
    done = 0

    def watch(name, arguments):
        nonlocal done
        if name not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        if str(arguments[0]).startswith(str(folder)) and not (
            name == "open" and arguments[1] == "r"
        ):
            done += 1
            if done == number:
                act()

    sys.addaudithook(watch)
    yield lambda: done


@contextlib.contextmanager
def quiet(level: int = logging.NOTSET):
    """Yields what is printed and (from `level` on) logged in this process meanwhile."""
    text, root = io.StringIO(), logging.getLogger()
    handler = logging.StreamHandler(text)
    handler.setLevel(level)
    before, root.handlers = root.handlers, [handler]
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            yield text
    finally:
        root.handlers = before


# ---- trainings ----


def make_config(shared: pathlib.Path, name: str = "ae", **train):
    """Preset tiny of a method on the data and the autoencoder that all promises share in a folder,
    for `Promise.run(folder, quick)` that is `folder.parent`.
    """
    config = importlib.import_module(f"configs.{name}").get_config("tiny")
    config.data.root = str(shared / "data")
    if name == "ldm":
        config.autoencoder.workdir = str(shared / "ae")
    config.train.update(train)
    return config


def hash_tree(tree) -> str:
    """SHA-256 over every array of a tree: names, types, bits."""
    import jax
    import numpy as np

    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def loss_bits(workdir) -> dict[int, dict[str, str]]:
    """{step: {metric: float as hex}} of a run's training lines; a second line of a step is a fault."""
    from cldm_jax.runtime.writers import read_rows

    rows = {}
    for row in read_rows(workdir):
        kind = "train" if "train/loss" in row else "val"
        key = (row["step"], kind)
        if key in rows:
            raise ValueError(f"step {row['step']} has two {kind} lines")
        rows[key] = {k: v.hex() for k, v in row.items() if isinstance(v, float)}
    return rows
