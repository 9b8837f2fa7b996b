"""Promises 12 to 14: settings that cannot be meant are refused, nothing leaks, outputs are whole.

`python -m faults.outputs JOB FOLDER EVENT SECONDS` is the process that is killed: see `_killed`.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import sys

import numpy as np

from cldm_jax.data import nifti
from cldm_jax.errors import UserError
from faults import corpus, inputs, twins
from faults.common import Outcome, Promise, at_file_event, command, contents, quiet, tally
from faults.training import uninterrupted

# ---- 12: settings, by tests/test_faults_inputs.py ----

LDM, PREPARE = "--config=configs/ldm.py:tiny", "--config=configs/prepare.py:tiny"
TYPOS = [  # flags of main, and what the line must say
    ("--config=configs/ldm.py:tny", "preset tiny?"),
    ("--config=configs/prepare.py:quik", "preset quick?"),
    ("--config=configs/ldn.py:tiny", "configs/ldm.py"),
    ("--config=", "--config=configs/"),
    ("--confg=configs/ldm.py:tiny", "--config=configs/"),
    (f"{LDM} --confg.seed=1", "--config.seed"),
    (f"{LDM} --workdr=x", "--workdir"),
    (f"{LDM} seed=1", "--config.seed=1"),
    (f"{LDM} --config.preset=quick", "--config=configs/ldm.py:PRESET"),
    (f"{LDM} --config.train.batch_sise=3", "--config.train.batch_size"),
    (f"{LDM} --config.batch_size=3", "--config.train.batch_size"),
    (f"{LDM} --config.recipe.optim.learnig_rate=1e-3", "learning_rate"),
    (f"{LDM} --config.train.batch_size=four", "whole number"),
    (f"{LDM} --config.train.batch_size=1.5", "whole number"),
    (f"{LDM} --config.data.paired=maybe", "true or false"),
    (f"{LDM} --config.train=3", "batch_size"),
    (f"{LDM} --config.train.batch_size=-4", "1 or more"),
    (f"{LDM} --config.train.save_every=0", "1 or more"),
    (f"{LDM} --config.train.num_train_steps=-1", "0 or more"),
    (f"{LDM} --config.recipe.optim.learning_rate=-1", "above 0"),
    (f"{LDM} --config.recipe.optim.learning_rate=nan", "above 0"),
    (f"{LDM} --config.recipe.optim.ema_decay=1.5", "from 0 to 1"),
    (f"{LDM} --config.recipe.sampling.num_sampling_steps=2000", "at most 1000"),
    (f"{LDM} --config.recipe.diffusion.schedule=cosin", "cosine"),
    (f"{LDM} --config.recipe.diffusion.target=noise", "eps, x0, v"),
    (f"{LDM} --config.data.targets=ct,flair", "pet, ct, mr"),
    (f"{LDM} --config.method=lmd", "ldm"),
    (f"{LDM} --config.job=trian", "train"),
    (f"{PREPARE} --config.spacing_mm=(-1.0,2.0)", "above 0"),
    (f"{PREPARE} --config.size=40", "2 values"),
    (f"{PREPARE} --config.split_fractions=(0.5,0.5)", "3 values"),
    (f"{PREPARE} --config.size=40,wide", "2 values"),
    (f"{PREPARE} --config.split_mode=manifst", "manifest"),
]
OPTIONS = [  # of cldm_jax.predict
    ("-i x -o y --mode mena", "mean"),
    ("-i x -o y --target flair", "'ct', 'mr'"),
    ("-i x -o y --smaples 4", "--samples"),
    ("-i x -o y --samples four", "int value"),
    ("-i x -o y --samples -3", ""),
]


PROMISES = [
    twins.promise(
        12,
        "settings that cannot be meant are refused",
        ("test_faults_inputs.py::TestSettings::test_through_the_real_command",),
        ("test_faults_inputs.py::TestSettings::test_absl_alone_takes_them",),
    ),
    twins.promise(
        13,
        "nothing leaks from test people or targets",
        (
            "test_data_audit.py::test_people_in_two_splits",
            "test_data_audit.py::test_the_same_image_under_two_ids",
            "test_data_audit.py::test_pixel_digest_ignores_packaging",
            "test_prepare.py::test_what_concerns_all_is_listed_and_nothing_is_prepared",
            "test_prepare.py::test_an_external_set_must_fit_and_be_new",
            "test_prepare.py::test_constants_ignore_the_other_people",
            "test_faults_inputs.py::TestLeaks",
        ),
        ("test_faults_inputs.py::test_without_the_audit_the_double_passes",),
    ),
]

# ---- 14: whole or absent ----


def _job(job: str, folder: pathlib.Path) -> None:
    if job == "predict":
        with corpus.identity_model():
            inputs.predicted(folder / "bids", folder / "out")
    elif job == "prepare":
        inputs.prepared(folder / "cohort", folder / "out")
    else:
        from cldm_jax.jobs import export
        from configs import export as export_config

        config = export_config.get_config("tiny")
        config.run, config.overwrite = str(folder / "run"), True
        export.run(config, str(folder / "out"))


def _killed(job: str, folder: pathlib.Path, event: int, seconds: float) -> None:
    """Runs the job and kills itself, as `kill -9` does, at the event-th thing done to a file below
    `out`, or `seconds` after the first.
    """

    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    act = (lambda: signal.setitimer(signal.ITIMER_REAL, seconds)) if seconds else kill
    count = at_file_event(folder / "out", 1 if seconds else event, act)
    _job(job, folder)
    print(count())


def _run_child(job: str, folder: pathlib.Path, event: int, seconds: float = 0.0):
    return command("faults.outputs", job, str(folder), str(event), str(seconds))


def _finals(out: pathlib.Path) -> dict[str, bytes]:
    """What lies under its final name."""
    return {name: data for name, data in contents(out).items() if ".tmp-" not in name}


def _broken(found: dict[str, bytes], truth: dict[str, bytes]) -> list[str]:
    """Names of files that are neither whole nor marked as unfinished."""
    wrong = []
    for name, data in found.items():
        if name.endswith((".nii.gz", ".npy", ".safetensors")):
            wrong += [name] if data != truth.get(name) else []
        elif name.endswith(".json"):
            try:
                value = json.loads(data)
            except ValueError:
                wrong.append(name)
                continue
            image = name.removesuffix(".json") + ".nii.gz"
            if "SHA256" in value and image not in found:
                wrong.append(f"{name} without its image")
    return wrong


def _attempt(job: str, folder: pathlib.Path, truth: dict, event: int, seconds: float) -> str:
    """ "" where the kill left whole files only, and the same command finished the work."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    done = _run_child(job, folder, event, seconds)
    if done.returncode not in (-signal.SIGKILL, 0):  # the last: done before
        return f"ended with {done.returncode}: {done.stderr[-200:]}"
    left = _finals(out)
    if wrong := _broken(left, truth):
        return f"broken after the kill: {wrong}"
    whole = [n for n in left if n.endswith(".nii.gz") and f"{n[:-7]}.json" in left]
    people = {pathlib.Path(n).parts[0] for n in left if "unfinished" in n}
    whole = [n for n in whole if pathlib.Path(n).parts[0] not in people]
    before = {n: (out / n).stat().st_mtime_ns for n in whole}
    with quiet():
        _job(job, folder)
    made = _finals(out)
    if made.keys() != truth.keys() or _broken(made, truth):
        return f"the rerun made {sorted(made)}"
    if any((out / n).stat().st_mtime_ns != time_ns for n, time_ns in before.items()):
        return "the rerun made whole files again"
    litter = [p.name for p in out.rglob(".tmp-*")]
    return f"left over: {litter}" if litter else ""


