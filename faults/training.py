"""Promises 1, 2, 5 and 6: a training that is killed, stopped, poisoned or started twice.

Trainings run as child processes (`python -m faults.training HOOKS ARGUMENTS...`): the real command,
with faults hooked into it. What they leave is compared, bit by bit, with an uninterrupted run.
"""

import concurrent.futures
import contextlib
import importlib
import io
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple
from unittest import mock

import numpy as np

from cldm_jax import files
from cldm_jax.errors import UserError
from faults.common import Outcome, Promise, hash_tree, loss_bits, make_config

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEGINS = "faults: the loop begins"
EVENTS = "faults: file events"
TIMEOUT = 300  # seconds for a child on a loaded machine; most take under 20
GRACE = 10  # seconds from a signal to the end of the process
STEPS, QUICK_STEPS = 120, 20
CADENCE = dict(log_every=1, val_every=20, save_every=10)


# ---- faults in a training, as context managers: in a child, or in this process ----


def _later(signum: int, seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signum)).start()


def announce(_):
    """Says when the loop begins, for a parent that wants to hurt it then."""
    from cldm_jax.data import pipeline

    make = pipeline.make_train_iterator

    def announced(*arguments, **keywords):
        print(BEGINS, flush=True)
        return make(*arguments, **keywords)

    return mock.patch.object(pipeline, "make_train_iterator", announced)


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
    """A signal at the n-th thing done to a file below the folder (opened to write, renamed, made,
    removed). At its end it says how many there were.
    """
    signum, number, folder = what
    done = 0

    def watch(name, arguments):
        nonlocal done
        if name not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        if not str(arguments[0]).startswith(folder) or (name == "open" and arguments[1] == "r"):
            return
        done += 1
        if done == number:
            os.kill(os.getpid(), signum)

    sys.addaudithook(watch)  # cannot be taken away again: for children only
    yield
    print(f"{EVENTS} {done}", flush=True)


def in_validation(what):
    """A signal so many seconds after a validation began, which then takes `slow` seconds more."""
    from cldm_jax.jobs import train

    signum, seconds, slow = what
    make = train.make_validation

    def made(*arguments):
        validation = make(*arguments)

        def hurt(*arguments):
            if signum:
                _later(signum, seconds)
            print("faults: validating", flush=True)
            time.sleep(slow)
            return validation(*arguments)

        return validation._replace(look=hurt)

    return mock.patch.object(train, "make_validation", made)


def in_save(what):
    """A signal so many seconds after the second save of this process began."""
    from cldm_jax.runtime.checkpoint import Checkpoints

    signum, seconds = what
    save, count = Checkpoints.save, 0

    def hurt(self, *arguments):
        nonlocal count
        count += 1
        if count == 2:
            _later(signum, seconds)
        return save(self, *arguments)

    return mock.patch.object(Checkpoints, "save", hurt)


def before_write(what):
    """A signal before the n-th file whose name begins so is written by `files`."""
    signum, prefix, number = what
    write, count = files.write_json, 0

    def hurt(path, value):
        nonlocal count
        count += pathlib.Path(path).name.startswith(prefix)
        if count == number:
            os.kill(os.getpid(), signum)
        write(path, value)

    return mock.patch.object(files, "write_json", hurt)


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


HOOKS = {
    hook.__name__: hook
    for hook in (
        *(announce, hash_steps, at_event, in_validation, in_save, before_write, beside, deaf),
        *(first_batches_again, other_key),
    )
}


@contextlib.contextmanager
def hooked(hooks: dict):
    with contextlib.ExitStack() as stack:
        for name, value in hooks.items():
            stack.enter_context(HOOKS[name](value))
        yield


# ---- running it ----


def arguments(shared: pathlib.Path, workdir, name: str = "ldm", **train) -> list[str]:
    """Of `cldm_jax.main`, for preset tiny of a method on the shared data."""
    words = [f"--config=configs/{name}.py:tiny", f"--workdir={workdir}"]
    words += [f"--config.data.root={shared / 'data'}"]
    if name == "ldm":
        words += [f"--config.autoencoder.workdir={shared / 'ae'}"]
    return words + [f"--config.train.{key}={value}" for key, value in train.items()]


def environment(**more) -> dict:
    """Huge pages would start every child a second time; nothing here measures speed."""
    base = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "CLDM_HUGE_PAGES": "0"}
    return {**os.environ, **base, **more}


