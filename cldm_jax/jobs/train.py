"""The one training loop: autoencoder, latent diffusion and baselines alike.

It owns mesh, jit and donation, the key of each step, cadence, checkpoints, writers, the NaN guard and
signals; it does not know what a loss is. Step k's batch and noise depend on (seed, k) alone, so a
resumed run repeats the uninterrupted one bit for bit.
"""

import logging
import math
import pathlib
import sys

import jax
import numpy as np

from cldm_jax.data import pipeline
from cldm_jax.errors import UserError
from cldm_jax.jobs import inputs as inputs_lib
from cldm_jax.jobs import record
from cldm_jax.jobs.validation import make_validation
from cldm_jax.methods.registry import make_method
from cldm_jax.runtime import device, sharding
from cldm_jax.runtime.checkpoint import Checkpoints
from cldm_jax.runtime.progress import Progress
from cldm_jax.runtime.runlock import run_lock
from cldm_jax.runtime.signals import StopRequest
from cldm_jax.runtime.writers import MetricWriter


def run(config, workdir: str) -> None:
    """Trains `config.method` to `config.train.num_train_steps`, resuming what `workdir` holds."""
    sharding.check_batch_size(config.train.batch_size)
    _warn_if_gpu_preset(config)
    resolved = record.comparable(config)
    with run_lock(workdir), StopRequest() as stop:
        record.check_same_config(workdir, resolved)
        inputs = inputs_lib.open_inputs(config)
        method = make_method(config.method, **inputs.recipe)
        finished = _train(config, workdir, resolved, inputs, method, stop)
    if not finished:
        print(f"stopped by signal {stop.signal}; the same command resumes", flush=True)
        sys.exit(stop.exit_code)


def _train(config, workdir, resolved, inputs, method, stop) -> bool:
    total = config.train.num_train_steps
    batch_sharding, replicated = sharding.make_shardings()
    rng = jax.random.key(config.seed)
    source = inputs_lib.train_source(config, inputs)
    state = method.init(rng, _init_batch(config, source), inputs.frozen)
    state = jax.device_put(state, replicated)
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
    if start >= total:
        checkpoints.close()
        record.finish(workdir, manifest, start)
        print(f"{workdir}: already trained to step {start}", flush=True)
        return True
    _print_overview(config, state)

    train_step = _make_step(method, replicated)
    rng = jax.device_put(rng, replicated)
    validate = make_validation(config, inputs.prepared, method)
    writer = MetricWriter(workdir, resume_step=start)
    writer.write_hparams(resolved)
    batches = pipeline.make_train_iterator(
        source,
        batch_size=config.train.batch_size,
        seed=config.seed,
        start_step=start,
        num_threads=config.train.num_threads,
        num_workers=config.train.num_workers,
        paired=config.data.paired,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    clock = record.Clock(manifest)
    every = config.train
    compiled, pending = None, None
    try:
        with Progress(total, f"train {config.name}", "step", initial=start) as progress:
            for step in range(start, total):
                batch = sharding.put_batch(next(batches), batch_sharding)
                if compiled is None:
                    compiled = device.compile_step(train_step, state, batch, rng)
                state, metrics = compiled(state, batch, rng)
                # Fetched one step late: the device never waits for a log line.
                if pending is not None:
                    _log(writer, progress, *pending)
                last = step + 1 == total
                log_now = last or (step + 1) % every.log_every == 0
                pending = (step + 1, metrics) if log_now else None
                progress.update(1)
                save_now = last or stop.signal or (step + 1) % every.save_every == 0
                if save_now:
                    _check_finite(step + 1, metrics)
                    clock.stamp()
                    checkpoints.save(step + 1, state)
                    record.write_manifest(workdir, manifest, step + 1, finished=False)
                if last or (step + 1) % every.val_every == 0:
                    if pending is not None:
                        _log(writer, progress, *pending)
                        pending = None
                    scalars, images = validate(state)
                    device.trim_heap()  # its compilation, at first
                    record.keep_best(workdir, manifest, step + 1, scalars, state)
                    writer.write_scalars(step + 1, scalars)
                    writer.write_images(step + 1, images)
                    writer.flush()
                if stop.signal:
                    break
            if pending is not None:
                _log(writer, progress, *pending)
    finally:
        batches.close()
        writer.close()
        checkpoints.close()
    if stop.signal and step + 1 < total:
        return False
    record.finish(workdir, manifest, total)
    return True


def _make_step(method, replicated):
    """jitted (state, batch, rng of the run) -> (state, metrics); `state` is donated."""

    def step(state, batch, rng):
        return method.train_step(state, batch, jax.random.fold_in(rng, state.step + 1))

    return jax.jit(step, donate_argnums=0, out_shardings=(replicated, replicated))


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
    sharding.check_batch_size(config.train.batch_size)
    batch_sharding, replicated = sharding.make_shardings()
    method = make_method(config.method, **inputs.recipe)
    key = jax.random.key(config.seed)
    state = method.init(key, init_batch, inputs.frozen)
    state, key = jax.device_put(state, replicated), jax.device_put(key, replicated)
    batch = sharding.put_batch(batch, batch_sharding)
    compiled = device.compile_step(_make_step(method, replicated), state, batch, key)

    def call() -> None:
        nonlocal state
        state, _ = compiled(state, batch, key)
        jax.block_until_ready(state)

    return call


def _log(writer, progress, step: int, metrics) -> None:
    scalars = {f"train/{k}": float(v) for k, v in metrics.items()}
    writer.write_scalars(step, scalars)
    _check_finite(step, metrics)
    progress.update(0, loss=f"{scalars['train/loss']:.4f}")


def _check_finite(step: int, metrics) -> None:
    loss = float(metrics["loss"])
    if not math.isfinite(loss):
        raise UserError(
            f"step {step}",
            f"the loss is {loss}",
            "The last checkpoint is intact. Lower config.recipe.optim.learning_rate or check the data "
            "with configs/prepare.py.",
        )


def _init_batch(config, source) -> dict:
    """A fixed set of training items spread over the dataset, for shapes and data-fitted constants."""
    count = min(len(source), config.train.init_items)
    picks = np.linspace(0, len(source) - 1, count).round().astype(int)
    items = [source[int(i)] for i in picks]
    return {k: np.stack([item[k] for item in items]) for k in items[0]}


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
