"""Several devices and several processes as one run. More of devices: promise 7 of faults/."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import losses

from cldm_jax import files
from cldm_jax.errors import UserError
from cldm_jax.jobs import predict
from cldm_jax.runtime import processes, sharding

ROOT = Path(__file__).resolve().parent.parent


def test_rows_are_divided_and_come_back_whole():
    """Seven rows over two devices: the eighth is made up and cut off again."""
    function = sharding.Divided(lambda c, batch, k: {"y": batch["x"] * c["w"] + k, "z": None})
    constants = sharding.replicate({"w": jnp.float32(3), "key": jax.random.key(0)})
    x = np.arange(14, dtype=np.float32).reshape(7, 2)
    out = function(constants, {"x": x}, jnp.float32(1))
    assert np.array_equal(out["y"], 3 * x + 1) and out["z"] is None
    assert out["y"].shape == (7, 2)


def test_compiled_ahead_it_is_the_same():
    function = sharding.Divided(lambda c, batch: {"y": batch["x"] * c})
    x, three = np.arange(14, dtype=np.float32).reshape(7, 2), sharding.replicate(jnp.float32(3))
    lazily = function(three, {"x": x})
    function.compile(three, {"x": x})
    assert np.array_equal(function(three, {"x": x})["y"], lazily["y"])
    with pytest.raises(TypeError, match="compiled with"):  # it is compiled, and for nothing else
        function(three, {"x": x[:3]})


def test_some_devices_only():
    first = jax.local_devices()[:1]
    function = sharding.Divided(lambda c, batch: batch + c, first)
    out = function(sharding.replicate(jnp.float32(1), first), np.zeros((3,), np.float32))
    assert out.sharding.device_set == set(first) and np.array_equal(out, np.ones(3))


def test_noise_is_the_same_on_any_number_of_devices():
    """What "bit-equal" rests on: keys are counted by place, not by device."""

    def draw(key, batch):
        return jax.random.normal(key, batch.shape)

    rows, key = np.zeros((8, 5), np.float32), jax.random.key(7)
    one, two = (
        np.asarray(sharding.Divided(draw, d)(sharding.replicate(key, d), rows))
        for d in (jax.local_devices()[:1], None)
    )
    assert np.array_equal(one, two)


def test_one_process_decides_alone():
    assert processes.count() == 1 and processes.is_main()
    assert processes.decided(lambda: 4) == 4
    values = {"b": 1 / 3, "a": 2.0}
    assert processes.shared(values) is values
    assert processes.Vote()(15) == 15
    with processes.main_first():
        pass
    processes.leave(3)  # it is alone: nobody waits, and it goes on


@pytest.mark.parametrize("error", [ValueError, jax.errors.JaxRuntimeError])
def test_a_lost_process_is_named_and_other_errors_are_not(monkeypatch, error):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(UserError, match=r"another process of this run is gone .*resume"):
        with processes.losses_named():
            raise error("UNKNOWN: Gloo all-reduce failed: Connection closed by peer\nmore")
    with pytest.raises(error, match="shapes"):
        with processes.losses_named():
            raise error("shapes do not fit")


def test_parts_of_a_dataset():
    images = list("abcdefg")
    parts = [predict._part(f"{i}/3", images) for i in (1, 2, 3)]
    assert parts == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
    assert predict._part("", images) == images and predict._part("9/9", images) == []
    for wrong in ("0/3", "4/3", "1", "a/b", "1/0"):
        with pytest.raises(UserError, match="no such part"):
            predict._part(wrong, images)


SRUN = """#!/usr/bin/env bash
# Two tasks of one step on this machine, as Slurm would start them; the highest status.
shift
export SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" >"$LOG.$i" 2>&1 & done
status=0
for job in $(jobs -p); do wait "$job" || status=$?; done
exit $status
"""


def sbatch(script: str, words: list[str], folder, **fakes: str):
    """A script of launch/slurm with these programs in front of the PATH."""
    for name, text in fakes.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_SUBMIT_DIR": str(ROOT)}
    flags = {"XLA_FLAGS": "", "LOG": str(folder / "log"), "CLDM_HUGE_PAGES": "0"}
    environment = {**os.environ, **job, **flags, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", f"launch/slurm/{script}.sbatch", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_two_tasks_of_slurm_train_as_one_process_does(study, tmp_path):
    """Real processes that find each other as on a cluster. Sums differ in their last bits."""
    words = ["--config=configs/unet.py:tiny", f"--config.data.root={study.data_root}"]
    words += [f"--workdir={tmp_path / 'unet'}"]
    done = sbatch("train", words, tmp_path, srun=SRUN)
    said = [(tmp_path / f"log.{i}").read_text() for i in (0, 1)]
    assert done.returncode == 0, (done.stderr, said)
    assert "train unet" in said[0] and "unet" not in said[1]
    mine, theirs = (losses(w) for w in (tmp_path / "unet", study.unet))
    assert list(mine) == list(theirs) == list(range(1, 21))
    assert max(abs(mine[k] / theirs[k] - 1) for k in mine) < 1e-5
    assert files.read_json(tmp_path / "unet" / "run.json")["hardware"]["processes"] == 2


@pytest.mark.parametrize("status", [143, 2])
def test_a_stopped_job_goes_back_into_the_queue_and_a_refused_one_does_not(tmp_path, status):
    srun = f'#!/bin/sh\necho "$@" >{tmp_path}/started\nexit {status}\n'
    scontrol = f'#!/bin/sh\necho "$@" >{tmp_path}/queued\n'
    done = sbatch("train", ["--config=x"], tmp_path, srun=srun, scontrol=scontrol)
    started = (tmp_path / "started").read_text().split()
    assert started[-2:] == ["--distributed", "--config=x"]
    if status == 143:
        assert done.returncode == 0
        assert (tmp_path / "queued").read_text().split() == ["requeue", str(os.getpid())]
    else:
        assert done.returncode == status and not (tmp_path / "queued").exists()


@pytest.mark.parametrize("ends, count, part", [("1 10", 10, "--part 3/10"), ("3 7", 2, "")])
def test_an_array_shares_out_all_images_or_none(tmp_path, ends, count, part):
    """Of the tasks 3 and 7 alone nobody knows how many there were."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    first, last = ends.split()
    array = {"ID": "3", "MIN": first, "MAX": last, "COUNT": str(count)}
    job = {f"SLURM_ARRAY_TASK_{k}": v for k, v in array.items()}
    environment = {**os.environ, **job, "SLURM_SUBMIT_DIR": str(tmp_path)}
    command = ["bash", "launch/slurm/predict.sbatch", "-i", "BIDS"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode == 0) == bool(part), done.stderr
    assert part in done.stdout and ("--array=1-N" in done.stderr) != bool(part)


