"""The one training loop: autoencoder, latent diffusion and baselines alike.

It owns mesh, jit and donation, the key of each step, cadence, checkpoints, writers, the NaN guard and
signals; it does not know what a loss is. Step k's batch and noise depend on (seed, k) alone, so a
resumed run repeats the uninterrupted one bit for bit.
"""

import contextlib
import logging
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from cldm_jax.data import pipeline
from cldm_jax.errors import UserError
from cldm_jax.jobs import calibrate, record
from cldm_jax.jobs import inputs as inputs_lib
from cldm_jax.jobs.validation import make_validation
from cldm_jax.methods.registry import make_method
from cldm_jax.runtime import device, processes, sharding
from cldm_jax.runtime.checkpoint import Checkpoints, newest_sound
from cldm_jax.runtime.finite import guarded
from cldm_jax.runtime.progress import Progress
from cldm_jax.runtime.runlock import run_lock
from cldm_jax.runtime.signals import StopRequest
from cldm_jax.runtime.writers import open_writer, read_rows

LATENTS_SHOWN = 32  # items of the histogram


def run(config, workdir: str) -> None:
    """Trains `config.method` to `config.train.num_train_steps`, resuming what `workdir` holds.

    With `config.init.weights` it begins with those; with 0 steps it only imports them.

    UserError: what stops a run is named (another writer or config, damage, a full disk, a NaN).
    """
    _check_has_work(config)
    sharding.check_batch_size(config.train.batch_size, config.recipe.optim.accumulate)
    _warn_if_gpu_preset(config)
    resolved = record.comparable(config)
    lock = run_lock(workdir) if processes.is_main() else contextlib.nullcontext()
    with _write_errors_named(workdir), lock, StopRequest() as stop:
        with processes.main_first():
            record.check_same_config(workdir, resolved)
        inputs = inputs_lib.open_inputs(config)
        method = make_method(config.method, **inputs.recipe)
        finished = _train(config, workdir, resolved, inputs, method, stop)
        if finished:
            calibrate.after_training(config, workdir, inputs.prepared)
    if not finished:
        print(f"stopped by signal {stop.signal}; the same command resumes", flush=True)
        sys.exit(stop.exit_code)


@contextlib.contextmanager
def _write_errors_named(workdir):
    """What the system refuses (a full disk, a missing right) is the user's to mend, not a traceback."""
    try:
        yield
    except OSError as error:
        # Closing a file may fail too: the first error counts.
        while isinstance(error.__context__, OSError):
            error = error.__context__
        step = newest_sound(pathlib.Path(workdir) / "checkpoints")
        kept = "No step is saved yet" if step is None else f"Step {step} is intact"
        raise UserError(
            error.filename or workdir,
            f"cannot be written or read ({error.strerror or error})",
            f"{kept}. Make room or give access; the same command resumes.",
        ) from error


