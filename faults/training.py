"""Promises 1, 2, 5 and 6: a training that is killed, stopped, poisoned or started twice.

What it leaves is compared, bit by bit, with an uninterrupted run.
"""

import concurrent.futures
import contextlib
import pathlib
import shutil
import signal
import subprocess
import time
from typing import NamedTuple
from unittest import mock

import numpy as np

from cldm_jax import files
from cldm_jax.errors import UserError
from faults import hurt, twins
from faults.common import Outcome, Promise, attempts, hash_tree, loss_bits, quiet, tally

GRACE = 10  # seconds from a signal to the end of the process
STEPS, QUICK_STEPS = 120, hurt.SHORT["train.num_train_steps"]


# ---- what an uninterrupted run leaves ----


class Truth(NamedTuple):
    rows: dict  # of loss_bits
    state: str  # hash of everything in the last checkpoint
    best: tuple  # what run.json says of the best step, and the hash of its parameters
    ema: dict[int, str]  # hash of the averaged parameters after every step
    workdir: pathlib.Path
    seconds: float  # of the loop, with compilation
    events: int  # things done to files, start and end included


def left_by(workdir) -> tuple:
    """(rows, hash of the last checkpoint, best) of a finished run."""
    from cldm_jax.runtime.checkpoint import BEST, Checkpoints

    workdir, hashes = pathlib.Path(workdir), []
    for folder in ("checkpoints", BEST):
        with contextlib.closing(Checkpoints(workdir / folder)) as checkpoints:
            hashes.append(hash_tree(checkpoints.restore_latest(None)[1]))
    best = files.read_json(workdir / "run.json")["best"]
    return loss_bits(workdir), hashes[0], (best["step"], best["psnr"].hex(), hashes[1])


def uninterrupted(shared: pathlib.Path, steps: int = QUICK_STEPS) -> Truth:
    """Of a training on the shared data, made on first use and kept beside the promises' folders."""
    folder = shared / f"truth-{steps}"
    workdir = folder / "run"
    if not (folder / "truth.json").exists():
        hooks = {"hash_steps": str(folder / "ema.json"), "at_event": [0, -1, str(workdir)]}
        ended = hurt.run(hurt.arguments(shared, workdir, {"train.num_train_steps": steps}), hooks)
        if ended.code:
            raise RuntimeError(f"the uninterrupted run failed: {ended.text[-2000:]}")
        events = int(ended.text.split(hurt.EVENTS)[1].split()[0])
        files.write_json(folder / "truth.json", {"seconds": ended.seconds, "events": events})
    kept = files.read_json(folder / "truth.json")
    ema = {int(step): value for step, value in files.read_json(folder / "ema.json").items()}
    with quiet():
        return Truth(*left_by(workdir), ema, workdir, **kept)


def unlike(workdir, truth: Truth) -> str:
    """Why a finished run is not the uninterrupted one, to the bit; "" where it is."""
    try:
        with quiet():
            found = left_by(workdir)
    except (UserError, ValueError) as error:
        return str(error)
    if found[0] != truth.rows:
        keys = found[0].keys() | truth.rows.keys()
        steps = [key for key in keys if found[0].get(key) != truth.rows.get(key)]
        return f"{len(steps)} of {len(truth.rows)} lines differ, first {min(steps)}"
    names = ("lines", "last state", "best step")
    wrong = [n for n, a, b in zip(names, found, truth[:3], strict=True) if a != b]
    return f"another {' and '.join(wrong)}" if wrong else ""


def sound(workdir: pathlib.Path, truth: Truth) -> tuple[int, str]:
    """(step of the newest checkpoint, why what lies on the disk is wrong): read, nothing touched."""
    from cldm_jax.runtime.checkpoint import restore_for_inference

    try:
        with quiet():
            rows = loss_bits(workdir)
            found = restore_for_inference(workdir / "checkpoints")
    except (UserError, ValueError) as error:
        # "sound": there was only the first save, and that was interrupted.
        is_first = isinstance(error, UserError) and "sound" in str(error)
        return 0, "" if is_first else str(error)
    wrong = [key for key, row in rows.items() if truth.rows.get(key) != row]
    step = found[0] if found else 0
    lost = [key for key in truth.rows if key[0] <= step and key[1] == "train" and key not in rows]
    if wrong or lost:
        return step, f"lines wrong {wrong[:3]}, lost {lost[:3]}"
    if found and hash_tree(found[1]) != truth.ema[step]:
        return step, f"the checkpoint of step {step} is not the uninterrupted run's"
    return step, ""


# ---- 1 and 2: SIGKILL, SIGTERM, SIGINT ----

KILLS = (
    "time before_manifest time at_event time in_validation time in_save time before_record time "
    "at_event time at_event time"
).split()  # 15; two such runs
STOPS = "time at_once time in_validation time in_save time twice time time".split()  # 10; two runs
ORDERS = ((signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM))
FROM_OUTSIDE = ("time", "deaf", "at_once", "twice")


