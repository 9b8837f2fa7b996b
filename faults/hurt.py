"""Faults in a training, as context managers by name: in a child process, or in this one.

`python -m faults.hurt HOOKS ARGUMENTS...` is the real command with faults hooked into it, which says
when its loop begins, for a parent that wants to hurt it then; HOOKS is JSON, {name: what}, a name
without a module one of this file.
"""

import contextlib
import ctypes
import importlib
import json
import os
import pathlib
import pkgutil
import resource
import shutil
import subprocess
import sys
import threading
import time
from typing import NamedTuple
from unittest import mock

from cldm_jax import files
from cldm_jax.errors import UserError
from cldm_jax.runtime import device
from faults import ROOT
from faults.common import at_file_event, environment, hash_tree, quiet

BEGINS = "faults: the loop begins"
VALIDATES = "faults: validating"
EVENTS = "faults: file events"
SHORT = {  # a training, where nothing else is said
    "train.num_train_steps": 20,
    "train.log_every": 1,
    "train.val_every": 20,
    "train.save_every": 10,
}
TIMEOUT = 300  # seconds for a child on a loaded machine; most take under 20

# ---- something at the n-th call of a function ----


def _is_of_run(saver, *_) -> bool:
    """Not the save of its best step."""
    return (getattr(saver, "folder", None) or saver.directory).name == "checkpoints"


PLACES = {  # of what, which function, which of its calls are counted; others: of `files.write_json`
    "loop": ("cldm_jax.data.pipeline", "make_train_iterator", lambda *_: True),
    "any save": ("cldm_jax.runtime.checkpoint:Checkpoints", "save", lambda *_: True),
    "save": ("cldm_jax.runtime.checkpoint:Checkpoints", "save", _is_of_run),
    "orbax": ("cldm_jax.runtime.checkpoint:ocp.CheckpointManager", "save", _is_of_run),
}


def _say(call, arguments):
    print(BEGINS, flush=True)
    return call()


def _signal(call, arguments, signum: int, seconds: float):
    if seconds:
        threading.Timer(seconds, os.kill, (os.getpid(), signum)).start()
    else:
        os.kill(os.getpid(), signum)
    return call()


def _fail(call, arguments, code: int):
    path = getattr(arguments[0], "directory", arguments[0])
    raise OSError(code, os.strerror(code), str(path))


def _fail_to_flush(call, arguments, code: int):
    def fsync(_):
        _fail(call, arguments, code)

    with mock.patch.object(os, "fsync", fsync):
        return call()


def _limit_files(call, arguments, size: int):
    """No file of this process may grow beyond so many bytes from now on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return call()


def _deny(call, arguments):
    os.chmod(arguments[0].folder, 0o555)
    return call()


def _mount_read_only(call, arguments):
    folder = arguments[0].folder
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
    return call()


def _fill_disk(call, arguments, spare: int):
    """After this save the (small) disk is filled up to `spare` bytes."""
    call()
    ballast = arguments[0].folder.parent / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", 0) as f:
        while True:
            f.write(bytes(4096))
    os.truncate(ballast, ballast.stat().st_size - spare)


ACTS = {
    "say": _say,
    "signal": _signal,
    "fail": _fail,
    "fail to flush": _fail_to_flush,
    "limit files": _limit_files,
    "deny": _deny,
    "mount read-only": _mount_read_only,
    "fill disk": _fill_disk,
}


@contextlib.contextmanager
def at(what):
    """[place, or how a JSON file's name begins; number of the call; act; what the act is given...]."""
    place, number, act, *given = what

    def is_named(path, *_) -> bool:
        return pathlib.Path(path).name.startswith(place)

    owner, name, is_counted = PLACES.get(place, ("cldm_jax.files", "write_json", is_named))
    owner, count = pkgutil.resolve_name(owner), 0
    plain = getattr(owner, name)

    def hurt(*arguments, **keywords):
        nonlocal count
        if not is_counted(*arguments):
            return plain(*arguments, **keywords)
        count += 1
        if count != number:
            return plain(*arguments, **keywords)
        return ACTS[act](lambda: plain(*arguments, **keywords), arguments, *given)

    with mock.patch.object(owner, name, hurt):
        yield


# ---- other faults ----


def after_steps(look):
    """Calls look(state) after every step."""
    compile_step = device.compile_step

    def compiled(*arguments):
        call = compile_step(*arguments)

        def looked_at(*arguments):
            out = call(*arguments)
            look(out[0])
            return out

        return looked_at

    return mock.patch.object(device, "compile_step", compiled)


@contextlib.contextmanager
def hash_steps(path):
    """Writes {step: hash of the averaged parameters} of every step to `path`."""
    hashes = {}
    with after_steps(lambda state: hashes.update({int(state.step): hash_tree(state.ema_params)})):
        yield
    files.write_json(path, hashes)


@contextlib.contextmanager
def at_event(what):
    """A signal at the n-th thing done to a file below the folder; says at last how many there were."""
    signum, number, folder = what
    count = at_file_event(folder, number, lambda: os.kill(os.getpid(), signum))
    yield
    print(f"{EVENTS} {count()}", flush=True)


def in_validation(what):
    """A signal so many seconds after a validation began, which then takes `slow` seconds more."""
    from cldm_jax.jobs import train

    signum, seconds, slow = what

    class Hurt(train.Validation):
        def look(self, *arguments):
            if signum:
                threading.Timer(seconds, os.kill, (os.getpid(), signum)).start()
            print(VALIDATES, flush=True)
            time.sleep(slow)
            return super().look(*arguments)

    return mock.patch.object(train, "Validation", Hurt)


def free_space(what):
    """From the n-th time it is asked for, the disk has so many bytes left."""
    number, free = what
    count, usage = 0, shutil.disk_usage

    def asked(path):
        nonlocal count
        count += 1
        found = usage(path)
        return found if count < number else found._replace(used=0, free=free)

    return mock.patch.object(shutil, "disk_usage", asked)


@contextlib.contextmanager
def obeys_permissions(_):
    """Gives up root's right to pass over them (CAP_DAC_OVERRIDE): before threads inherit it."""
    version, words = 0x20080522, (ctypes.c_uint32 * 6)()
    header, libc = (ctypes.c_uint32 * 2)(version, 0), ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, words):
        raise OSError(ctypes.get_errno(), "capget")
    words[0] &= ~0b110
    words[1] &= ~0b110
    if libc.capset(header, words):
        raise OSError(ctypes.get_errno(), "capset")
    yield


