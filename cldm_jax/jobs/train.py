"""The one training: autoencoder, latent diffusion and baselines alike.

It owns mesh, jit and donation, the key of each step, checkpoints, writers, the NaN guard and signals, and
sets up the loop (`runs/loop.py`) with its feed (`runs/feed.py`); it does not know what a loss is. Step
k's batch and noise depend on (seed, k) alone, so a resumed run repeats the uninterrupted one bit for bit.
"""

import contextlib
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp

from cldm_jax.errors import UserError
from cldm_jax.jobs import calibrate
from cldm_jax.methods.registry import make_method
from cldm_jax.runs import fit, monai, record
from cldm_jax.runs import inputs as inputs_lib
from cldm_jax.runs.feed import make_feed
from cldm_jax.runs.loop import Loop, is_due
from cldm_jax.runs.steps import init_batch, is_same, make_step
from cldm_jax.runs.validation import Validation, can_validate
from cldm_jax.runtime import device, processes, sharding
from cldm_jax.runtime.checkpoint import Checkpoints, newest_sound
from cldm_jax.runtime.progress import Progress
from cldm_jax.runtime.runlock import run_lock
from cldm_jax.runtime.signals import StopRequest
from cldm_jax.runtime.writers import open_writer, read_rows


def run(config, workdir: str, waits: bool = False) -> None:
    """Trains `config.method` to its last step, going on with `workdir`; `waits` for another process.

    With `config.init.weights` it begins with those; with 0 steps it only imports them.

    UserError: what stops a run is named (another writer or config, damage, a full disk, a NaN).
    """
    check(config, workdir)
    lock = run_lock(workdir, waits) if processes.is_main() else contextlib.nullcontext()
    # Inside: a lost process is no full disk.
    with _write_errors_named(workdir), processes.losses_named(), lock, StopRequest() as stop:
        config, _ = inputs_lib.settled(config, say=True)
        resolved = record.comparable(config)
        with processes.main_first():
            record.keep_config(workdir, resolved)
        inputs = inputs_lib.open_inputs(config)
        _check_codec(config, record.autoencoder(workdir), inputs.recipe.get("autoencoder"))
        method = make_method(config.method, **inputs.recipe)
        finished = _train(config, workdir, resolved, inputs, method, stop)
        if finished:
            stop.release()
            calibrate.after_training(config, workdir, inputs.prepared)
    if not finished:
        print(f"stopped by signal {stop.signal}; the same command resumes", flush=True)
        sys.exit(stop.exit_code)


def check(config, workdir: str) -> None:
    """UserError where this training cannot be run, by its settings, its data and what `workdir` holds."""
    if config.train.num_train_steps == 0 and not _imports(config):
        remedy = "Give a number of steps, or weights: --config.init.weights=FILE."
        raise UserError("config.train.num_train_steps=0", "nothing to train or to import", remedy)
    sharding.check_batch_size(config.train.batch_size, config.recipe.optim.accumulate)
    config, prepared = inputs_lib.settled(config)
    fit.check(config, prepared)
    record.check_same_config(workdir, record.comparable(config))
    record.check_same_data(workdir, prepared)
    if config.data.kind == "latents":
        folder = inputs_lib.autoencoder_workdir(config)
        record.check_same_data(folder, prepared, "config.autoencoder.workdir")
        check_autoencoder(workdir, folder)


def check_autoencoder(workdir, folder) -> None:
    """UserError where `folder` lacks the autoencoder that `workdir` began with. One trained anew in its
    place would be refused in the end, elsewhere than on the same machine.
    """
    if record.autoencoder(workdir) is not None and not record.is_finished(folder):
        reason = f"holds no trained autoencoder, and {workdir} began with one"
        remedy = "Restore it from a copy, train it there again, or give another --workdir"
        raise UserError(folder, reason, remedy)


@contextlib.contextmanager
def _write_errors_named(workdir):
    """What the system refuses (a full disk, a missing right) is the user's to mend, not a traceback."""
    try:
        yield
    except BrokenPipeError:  # whoever read the output left
        raise
    except OSError as error:
        # Closing a file may fail too: the first error counts. The last may be the one with a name.
        name = error.filename
        while isinstance(error.__context__, OSError):
            error = error.__context__
            name = error.filename or name
        step = newest_sound(pathlib.Path(workdir) / "checkpoints")
        kept = "No step is saved yet" if step is None else f"Step {step} is intact"
        raise UserError(
            name or workdir,
            f"cannot be written or read ({error.strerror or error})",
            f"{kept}. Make room or give access; the same command resumes.",
        ) from error


def _train(config, workdir, resolved, inputs, method, stop) -> bool:
    """Whether it came to the last step; False where a signal ended it before."""
    source = inputs_lib.train_source(config, inputs)
    state = method.init(jax.random.key(config.seed), init_batch(config, source), inputs.frozen)
    checkpoints = Checkpoints(pathlib.Path(workdir) / "checkpoints")
    with contextlib.ExitStack() as stack:
        stack.callback(checkpoints.close)
        start, state = _restore(config, workdir, checkpoints, sharding.replicate(state))
        manifest = record.make_manifest(config, workdir, inputs, state, resolved)
        if start is None:
            start, state = 0, _import(config, workdir, state, manifest, checkpoints)
        owes_validation = processes.decided(
            lambda: _owes_validation(config, workdir, inputs, start)
        )
        if start >= config.train.num_train_steps and not owes_validation:
            return _nothing_to_do(config, workdir, manifest, start)
        _print_overview(config, state)
        writer = open_writer(workdir, start, is_writing=processes.is_main())
        stack.callback(writer.close)
        feed = make_feed(config, source, method.reads, start)
        stack.callback(feed.close)
        rng, first_bad = sharding.replicate((jax.random.key(config.seed), jnp.int32(0)))
        validation = Validation(config, inputs.prepared, method)
        programs = _compile(method, feed, (state, first_bad, rng), validation)
        stop.hold()
        steps, what = config.train.num_train_steps, f"train {config.name}"
        with Progress(steps, what, "step", initial=start) as progress:
            loop = Loop(
                config=config,
                workdir=workdir,
                manifest=manifest,
                source=source,
                prepared=inputs.prepared,
                state=state,
                first_bad=first_bad,
                step=start,
                checkpoints=checkpoints,
                writer=writer,
                validation=validation,
                stop=stop,
                progress=progress,
            )
            stack.callback(loop.close)
            del state  # the loop's alone: the first call takes its memory
            if owes_validation:
                loop.validate()
            if not loop.run(programs, feed, rng):
                return False
    record.write_manifest(workdir, manifest, config.train.num_train_steps, finished=True)
    return True