def _set_up(job: str, folder: pathlib.Path) -> None:
    if job == "predict":
        corpus.bids(folder / "bids", 3)
    elif job == "prepare":
        corpus.cohort(folder / "cohort")
    else:
        (folder / "run").symlink_to(uninterrupted(folder.parents[1]).workdir)


def whole_or_absent(folder: pathlib.Path, quick: bool) -> Outcome:
    counts = {"predict": 2, "prepare": 1} if quick else {"predict": 20, "prepare": 6, "export": 4}
    rng, found, notes = np.random.default_rng(14), {}, []
    for job, count in counts.items():
        own = folder / job
        own.mkdir()
        _set_up(job, own)
        done = _run_child(job, own, 0)
        assert done.returncode == 0, done.stderr
        truth, events = _finals(own / "out"), int(done.stdout.split()[-1])
        for number in range(count):
            event, seconds = int(rng.integers(1, events + 1)), 0.0
            if number % 4 == 3:  # between two events, wherever the clock says
                event, seconds = 0, float(rng.uniform(0.002, 0.3))
            case = f"{job}, {number}: event {event} of {events}, {seconds:.3f} s"
            found[case] = _attempt(job, own, truth, event, seconds)
        notes.append(f"{job}: {count} kills, {events} events")
    return tally(found, _torn_without(folder / "control"), *notes)


def _torn_without(folder: pathlib.Path) -> bool:
    """Negative control: a file written under its final name and cut in the middle is seen as broken."""
    whole = corpus.save(folder.parent / "whole.nii.gz").read_bytes()
    name = "sub-0/ct/sub-0_desc-synth_ct.nii.gz"
    seen = bool(_broken({name: whole[:-100]}, {name: whole}))
    with contextlib.suppress(UserError):
        nifti.read_volume(corpus.raw(folder.parent / "torn.nii.gz", whole[:-100]))
        return False
    return seen


PROMISES.append(Promise(14, "outputs are whole or absent", whole_or_absent))

if __name__ == "__main__":
    _killed(sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
