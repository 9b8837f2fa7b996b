"""Checkpoints that notice damage, one writer per folder, signals, metric files, the optimiser."""

import concurrent.futures
import contextlib
import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cldm_jax import files
from cldm_jax.errors import UserError
from cldm_jax.runs.steps import guarded
from cldm_jax.runtime import device, optim, runlock
from cldm_jax.runtime import progress as progress_lib
from cldm_jax.runtime.checkpoint import Checkpoints, newest_sound, restore_for_inference
from cldm_jax.runtime.progress import Progress
from cldm_jax.runtime.runlock import run_lock
from cldm_jax.runtime.signals import StopRequest
from cldm_jax.runtime.train_state import TrainState
from cldm_jax.runtime.writers import MetricWriter, read_rows


def state_of(value: float) -> TrainState:
    params = {"w": jnp.full((64, 64), value), "b": jnp.arange(5.0)}
    tx = optax.adam(1e-3)
    return TrainState(jnp.int32(value), params, params, tx.init(params), (), {"k": jnp.ones(3)})


def abstract_of(state):
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )


def test_checkpoint_round_trip_keeps_the_latest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state_of(step))
    found, state = checkpoints.restore_latest(abstract_of(state_of(0)))
    assert found == 3 and jax.tree.structure(state) == jax.tree.structure(state_of(3))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, state, state_of(3))))
    assert sorted(p.name for p in tmp_path.glob("sha256-*")) == ["sha256-2.json", "sha256-3.json"]
    step, params, frozen = restore_for_inference(tmp_path)
    assert step == 3 and np.array_equal(params["w"], np.full((64, 64), 3.0)) and "k" in frozen


def data_file(folder):
    """The largest file: array data."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("damage", ["bit", "truncate", "delete", "no_manifest"])
def test_damaged_checkpoint_falls_back_and_is_kept(tmp_path, damage, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state_of(step))
    victim = data_file(tmp_path / "2")
    if damage == "bit":
        flip(victim)
    elif damage == "truncate":
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    elif damage == "delete":
        victim.unlink()
    else:
        (tmp_path / "sha256-2.json").unlink()
    step, state = checkpoints.restore_latest(abstract_of(state_of(0)))
    assert step == 1 and np.array_equal(state.params["w"], state_of(1).params["w"])
    assert (tmp_path / "2.corrupt").is_dir() and "damaged" in caplog.text
    checkpoints.save(2, state_of(2))  # the step can be written again
    assert checkpoints.restore_latest(abstract_of(state_of(0)))[0] == 2
    flip(data_file(tmp_path / "2"))  # a second damaged one does not take the place of the first
    assert checkpoints.restore_latest(abstract_of(state_of(0)))[0] == 1
    assert (tmp_path / "2.corrupt").is_dir() and (tmp_path / "2.corrupt-2").is_dir()


def test_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path / "new").restore_latest(None) is None
    assert restore_for_inference(tmp_path / "absent") is None


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_nothing_starts_over_where_all_is_damaged(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state_of(step))
        flip(data_file(tmp_path / str(step)))
    for _ in range(2):  # the second time they lie aside already
        with pytest.raises(UserError, match="no checkpoint is sound"):
            Checkpoints(tmp_path).restore_latest(abstract_of(state_of(0)))
    assert {p.name for p in tmp_path.glob("*.corrupt*")} == {"1.corrupt", "2.corrupt"}
    assert (tmp_path / "2.corrupt" / "sha256.json").is_file()


def test_an_interrupted_first_save_starts_over(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state_of(1))
    (tmp_path / "sha256-1.json").unlink()
    assert restore_for_inference(tmp_path) is None
    assert checkpoints.restore_latest(abstract_of(state_of(0))) is None


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"{", b"[]", b"{}"])
def test_a_manifest_that_cannot_be_read_is_damage(tmp_path, content):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state_of(step))
    (tmp_path / "sha256-2.json").write_bytes(content)
    assert checkpoints.restore_latest(abstract_of(state_of(0)))[0] == 1


def test_inference_only_reads(tmp_path, caplog):
    """A training may be in the middle of a save in this folder."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state_of(step))
    (tmp_path / "sha256-2.json").unlink()
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    assert restore_for_inference(tmp_path)[0] == 1 and "passed over" in caplog.text
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
    flip(data_file(tmp_path / "1"))
    with pytest.raises(UserError, match="none of its 2 checkpoints is sound"):
        restore_for_inference(tmp_path)


def test_a_save_that_fails_keeps_the_last_good_step(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state_of(1))

    def no_space(path, value):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", no_space)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(2, state_of(2))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 1000))
        with pytest.raises(OSError, match=r"0.001 MB are free and a save needs 0\.\d+ MB"):
            checkpoints.save(3, state_of(3))
    assert newest_sound(tmp_path) == 1
    again = Checkpoints(tmp_path)
    assert again.restore_latest(abstract_of(state_of(0)))[0] == 1
    again.save(2, state_of(2))
    assert again.restore_latest(abstract_of(state_of(0)))[0] == 2