def start(words: list[str], hooks: dict, env: dict | None = None) -> subprocess.Popen:
    command = [sys.executable, "-m", "faults.training", json.dumps({"announce": 1, **hooks})]
    return subprocess.Popen(
        [*command, *words],
        cwd=ROOT,
        env=env or environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


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


def run(words: list[str], hooks: dict | None = None, env: dict | None = None) -> Ended:
    process = start(words, hooks or {}, env)
    return finish(process, wait_for(process, BEGINS))


@contextlib.contextmanager
def quiet():
    """Yields what is printed and logged in this process meanwhile."""
    text, root = io.StringIO(), logging.getLogger()
    before, root.handlers = root.handlers, [logging.StreamHandler(text)]
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            yield text
    finally:
        root.handlers = before


def _config(shared: pathlib.Path, name: str, **train):
    """As `make_config`, for every method."""
    if name in ("ae", "ldm", "unet"):
        return make_config(shared, name, **train)
    config = importlib.import_module(f"configs.{name}").get_config("tiny")
    config.data.root = str(shared / "data")
    config.train.update(train)
    return config


def run_here(shared, workdir, name: str = "ldm", hooks: dict | None = None, **train) -> str:
    """The training in this process: "" where it ended well, else its UserError or exit status."""
    from cldm_jax.jobs import make

    with quiet(), hooked(hooks or {}):
        try:
            make.run(_config(shared, name, **train), str(workdir))
        except UserError as error:
            return str(error)
        except SystemExit as stopped:
            return f"exit {stopped.code}"
    return ""


# ---- what an uninterrupted run leaves ----


class Truth(NamedTuple):
    rows: dict  # of loss_bits
    state: str  # hash of everything in the last checkpoint
    best: tuple  # what run.json says of the best step, and the hash of its parameters
    ema: dict[int, str]  # hash of the averaged parameters after every step
    seconds: float  # of the loop, with compilation
    events: int  # things done to files, start and end included


def left_by(workdir) -> tuple:
    """(rows, hash of the last checkpoint, best) of a finished run."""
    from cldm_jax.runtime.checkpoint import BEST, Checkpoints

    workdir, hashes = pathlib.Path(workdir), []
    for folder in ("checkpoints", BEST):
        checkpoints = Checkpoints(workdir / folder)
        hashes.append(hash_tree(checkpoints.restore_latest(None)[1]))
        checkpoints.close()
    best = files.read_json(workdir / "run.json")["best"]
    return loss_bits(workdir), hashes[0], (best["step"], best["psnr"].hex(), hashes[1])


def uninterrupted(shared: pathlib.Path, steps: int, name: str = "ldm") -> Truth:
    """Of a training on the shared data, made on first use and kept beside the promises' folders."""
    folder = shared / f"truth-{name}-{steps}"
    if not (folder / "truth.json").exists():
        hooks = {"hash_steps": str(folder / "ema.json"), "at_event": [0, -1, str(folder / "run")]}
        words = arguments(shared, folder / "run", name, num_train_steps=steps, **CADENCE)
        ended = run(words, hooks)
        if ended.code:
            raise RuntimeError(f"the uninterrupted run failed: {ended.text[-2000:]}")
        events = int(ended.text.split(EVENTS)[1].split()[0])
        files.write_json(folder / "truth.json", {"seconds": ended.seconds, "events": events})
    kept = files.read_json(folder / "truth.json")
    ema = {int(step): value for step, value in files.read_json(folder / "ema.json").items()}
    with quiet():
        return Truth(*left_by(folder / "run"), ema, **kept)


def unlike(workdir, truth: Truth) -> str:
    """Why a finished run is not the uninterrupted one, to the bit; "" where it is."""
    try:
        with quiet():
            found = left_by(workdir)
    except (UserError, ValueError) as error:
        return str(error)
    if found[0] != truth.rows:
        steps = [
            k for k in found[0].keys() | truth.rows.keys() if found[0].get(k) != truth.rows.get(k)
        ]
        return f"{len(steps)} of {len(truth.rows)} lines differ, first {min(steps)}"
    names = ("lines", "last state", "best step")
    wrong = [n for n, a, b in zip(names, found, truth[:3], strict=True) if a != b]
    return f"another {' and '.join(wrong)}" if wrong else ""


def _sound(workdir: pathlib.Path, truth: Truth) -> tuple[int, str]:
    """(step of the newest checkpoint, why what lies on the disk is wrong): read, nothing touched."""
    from cldm_jax.runtime.checkpoint import restore_for_inference

    try:
        with quiet():
            rows = loss_bits(workdir)
            found = restore_for_inference(workdir / "checkpoints")
    except UserError as error:
        if "sound" in str(error):  # only the first save, and that was interrupted
            return 0, ""
        return 0, str(error)
    except ValueError as error:
        return 0, str(error)
    wrong = [key for key, row in rows.items() if truth.rows.get(key) != row]
    step = found[0] if found else 0
    lost = [key for key in truth.rows if key[0] <= step and key[1] == "train" and key not in rows]
    if wrong or lost:
        return step, f"lines wrong {wrong[:3]}, lost {lost[:3]}"
    if found and hash_tree(found[1]) != truth.ema[step]:
        return step, f"the checkpoint of step {step} is not the uninterrupted run's"
    return step, ""


# ---- 1: SIGKILL ----


def _kills(rng, truth: Truth, kinds) -> list[dict]:
    """One kill of each kind, in an order in which those by time come spread over the whole run."""
    spread = iter(sorted(rng.uniform(0, 1, kinds.count("time"))))
    made = []
    for kind in kinds:
        if kind == "time":
            made.append({"kind": kind, "at": float(next(spread))})
            continue
        value = {
            "in_save": lambda: [signal.SIGKILL, float(rng.uniform(0, 0.15))],
            "in_validation": lambda: [signal.SIGKILL, float(rng.uniform(0, 0.1)), 0],
            "before_manifest": lambda: [signal.SIGKILL, "sha256-", int(rng.integers(1, 3))],
            "before_record": lambda: [signal.SIGKILL, "run.json", int(rng.integers(1, 3))],
            "at_event": lambda: [signal.SIGKILL, int(rng.integers(1, truth.events // 3))],
        }[kind]()
        made.append({"kind": kind, "value": value})
    return made


def _hurt(words, kill: dict, workdir, step: int, steps: int, truth: Truth) -> Ended:
    """One session of the run with one kill in it."""
    kind, hooks = kill["kind"], {}
    if kind in ("in_save", "in_validation"):
        hooks = {kind: kill["value"]}
    elif kind.startswith("before"):
        hooks = {"before_write": kill["value"]}
    elif kind == "at_event":
        hooks = {kind: [*kill["value"], str(workdir)]}
    process = start(words, hooks)
    said = wait_for(process, BEGINS)
    if kind == "time":
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, kill["at"] - step / steps) * truth.seconds)
        process.kill()
    return finish(process, said)


def _left_alone(words, workdir, truth: Truth) -> list[str]:
    """What is wrong with a run that was hurt before and may now come to its end: nothing, or one line."""
    ended = run(words)
    wrong = unlike(workdir, truth) if ended.code == 0 else ended.text[-500:]
    return [f"the finished run: {wrong}"] if wrong else []


def _killed_again_and_again(folder: pathlib.Path, steps: int, kills: list[dict], truth: Truth):
    """One run, killed and resumed until the kills are used up, then left alone: [why each was lost]."""
    workdir, why, step, done = folder / "run", [], 0, 0
    words = arguments(folder.parent.parent, workdir, num_train_steps=steps, **CADENCE)
    for kill in kills:
        while (ended := _hurt(words, kill, workdir, step, steps, truth)).code == 0:
            # It came to its end before the kill, which was not injected: once more, from the start.
            shutil.rmtree(workdir)
            step = 0
            if kill["kind"] == "time":
                kill = {**kill, "at": kill["at"] / 2}
        done += 1
        step, wrong = _sound(workdir, truth)
        if ended.code != -signal.SIGKILL:
            wrong = f"ended with {ended.code}: {ended.text[-500:]}"
        if wrong:
            why.append(f"{kill}: {wrong}")
    return done, why + _left_alone(words, workdir, truth)


KILLS = (
    "time before_manifest time at_event time in_validation time in_save time before_record time "
    "at_event time at_event time"
).split()  # 15; two such runs
QUICK_KILLS = ["before_manifest"]


def exact_resume(folder: pathlib.Path, quick: bool) -> Outcome:
    steps = QUICK_STEPS if quick else STEPS
    truth, rng = uninterrupted(folder.parent, steps), np.random.default_rng(1)
    chains = [_kills(rng, truth, QUICK_KILLS if quick else KILLS) for _ in range(1 if quick else 2)]
    folders = [folder / str(number) for number in range(len(chains))]
    injected, notes = 0, []
    with concurrent.futures.ThreadPoolExecutor(len(chains)) as pool:
        found = pool.map(
            lambda pair: _killed_again_and_again(pair[0], steps, pair[1], truth),
            zip(folders, chains, strict=True),
        )
        for done, why in found:
            injected += done
            notes += why
    lost = min(len(notes), injected)
    control = _forgetful(folder, steps, truth, quick)
    kinds = ", ".join(sorted({kill["kind"] for chain in chains for kill in chain}))
    notes.insert(0, f"{steps} steps of ldm tiny; {len(truth.rows)} lines; kills {kinds}")
    return Outcome(injected, injected - lost, lost, control, notes)


def _forgetful(folder: pathlib.Path, steps: int, truth: Truth, quick: bool) -> bool:
    """Negative control: resumed without the reader's place, or without the key, a run is another."""
    stopped = folder / "stopped"
    words = arguments(folder.parent, stopped, num_train_steps=steps, **CADENCE)
    run(words, {"before_write": [signal.SIGKILL, "run.json", 2]})
    seen = []
    for hook in ("first_batches_again",) if quick else ("first_batches_again", "other_key"):
        workdir = shutil.copytree(stopped, folder / hook)
        why = run_here(folder.parent, workdir, hooks={hook: 1}, num_train_steps=steps, **CADENCE)
        seen.append(not why and "lines differ" in unlike(workdir, truth))
    return all(seen)


# ---- 2: SIGTERM and SIGINT ----

NAMES = {signal.SIGTERM: 143, signal.SIGINT: 130}
STOPS = "time at_once time in_validation time in_save time twice time time".split()  # 10; two runs


class Stop(NamedTuple):
    kind: str
    signum: int
    at: float  # share of the run ("time"), else seconds after the validation or the save began


def _send(words, stop: Stop, step: int, steps: int, truth: Truth) -> Ended:
    hooks = {}
    if stop.kind == "in_validation":
        hooks = {"in_validation": [stop.signum, stop.at, 0]}
    elif stop.kind == "in_save":
        hooks = {"in_save": [stop.signum, stop.at]}
    elif stop.kind == "twice":
        hooks = {"in_validation": [0, 0, 60]}
    elif stop.kind == "deaf":
        hooks = {"deaf": 1}
    process = start(words, hooks)
    said = wait_for(process, BEGINS)
    if stop.kind in ("time", "deaf"):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, stop.at - step / steps) * truth.seconds)
    elif stop.kind == "twice":
        said += wait_for(process, "faults: validating")
        process.send_signal(stop.signum)
        time.sleep(0.5)
    if not stop.kind.startswith("in_"):
        process.send_signal(stop.signum)
    return finish(process, said)


