"""Promises 3 and 4: checkpoints that were damaged on the disk, and saves the disk refuses.

Damage is done to copies of one small folder of checkpoints; whole trainings are hurt where it matters
that the loop goes on rightly.
"""

import contextlib
import ctypes
import errno
import logging
import os
import pathlib
import resource
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import numpy as np

from cldm_jax import files
from cldm_jax.errors import UserError
from faults import training
from faults.common import Outcome, Promise, hash_tree
from faults.training import CADENCE, QUICK_STEPS, quiet, run_here, uninterrupted, unlike

FLIPS = 12  # per file


def _state(step: int):
    """As small as a training's state can be, with all its parts; numbers that do not compress."""
    import jax.numpy as jnp
    import optax

    from cldm_jax.runtime.train_state import TrainState

    noise = np.random.default_rng(step).standard_normal((64, 64)).astype(np.float32)
    params = {"w": jnp.asarray(noise), "b": jnp.arange(5.0)}
    moments = optax.adam(1e-3).init(params)
    return TrainState(jnp.int32(step), params, params, moments, (), {"k": jnp.ones(3)})


def _two_steps(folder: pathlib.Path) -> dict[int, str]:
    """Checkpoints of steps 1 and 2 in `folder`: {step: hash}."""
    from cldm_jax.runtime.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, _state(step))
    found = {step: hash_tree(checkpoints._restore(step, None)) for step in (1, 2)}
    checkpoints.close()
    return found


def _restored(folder: pathlib.Path) -> tuple[int, str, str]:
    """(step or 0, hash, what was logged as an error) of the newest that is taken for sound."""
    from cldm_jax.runtime.checkpoint import Checkpoints

    with quiet() as text:
        logging.getLogger().handlers[0].setLevel(logging.ERROR)
        checkpoints = Checkpoints(folder)
        try:
            found = checkpoints.restore_latest(None)
        finally:
            checkpoints.close()
    return (found[0], hash_tree(found[1]), text.getvalue()) if found else (0, "", text.getvalue())


# ---- 3: damage ----


class Damage(NamedTuple):
    name: str
    do: Callable[[pathlib.Path], None]  # to a folder of checkpoints, of which 2 is the newest step