def start(words: list[str], count: int) -> list[subprocess.Popen]:
    """A command in so many processes of one device each."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"--coordinator=localhost:{s.getsockname()[1]}"
    environment = {**os.environ, "XLA_FLAGS": "", "CLDM_HUGE_PAGES": "0"}
    started, pipe = [], dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for i in range(count):
        joined = [address, f"--processes={count}", f"--process={i}"] if count > 1 else []
        command = [sys.executable, "-m", "cldm_jax.main", *words, *joined]
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipe))
    return started


def finish(started: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """Exit statuses and what was said; those that do not end in time are killed."""
    try:
        said = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_one_of_two_ends_both(study, tmp_path, number):
    """Asked to stop, both save the same step and leave; where one is killed, the other does not wait."""
    workdir = tmp_path / "unet"
    words = ["--config=configs/unet.py:tiny", f"--config.data.root={study.data_root}"]
    words += [f"--workdir={workdir}", "--config.train.save_every=10"]
    started, end = start([*words, "--config.train.num_train_steps=100000"], 2), time.time() + 240
    while not (workdir / "checkpoints" / "10").is_dir() and time.time() < end:
        time.sleep(0.02)
    started[1].send_signal(number)
    statuses, said = finish(started)
    if number == signal.SIGTERM:
        assert statuses == [128 + number] * 2, said
        assert (workdir / "checkpoints" / str(max(losses(workdir)))).is_dir()
    else:
        # By our own word, or by JAX's coordination service, which aborts.
        assert statuses[0] in (2, -signal.SIGABRT) and statuses[1] == -number, said
        told = "another process of this run is gone" in said[0]
        assert told or statuses[0] == -signal.SIGABRT, said


def test_a_job_of_one_process_is_refused_in_each(tmp_path):
    words = ["--config=configs/prepare.py:tiny", f"--workdir={tmp_path / 'prepared'}"]
    statuses, said = finish(start(words, 2))
    assert statuses == [2, 2] and "is one process's work" in said[0]


def test_nobody_to_join(tmp_path):
    """--distributed on a machine that nothing started it on."""
    words = ["--config=configs/unet.py:tiny", f"--workdir={tmp_path / 'run'}", "--distributed"]
    statuses, (said,) = finish(start(words, 1))
    assert statuses == [2]
    assert "cannot be joined" in said and "srun" in said and "Traceback" not in said