def _ill_stopped(stop: Stop, ended: Ended, workdir, truth: Truth) -> tuple[int, str]:
    """(step of the newest checkpoint, why the process did not end as it should)."""
    step, wrong = _sound(workdir, truth)
    rows = [number for number, kind in loss_bits(workdir) if kind == "train"]
    if wrong:
        return step, wrong
    if ended.seconds > GRACE and not stop.kind.startswith("in_"):
        return step, f"took {ended.seconds:.1f} s"
    if stop.kind == "twice":
        return step, "" if ended.code == -stop.signum else f"ended with {ended.code}"
    if ended.code != NAMES[stop.signum] or "stopped by signal" not in ended.text:
        return step, f"ended with {ended.code}: {ended.text[-500:]}"
    if "nothing new to save" not in ended.text and step != max(rows):
        return step, f"step {max(rows)} was done and step {step} is saved"
    return step, ""


def _stopped_again_and_again(folder: pathlib.Path, steps: int, stops: list[Stop], truth: Truth):
    workdir, why, step, slowest, done = folder / "run", [], 0, 0.0, 0
    words = arguments(folder.parent.parent, workdir, num_train_steps=steps, **CADENCE)
    for stop in stops:
        ended = _send(words, stop, step, steps, truth)
        if ended.code == 0:  # it had finished: nothing was injected
            shutil.rmtree(workdir)
            step = 0
            continue
        done += 1
        step, wrong = _ill_stopped(stop, ended, workdir, truth)
        if not stop.kind.startswith("in_"):
            slowest = max(slowest, ended.seconds)
        if wrong:
            why.append(f"{stop}: {wrong}")
    return done, slowest, why + _left_alone(words, workdir, truth)


