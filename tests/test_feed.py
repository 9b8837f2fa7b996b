"""Feeds and calls: the same items, keys and noise however a training is fed and cut into calls."""

import importlib
import itertools
import os
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cldm_jax import files
from cldm_jax.data import resident
from cldm_jax.errors import UserError
from cldm_jax.jobs import train
from cldm_jax.methods.base import Method
from cldm_jax.methods.registry import make_method
from cldm_jax.runs import feed, inputs
from cldm_jax.runs.loop import is_due
from cldm_jax.runs.steps import make_step
from cldm_jax.runtime import device, processes, sharding
from cldm_jax.runtime.checkpoint import restore_for_inference
from cldm_jax.runtime.train_state import TrainState
from cldm_jax.runtime.writers import read_rows

# ---- how a run is cut into calls ----


@pytest.mark.parametrize(
    "steps, log, val, save, length",
    [
        *((1, 20, 300, 200, 1), (50, 20, 300, 200, 20), (50, 100, 5000, 2000, 50)),
        *((64, 100, 5000, 2000, 50), (7, 20, 300, 200, 5), (50, 1, 10, 10, 1)),
    ],
)
def test_length_of_a_call(steps, log, val, save, length):
    settings = dict(steps_per_call=steps, log_every=log, val_every=val, save_every=save)
    assert feed.call_length(SimpleNamespace(**settings)) == length


