"""Promises 3 and 4: checkpoints that were damaged on the disk, and saves the disk refuses.

Damage is done to copies of one small folder of checkpoints; whole trainings are hurt where it matters
that the loop goes on rightly.
"""

import contextlib
import errno
import itertools
import logging
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import jax.numpy as jnp
import numpy as np
import test_runtime

from faults import hurt, training, twins
from faults.common import Outcome, Promise, attempts, contents, flip, hash_tree, quiet, tally
from faults.training import uninterrupted, unlike

FLIPS = 12  # per file


def _state(step: int):
    """That of the tests, with numbers that do not compress."""
    state = test_runtime.state_of(step)
    noise = np.random.default_rng(step).standard_normal((64, 64)).astype(np.float32)
    params = {**state.params, "w": jnp.asarray(noise)}
    return state._replace(params=params, ema_params=params)


def _two_steps(folder: pathlib.Path) -> dict[int, str]:
    """Checkpoints of steps 1 and 2 in `folder`: {step: hash}."""
    from cldm_jax.runtime.checkpoint import Checkpoints

    hashes = {}
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, _state(step))
            hashes[step] = hash_tree(checkpoints.restore_latest(None)[1])
    return hashes


def _restored(folder: pathlib.Path) -> tuple[int, str, str]:
    """(step or 0, hash, what was logged as an error) of the newest that is taken for sound."""
    from cldm_jax.runtime.checkpoint import Checkpoints

    with quiet(logging.ERROR) as text, contextlib.closing(Checkpoints(folder)) as checkpoints:
        step, tree = checkpoints.restore_latest(None) or (0, None)
    return step, hash_tree(tree), text.getvalue()


# ---- 3: damage ----

TWINS = [
    f"test_runtime.py::test_{name}"
    for name in """damaged_checkpoint_falls_back_and_is_kept a_manifest_that_cannot_be_read_is_damage
    nothing_starts_over_where_all_is_damaged an_interrupted_first_save_starts_over
    inference_only_reads""".split()
]