def _stops(rng, kinds, first: int) -> list[Stop]:
    spread = iter(sorted(rng.uniform(0.05, 0.95, kinds.count("time"))))
    signals = list(NAMES)
    return [
        Stop(
            kind,
            int(signals[(first + number) % 2]),
            float(next(spread) if kind == "time" else rng.uniform(0, 0.1)),
        )
        for number, kind in enumerate(kinds)
    ]


def saved_on_request(folder: pathlib.Path, quick: bool) -> Outcome:
    steps = QUICK_STEPS if quick else STEPS
    truth, rng = uninterrupted(folder.parent, steps), np.random.default_rng(2)
    chains = [_stops(rng, ["time"] if quick else STOPS, first) for first in range(2 - quick)]
    folders = [folder / str(number) for number in range(len(chains))]
    injected, slowest, notes = 0, 0.0, []
    with concurrent.futures.ThreadPoolExecutor(len(chains)) as pool:
        found = pool.map(
            lambda pair: _stopped_again_and_again(pair[0], steps, pair[1], truth),
            zip(folders, chains, strict=True),
        )
        for done, seconds, why in found:
            injected, slowest = injected + done, max(slowest, seconds)
            notes += why
    lost = min(len(notes), injected)
    notes.insert(0, f"slowest from signal to end: {slowest:.1f} s")
    control = None if quick else _unheard(folder, steps, truth)
    return Outcome(injected, injected - lost, lost, control, notes)