def _train(config, workdir, resolved, inputs, method, stop) -> bool:
    """Whether it came to the last step; False where a signal ended it before."""
    total, every = config.train.num_train_steps, config.train
    batch_sharding, replicated = sharding.make_shardings()
    rng = jax.random.key(config.seed)
    source = inputs_lib.train_source(config, inputs)
    state = method.init(rng, _init_batch(config, source), inputs.frozen)
    state = sharding.replicate(state)
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated), state
    )
    checkpoints = Checkpoints(pathlib.Path(workdir) / "checkpoints")
    found = checkpoints.restore_latest(abstract)
    start = 0
    if found is not None:
        start, state = found
        print(f"resuming {workdir} at step {start} of {total}", flush=True)
    manifest = record.make_manifest(config, workdir, inputs, state, resolved)
    if found is None and _imports(config):
        state, manifest["imported"] = _import(config, state)
        if total == 0:  # all there is to do
            open_writer(workdir, 0, is_writing=processes.is_main()).close()
            checkpoints.save(0, state)
        record.write_manifest(workdir, manifest, 0, finished=False)
    owes_validation = processes.decided(lambda: _owes_validation(config, workdir, inputs, start))
    if start >= total and not owes_validation:
        checkpoints.close()
        # A finished run's record stays that of the command and commit that trained it.
        if not record.is_finished(workdir):
            record.finish(workdir, manifest, start)
        done = f"already trained to step {start}" if total else "holds the imported weights"
        print(f"{workdir}: {done}", flush=True)
        return True
    _print_overview(config, state)

    writer = open_writer(workdir, start, is_writing=processes.is_main())
    writer.write_hparams(resolved)
    if inputs.latents is not None and start == 0:
        writer.write_histograms(0, _latents(source, inputs.frozen["statistics"]))
    validation = make_validation(config, inputs.prepared, method)
    train_step = make_step(method, replicated)
    rng, first_bad = sharding.replicate((rng, jnp.int32(0)))
    batches = _make_batches(config, source, start)
    clock = record.Clock(manifest)
    compiled, pending, is_stopping, is_whole, step = None, None, False, True, start

    def validate() -> bool:
        """False where a signal cut it short: it is owed then."""
        found = validation(state, stop)
        device.trim_heap()  # its compilation, at first
        if found is not None and found[0]:
            found = processes.shared(found[0]), found[1]
            record.keep_best(workdir, manifest, step, found[0], state)
            writer.write_validation(step, *found)
        return found is not None

    def log(logged: int, metrics, bad) -> None:
        scalars = {f"train/{k}": float(v) for k, v in metrics.items()}
        writer.write_scalars(logged, scalars)
        writer.write_events(logged, clock.speed(logged, total))
        progress.update(0, loss=f"{scalars['train/loss']:.4f}")
        check_finite(bad)

    def check_finite(bad) -> None:
        if int(bad):
            good = int(bad) - 1  # what the state still is
            if good:
                checkpoints.save(good, state)
                record.write_manifest(workdir, manifest, good, finished=False)
            batch = next(_make_batches(config, source, good, whole=True))
            record.refuse_nonfinite(workdir, int(bad), batch, inputs.prepared)

    with contextlib.ExitStack() as stack:
        for close in (checkpoints.close, writer.close, batches.close):
            stack.callback(close)
        if owes_validation:
            validate()
        with Progress(total, f"train {config.name}", "step", initial=start) as progress:
            for step in range(start + 1, total + 1):
                batch = sharding.put_batch(next(batches), batch_sharding)
                if compiled is None:
                    compiled = device.compile_step(train_step, state, first_bad, batch, rng)
                    stop.hold()
                state, first_bad, metrics = compiled(state, first_bad, batch, rng)
                # Fetched one step late: the device never waits for a log line.
                if pending is not None:
                    log(*pending)
                is_due = _is_due(step, total, every.log_every)
                pending = (step, metrics, first_bad) if is_due else None
                progress.update(1)
                is_stopping = stop.is_asked()
                validate_now = not is_stopping and _is_due(step, total, every.val_every)
                save_now = is_stopping or _is_due(step, total, every.save_every)
                if validate_now or save_now:
                    if pending is not None:
                        log(*pending)
                        pending = None
                    check_finite(first_bad)
                if validate_now and not validate():
                    is_stopping = save_now = True
                is_whole = not (is_stopping and _is_due(step, total, every.val_every))
                if save_now:
                    clock.stamp()
                    checkpoints.save(step, state)
                    record.write_manifest(workdir, manifest, step, finished=False)
                if is_stopping:
                    break
    if step < total or not is_whole:
        return False
    record.finish(workdir, manifest, total)
    return True


def _imports(config) -> bool:
    return "init" in config and bool(config.init.weights)


def _check_has_work(config) -> None:
    if config.train.num_train_steps == 0 and not _imports(config):
        remedy = "Give a number of steps, or weights: --config.init.weights=FILE."
        raise UserError("config.train.num_train_steps=0", "nothing to train or to import", remedy)


def _import(config, state):
    """(state with the weights of `config.init`, also as their average; facts for the manifest)."""
    params, facts = inputs_lib.import_weights(config, state.params)
    print(f"{config.name}: begins with {facts['file']} ({facts['sha256'][:12]})", flush=True)
    params, average = (jax.tree.map(jnp.array, params) for _ in range(2))  # both are donated
    return state._replace(**sharding.replicate({"params": params, "ema_params": average})), facts


def _is_due(step: int, total: int, every: int) -> bool:
    return step > 0 and (step == total or step % every == 0)


