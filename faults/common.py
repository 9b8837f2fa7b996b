"""What every promise hands in, and what several of them need: cases, children, hashes."""

import contextlib
import hashlib
import io
import logging
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

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


def tally(found: dict[str, str], control: bool | None, *notes: str, lost=None) -> Outcome:
    """Of {case: why it fell short, "" where it did not}; all that fell short are lost, if not fewer."""
    wrong = [f"{name}: {why}" for name, why in found.items() if why]
    lost = len(wrong) if lost is None else lost
    return Outcome(len(found), len(found) - len(wrong), lost, control, [*notes, *wrong])


def attempts(folder: pathlib.Path, call: Callable, cases: dict[str, Any]) -> dict[str, str]:
    """{name: what call(own folder, case) found wrong}, without those it could not try (None)."""
    found = {}
    for number, (name, case) in enumerate(cases.items()):
        own = folder / f"{number:03d}"
        own.mkdir()
        found[name] = call(own, case)
        shutil.rmtree(own)
    return {name: why for name, why in found.items() if why is not None}


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


def is_one_line(done: subprocess.CompletedProcess, fragment: str) -> bool:
    """Exit status 2, and a last line that begins with "error: " and says so; no traceback."""
    last = (done.stderr.strip().splitlines() or [""])[-1]
    is_clean = done.returncode == 2 and "Traceback" not in done.stderr + done.stdout
    return is_clean and last.startswith("error: ") and fragment in last


# ---- files ----


def flip(path: pathlib.Path, at: int | float, bit: int = 0) -> pathlib.Path:
    """One bit wrong, in the byte `at` (a share of the file where it is a float)."""
    data = bytearray(path.read_bytes())
    data[int(at * len(data)) if isinstance(at, float) else at] ^= 1 << bit
    path.write_bytes(data)
    return path


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """{relative path: bytes} of every file below a folder."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def at_file_event(folder, number: int, act: Callable[[], None]) -> Callable[[], int]:
    """Does `act` at the n-th thing done to a file below `folder` (opened to write, renamed, made,
    removed); returns a function that says how many there were. For children only: it cannot be undone.
    """
    done = 0

    def watch(name, arguments):
        nonlocal done
        if name not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        is_read = name == "open" and arguments[1] == "r"
        if str(arguments[0]).startswith(str(folder)) and not is_read:
            done += 1
            if done == number:
                act()

    sys.addaudithook(watch)
    return lambda: done


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


# ---- what a training left ----


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