def _unheard(folder: pathlib.Path, steps: int, truth: Truth) -> bool:
    """Negative control: a loop that hears no signal loses its step, and the check sees it."""
    words = arguments(folder.parent, folder / "deaf", num_train_steps=steps, **CADENCE)
    stop = Stop("deaf", int(signal.SIGTERM), 0.5)
    ended = _send(words, stop, 0, steps, truth)
    return bool(_ill_stopped(stop, ended, folder / "deaf", truth)[1])


# ---- 5: NaN ----

NAN_CADENCE = dict(log_every=4, val_every=20, save_every=10, num_train_steps=QUICK_STEPS)


class Poison(NamedTuple):
    """NaN or infinity in the batch, in all new parameters, in one side's, or in the loss, of a step."""

    where: str  # source | target | params | discriminators | loss
    step: int
    config: str = "ldm"
    value: float = np.nan


POISONS = (
    Poison("source", 7),
    Poison("target", 13, value=np.inf),
    Poison("params", 18),  # what a gradient of NaN does
    Poison("loss", 1),
    Poison("target", 10),  # a step that is saved
    Poison("discriminators", 6, "pix2pix"),  # the generator's loss is fine
)


class _Poisoned:
    """Batches with one more array, of zeros; at one step what is poisonous is in them."""

    def __init__(self, batches, first: int, poison: Poison):
        self.batches, self.step, self.poison = batches, first, poison

    def __next__(self) -> dict:
        self.step += 1
        batch, poison = dict(next(self.batches)), self.poison
        batch["poison"] = np.zeros((len(batch["target"]), 3), np.float32)
        if self.step == poison.step:
            if poison.where in ("source", "target"):
                batch[poison.where] = batch[poison.where].copy()
                batch[poison.where][1].flat[5] = poison.value
            else:
                column = ("params", "discriminators", "loss").index(poison.where)
                batch["poison"][0, column] = poison.value
        return batch

    def close(self) -> None:
        self.batches.close()


def _poisonable(method):
    """The same program whatever comes of it: what is added is 0 where the batch is sound."""
    import jax

    def train_step(state, batch, rng):
        new, metrics = method.train_step(state, batch, rng)
        everywhere, one_side, loss = batch["poison"].sum(0)
        params = jax.tree.map(lambda x: x + everywhere, new.params)
        if "discriminators" in params:
            judges = jax.tree.map(lambda x: x + one_side, params["discriminators"])
            params = {**params, "discriminators": judges}
        return new._replace(params=params), {**metrics, "loss": metrics["loss"] + loss}

    return method._replace(train_step=train_step, reads=(*method.reads, "poison"))