def _owes_validation(config, workdir, inputs, step: int) -> bool:
    """Whether a signal or a kill came between `step` and the validation that belongs to it."""
    every = config.train
    if not _is_due(step, every.num_train_steps, every.val_every):
        return False
    rows = [row for row in read_rows(workdir) if row["step"] == step]
    is_done = any(key.startswith("val/") for row in rows for key in row)
    return not is_done and bool(inputs.prepared.subjects("val"))


def _make_batches(config, source, start: int, *, whole: bool = False):
    """Batches from step `start` on: this process's rows, or with `whole` those of all."""
    return pipeline.make_train_iterator(
        source,
        batch_size=config.train.batch_size,
        seed=config.seed,
        start_step=start,
        num_threads=0 if whole else config.train.num_threads,
        num_workers=0 if whole else config.train.num_workers,
        paired=config.data.paired,
        process_index=0 if whole else jax.process_index(),
        process_count=1 if whole else jax.process_count(),
    )


def make_step(method, replicated):
    """The jitted step, (state, first_bad, batch, rng of the run) -> (state, first_bad, metrics), guarded
    against what is not finite (`runtime/finite.py`); `state` is donated.
    """

    def step(state, batch, rng):
        return method.train_step(state, batch, jax.random.fold_in(rng, state.step + 1))

    return jax.jit(guarded(step), donate_argnums=0, out_shardings=(replicated,) * 3)


def open_step(config):
    """() -> None: one training step of `config` on a batch that lies ready, compiled and finished when
    it returns. For measuring what a step costs; nothing is written.
    """
    inputs = inputs_lib.open_inputs(config)
    source = inputs_lib.train_source(config, inputs)
    batch = source.read(np.arange(config.train.batch_size))
    return make_stepper(config, inputs, _init_batch(config, source), batch)


def make_stepper(config, inputs, init_batch: dict, batch: dict):
    """`open_step` for inputs and a batch that are given."""
    sharding.check_batch_size(config.train.batch_size, config.recipe.optim.accumulate)
    batch_sharding, replicated = sharding.make_shardings()
    method = make_method(config.method, **inputs.recipe)
    key = jax.random.key(config.seed)
    state = method.init(key, init_batch, inputs.frozen)
    state, key, first_bad = sharding.replicate((state, key, jnp.int32(0)))
    batch = sharding.put_batch(batch, batch_sharding)
    compiled = device.compile_step(make_step(method, replicated), state, first_bad, batch, key)

    def call() -> None:
        nonlocal state
        state, _, _ = compiled(state, first_bad, batch, key)
        jax.block_until_ready(state)

    return call


def _init_batch(config, source) -> dict:
    """A fixed set of training items spread over the dataset, for shapes and data-fitted constants."""
    count = min(len(source), config.train.init_items)
    picks = np.linspace(0, len(source) - 1, count).round().astype(int)
    items = [source[int(i)] for i in picks]
    return {k: np.stack([item[k] for item in items]) for k in items[0]}


def _latents(source, statistics: dict) -> dict:
    """Standardised target latents of a few items by class code: near standard normal, or the latents
    are not what the network is told.
    """
    batch = source.read(np.linspace(0, len(source) - 1, LATENTS_SHOWN).astype(int))
    mean, std = (statistics[k][batch["label"]][:, None, None] for k in ("mean", "std"))
    z = (batch["target"] - mean) / std
    return {f"latents/class_{c}": z[batch["label"] == c] for c in np.unique(batch["label"])}


def _print_overview(config, state) -> None:
    from clu import parameter_overview

    count = parameter_overview.count_parameters(state.params)
    logging.info("%s", parameter_overview.get_parameter_overview(state.params, include_stats=False))
    print(f"{config.name}: {count:,} parameters, {config.train.num_train_steps} steps", flush=True)


def _warn_if_gpu_preset(config) -> None:
    seconds = config.train.cpu_step_seconds * config.train.num_train_steps
    if seconds > 0 and jax.default_backend() == "cpu":
        print(
            f"preset '{config.preset}' is meant for a GPU and none was found: on 2 CPU cores training "
            f"would take about {seconds / 86400:.0f} days (estimated, not measured), after making the "
            f"data. For a CPU use --config=configs/{config.name}.py:cpu (under an hour) or :quick "
            "(minutes). Going on; Ctrl-C stops and the same command resumes.",
            flush=True,
        )