def test_second_writer_is_refused_and_told_who_holds_it(tmp_path):
    code = f"from cldm_jax.runtime.runlock import run_lock\nwith run_lock({str(tmp_path)!r}): pass"
    with run_lock(tmp_path):
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "UserError" in result.stderr and f"process {os.getpid()} on" in result.stderr
        assert " since 20" in result.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_writer_that_waits_comes_after_the_holder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runlock, "POLL", 0.01)
    order = []

    def second():
        with run_lock(tmp_path, waits=True):
            order.append("second")

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with run_lock(tmp_path):
            waiting = pool.submit(second)
            time.sleep(0.1)
            order.append("first")
        waiting.result(10)
    assert order == ["first", "second"] and not list(tmp_path.iterdir())
    assert capsys.readouterr().out.count(f"process {os.getpid()} on") == 1


@pytest.mark.parametrize("code, said", [(errno.ENOSYS, True), (errno.EIO, False)])
def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys, code, said):
    def refused(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(runlock.fcntl, "flock", refused)
    with contextlib.nullcontext() if said else pytest.raises(OSError), run_lock(tmp_path):
        pass
    assert ("has no locks (Function not implemented)" in capsys.readouterr().err) == said


def test_signal_is_remembered_and_handlers_restored():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert stop.signal is None
        stop.hold()
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM and stop.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_before_there_is_anything_to_save_ends_the_process(capsys):
    with pytest.raises(SystemExit) as ended, StopRequest():
        signal.raise_signal(signal.SIGINT)
    assert ended.value.code == 130 and "nothing new to save" in capsys.readouterr().out


def test_a_signal_does_not_wait_for_the_compiler():
    code = """
import os, signal, threading, time
from cldm_jax.runtime import device
from cldm_jax.runtime.signals import StopRequest
with StopRequest():
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    device.side_by_side([lambda: time.sleep(900)] * 2)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300)
    assert done.returncode == 143 and b"nothing new to save" in done.stdout


def test_metrics_are_cut_at_the_resumed_step(tmp_path):
    writer = MetricWriter(tmp_path, resume_step=0)
    for step in (1, 2, 3):
        writer.write_scalars(step, {"train/loss": step / 3})
    writer.write_images(3, {"x": np.zeros((1, 4, 4, 1))})
    writer.close()
    writer = MetricWriter(tmp_path, resume_step=2)
    writer.write_scalars(3, {"train/loss": float("nan")})
    writer.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3]
    assert rows[1]["train/loss"] == 2 / 3 and rows[2]["train/loss"] is None
    assert len(list(tmp_path.glob("events*"))) >= 1


def test_what_a_killed_process_left_of_a_file_goes_with_the_next_write(tmp_path):
    """Of any file, in square brackets too; what a running process writes, and other files', stays. So
    does what another machine's process writes, whose number is nobody's here.
    """
    path = tmp_path / "pet[1].json"
    dead, alive, other, elsewhere = (
        tmp_path / f".tmp-{n}"
        for n in (
            f"{files.HOST}-4194311-{path.name}",
            f"{files.HOST}-1-{path.name}",
            f"{files.HOST}-4194311-x",
            f"other-4194311-{path.name}",
        )
    )
    for left in (dead, alive, other, elsewhere):
        left.write_bytes(b"half")
    files.write_json(path, {})
    assert {*tmp_path.iterdir()} == {path, alive, other, elsewhere}


def test_two_machines_may_write_one_file(tmp_path, monkeypatch):
    """A shared disk: each sees the other's half of it, and no such process."""
    path, mine = tmp_path / "a.json", files.HOST
    monkeypatch.setattr(files, "_is_running", lambda number: False)
    with files.atomic_path(path) as tmp:
        tmp.write_text("of the one")
        monkeypatch.setattr(files, "HOST", "other")
        files.write_text(path, "of the other")
        monkeypatch.setattr(files, "HOST", mine)
    assert path.read_text() == "of the one" and [*tmp_path.iterdir()] == [path]


def test_atomic_write_leaves_the_old_file_on_failure(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"x": float("nan")})
    with pytest.raises(RuntimeError), files.atomic_path(path) as tmp:
        tmp.write_text("half")
        raise RuntimeError("power cut")
    assert files.read_json(path) == {"x": 1} and list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_names_the_file_and_not_its_temporary_one(tmp_path, monkeypatch):
    def full(path, *_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    for owner, name in ((pathlib.Path, "write_text"), (os, "replace")):  # no inode; a rename
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, full)
            with pytest.raises(OSError) as caught:
                files.write_json(tmp_path / "a.json", {})
        assert caught.value.filename == str(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def test_optimizer_warms_up_decays_and_clips():
    settings = dict(
        learning_rate=0.1,
        b1=0.9,
        b2=0.99,
        warmup_steps=10,
        num_train_steps=100,
        decay="cosine",
        clip_norm=1.0,
    )
    tx = optim.make_optimizer(weight_decay=0.0, **settings)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    state, sizes = tx.init(params), []
    for _ in range(100):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        sizes.append(float(jnp.abs(updates["kernel"]).max()))
    assert sizes[0] == 0 and np.argmax(sizes) == 10 and sizes[-1] < 1e-3
    np.testing.assert_allclose(max(sizes), 0.1, rtol=1e-3)  # Adam's step for constant gradients
    decayed = optim.make_optimizer(weight_decay=0.5, **settings)
    state = decayed.init(params)
    for _ in range(2):
        updates, state = decayed.update(jax.tree.map(jnp.zeros_like, params), state, params)
    assert float(updates["kernel"].max()) < 0 and float(updates["bias"].max()) == 0


def test_ema_follows_the_ramped_decay():
    one, zero = {"w": jnp.ones(3)}, {"w": jnp.zeros(3)}
    first = optim.update_ema(zero, one, jnp.int32(0), 0.999)
    np.testing.assert_allclose(first["w"], 1 - 1 / 10)
    late = optim.update_ema(zero, one, jnp.int32(10**6), 0.999)
    np.testing.assert_allclose(late["w"], 1e-3, rtol=1e-3)


def test_progress_prints_plain_lines_with_an_eta(capsys, monkeypatch):
    monkeypatch.setattr(progress_lib, "PLAIN_SECONDS", 0)
    with Progress(4, "work", "item") as progress:
        progress.update(2, loss="0.5")
        progress.update(2)
    lines = capsys.readouterr().err.splitlines()
    assert "work: 2/4 items" in lines[0] and "ETA" in lines[0] and "loss 0.5" in lines[0]
    assert "4/4" in lines[-1]


def test_progress_prints_no_line_twice(capsys, monkeypatch):
    for label, seconds in (("work", 0), ("rare", 60)):
        monkeypatch.setattr(progress_lib, "PLAIN_SECONDS", seconds)
        with Progress(4, label, "item") as progress:
            progress.update(4)
    with Progress(0, "nothing", "item"):
        pass
    lines = [line.split()[:2] for line in capsys.readouterr().err.splitlines()]
    assert lines == [["work:", "4/4"], ["rare:", "4/4"]]


HUGE = """
import os, sys
from cldm_jax.runtime import device
{before}
os.execv = lambda path, argv: print("again", argv[1:3], os.environ["GLIBC_TUNABLES"])
policy = type("F", (), {{"read_text": lambda self: {policy!r}}})()
device.pathlib = type("P", (), {{"Path": lambda path: policy}})
device.use_huge_pages()
print("on")
"""


@pytest.mark.parametrize(
    "before, policy, env, starts_again",
    [
        ("", "always [madvise] never", {}, True),
        ("", "always [madvise] never", {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=3"}, True),
        ("", "always [madvise] never", {"GLIBC_TUNABLES": device.HUGE_PAGES}, False),
        ("", "always [madvise] never", {"CLDM_HUGE_PAGES": "0"}, False),
        ("", "[always] madvise never", {}, False),
        ("", "always madvise [never]", {}, False),
        ("import jax", "always [madvise] never", {}, False),
    ],
)
def test_process_starts_again_with_huge_pages_only_where_they_help(
    before, policy, env, starts_again
):
    kept = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "CLDM_HUGE_PAGES")}
    code = HUGE.format(before=before, policy=policy)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert ("again ['-c'" in done.stdout) == starts_again
    if starts_again:
        assert device.HUGE_PAGES in done.stdout and env.get("GLIBC_TUNABLES", "") in done.stdout


def test_a_torn_line_of_metrics_is_passed_over(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "a": 2.0}\n{"ste\n[3]\n\xff\n{"step": 2')
    assert read_rows(tmp_path) == [{"step": 1, "a": 2.0}]
    assert caplog.text.count("no row") == 4
    MetricWriter(tmp_path, resume_step=1).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "a": 2.0}\n'


@pytest.mark.parametrize("where", ["loss", "params", "one of them"])
def test_an_update_that_is_not_finite_is_not_applied_nor_any_after_it(where):
    def train_step(state, batch, rng):
        params = jax.tree.map(lambda p: p + (batch if where == "params" else 1.0), state.params)
        if where == "one of them":  # as where one side of an adversarial pair has gone wrong
            params = {**params, "b": params["b"] + batch}
        new = state._replace(step=state.step + 1, params=params, ema_params=params)
        return new, {"loss": batch if where == "loss" else jnp.float32(0)}

    step = jax.jit(guarded(train_step))
    start, bad = state_of(4), jnp.int32(0)
    good, bad, _ = step(start, bad, jnp.float32(1), None)
    assert bad == 0 and good.step == 5 and not np.array_equal(good.params["b"], start.params["b"])
    kept = good
    for value in (jnp.nan, 1.0, jnp.inf):
        kept, bad, _ = step(kept, bad, jnp.float32(value), None)
        assert bad == 6
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, kept, good)))