def _flip(path: pathlib.Path, place: float, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(bytes(data))


def _swap(a: pathlib.Path, b: pathlib.Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def _of_file(name: str, size: int, rng) -> list[Damage]:
    """What can happen to one file."""
    kinds = {
        "cut": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
        "deleted": pathlib.Path.unlink,
        "zeros": lambda p: p.write_bytes(bytes(p.stat().st_size)),
        "longer": lambda p: p.write_bytes(p.read_bytes() + b"\0"),
    }
    if size:
        for number in range(FLIPS):
            place, bit = float(rng.uniform()), int(rng.integers(8))
            kinds[f"bit {number}"] = lambda p, at=place, b=bit: _flip(p, at, b)
    else:
        kinds = {k: v for k, v in kinds.items() if k in ("deleted", "longer")}
    return [Damage(f"{name}: {kind}", lambda d, f=f: f(d / name)) for kind, f in kinds.items()]


def damages(folder: pathlib.Path) -> list[Damage]:
    """All of them: every file of step 2, its manifest, two files swapped, one from another step."""
    rng, found = np.random.default_rng(3), []
    paths = sorted(p for p in (folder / "2").rglob("*") if p.is_file())
    names = [str(p.relative_to(folder)) for p in (*paths, folder / "sha256-2.json")]
    for name in names:
        found += _of_file(name, (folder / name).stat().st_size, rng)
    sized = sorted((p for p in paths if p.stat().st_size), key=lambda p: p.stat().st_size)
    for a, b in zip(sized, sized[1:], strict=False):
        if a.read_bytes() != b.read_bytes():
            pair = [p.relative_to(folder) for p in (a, b)]
            found.append(Damage(f"swapped: {pair}", lambda d, q=pair: _swap(d / q[0], d / q[1])))
    return [
        *found,
        Damage(
            "manifest: of step 1", lambda d: shutil.copy(d / "sha256-1.json", d / "sha256-2.json")
        ),
        Damage("manifest: an empty list", lambda d: (d / "sha256-2.json").write_text("{}")),
        Damage("manifest: another kind", lambda d: (d / "sha256-2.json").write_text("[1]")),
        Damage("a file more", lambda d: (d / "2" / "default" / "d" / "more").write_bytes(b"x")),
    ]


def _bytes_of(folder: pathlib.Path) -> dict[str, bytes]:
    paths = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def _unsafe(template: pathlib.Path, own: pathlib.Path, damage: Damage, truth: dict) -> str:
    """Why the damage was not survived: step 1 must come back, with a word, and step 2 must be kept."""
    shutil.copytree(template, own)
    damage.do(own)
    before, manifest = _bytes_of(own / "2"), (own / "sha256-2.json")
    kept = manifest.read_bytes() if manifest.exists() else None
    step, found, said = _restored(own)
    if step == 2:
        return "silently wrong" if found != truth[2] else "taken for sound"
    if (step, found) != (1, truth[1]):
        return f"step {step} came back"
    if "2" not in said or "damaged" not in said:
        return f"no word of it: {said!r}"
    aside = _bytes_of(own / "2.corrupt")
    if aside.pop("sha256.json", None) != kept or aside != before:
        return "the damaged files were not kept as they were"
    return ""


def _silently_wrong(template: pathlib.Path, folder: pathlib.Path, truth: dict) -> int:
    """Negative control: how many flips in array data pass where the hashes are not looked at."""
    from cldm_jax.runtime import checkpoint

    paths = [p.relative_to(template) for p in (template / "2").rglob("d/*") if p.is_file()]
    paths.sort(key=lambda p: (template / p).stat().st_size)
    wrong = 0
    for number, place in enumerate((0.3, 0.5, 0.7, 0.9)):
        own = shutil.copytree(template, folder / f"control{number}")
        _flip(own / paths[-1], place, 3)
        with mock.patch.object(checkpoint, "_damage", lambda *_: None):
            try:
                step, found, _ = _restored(own)
            except Exception:  # where Orbax itself sees it, of whatever kind
                continue
        wrong += step == 2 and found != truth[2]
    return wrong


def _only_reads(template: pathlib.Path, own: pathlib.Path) -> str:
    """Inference passes over a damaged step, says so, and leaves every byte where it is."""
    from cldm_jax.runtime.checkpoint import restore_for_inference

    shutil.copytree(template, own)
    _flip(next(p for p in (own / "2").rglob("d/*") if p.is_file()), 0.5, 1)
    before = _bytes_of(own)
    with quiet() as text:
        step, params, _ = restore_for_inference(own)
    is_first = np.array_equal(params["w"], _state(1).params["w"])
    if step != 1 or not is_first or "2" not in text.getvalue():
        return f"step {step}: {text.getvalue()}"
    return "" if _bytes_of(own) == before else "it wrote"


def _all_damaged(template: pathlib.Path, own: pathlib.Path) -> str:
    """Nothing starts over unasked, neither at once nor when the command is given again."""
    from cldm_jax.runtime.checkpoint import restore_for_inference

    shutil.copytree(template, own)
    for step in (1, 2):
        _flip(next(p for p in (own / str(step)).rglob("d/*") if p.is_file()), 0.5, 1)
    for attempt in (
        lambda: restore_for_inference(own),
        lambda: _restored(own),
        lambda: _restored(own),
    ):
        try:
            with quiet():
                attempt()
        except UserError:
            continue
        return "it went on"
    kept = sorted(p.name for p in own.glob("*.corrupt"))
    return "" if kept == ["1.corrupt", "2.corrupt"] else f"kept: {kept}"


def _interrupted_only(template: pathlib.Path, own: pathlib.Path) -> str:
    """A first save that was killed is no damage: from the start again, with a word."""
    shutil.copytree(template, own)
    shutil.rmtree(own / "1")
    for step in (1, 2):
        (own / f"sha256-{step}.json").unlink()
    step, _, said = _restored(own)
    return "" if step == 0 and "2" in said else f"step {step}: {said!r}"


def _twice(template: pathlib.Path, own: pathlib.Path) -> str:
    """A second damaged step 2 does not take the place of the first."""
    shutil.copytree(template, own)
    shutil.copytree(template / "2", own / "2.corrupt")
    _flip(next(p for p in (own / "2").rglob("d/*") if p.is_file()), 0.5, 1)
    step, _, _ = _restored(own)
    return "" if step == 1 and (own / "2.corrupt-2").is_dir() else f"step {step}"


def _training_goes_on(folder: pathlib.Path, shared: pathlib.Path, everything: bool) -> str:
    """A run whose newest checkpoint was damaged goes on from the one before, to the same end; where
    all were, it is refused.
    """
    truth = uninterrupted(shared, QUICK_STEPS)
    shutil.copytree(shared / f"truth-ldm-{QUICK_STEPS}" / "run", folder)
    for step in (10, 20) if everything else (20,):
        path = max(
            (folder / "checkpoints" / str(step)).rglob("d/*"), key=lambda p: p.stat().st_size
        )
        _flip(path, 0.5, 1)
    error = run_here(shared, folder, num_train_steps=QUICK_STEPS, **CADENCE)
    if everything:
        return "" if "no checkpoint is sound" in error else error or "it went on"
    return error or unlike(folder, truth)


def damaged_checkpoints(folder: pathlib.Path, quick: bool) -> Outcome:
    template = folder / "template"
    with quiet():
        truth = _two_steps(template)
    every = damages(template)
    if quick:
        every = every[::8]
    notes = []
    for number, damage in enumerate(every):
        own = folder / str(number)
        why = _unsafe(template, own, damage, truth)
        notes += [f"{damage.name}: {why}"] if why else []
        shutil.rmtree(own)
    cases = {
        "inference only reads": _only_reads,
        "all damaged": _all_damaged,
        "interrupted saves only": _interrupted_only,
        "damaged twice": _twice,
    }
    found = {name: case(template, folder / name) for name, case in cases.items()}
    if not quick:
        for name, everything in (("a training goes on", False), ("a training is refused", True)):
            found[name] = _training_goes_on(folder / name, folder.parent, everything)
    notes += [f"{name}: {why}" for name, why in found.items() if why]
    total, short = len(every) + len(found), len(notes)
    silent = sum("silently wrong" in note for note in notes)
    passed = _silently_wrong(template, folder, truth)
    notes.insert(0, f"without the hashes {passed} of 4 flips in array data are silently wrong")
    return Outcome(total, total - short, silent, passed > 0, notes)


# ---- 4: saves that fail ----


@contextlib.contextmanager
def save_error(what):
    """The n-th save of the run fails inside, with an errno of the system."""
    from cldm_jax.runtime import checkpoint

    number, code = what
    save, count = checkpoint.ocp.CheckpointManager.save, 0

    def hurt(self, *arguments, **keywords):
        nonlocal count
        count += self.directory.name == "checkpoints"
        if count == number and self.directory.name == "checkpoints":
            raise OSError(code, os.strerror(code), str(self.directory))
        return save(self, *arguments, **keywords)

    with mock.patch.object(checkpoint.ocp.CheckpointManager, "save", hurt):
        yield


@contextlib.contextmanager
def write_error(what):
    """The n-th file of this name fails when it is flushed to the disk."""
    prefix, number, code = what
    write, count = files.write_json, 0

    def hurt(path, value):
        nonlocal count
        count += pathlib.Path(path).name.startswith(prefix)
        if count == number:
            with mock.patch.object(os, "fsync", _raising(code, path)):
                write(path, value)
        else:
            write(path, value)

    with mock.patch.object(files, "write_json", hurt):
        yield


def _raising(code: int, path):
    def fsync(_):
        raise OSError(code, os.strerror(code), str(path))

    return fsync


@contextlib.contextmanager
def no_space_from(number):
    """From the n-th time it is asked for, the disk has 1 kB left."""
    count, usage = 0, shutil.disk_usage

    def asked(path):
        nonlocal count
        count += 1
        found = usage(path)
        return (
            found if count < number else namedtuple("usage", "total used free")(found[0], 0, 1000)
        )

    with mock.patch.object(shutil, "disk_usage", asked):
        yield


@contextlib.contextmanager
def limit_files(size):
    """No file of this process may grow beyond so many bytes, from the start of the loop on."""
    from cldm_jax.data import pipeline

    make = pipeline.make_train_iterator

    def limited(*arguments, **keywords):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return make(*arguments, **keywords)

    with mock.patch.object(pipeline, "make_train_iterator", limited):
        yield


@contextlib.contextmanager
def really_full(spare):
    """After the first save the (small) disk is filled up to `spare` bytes; whoever asks is told it has
    room.
    """
    from cldm_jax.runtime.checkpoint import Checkpoints

    save = Checkpoints.save

    def filling(self, *arguments):
        save(self, *arguments)
        ballast = self.folder.parent / "ballast"
        if ballast.exists():
            return
        with contextlib.suppress(OSError), open(ballast, "wb", 0) as f:
            while True:
                f.write(bytes(4096))
        os.truncate(ballast, ballast.stat().st_size - spare)

    roomy = namedtuple("usage", "total used free")(1 << 40, 0, 1 << 40)
    with (
        mock.patch.object(Checkpoints, "save", filling),
        mock.patch.object(shutil, "disk_usage", lambda path: roomy),
    ):
        yield


@contextlib.contextmanager
def no_rights_from(number):
    """From the n-th save on nobody may write to the folder, and this process is no exception."""
    from cldm_jax.runtime.checkpoint import Checkpoints

    _obey_permissions()
    save, count = Checkpoints.save, 0

    def dropped(self, *arguments):
        nonlocal count
        count += self.folder.name == "checkpoints"
        if count == number:
            os.chmod(self.folder, 0o555)
        return save(self, *arguments)

    with mock.patch.object(Checkpoints, "save", dropped):
        yield


def _obey_permissions() -> None:
    """Gives up root's right to pass over them (CAP_DAC_OVERRIDE): before threads inherit it."""
    version, words = 0x20080522, (ctypes.c_uint32 * 6)()
    header = (ctypes.c_uint32 * 2)(version, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, words):
        raise OSError(ctypes.get_errno(), "capget")
    words[0] &= ~0b110
    words[1] &= ~0b110
    if libc.capset(header, words):
        raise OSError(ctypes.get_errno(), "capset")


@contextlib.contextmanager
def read_only_from(number):
    """From the n-th save on the folder of checkpoints is mounted read-only (needs root)."""
    from cldm_jax.runtime.checkpoint import Checkpoints

    save, count = Checkpoints.save, 0

    def mounted(self, *arguments):
        nonlocal count
        count += self.folder.name == "checkpoints"
        if count == number:
            subprocess.run(["mount", "--bind", self.folder, self.folder], check=True)
            subprocess.run(["mount", "-o", "remount,ro,bind", self.folder], check=True)
        return save(self, *arguments)

    with mock.patch.object(Checkpoints, "save", mounted):
        yield


training.HOOKS |= {
    hook.__name__: hook
    for hook in (
        *(save_error, write_error, no_space_from, limit_files, really_full),
        *(no_rights_from, read_only_from),
    )
}


class Failure(NamedTuple):
    """A hook and its value; a word of the reason; the step that is intact then (0: none); cadence of
    saves, where the fault needs another than usual.
    """

    hook: str
    value: object
    reason: str
    good: int
    save_every: int = CADENCE["save_every"]


FAILURES = {
    "ENOSPC, in Orbax": Failure("save_error", [2, errno.ENOSPC], "no space left", 10),
    "EIO, in the manifest": Failure("write_error", ["sha256-20", 1, errno.EIO], "put/output", 10),
    "EROFS, the first save": Failure("save_error", [1, errno.EROFS], "read-only", 0),
    "too little room, asked before": Failure("no_space_from", 2, "mb are free", 10),
    "ENOSPC, in run.json": Failure(
        "write_error", ["run.json", 2, errno.ENOSPC], "no space left", 10
    ),
    "RLIMIT_FSIZE, in metrics": Failure("limit_files", 2000, "file too large", 0),
    "RLIMIT_FSIZE, in array data": Failure("limit_files", 100_000, "", 0),
    "EACCES, no right to write": Failure("no_rights_from", 2, "permission denied", 10),
    "EROFS, mounted read-only": Failure("read_only_from", 2, "read-only", 10),
    "ENOSPC, a small disk, the save": Failure("really_full", 100_000, "", 5, 5),
    "ENOSPC, a small disk, the best step": Failure("really_full", 100_000, "", 10),
    "ENOSPC, a small disk, metrics": Failure("really_full", 0, "no space left", 10),
}
QUICK = ("EIO, in the manifest", "too little room, asked before")
CHILDREN = (
    "limit_files",
    "really_full",
    "no_rights_from",
    "read_only_from",
)  # not to be undone here
SMALL_DISK = 8 << 20  # bytes; a checkpoint has about 0.6 MB


def _fail(shared: pathlib.Path, workdir: pathlib.Path, failure: Failure) -> str:
    """The error line of a training whose save fails, or what it did in place of one."""
    train = {**CADENCE, "save_every": failure.save_every, "num_train_steps": QUICK_STEPS}
    hooks = {failure.hook: failure.value}
    if failure.hook not in CHILDREN:
        return run_here(shared, workdir, hooks=hooks, **train)
    ended = training.run(training.arguments(shared, workdir, **train), hooks)
    wrong = training._refused(ended)
    if wrong:
        return f"NOT REFUSED: {wrong}"
    lines = [line for line in ended.text.splitlines() if line.startswith("error: ")]
    return lines[0].removeprefix("error: ")


def _ill_refused(error: str, workdir: pathlib.Path, failure: Failure) -> str:
    """Why the line does not say what a person needs: where, why, what is left and what to do."""
    words = [str(workdir), "the same command resumes"]
    words += [f"Step {failure.good} is intact"] if failure.good else []
    missing = [word for word in words if word not in error]
    missing += [failure.reason] if failure.reason not in error.lower() else []
    if missing or "\n" in error or "NOT REFUSED" in error:
        return f"no word of {missing}: {error or 'it ended well'}"
    return ""


@contextlib.contextmanager
def _disk(folder: pathlib.Path, failure: Failure):
    """A small disk where one is filled up; what was mounted meanwhile is taken away again."""
    small = failure.hook == "really_full"
    if small:
        _mount("-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", folder)
    try:
        yield
    finally:
        if small:
            subprocess.run(["umount", folder], check=True)


def _mount(*words) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(done.stderr.strip())


def _mend(workdir: pathlib.Path, failure: Failure) -> None:
    folder = workdir / "checkpoints"
    if failure.hook == "read_only_from":
        subprocess.run(["umount", folder], check=True)
    os.chmod(folder, 0o755)
    (workdir / "ballast").unlink(missing_ok=True)


def _lossy(own: pathlib.Path, shared: pathlib.Path, failure: Failure, truth) -> str:
    """Why the failure was not survived."""
    workdir = own / "run"
    own.mkdir()
    with _disk(own, failure):
        error = _fail(shared, workdir, failure)
        step, wrong = training._sound(workdir, truth)
        _mend(workdir, failure)
        if wrong or step != failure.good:
            return f"LOST: step {step} is there, not {failure.good}: {wrong}: {error}"
        again = run_here(shared, workdir, num_train_steps=QUICK_STEPS, **CADENCE)
        again = again or unlike(workdir, truth)
        if again:
            return f"LOST: the same command: {again}"
    return _ill_refused(error, workdir, failure)


def failed_saves(folder: pathlib.Path, quick: bool) -> Outcome:
    truth, notes, injected = uninterrupted(folder.parent, QUICK_STEPS), [], 0
    lost = 0
    for number, (name, failure) in enumerate(FAILURES.items()):
        if quick and name not in QUICK:
            continue
        try:
            why = _lossy(folder / str(number), folder.parent, failure, truth)
        except PermissionError as error:
            notes.append(f"{name}: not tried, no right to mount here ({error})")
            continue
        injected, lost = injected + 1, lost + why.startswith("LOST")
        notes += [f"FELL SHORT, {name}: {why}"] if why else []
    short = sum(note.startswith("FELL SHORT") for note in notes)
    return Outcome(injected, injected - short, lost, _silent(folder, truth), notes)


def _silent(folder: pathlib.Path, truth) -> bool:
    """Negative control: saves that fail without a word are seen."""
    from cldm_jax.runtime.checkpoint import Checkpoints

    with mock.patch.object(Checkpoints, "save", lambda *_: None):
        why = _lossy(folder / "control", folder.parent, FAILURES["ENOSPC, in Orbax"], truth)
    return why.startswith("LOST")


PROMISES = [
    Promise(3, "damage is seen, kept, and stepped over", damaged_checkpoints),
    Promise(4, "a save that fails loses nothing", failed_saves),
]