class Hurt(NamedTuple):
    """One signal in one session of a run."""

    kind: str
    signum: int
    at: float  # share of the run ("time", "deaf"), else seconds after the save or the validation began
    number: int = 1  # of the file's write, or of the event

    def hooks(self, workdir) -> dict:
        now = ["signal", self.signum, 0]
        return {
            "in_save": {"at": ["any save", 2, "signal", self.signum, self.at]},
            "in_validation": {"in_validation": [self.signum, self.at, 0]},
            "before_manifest": {"at": ["sha256-", self.number, *now]},
            "before_record": {"at": ["run.json", self.number, *now]},
            "at_event": {"at_event": [self.signum, self.number, str(workdir)]},
            "twice": {"in_validation": [0, 0, 60]},
            "deaf": {"deaf": 1},
        }.get(self.kind, {})


def hurts(rng, kinds: list[str], signals: list[int], events: int) -> list[Hurt]:
    """One of each kind, in an order in which those by time come spread over the whole run."""
    spread = iter(sorted(rng.uniform(0, 0.95, kinds.count("time"))))
    made = []
    for place, kind in enumerate(kinds):
        share = next(spread) if kind == "time" else rng.uniform(0, 0.1)
        number = int(rng.integers(1, events // 3 if kind == "at_event" else 3))
        made.append(Hurt(kind, int(signals[place % len(signals)]), float(share), number))
    return made


def _session(words, one: Hurt, workdir, done: float, truth: Truth) -> hurt.Ended:
    """One session of the run, of which a share of `done` is there, with one signal in it."""
    process = hurt.start(words, one.hooks(workdir))
    said = hurt.wait_for(process, hurt.BEGINS)
    if one.kind in ("time", "deaf"):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, one.at - done) * truth.seconds)
    elif one.kind == "twice":
        said += hurt.wait_for(process, hurt.VALIDATES)
        process.send_signal(one.signum)
        time.sleep(0.5)
    if one.kind in FROM_OUTSIDE:
        process.send_signal(one.signum)
    return hurt.finish(process, said)


def ill_ended(one: Hurt, ended: hurt.Ended, workdir, truth: Truth) -> tuple[int, str]:
    """(step of the newest checkpoint, why the session did not end as it should)."""
    step, wrong = sound(workdir, truth)
    code = -one.signum if one.kind == "twice" or one.signum == signal.SIGKILL else 128 + one.signum
    if wrong:
        return step, wrong
    if ended.seconds > GRACE and one.kind in FROM_OUTSIDE:
        return step, f"took {ended.seconds:.1f} s"
    if ended.code != code or (code > 0 and "stopped by signal" not in ended.text):
        return step, f"ended with {ended.code}: {ended.text[-500:]}"
    rows = [number for number, kind in loss_bits(workdir) if kind == "train"]
    if code > 0 and "nothing new to save" not in ended.text and step != max(rows):
        return step, f"step {max(rows)} was done and step {step} is saved"
    return step, ""


def _again_and_again(workdir: pathlib.Path, shared, planned: list[Hurt], truth: Truth):
    """(seconds of the slowest end, {case: why it was lost}) of one run, hurt and resumed as planned,
    then left alone.
    """
    found, step, slowest, steps = {}, 0, 0.0, max(truth.ema)
    words = hurt.arguments(shared, workdir, {"train.num_train_steps": steps})
    for number, one in enumerate(planned):
        while (ended := _session(words, one, workdir, step / steps, truth)).code == 0:
            # It came to its end before the signal, which was not injected: once more, from the start.
            shutil.rmtree(workdir)
            step, one = 0, one._replace(at=one.at / 2)
        case = f"{workdir.name}, {number}: {one}"
        step, found[case] = ill_ended(one, ended, workdir, truth)
        slowest = max(slowest, ended.seconds if one.kind in FROM_OUTSIDE else 0)
    found[case] = found[case] or _went_through(hurt.run(words), workdir, truth)
    return slowest, found


def _went_through(ended: hurt.Ended, workdir, truth: Truth) -> str:
    return unlike(workdir, truth) if ended.code == 0 else ended.text[-500:]


def _side_by_side(folder: pathlib.Path, truth: Truth, rng, kinds: list[str], orders):
    """The same of several runs, one for each order of signals."""
    plans = [hurts(rng, kinds, order, truth.events) for order in orders]

    def one(number: int):
        return _again_and_again(folder / str(number), folder.parent, plans[number], truth)

    with concurrent.futures.ThreadPoolExecutor(len(plans)) as pool:
        seconds, found = zip(*pool.map(one, range(len(plans))), strict=True)
    return max(seconds), {case: why for cases in found for case, why in cases.items()}


def exact_resume(folder: pathlib.Path, quick: bool) -> Outcome:
    steps = QUICK_STEPS if quick else STEPS
    truth, rng = uninterrupted(folder.parent, steps), np.random.default_rng(1)
    kinds = ["before_manifest"] if quick else KILLS
    _, found = _side_by_side(folder, truth, rng, kinds, [[signal.SIGKILL]] * (2 - quick))
    killed = ", ".join(sorted(set(kinds)))
    note = f"{steps} steps of ldm tiny; {len(truth.rows)} lines; kills {killed}"
    return tally(found, _forgetful(folder, steps, truth, quick), note)