@pytest.mark.parametrize("decay", ["cosine", "second_half"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_training_of_few_steps_has_a_schedule(decay, steps):
    tx = optim.make_optimizer(
        learning_rate=0.1,
        b1=0.9,
        b2=0.99,
        warmup_steps=50,
        num_train_steps=steps,
        weight_decay=0.0,
        clip_norm=1.0,
        decay=decay,
    )
    params = {"kernel": jnp.ones((2, 2))}
    state, moved = tx.init(params), []
    for _ in range(steps):
        updates, state = tx.update(params, state, params)
        moved.append(float(jnp.abs(updates["kernel"]).max()))
    assert np.isfinite(moved).all() and max(moved) == pytest.approx(0.1, rel=1e-3)


def test_muon_in_a_loop_is_muon_written_out(monkeypatch):
    rng = np.random.default_rng(0)
    shapes = {"wide": (3, 3, 16, 32), "tall": (64, 16), "square": (16, 16)}
    params = {
        k: {"kernel": jnp.asarray(rng.normal(size=s), jnp.float32)} for k, s in shapes.items()
    }
    settings = dict(learning_rate=1.0, b1=0.9, b2=0.99, warmup_steps=0, num_train_steps=10)
    settings |= dict(weight_decay=0.1, clip_norm=1.0, optimizer="muon")
    found = []
    for wrapped in (True, False):
        if not wrapped:
            monkeypatch.setattr(optim, "_looped", lambda muon: muon)
        tx = optim.make_optimizer(**settings)
        step = jax.jit(tx.update)
        state = tx.init(params)
        for scale in (1.0, 0.3):
            updates, state = step(jax.tree.map(lambda p, s=scale: s * p, params), state, params)
        text = step.lower(params, state, params).compile().as_text()
        found.append((updates, state, text.count(" dot(")))
    (ours, theirs), (short, long) = zip(*((f[:2], f[2]) for f in found), strict=True)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert 3 * short < long


def test_muon_turns_kernels_and_leaves_the_rest_to_adam():
    """A kernel's update is near a multiple of an orthogonal matrix, as large as Adam's would be."""
    rng = np.random.default_rng(0)
    leaf = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params = {
        "conv": {"kernel": leaf(3, 3, 16, 32), "bias": leaf(32)},
        "head": {"kernel": leaf(3, 3, 16, 3)},
    }
    settings = dict(learning_rate=1.0, b1=0.9, b2=0.99, warmup_steps=0, num_train_steps=10)
    settings |= dict(weight_decay=0.0, clip_norm=1e9)
    updates = {}
    for name in ("muon", "adamw"):
        tx = optim.make_optimizer(**settings, optimizer=name)
        updates[name], _ = tx.update(params, tx.init(params), params)
    spread = {}
    for name, update in updates.items():
        values = np.linalg.svd(np.reshape(update["conv"]["kernel"], (-1, 32)), compute_uv=False)
        spread[name] = values.max() / values.min()
    assert spread["muon"] < 2.0 < spread["adamw"] + 0.5
    rms = float(jnp.sqrt(jnp.square(updates["muon"]["conv"]["kernel"]).mean()))
    assert 0.1 < rms < 0.3  # MUON_RMS, but for the last step of Newton-Schulz
    for path in (("conv", "bias"), ("head", "kernel")):
        a, b = (updates[n][path[0]][path[1]] for n in ("muon", "adamw"))
        ratio = np.asarray(a / b)  # optax gives this Adam Nesterov's momentum: one factor at first
        np.testing.assert_allclose(ratio, ratio.ravel()[0], rtol=1e-4)
    with pytest.raises(ValueError, match="adamw, muon"):
        optim.make_optimizer(**settings, optimizer="sgd")


def test_a_program_cut_short_does_not_end_the_cache(tmp_path, monkeypatch):
    """Of a full disk or a kill. JAX 0.10 keeps nothing beside it, and none writes it again."""
    from jax._src.lru_cache import LRUCache

    whole, cut = LRUCache(str(tmp_path), max_size=1000), tmp_path / "cut-cache"
    whole.put("whole", b"program")
    cut.write_bytes(b"prog")
    monkeypatch.setenv("CLDM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # the tests have their own folder
    device.enable_compilation_cache()
    assert not cut.exists() and whole.get("whole") == b"program"
    whole.put("next", b"program")
    assert whole.get("next") == b"program"