def _as_it_comes(guarded):
    """Every update is applied, whatever it holds."""

    def plain(step):
        def unguarded(state, first_bad, batch, rng):
            state, metrics = step(state, batch, rng)
            return state, first_bad, metrics

        return unguarded

    return plain


REPLACED = {  # what, and what takes its place, given what was there
    # Saves go on beside the steps, as on a GPU.
    "beside": ("cldm_jax.runtime.saving.pays", lambda pays: lambda: True),
    # No signal is handled: what a loop without a StopRequest does.
    "deaf": ("cldm_jax.runtime.signals.StopRequest.__enter__", lambda enter: lambda self: self),
    # A resumed run that forgot where its reader was, or its random key.
    "first_batches_again": (
        "cldm_jax.data.pipeline.make_train_iterator",
        lambda make: lambda *a, **k: make(*a, **{**k, "start_step": 0}),
    ),
    "other_key": ("jax.random.key", lambda make: lambda seed: make(seed + 1)),
    "unguarded": ("cldm_jax.runs.steps.guarded", _as_it_comes),
}


@contextlib.contextmanager
def hooked(hooks: dict):
    with contextlib.ExitStack() as stack:
        for name, what in hooks.items():
            if name in REPLACED:
                path, make = REPLACED[name]
                hook = mock.patch(path, make(pkgutil.resolve_name(path)))
            else:
                hook = pkgutil.resolve_name(name if ":" in name else f"faults.hurt:{name}")(what)
            stack.enter_context(hook)
        yield


# ---- running it ----


def settings(shared: pathlib.Path, changes: dict | None, name: str) -> dict:
    """{dotted name: value} for preset tiny of a method, on the data and the autoencoder that all promises
    share in a folder: `folder.parent` for `Promise.run(folder, quick)`.
    """
    made = {"data.root": str(shared / "data")}
    if name == "ldm":
        made["autoencoder.workdir"] = str(shared / "ae")
    return {**made, **SHORT, **(changes or {})}


def arguments(shared, workdir, changes: dict | None = None, name: str = "ldm") -> list[str]:
    """Of `cldm_jax.main`, for a training with `settings`."""
    words = [f"--config=configs/{name}.py:tiny", f"--workdir={workdir}"]
    return words + [f"--config.{k}={v}" for k, v in settings(shared, changes, name).items()]


def start(words: list[str], hooks: dict) -> subprocess.Popen:
    command = [sys.executable, "-m", "faults.hurt", json.dumps(hooks), *words]
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, cwd=ROOT, env=environment(), **options)


def wait_for(process: subprocess.Popen, words: str) -> str:
    """What the child said until a line with these words, or its end."""
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            break
    return said


class Ended(NamedTuple):
    code: int
    text: str
    seconds: float  # since the loop began, or since the last signal


def finish(process: subprocess.Popen, said: str = "") -> Ended:
    began = time.monotonic()
    try:
        text = process.communicate(timeout=TIMEOUT)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        text = process.communicate()[0] + f"\nfaults: hung for {TIMEOUT} s"
    return Ended(process.returncode, said + text, time.monotonic() - began)


def run(words: list[str], hooks: dict | None = None) -> Ended:
    process = start(words, hooks or {})
    return finish(process, wait_for(process, BEGINS))


def run_here(shared, workdir, changes: dict | None = None, name="ldm", hooks=None) -> str:
    """The training in this process: "" where it ended well, else its UserError or exit status."""
    from cldm_jax.jobs import make

    config = importlib.import_module(f"configs.{name}").get_config("tiny")
    config.update_from_flattened_dict(settings(shared, changes, name))
    with quiet(), hooked(hooks or {}):
        try:
            make.run(config, str(workdir))
        except UserError as error:
            return str(error)
        except SystemExit as stopped:
            return f"exit {stopped.code}"
    return ""


def refused(ended: Ended, *words: str) -> str:
    """Why this is not one line with these words and exit status 2."""
    lines = [line for line in ended.text.splitlines() if line.startswith("error: ")]
    ok = ended.code == 2 and len(lines) == 1 and "Traceback" not in ended.text
    if not ok or not all(word in lines[0] for word in words):
        return f"ended with {ended.code}: {ended.text[-500:]}"
    return ""


def _child() -> None:
    from absl import app

    from cldm_jax import main

    with at(["loop", 1, "say"]), hooked(json.loads(sys.argv[1])):
        try:
            app.run(main.main, argv=["main", *sys.argv[2:]], flags_parser=main.parse_flags)
        except SystemExit as end:
            if end.code:
                raise


if __name__ == "__main__":
    _child()