@contextlib.contextmanager
def poisoned(poison: Poison):
    from cldm_jax.data import pipeline
    from cldm_jax.jobs import train

    make_batches, make_method = pipeline.make_train_iterator, train.make_method

    def batches(*arguments, start_step, names, **keywords):
        names = names and tuple(name for name in names if name != "poison")  # not of the reader
        made = make_batches(*arguments, start_step=start_step, names=names, **keywords)
        return _Poisoned(made, start_step, poison)

    def method(*arguments, **keywords):
        return _poisonable(make_method(*arguments, **keywords))

    with (
        mock.patch.object(pipeline, "make_train_iterator", batches),
        mock.patch.object(train, "make_method", method),
    ):
        yield


@contextlib.contextmanager
def unguarded(_):
    from cldm_jax.runs import steps

    def plain(step):
        def as_it_comes(state, first_bad, batch, rng):
            state, metrics = step(state, batch, rng)
            return state, first_bad, metrics

        return as_it_comes

    with mock.patch.object(steps, "guarded", plain):
        yield


HOOKS |= {"poisoned": poisoned, "unguarded": unguarded}


def _stopped_badly(workdir: pathlib.Path, poison: Poison, error: str) -> str:
    """Why the run did not stop before the poisoned update, with a checkpoint and the slices named."""
    from cldm_jax.runtime.checkpoint import Checkpoints

    if not error.startswith(f"step {poison.step}:"):
        return f"not stopped at step {poison.step}: {error or 'it ended well'}"
    checkpoints = Checkpoints(workdir / "checkpoints")
    found = checkpoints.restore_latest(None)
    checkpoints.close()
    if (found[0] if found else 0) != poison.step - 1:
        return f"step {found[0] if found else 0} is saved, not {poison.step - 1}"
    if found and not _is_finite(found[1]):
        return "the checkpoint is not finite"
    items = files.read_json(workdir / f"nonfinite-step-{poison.step}.json")["items"]
    bad = [item["subject"] for item in items if not item["input_is_finite"]]
    if len(bad) != (poison.where in ("source", "target")) or len(items) != 4:
        return f"named {bad} of {len(items)} items"
    return "" if all(name in error for name in bad) else f"{bad} not named: {error}"


def _is_finite(tree) -> bool:
    import jax

    leaves = (np.asarray(x) for x in jax.tree.leaves(tree))
    return all(np.isfinite(x).all() for x in leaves if np.issubdtype(x.dtype, np.floating))


def _survives(folder: pathlib.Path, poison: Poison, truth: tuple) -> str:
    """Stopped in time, and without the poison the same command ends where a sound run does."""
    shared, workdir = folder.parent, folder / f"{poison.config}-{poison.where}-{poison.step}"
    error = run_here(shared, workdir, poison.config, {"poisoned": poison}, **NAN_CADENCE)
    if wrong := _stopped_badly(workdir, poison, error):
        return wrong
    sound = {"poisoned": Poison("none", -1)}
    error = run_here(shared, workdir, poison.config, sound, **NAN_CADENCE)
    return error or ("" if left_by(workdir) == truth else "resumed, it came to another end")


def no_nan(folder: pathlib.Path, quick: bool) -> Outcome:
    poisons = (POISONS[0], POISONS[2]) if quick else POISONS
    truths, notes = {}, []
    with quiet():
        for poison in poisons:
            if poison.config not in truths:
                workdir, sound = folder / f"{poison.config}-sound", {"poisoned": Poison("none", -1)}
                error = run_here(folder.parent, workdir, poison.config, sound, **NAN_CADENCE)
                if error:
                    raise RuntimeError(error)
                truths[poison.config] = left_by(workdir)
            why = _survives(folder, poison, truths[poison.config])
            notes += [f"{poison}: {why}"] if why else []
        hooks = {"poisoned": POISONS[0], "unguarded": 1}
        error = run_here(folder.parent, folder / "control", "ldm", hooks, **NAN_CADENCE)
        control = bool(_stopped_badly(folder / "control", POISONS[0], error))
    return Outcome(len(poisons), len(poisons) - len(notes), len(notes), control, notes)


# ---- 6: one writer ----