@pytest.mark.parametrize("start", [0, 3, 20, 37, 99, 103])
def test_no_call_runs_across_a_due_step_and_two_programs_are_enough(start):
    total, length, cadences = 103, 20, (20, 40, 60)
    lengths = list(feed.call_lengths(start, total, length))
    ends = list(itertools.accumulate(lengths, initial=start))
    assert ends[-1] == total and set(lengths) <= {1, length}
    due = {s for s in range(start + 1, total + 1) for every in cadences if is_due(s, total, every)}
    assert due <= set(ends)
    # Resumed from wherever it stopped, a step belongs to the program it always belongs to.
    whole = list(itertools.accumulate(feed.call_lengths(0, total, length), initial=0))
    later = [end for end in whole if end >= -(-start // length) * length]
    assert [end for end in ends if end in later] == later


# ---- what a call is fed with ----


def feeds(study, name: str, **changes):
    """(config, source, reads, its host feed, its device feed) of a method's tiny config."""
    if name == "cyclegan":
        config = importlib.import_module("configs.cyclegan").get_config("tiny")
        config.data.root = str(study.data_root)
    else:
        config = study.config(name)
    config.update_from_flattened_dict(changes)
    opened = inputs.open_inputs(config)
    method = make_method(config.method, **opened.recipe)
    source = inputs.train_source(config, opened)
    both = []
    for mode in ("never", "always"):
        config.data.on_device = mode
        both.append(feed.make_feed(config, source, method.reads, 0))
    return config, source, method.reads, *both


@pytest.mark.parametrize("name", ["ae", "unet", "cyclegan", "ldm"])
def test_slices_on_the_device_give_the_readers_batches(study, name):
    """Images (uint16) and latents (float16), neighbours, pairs and none; nothing but what is read."""
    config, source, reads, host, resident_feed = feeds(study, name)
    read = jax.jit(resident_feed.read)
    seen = []
    for _ in range(6):
        (_, batch), (_, rows) = host.next(), resident_feed.next()
        assert set(batch) == set(reads) and set(rows) == {"row", "target_row"}
        made = read(rows, *resident_feed.tables)
        assert set(made) == set(reads)
        for key in reads:
            assert made[key].dtype == batch[key].dtype
            # One rounding or two, of numbers below 1: the next stored number is 3e-5 away.
            ulp = 6e-8 if np.abs(batch[key]).max() <= 1 else 0
            np.testing.assert_allclose(made[key], batch[key], rtol=0, atol=ulp, err_msg=key)
        seen.append(np.asarray(batch["target"]))
    assert not np.array_equal(seen[0], seen[1])
    assert (config.data.paired is False) == (name == "cyclegan")
    host.close()


def test_every_slice_lies_there_once_and_no_mask(study):
    _, source, reads, host, resident_feed = feeds(study, "unet")
    host.close()
    tables = resident_feed.tables[0]
    slices = tables["slices"]["images"]
    assert slices.dtype == np.uint16 and set(tables["records"]) == {"source", "target", "label"}
    stored = np.asarray(slices).reshape(len(slices), -1)
    used = np.unique(np.concatenate([np.ravel(tables["records"][k]) for k in ("source", "target")]))
    np.testing.assert_array_equal(used, np.arange(len(stored)))
    layout = resident.lay_out(source, reads)
    assert layout.nbytes == sum(x.nbytes for x in jax.tree.leaves(layout.tables()))
    targets = resident.lay_out(source, ("target", "label"))
    assert targets.nbytes < layout.nbytes and "source" not in targets.records


def test_several_steps_are_fed_in_the_same_order(study):
    changes = {"train.steps_per_call": 5, "train.log_every": 5}
    _, _, reads, host, resident_feed = feeds(study, "unet", **changes)
    _, _, _, one_by_one, other = feeds(study, "unet")
    other.close()
    assert host.lengths() == resident_feed.lengths() == {5}
    expected = [np.asarray(one_by_one.next()[1]["target"]) for _ in range(5)]
    for made in (host, resident_feed):
        length, items = made.next()
        shapes = made.shapes(5)
        assert length == 5 and set(items) == set(shapes)
        for key, array in items.items():
            assert array.shape == shapes[key].shape and array.dtype == shapes[key].dtype
            assert array.sharding.is_equivalent_to(shapes[key].sharding, array.ndim)
        for step in range(5):
            batch = {k: v[step] for k, v in items.items()}
            batch = batch if made is host else made.read(batch, *made.tables)
            np.testing.assert_allclose(batch["target"], expected[step], rtol=0, atol=6e-8)
    host.close(), one_by_one.close()


def test_programs_made_side_by_side_leave_the_order(study, monkeypatch):
    """Two lengths of calls are two programs, each of which looks at the first item."""
    changes = {"train.steps_per_call": 5, "train.log_every": 5, "train.num_train_steps": 18}
    *_, one_by_one, other = feeds(study, "unet")
    other.close()
    expected = [np.asarray(one_by_one.next()[1]["target"]) for _ in range(5)]
    one_by_one.close()
    monkeypatch.setattr(device, "compile_step", lambda *a: None)
    arguments = (None, jnp.int32(0), None)
    validation = SimpleNamespace(compile=lambda state: None)
    _, _, _, host, resident_feed = feeds(study, "unet", **changes)
    for made in (host, resident_feed):
        programs = train._compile(Method(None, None, {}, {}), made, arguments, validation)
        assert set(programs) == made.lengths() == {1, 5}
        _, items = made.next()
        for step in range(5):
            batch = {k: v[step] for k, v in items.items()}
            batch = batch if made is host else made.read(batch, *made.tables)
            np.testing.assert_allclose(batch["target"], expected[step], rtol=0, atol=6e-8)
    host.close()


def test_the_device_is_used_where_it_has_room(study, monkeypatch):
    config, source, reads, host, _ = feeds(study, "unet")
    host.close()
    config.data.on_device = "auto"
    need = resident.lay_out(source, reads).nbytes
    for free, kind in [(None, "Host"), (2 * need, "Host"), (3 * need, "Device")]:
        monkeypatch.setattr(device, "free_bytes", lambda free=free: free)
        made = feed.make_feed(config, source, reads, 0)
        assert (made.read is None) == (kind == "Host")
        made.close()
    monkeypatch.setattr(processes, "count", lambda: 2)
    assert not feed._fits(source, reads)
    config.data.on_device = "always"
    with pytest.raises(UserError, match="2 processes.*auto or never"):
        feed.make_feed(config, source, reads, 0)


# ---- several steps in one call ----


def witness(poisoned_step: int = 0) -> Method:
    """A method that writes down what each step is given: its rows, its key and its noise."""

    def train_step(state, batch, rng):
        place, seen = state.step, state.params
        drawn = jax.random.normal(rng, (3,))
        seen = {
            "rows": seen["rows"].at[place].set(batch["target"]),
            "key": seen["key"].at[place].set(jax.random.key_data(rng)),
            "noise": seen["noise"].at[place].set(drawn),
        }
        is_bad = state.step + 1 == poisoned_step
        loss = jnp.where(is_bad, jnp.nan, drawn.sum())
        return state._replace(step=state.step + 1, params=seen), {"loss": loss}

    return Method(None, train_step, {}, {}, reads=("target",))


def witnessed(lengths, poisoned_step: int = 0):
    """(state, first_bad, losses at the ends) after calls of these lengths from step 0."""
    total, (rows, replicated) = sum(lengths), sharding.make_shardings()
    zeros = {"rows": (total, 4), "key": (total, 2), "noise": (total, 3)}
    params = {k: jnp.zeros(v, jnp.uint32 if k == "key" else jnp.float32) for k, v in zeros.items()}
    state = TrainState(jnp.int32(0), params, {}, (), (), {})
    state, bad, key = sharding.replicate((state, jnp.int32(0), jax.random.key(5)))
    data = np.random.default_rng(0).normal(size=(total, 4)).astype(np.float32)
    step, losses = 0, []
    for length in lengths:
        call = make_step(witness(poisoned_step), replicated, length=length)
        items = data[step] if length == 1 else data[step : step + length]
        where = rows if length == 1 else sharding.stacked(rows)
        items = sharding.put_batch({"target": items}, where)
        state, bad, metrics = call(state, bad, items, key)
        step += length
        losses.append(float(metrics["loss"]))
    return jax.tree.map(np.asarray, state), int(bad), losses


def test_rows_keys_and_noise_are_those_of_single_steps():
    single, _, losses = witnessed([1] * 6)
    scanned, bad, ends = witnessed([3, 3])
    mixed, _, _ = witnessed([1, 4, 1])
    for other in (scanned, mixed):
        assert jax.tree.all(jax.tree.map(np.array_equal, single, other))
    assert bad == 0 and ends == losses[2::3]
    assert len(np.unique(single.params["noise"])) == 18  # every step its own


@pytest.mark.parametrize("bad_step", [1, 4, 5, 6])
def test_the_guard_names_the_step_inside_a_call(bad_step):
    """The state is that before the step, as one by one, and the steps after it change nothing."""
    scanned, found, _ = witnessed([3, 3], bad_step)
    single, same, _ = witnessed([1] * 6, bad_step)
    assert found == same == bad_step and int(scanned.step) == bad_step - 1
    assert jax.tree.all(jax.tree.map(np.array_equal, single, scanned))
    assert not scanned.params["noise"][bad_step - 1 :].any()


# ---- whole trainings ----

CALLS = dict(steps_per_call=5, log_every=5)


def losses(workdir) -> dict[int, float]:
    return {r["step"]: r["train/loss"] for r in read_rows(workdir) if "train/loss" in r}


def as_one_by_one(workdir, other) -> None:
    """Losses and averaged parameters equal to float rounding; validations where they belong."""
    mine, theirs = losses(workdir), losses(other)
    assert sorted(mine) == [5, 10, 15, 20]
    for step, loss in mine.items():
        assert loss == pytest.approx(theirs[step], rel=1e-6)
    validated = [r["step"] for r in read_rows(workdir) if "val/psnr_ct" in r]
    assert validated == [10, 20]
    a, b = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
        for tree in (restore_for_inference(w / "checkpoints")[1] for w in (workdir, other))
    )
    # Adam divides small gradients by themselves: a few parameters show their rounding.
    assert np.linalg.norm(a - b) < 1e-3 * np.linalg.norm(b)


@pytest.fixture(scope="module")
def by_fives(study, tmp_path_factory):
    """unet with slices on the device, five steps a call, never interrupted."""
    workdir = tmp_path_factory.mktemp("fives")
    train.run(fives(study), str(workdir))
    return workdir


def fives(study, **more):
    config = study.config("unet", **{**CALLS, **more})
    config.data.on_device = "always"
    return config


def test_five_steps_a_call_from_the_device_train_as_one_by_one(study, by_fives):
    as_one_by_one(by_fives, study.unet)


@pytest.mark.slow  # a program of its own
def test_five_steps_a_call_from_the_reader_train_as_one_by_one(study, tmp_path):
    train.run(study.config("ldm", **CALLS), str(tmp_path))
    as_one_by_one(tmp_path, study.ldm)


def test_a_signal_waits_for_the_call_and_the_rest_is_the_same_to_the_bit(
    study, by_fives, tmp_path, monkeypatch
):
    calls, put_batch = [], sharding.put_batch

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == 4:  # the call of steps 11 to 15 is on the device, this one's is put there
            os.kill(os.getpid(), signal.SIGTERM)
        return put_batch(*arguments)

    monkeypatch.setattr(sharding, "put_batch", interrupting)
    with pytest.raises(SystemExit) as stopped:
        train.run(fives(study), str(tmp_path))
    assert stopped.value.code == 143
    assert files.read_json(tmp_path / "run.json")["step"] == 15
    monkeypatch.undo()
    train.run(fives(study), str(tmp_path))
    assert read_rows(tmp_path) == read_rows(by_fives)
    found = [restore_for_inference(w / "checkpoints")[1] for w in (tmp_path, by_fives)]
    assert jax.tree.all(jax.tree.map(np.array_equal, *found))


@pytest.mark.slow  # the guard inside a call is tested above, what a run does then in test_train.py
def test_nan_inside_a_call_stops_the_run_with_the_state_before_it(study, tmp_path):
    config = fives(study)
    config.recipe.optim.learning_rate = 1e30  # overflows float32 in a step or two
    with pytest.raises(UserError, match=r"step [23]: NaN .* its update was not applied") as refused:
        train.run(config, str(tmp_path))
    step = int(refused.value.what.removeprefix("step "))
    saved, params, _ = restore_for_inference(tmp_path / "checkpoints")
    assert saved == step - 1 and all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    assert len(files.read_json(tmp_path / f"nonfinite-step-{step}.json")["items"]) == 4
