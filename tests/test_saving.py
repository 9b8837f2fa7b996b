"""Saves beside the steps: what a background save may not change."""

import errno
import pathlib
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cldm_jax import files
from cldm_jax.errors import UserError
from cldm_jax.jobs import train
from cldm_jax.runtime import checkpoint, device, processes, saving
from cldm_jax.runtime.checkpoint import Checkpoints, newest_sound, restore_for_inference
from cldm_jax.runtime.train_state import TrainState
from cldm_jax.runtime.writers import read_rows


def state_of(value: float) -> TrainState:
    params, average = ({"w": jnp.full((64, 64), value), "b": jnp.arange(3.0)} for _ in range(2))
    return TrainState(jnp.int32(value), params, average, (), (), {"k": jnp.ones(3)})


@pytest.fixture
def beside(monkeypatch):
    monkeypatch.setattr(saving, "pays", lambda: True)


@pytest.fixture
def held(monkeypatch):
    """Saves that go on only once this event is set."""
    go, save = threading.Event(), Checkpoints.save

    def waiting(self, *arguments):
        assert go.wait(60)
        save(self, *arguments)

    monkeypatch.setattr(Checkpoints, "save", waiting)
    return go


def test_steps_go_on_and_what_was_copied_is_saved(tmp_path, beside, held):
    """The state's memory is given to the next step while its save has not begun."""
    written, checkpoints = [], Checkpoints(tmp_path)
    saves = saving.Saves(checkpoints, written.append)
    state = state_of(3)
    saves.begin(3, state)
    state = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)
    jax.block_until_ready(state)
    saves.look()
    assert written == [] and newest_sound(tmp_path) is None
    held.set()
    saves.wait()
    assert written == [3]
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )
    step, found = checkpoints.restore_latest(abstract)
    assert step == 3 and jax.tree.all(jax.tree.map(np.array_equal, found, state_of(3)))
    step, params, frozen = restore_for_inference(tmp_path)
    assert step == 3 and np.array_equal(params["w"], np.full((64, 64), 3.0)) and "k" in frozen
    saves.close()


def test_one_save_at_a_time(tmp_path, beside, held):
    written = []
    saves = saving.Saves(Checkpoints(tmp_path), written.append)
    saves.begin(1, state_of(1))
    threading.Timer(0.2, held.set).start()
    saves.begin(2, state_of(2))  # waits for the first
    assert written == [1] and newest_sound(tmp_path) == 1
    saves.close()
    assert written == [1, 2] and newest_sound(tmp_path) == 2


def test_what_went_wrong_is_raised_where_it_is_looked_for(tmp_path, beside, monkeypatch):
    written = []
    saves = saving.Saves(Checkpoints(tmp_path), written.append)
    saves.begin(1, state_of(1))
    saves.wait()

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint.shutil, "disk_usage", full)
    saves.begin(2, state_of(2))
    with pytest.raises(OSError, match="No space left"):
        saves.close()
    assert written == [1] and newest_sound(tmp_path) == 1


def test_only_where_another_processor_computes(monkeypatch):
    assert not saving.pays()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert saving.pays()
    monkeypatch.setattr(processes, "count", lambda: 2)
    assert not saving.pays()


def test_the_main_thread_is_heard_while_another_saves(capsys):
    def save():
        with checkpoint._quiet() as said:
            inside.set()
            assert done.wait(60)
            print("of the save", file=sys.stderr)
        found.append(said.getvalue())

    inside, done, found = threading.Event(), threading.Event(), []
    thread = threading.Thread(target=save)
    thread.start()
    assert inside.wait(60)
    print("of the training", file=sys.stderr)
    done.set()
    thread.join()
    assert capsys.readouterr().err == "of the training\n" and found == ["of the save\n"]
    with checkpoint._quiet() as said:  # where the main thread saves, its own words are kept back
        print("of the save", file=sys.stderr)
    assert capsys.readouterr().err == "" and said.getvalue() == "of the save\n"


def test_a_training_with_saves_beside_it_leaves_the_same(study, tmp_path, beside):
    train.run(study.config("unet", save_every=3), str(tmp_path))
    assert read_rows(tmp_path) == read_rows(study.unet)
    found = [restore_for_inference(w / "checkpoints") for w in (tmp_path, study.unet)]
    assert found[0][0] == found[1][0] == 20
    assert jax.tree.all(jax.tree.map(np.array_equal, found[0][1], found[1][1]))


def test_a_full_disk_beside_the_steps_is_one_line_and_the_run_resumes(
    study, tmp_path, beside, monkeypatch
):
    save = Checkpoints.save

    def second_fails(self, step, state):
        if step == 6 and self.folder.name == "checkpoints":
            raise OSError(errno.ENOSPC, "No space left on device", str(self.folder))
        save(self, step, state)

    monkeypatch.setattr(Checkpoints, "save", second_fails)
    config = study.config("unet", save_every=3)
    with pytest.raises(UserError, match="No space left.*Step 3 is intact.*same command resumes"):
        train.run(config, str(tmp_path))
    monkeypatch.setattr(Checkpoints, "save", save)
    train.run(config, str(tmp_path))
    assert read_rows(tmp_path) == read_rows(study.unet)


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_that_also_fails_the_close_is_told_by_file(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(UserError) as caught, train._write_errors_named(tmp_path):
        with files.atomic_path(path), open("/dev/full", "w") as full:
            full.write("{}")
    assert caught.value.what == str(path) and "No space left" in caught.value.reason


def test_side_by_side_keeps_the_order_and_raises():
    both, seen = threading.Barrier(2, timeout=60), []

    def job(number):
        both.wait()  # neither goes on alone
        seen.append(number)
        return number

    assert device.side_by_side([lambda: job(1), lambda: job(2)]) == [1, 2] and len(seen) == 2
    with pytest.raises(ZeroDivisionError):
        device.side_by_side([lambda: 1 / 0, lambda: 1])
    assert device.side_by_side([]) == []