def _restore(config, workdir, checkpoints: Checkpoints, state):
    """(step, state) of the newest checkpoint; (None, state) where there is none."""
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )
    found = checkpoints.restore_latest(abstract)
    if found is None:
        return None, state
    is_finished = found[0] >= config.train.num_train_steps  # and reads no latents
    if not (is_finished and _same_folder(config, workdir)):
        _check_codec(config, *(s.frozen.get("autoencoder") for s in (found[1], state)))
    print(f"resuming {workdir} at step {found[0]} of {config.train.num_train_steps}", flush=True)
    return found


def _same_folder(config, workdir) -> bool:
    """Whether the autoencoder is named as when the run began; copied elsewhere, it is to be the same."""
    if "autoencoder" not in config:
        return True
    before = inputs_lib.read_run_config(workdir)["autoencoder"]["workdir"]
    return before == config.autoencoder.workdir


def _check_codec(config, ours, theirs) -> None:
    """UserError where the autoencoder that a run began with is not the one whose latents it would go on
    with: the one in its checkpoint decodes. Their settings, or their weights.
    """
    if ours is not None and not is_same(ours, theirs):
        folder = inputs_lib.autoencoder_workdir(config)
        reason = "holds another autoencoder than the one that this run began with"
        remedy = "Restore it from a copy, or give another --workdir to start over."
        raise UserError(folder, reason, remedy)


def _nothing_to_do(config, workdir, manifest, start: int) -> bool:
    # A finished run's record stays that of the command and commit that trained it.
    if not record.is_finished(workdir):
        record.write_manifest(workdir, manifest, start, finished=True)
    is_trained = config.train.num_train_steps > 0
    done = f"already trained to step {start}" if is_trained else "holds the imported weights"
    print(f"{workdir}: {done}", flush=True)
    return True


def _compile(method, feed, arguments, validation) -> dict:
    """{steps of a call: program} for all that are to come, and validation's, side by side."""
    state, first_bad, rng = arguments

    def program(length, items):
        step = make_step(method, first_bad.sharding, feed.read, length)
        return device.compile_step(step, state, first_bad, items, rng, *feed.tables)

    lengths = sorted(feed.lengths(), reverse=True)
    # Here, not in the threads: each looks at the feed's first item and puts it back.
    jobs = [functools.partial(program, length, feed.shapes(length)) for length in lengths]
    *programs, _ = device.side_by_side([*jobs, functools.partial(validation.compile, state)])
    return dict(zip(lengths, programs, strict=True))


def _imports(config) -> bool:
    return "init" in config and bool(config.init.weights)


def _import(config, workdir, state, manifest, checkpoints: Checkpoints):
    """`state` with the weights of `config.init`, also as their average, where it names any. Where nothing
    is to be trained on them they are saved as step 0.
    """
    if not _imports(config):
        return state
    params, facts = monai.import_weights(config, state.params)
    print(f"{config.name}: begins with {facts['file']} ({facts['sha256'][:12]})", flush=True)
    params, average = (jax.tree.map(jnp.array, params) for _ in range(2))  # both are donated
    state = state._replace(**sharding.replicate({"params": params, "ema_params": average}))
    manifest.imported = facts
    if config.train.num_train_steps == 0:  # all there is to do
        open_writer(workdir, 0, is_writing=processes.is_main()).close()
        checkpoints.save(0, state)
    record.write_manifest(workdir, manifest, 0, finished=False)
    return state


def _owes_validation(config, workdir, inputs, step: int) -> bool:
    """Whether a signal or a kill came between `step` and the validation that belongs to it."""
    every = config.train
    if not is_due(step, every.num_train_steps, every.val_every):
        return False
    rows = [row for row in read_rows(workdir) if row["step"] == step]
    is_done = any(key.startswith("val/") for row in rows for key in row)
    return not is_done and can_validate(config, inputs.prepared)


def _print_overview(config, state) -> None:
    from clu import parameter_overview

    count = parameter_overview.count_parameters(state.params)
    print(f"{config.name}: {count:,} parameters, {config.train.num_train_steps} steps", flush=True)


def warn_if_gpu_preset(config) -> None:
    """Says how long a CPU would take, where the preset is meant for a GPU: before anything is made."""
    seconds = config.train.cpu_step_seconds * config.train.num_train_steps
    if seconds > 0 and jax.default_backend() == "cpu":
        print(
            f"preset '{config.preset}' is meant for a GPU and none was found: on 2 CPU cores training "
            f"would take about {seconds / 86400:.0f} days (estimated, not measured), after making the "
            "data. For a CPU end --config in :cpu (under an hour) or :quick (minutes). Going on; Ctrl-C "
            "stops and the same command resumes.",
            flush=True,
        )