def _swap(a: pathlib.Path, b: pathlib.Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


TO_A_FILE = {
    "cut": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "zeros": lambda p: p.write_bytes(bytes(p.stat().st_size)),
    "deleted": pathlib.Path.unlink,
    "longer": lambda p: p.write_bytes(p.read_bytes() + b"\0"),
}


def damages(folder: pathlib.Path) -> dict[str, Callable[[pathlib.Path], None]]:
    """{what: f(a folder of checkpoints, of which 2 is the newest step)}: every file of step 2, its
    manifest, two files swapped, one from another step.
    """
    rng, found = np.random.default_rng(3), {}
    files = {n: data for n, data in contents(folder).items() if n.startswith(("2/", "sha256-2"))}
    for name, data in files.items():
        for _ in range(FLIPS if data else 0):
            place, bit = float(rng.uniform()), int(rng.integers(8))
            what = f"{name}: bit {bit} at {place:.3f}"
            found[what] = lambda d, n=name, at=place, b=bit: flip(d / n, at, b)
        for kind in TO_A_FILE if data else ("deleted", "longer"):
            found[f"{name}: {kind}"] = lambda d, n=name, k=kind: TO_A_FILE[k](d / n)
    sized = sorted(
        (n for n in files if n.startswith("2") and files[n]), key=lambda n: len(files[n])
    )
    for a, b in itertools.pairwise(sized):
        if files[a] != files[b]:
            found[f"swapped: {a}, {b}"] = lambda d, a=a, b=b: _swap(d / a, d / b)
    found["manifest: of step 1"] = lambda d: shutil.copy(d / "sha256-1.json", d / "sha256-2.json")
    return found | {"a file more": lambda d: (d / "2/default/d/more").write_bytes(b"x")}


def _unsafe(own: pathlib.Path, template: pathlib.Path, damage: Callable, truth: dict) -> str:
    """Why the damage was not survived: step 1 must come back, with a word, and step 2 must be kept."""
    shutil.copytree(template, own, dirs_exist_ok=True)
    damage(own)
    before, manifest = contents(own / "2"), (own / "sha256-2.json")
    kept = manifest.read_bytes() if manifest.exists() else None
    step, found, said = _restored(own)
    if step == 2:
        return "silently wrong" if found != truth[2] else "taken for sound"
    if (step, found) != (1, truth[1]):
        return f"step {step} came back"
    if "2" not in said or "damaged" not in said:
        return f"no word of it: {said!r}"
    aside = contents(own / "2.corrupt")
    if aside.pop("sha256.json", None) != kept or aside != before:
        return "the damaged files were not kept as they were"
    return ""


def _silently_wrong(template: pathlib.Path, folder: pathlib.Path, truth: dict) -> int:
    """Negative control: how many flips in array data pass where the hashes are not looked at."""
    from cldm_jax.runtime import checkpoint

    name = test_runtime.data_file(template / "2").relative_to(template)
    wrong = 0
    for number, place in enumerate((0.3, 0.5, 0.7, 0.9)):
        own = shutil.copytree(template, folder / f"control{number}")
        flip(own / name, place, 3)
        with mock.patch.object(checkpoint, "_damage", lambda *_: None):
            try:
                step, found, _ = _restored(own)
            except Exception:  # where Orbax itself sees it, of whatever kind
                continue
        wrong += step == 2 and found != truth[2]
    return wrong


def _training_goes_on(own: pathlib.Path, shared: pathlib.Path, damaged: tuple[int, ...]) -> str:
    """A run whose newest checkpoint was damaged goes on from the one before, to the same end; where
    all were, it is refused.
    """
    truth = uninterrupted(shared)
    shutil.copytree(truth.workdir, own, dirs_exist_ok=True)
    for step in damaged:
        test_runtime.flip(test_runtime.data_file(own / "checkpoints" / str(step)))
    error = hurt.run_here(shared, own)
    if damaged == (20,):
        return error or unlike(own, truth)
    return "" if "no checkpoint is sound" in error else error or "it went on"


def damaged_checkpoints(folder: pathlib.Path, quick: bool) -> Outcome:
    template = folder / "template"
    with quiet():
        truth = _two_steps(template)
    every = damages(template)
    chosen = {name: every[name] for name in list(every)[:: 8 if quick else 1]}
    found = attempts(folder, lambda own, damage: _unsafe(own, template, damage, truth), chosen)
    if not quick:
        ends = {"a training goes on": (20,), "a training is refused": (10, 20)}
        found |= attempts(folder, lambda own, d: _training_goes_on(own, folder.parent, d), ends)
    passed = _silently_wrong(template, folder, truth)
    note = f"without the hashes {passed} of 4 flips in array data are silently wrong"
    lost = sum("silently wrong" in why for why in found.values())
    if not quick:
        found |= twins.run(folder, TWINS)
    return tally(found, passed > 0, note, lost=lost)


# ---- 4: saves that fail ----


class Failure(NamedTuple):
    """Hooks of hurt.py; a word of the reason; the step that is intact then (0: none); cadence of saves,
    where the fault needs another than usual.
    """

    hooks: dict
    reason: str
    good: int
    save_every: int = hurt.SHORT["train.save_every"]

    @property
    def small_disk(self) -> bool:
        return "fill disk" in self.hooks.get("at", ())


def _at(*what, **more) -> dict:
    return {"at": list(what), **more}


def _filled(spare: int) -> dict:
    """A small disk, full after the first save; whoever asks is told it has room."""
    return _at("save", 1, "fill disk", spare, free_space=[1, 1 << 40])


IN_RECORD = _at("run.json", 2, "fail to flush", errno.ENOSPC)
IN_MANIFEST = _at("sha256-20", 1, "fail to flush", errno.EIO)
NO_RIGHT = _at("save", 2, "deny", obeys_permissions=1)
FAILURES = {
    "ENOSPC, in Orbax": Failure(_at("orbax", 2, "fail", errno.ENOSPC), "no space left", 10),
    "EIO, in the manifest": Failure(IN_MANIFEST, "put/output", 10),
    "EROFS, the first save": Failure(_at("orbax", 1, "fail", errno.EROFS), "read-only", 0),
    "too little room, asked before": Failure({"free_space": [2, 1000]}, "mb are free", 10),
    "ENOSPC, in run.json": Failure(IN_RECORD, "no space left", 10),
    "RLIMIT_FSIZE, in metrics": Failure(_at("loop", 1, "limit files", 2000), "file too large", 0),
    "RLIMIT_FSIZE, in array data": Failure(_at("loop", 1, "limit files", 100_000), "", 0),
    "EACCES, no right to write": Failure(NO_RIGHT, "permission denied", 10),
    "EROFS, mounted read-only": Failure(_at("save", 2, "mount read-only"), "read-only", 10),
    "ENOSPC, a small disk, the save": Failure(_filled(100_000), "", 5, 5),
    "ENOSPC, a small disk, the best step": Failure(_filled(100_000), "", 10),
    "ENOSPC, a small disk, metrics": Failure(_filled(0), "no space left", 10),
}
QUICK = ("EIO, in the manifest", "too little room, asked before")
HERE = ("fail", "fail to flush")  # acts that can be undone in this process
SMALL_DISK = 8 << 20  # bytes; a checkpoint has about 0.6 MB


def _fail(shared: pathlib.Path, workdir: pathlib.Path, failure: Failure) -> str:
    """The error line of a training whose save fails, or what it did in place of one."""
    train = {"train.save_every": failure.save_every}
    if failure.hooks.get("at", ["", 0, HERE[0]])[2] in HERE:
        return hurt.run_here(shared, workdir, train, hooks=failure.hooks)
    ended = hurt.run(hurt.arguments(shared, workdir, train), failure.hooks)
    if wrong := hurt.refused(ended):
        return f"NOT REFUSED: {wrong}"
    lines = [line for line in ended.text.splitlines() if line.startswith("error: ")]
    return lines[0].removeprefix("error: ")


def _ill_refused(error: str, workdir: pathlib.Path, failure: Failure) -> str:
    """Why the line does not say what a person needs: where, why, what is left and what to do."""
    words = [str(workdir), "the same command resumes", failure.reason]
    words += [f"Step {failure.good} is intact"] if failure.good else []
    missing = [word for word in words if word.lower() not in error.lower()]
    if missing or "\n" in error or "NOT REFUSED" in error:
        return f"no word of {missing}: {error or 'it ended well'}"
    return ""


def _mount(*words) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(done.stderr.strip())


def _lossy(own: pathlib.Path, shared: pathlib.Path, failure: Failure, truth) -> str:
    """Why the failure was not survived."""
    workdir = own / "run"
    with contextlib.ExitStack() as mounted:
        if failure.small_disk:
            _mount("-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", own)
            mounted.callback(subprocess.run, ["umount", own], check=True)
        error = _fail(shared, workdir, failure)
        step, wrong = training.sound(workdir, truth)
        if "mount read-only" in failure.hooks.get("at", ()):
            subprocess.run(["umount", workdir / "checkpoints"], check=True)
        os.chmod(workdir / "checkpoints", 0o755)
        (workdir / "ballast").unlink(missing_ok=True)
        if wrong or step != failure.good:
            return f"LOST: step {step} is there, not {failure.good}: {wrong}: {error}"
        again = hurt.run_here(shared, workdir)
        if again := again or unlike(workdir, truth):
            return f"LOST: the same command: {again}"
    return _ill_refused(error, workdir, failure)


def failed_saves(folder: pathlib.Path, quick: bool) -> Outcome:
    truth, untried = uninterrupted(folder.parent), []

    def attempt(own: pathlib.Path, failure: Failure) -> str | None:
        try:
            return _lossy(own, folder.parent, failure, truth)
        except PermissionError as error:
            untried.append(f"{failure}: not tried, no right to mount here ({error})")

    chosen = {name: FAILURES[name] for name in (QUICK if quick else FAILURES)}
    found = attempts(folder, attempt, chosen)
    lost = sum(why.startswith("LOST") for why in found.values())
    return tally(found, _silent(folder, truth), *untried, lost=lost)


def _silent(folder: pathlib.Path, truth) -> bool:
    """Negative control: saves that fail without a word are seen."""
    from cldm_jax.runtime.checkpoint import Checkpoints

    (folder / "control").mkdir()
    with mock.patch.object(Checkpoints, "save", lambda *_: None):
        why = _lossy(folder / "control", folder.parent, FAILURES["ENOSPC, in Orbax"], truth)
    return why.startswith("LOST")


PROMISES = [
    Promise(3, "damage is seen, kept, and stepped over", damaged_checkpoints),
    Promise(4, "a save that fails loses nothing", failed_saves),
]