def _forgetful(folder: pathlib.Path, steps: int, truth: Truth, quick: bool) -> bool:
    """Negative control: resumed without the reader's place, or without the key, a run is another."""
    stopped, train = folder / "stopped", {"train.num_train_steps": steps}
    killed = {"at": ["run.json", 2, "signal", signal.SIGKILL, 0]}
    hurt.run(hurt.arguments(folder.parent, stopped, train), killed)
    seen = []
    for hook in ("first_batches_again",) if quick else ("first_batches_again", "other_key"):
        workdir = shutil.copytree(stopped, folder / hook)
        why = hurt.run_here(folder.parent, workdir, train, hooks={hook: 1})
        seen.append(not why and "lines differ" in unlike(workdir, truth))
    return all(seen)


def saved_on_request(folder: pathlib.Path, quick: bool) -> Outcome:
    steps = QUICK_STEPS if quick else STEPS
    truth, rng = uninterrupted(folder.parent, steps), np.random.default_rng(2)
    kinds = ["time"] if quick else STOPS
    slowest, found = _side_by_side(folder, truth, rng, kinds, ORDERS[: 2 - quick])
    control = None if quick else _unheard(folder, steps, truth)
    return tally(found, control, f"slowest from signal to end: {slowest:.1f} s")


def _unheard(folder: pathlib.Path, steps: int, truth: Truth) -> bool:
    """Negative control: a loop that hears no signal loses its step, and the check sees it."""
    workdir, deaf = folder / "deaf", Hurt("deaf", int(signal.SIGTERM), 0.5)
    words = hurt.arguments(folder.parent, workdir, {"train.num_train_steps": steps})
    return bool(ill_ended(deaf, _session(words, deaf, workdir, 0, truth), workdir, truth)[1])


# ---- 5: NaN ----

GUARD_TWINS = (
    "test_runtime.py::test_an_update_that_is_not_finite_is_not_applied_nor_any_after_it",
    "test_feed.py::test_the_guard_names_the_step_inside_a_call",
)
NAN_TWINS = (
    *GUARD_TWINS,
    "test_train.py::test_people_of_a_batch_with_nan_are_named_and_it_resumes",
    "test_train.py::test_nan_stops_the_run_before_a_checkpoint",
    "test_feed.py::test_nan_inside_a_call_stops_the_run_with_the_state_before_it",
)


def no_nan(folder: pathlib.Path, quick: bool) -> Outcome:
    found = twins.run(folder, GUARD_TWINS if quick else NAN_TWINS)
    return tally(found, _learnt_unguarded(folder))


def _learnt_unguarded(folder: pathlib.Path) -> bool:
    """Negative control: a rate that overflows float32; without the guard what is saved is not finite."""
    import jax

    from cldm_jax.runtime.checkpoint import restore_for_inference

    control, rate = folder / "control", {"recipe.optim.learning_rate": 1e30}
    hurt.run_here(folder.parent, control, rate, "unet", {"unguarded": 1})
    _, params, _ = restore_for_inference(control / "checkpoints")
    return not all(np.isfinite(x).all() for x in jax.tree.leaves(params))


# ---- 6: one writer ----

WRITER_TWINS = (
    "test_runtime.py::test_second_writer_is_refused_and_told_who_holds_it",
    "test_train.py::test_another_config_is_refused_with_the_difference",
)


def _holder_killed(own: pathlib.Path, truth: Truth) -> str:
    words = hurt.arguments(own.parent.parent, own)
    killed = hurt.run(words, {"at": ["run.json", 1, "signal", signal.SIGKILL, 0]})
    if killed.code != -signal.SIGKILL or not (own / ".lock").read_text():
        return f"not killed holding the lock: {killed.code}"
    return _went_through(hurt.run(words), own, truth)


def _stale(own: pathlib.Path, truth: Truth) -> str:
    """What a lock file says is for people; it holds nobody back."""
    (own / ".lock").write_text("process 1 on elsewhere since 2020-01-01 00:00:00 +0000\n")
    return _went_through(hurt.run(hurt.arguments(own.parent.parent, own)), own, truth)


def _at_once(own: pathlib.Path, truth: Truth) -> str:
    both = [hurt.start(hurt.arguments(own.parent.parent, own), {}) for _ in range(2)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first, second = sorted(pool.map(hurt.finish, both), key=lambda e: e.code)
    winner = next((p.pid for p in both if p.returncode == 0), 0)
    wrong = _went_through(first, own, truth)
    return wrong or hurt.refused(second, f"process {winner} on ")


WRITERS = {
    "a killed holder": _holder_killed,
    "a lock file left by somebody": _stale,
    "two started at once": _at_once,
}
QUICK_WRITERS = ("a lock file left by somebody",)


def one_writer(folder: pathlib.Path, quick: bool) -> Outcome:
    truth = uninterrupted(folder.parent)
    writers = {name: WRITERS[name] for name in QUICK_WRITERS} if quick else WRITERS
    found = attempts(folder, lambda own, writer: writer(own, truth), writers)
    if not quick:
        found |= twins.run(folder, WRITER_TWINS)
    return tally(found, _lock_matters(folder))


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
