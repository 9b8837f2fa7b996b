"""Faults in a training, as context managers by name: in a child process, or in this one.

`python -m faults.hurt HOOKS ARGUMENTS...` is the real command with faults hooked into it; HOOKS is
JSON, {name: what}, a name without a module one of this file.
"""

import contextlib
import ctypes
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
from collections import namedtuple
from typing import NamedTuple
from unittest import mock

from cldm_jax import files
from cldm_jax.errors import UserError
from faults import ROOT
from faults.common import at_file_event, environment, hash_tree, make_config, quiet

BEGINS = "faults: the loop begins"
VALIDATES = "faults: validating"
EVENTS = "faults: file events"
Usage = namedtuple("Usage", "total used free")
TIMEOUT = 300  # seconds for a child on a loaded machine; most take under 20

# ---- something at the n-th call of a function ----


def _is_of_run(saver, *_) -> bool:
    """Not the save of its best step."""
    return (getattr(saver, "folder", None) or saver.directory).name == "checkpoints"


def _is_named(prefix: str):
    return lambda path, *_: pathlib.Path(path).name.startswith(prefix)


PLACES = {  # of what, which function, which of its calls are counted
    "loop": ("cldm_jax.data.pipeline", "make_train_iterator", lambda *_: True),
    "any save": ("cldm_jax.runtime.checkpoint:Checkpoints", "save", lambda *_: True),
    "save": ("cldm_jax.runtime.checkpoint:Checkpoints", "save", _is_of_run),
    "orbax": ("cldm_jax.runtime.checkpoint:ocp.CheckpointManager", "save", _is_of_run),
    "manifest": ("cldm_jax.files", "write_json", _is_named("sha256-")),
    "manifest 10": ("cldm_jax.files", "write_json", _is_named("sha256-10")),
    "manifest 20": ("cldm_jax.files", "write_json", _is_named("sha256-20")),
    "record": ("cldm_jax.files", "write_json", _is_named("run.json")),
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
    """[place, number of the call, act, what the act is given...]."""
    place, number, act, *given = what
    owner, name, is_counted = PLACES[place]
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


def announce(_):
    """Says when the loop begins, for a parent that wants to hurt it then."""
    return at(["loop", 1, "say"])


# ---- other faults ----


@contextlib.contextmanager
def hash_steps(path):
    """Writes {step: hash of the averaged parameters} of every step to `path`."""
    from cldm_jax.runtime import device

    compile_step, hashes = device.compile_step, {}

    def compiled(*arguments):
        call = compile_step(*arguments)

        def hashed(*arguments):
            out = call(*arguments)
            hashes[int(out[0].step)] = hash_tree(out[0].ema_params)
            return out

        return hashed

    with mock.patch.object(device, "compile_step", compiled):
        yield
    files.write_json(path, hashes)


@contextlib.contextmanager
def at_event(what):
    """A signal at the n-th thing done to a file below the folder; says at last how many there were."""
    signum, number, folder = what
    with at_file_event(folder, number, lambda: os.kill(os.getpid(), signum)) as count:
        yield
    print(f"{EVENTS} {count()}", flush=True)


def in_validation(what):
    """A signal so many seconds after a validation began, which then takes `slow` seconds more."""
    from cldm_jax.jobs import train

    signum, seconds, slow = what
    make = train.make_validation

    def made(*arguments):
        validation = make(*arguments)

        def hurt(*arguments):
            if signum:
                threading.Timer(seconds, os.kill, (os.getpid(), signum)).start()
            print(VALIDATES, flush=True)
            time.sleep(slow)
            return validation(*arguments)

        return validation._replace(look=hurt)

    return mock.patch.object(train, "make_validation", made)


def beside(_):
    """Saves go on beside the steps, as on a GPU."""
    from cldm_jax.runtime import saving

    return mock.patch.object(saving, "pays", lambda: True)


def deaf(_):
    """No signal is handled: what a loop without a StopRequest does."""
    from cldm_jax.jobs import train

    return mock.patch.object(train.StopRequest, "__enter__", lambda self: self)


def first_batches_again(_):
    """A resumed run that forgot where its reader was."""
    from cldm_jax.data import pipeline

    make = pipeline.make_train_iterator
    return mock.patch.object(
        pipeline, "make_train_iterator", lambda *a, **k: make(*a, **{**k, "start_step": 0})
    )


def other_key(_):
    """A resumed run that forgot its random key."""
    import jax

    make = jax.random.key
    return mock.patch.object(jax.random, "key", lambda seed: make(seed + 1))


def free_space(what):
    """From the n-th time it is asked for, the disk has so many bytes left."""
    number, free = what
    count, usage = 0, shutil.disk_usage

    def asked(path):
        nonlocal count
        count += 1
        found = usage(path)
        return found if count < number else Usage(found[0], 0, free)

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


def unguarded(_):
    """Every update is applied, whatever it holds."""
    from cldm_jax.runs import steps

    def plain(step):
        def as_it_comes(state, first_bad, batch, rng):
            state, metrics = step(state, batch, rng)
            return state, first_bad, metrics

        return as_it_comes

    return mock.patch.object(steps, "guarded", plain)


@contextlib.contextmanager
def hooked(hooks: dict):
    with contextlib.ExitStack() as stack:
        for name, what in hooks.items():
            hook = pkgutil.resolve_name(name if ":" in name else f"faults.hurt:{name}")
            stack.enter_context(hook(what))
        yield


# ---- running it ----


def arguments(shared: pathlib.Path, workdir, name: str = "ldm", **train) -> list[str]:
    """Of `cldm_jax.main`, for preset tiny of a method on the shared data."""
    words = [f"--config=configs/{name}.py:tiny", f"--workdir={workdir}"]
    words += [f"--config.data.root={shared / 'data'}"]
    if name == "ldm":
        words += [f"--config.autoencoder.workdir={shared / 'ae'}"]
    return words + [f"--config.train.{key}={value}" for key, value in train.items()]


def start(words: list[str], hooks: dict) -> subprocess.Popen:
    command = [sys.executable, "-m", "faults.hurt", json.dumps({"announce": 1, **hooks}), *words]
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


def run_here(shared, workdir, name: str = "ldm", hooks: dict | None = None, **train) -> str:
    """The training in this process: "" where it ended well, else its UserError or exit status."""
    from cldm_jax.jobs import make

    with quiet(), hooked(hooks or {}):
        try:
            make.run(make_config(shared, name, **train), str(workdir))
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

    with hooked(json.loads(sys.argv[1])):
        try:
            app.run(main.main, argv=["main", *sys.argv[2:]], flags_parser=main.parse_flags)
        except SystemExit as end:
            if end.code:
                raise


if __name__ == "__main__":
    _child()