def _refused(ended: Ended, *words: str) -> str:
    """Why this is not one line with these words and exit status 2."""
    lines = [line for line in ended.text.splitlines() if line.startswith("error: ")]
    ok = ended.code == 2 and len(lines) == 1 and "Traceback" not in ended.text
    if not ok or not all(word in lines[0] for word in words):
        return f"ended with {ended.code}: {ended.text[-500:]}"
    return ""


def _held(folder, words, truth) -> str:
    from cldm_jax.runtime.runlock import run_lock

    with run_lock(folder / "run"):
        ended = run(words)
    return _refused(ended, f"process {os.getpid()} on ", " since ")


def _holder_killed(folder, words, truth) -> str:
    killed = run(words, {"before_write": [signal.SIGKILL, "run.json", 1]})
    if killed.code != -signal.SIGKILL or not (folder / "run" / ".lock").read_text():
        return f"not killed holding the lock: {killed.code}"
    ended = run(words)
    return unlike(folder / "run", truth) if ended.code == 0 else ended.text[-500:]


def _stale(folder, words, truth) -> str:
    """What a lock file says is for people; it holds nobody back."""
    (folder / "run").mkdir()
    (folder / "run" / ".lock").write_text(
        "process 1 on elsewhere since 2020-01-01 00:00:00 +0000\n"
    )
    ended = run(words)
    return unlike(folder / "run", truth) if ended.code == 0 else ended.text[-500:]


def _other_config(folder, words, truth) -> str:
    shutil.copytree(folder.parent.parent / f"truth-ldm-{QUICK_STEPS}" / "run", folder / "run")
    ended = run([*words, "--config.seed=1", "--config.recipe.diffusion.target=v"])
    fields = ("seed: 0 -> 1", "recipe.diffusion.target: 'x0' -> 'v'")
    return _refused(ended, *fields) or unlike(folder / "run", truth)


def _at_once(folder, words, truth) -> str:
    both = [start(words, {}) for _ in range(2)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        ended = sorted(pool.map(finish, both), key=lambda e: e.code)
    loser = next((p.pid for p in both if p.returncode == 0), 0)
    if ended[0].code != 0:
        return f"neither went through: {ended[0].text[-500:]}"
    return _refused(ended[1], f"process {loser} on ") or unlike(folder / "run", truth)


WRITERS = {
    "a second run": _held,
    "a killed holder": _holder_killed,
    "a lock file left by somebody": _stale,
    "another config": _other_config,
    "two started at once": _at_once,
}


def one_writer(folder: pathlib.Path, quick: bool) -> Outcome:
    names = ("a second run", "another config") if quick else tuple(WRITERS)
    truth, notes = uninterrupted(folder.parent, QUICK_STEPS), []
    for number, name in enumerate(names):
        own = folder / str(number)
        own.mkdir()
        words = arguments(folder.parent, own / "run", num_train_steps=QUICK_STEPS, **CADENCE)
        why = WRITERS[name](own, words, truth)
        notes += [f"{name}: {why}"] if why else []
    control = _lock_matters(folder)
    return Outcome(len(names), len(names) - len(notes), len(notes), control, notes)


def _lock_matters(folder: pathlib.Path) -> bool:
    """Negative control: a second writer is refused, and is not where flock does nothing."""
    from cldm_jax.runtime import runlock

    def is_refused() -> bool:
        try:
            with runlock.run_lock(folder), runlock.run_lock(folder):
                return False
        except UserError:
            return True

    with mock.patch.object(runlock.fcntl, "flock", lambda *_: None):
        without = is_refused()
    return is_refused() and not without


PROMISES = [
    Promise(1, "a killed run repeats itself bit for bit", exact_resume),
    Promise(2, "a stop is saved first, and soon", saved_on_request),
    Promise(5, "no NaN is learnt or saved", no_nan),
    Promise(6, "one writer, one config", one_writer),
]


def _child() -> None:
    """`python -m faults.training HOOKS ARGUMENTS...`: the command, hurt."""
    from absl import app

    from cldm_jax import main

    for name in ("checkpoints", "determinism", "soak"):  # they have hooks of their own
        importlib.import_module(f"faults.{name}")
    whole = importlib.import_module("faults.training")  # this module is called __main__ here
    with whole.hooked(json.loads(sys.argv[1])):
        try:
            app.run(main.main, argv=["main", *sys.argv[2:]], flags_parser=main.parse_flags)
        except SystemExit as end:
            if end.code:
                raise


if __name__ == "__main__":
    _child()
