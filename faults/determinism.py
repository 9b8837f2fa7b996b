"""Promise 7: the same seed gives the same run, on any number of devices, readers and images at a time.

Trainings run as child processes, each with its own number of host devices. A fingerprint of each
step's batch and noise travels in its line of metrics, so that both can be compared to the bit.
"""

import contextlib
import pathlib
import shutil
from unittest import mock

import numpy as np

from faults import training
from faults.common import Outcome, Promise, loss_bits, make_config

CADENCE = dict(batch_size=8, num_train_steps=12, log_every=1, val_every=6, save_every=6)
TOLERANCE = 1e-5  # of losses and images where sums are added in another order, relative
FINGERPRINTS = ("train/batch", "train/noise")
READ_STEPS = 12  # batches compared between readers


def _fingerprint(arrays):
    """uint32 [] of the bits of arrays, order included: integer sums are the same in any order."""
    import jax
    import jax.numpy as jnp

    total = jnp.uint32(0)
    for array in arrays:
        bits = array.astype(jnp.int32 if array.dtype == jnp.bool_ else array.dtype)
        bits = jax.lax.bitcast_convert_type(bits, jnp.uint32).ravel()
        place = jnp.arange(1, bits.size + 1, dtype=jnp.uint32) * jnp.uint32(2654435761)
        total = total * jnp.uint32(31) + ((bits ^ place) * (place | 1)).sum(dtype=jnp.uint32)
    return total


@contextlib.contextmanager
def fingerprints(_):
    """Adds what the latent model's loss was given, and drew, to its metrics."""
    from cldm_jax.methods import latent_diffusion

    loss, noisy = latent_diffusion._Cldm.loss, latent_diffusion._Cldm.noisy_input

    def seen_loss(self, params, state, batch, rng):
        drawn = []

        def seen_noisy(self, z0, source, t, is_onestep, eps):
            drawn.extend((t, is_onestep, eps))
            return noisy(self, z0, source, t, is_onestep, eps)

        with mock.patch.object(latent_diffusion._Cldm, "noisy_input", seen_noisy):
            value, metrics = loss(self, params, state, batch, rng)
        names = ("source", "target", "label", "subject", "slice")
        given = _fingerprint([batch[name] for name in names])
        return value, {**metrics, "batch": given, "noise": _fingerprint(drawn)}

    with mock.patch.object(latent_diffusion._Cldm, "loss", seen_loss):
        yield


training.HOOKS["fingerprints"] = fingerprints


def _train(folder: pathlib.Path, name: str, devices: int = 1, config: str = "ldm", seed: int = 0):
    """Lines of a training in a child with so many host devices."""
    words = training.arguments(folder.parent, folder / name, config, **CADENCE)
    words += [f"--config.seed={seed}"]
    flag = f"--xla_force_host_platform_device_count={devices}"
    hooks = {"fingerprints": 1} if config == "ldm" else {}
    ended = training.run(words, hooks, training.environment(XLA_FLAGS=flag))
    if ended.code:
        raise RuntimeError(f"{name}: {ended.text[-2000:]}")
    return loss_bits(folder / name)


def _unlike(found: dict, truth: dict, exact=FINGERPRINTS) -> str:
    """Why two runs' lines differ: the named metrics to the bit, the others to TOLERANCE."""
    if found.keys() != truth.keys():
        return "other lines"
    for key, row in truth.items():
        for name, want in row.items():
            have = found[key].get(name, "nan")
            if name in exact and have != want:
                return f"step {key[0]}: {name} is another"
            a, b = float.fromhex(have), float.fromhex(want)
            if not abs(a - b) <= TOLERANCE * max(1.0, abs(b)):
                return f"step {key[0]}: {name} {a!r}, not {b!r}"
    return ""


def _furthest(found: dict, truth: dict) -> float:
    """Largest relative distance of the training loss."""
    pairs = [
        (float.fromhex(found[key]["train/loss"]), float.fromhex(row["train/loss"]))
        for key, row in truth.items()
        if "train/loss" in row
    ]
    return max(abs(a - b) / abs(b) for a, b in pairs)


# ---- the reader ----


def _batches(folder: pathlib.Path, threads: int, workers: int, seed: int = 0) -> str:
    """The bytes of the first batches, hashed."""
    from cldm_jax.data import pipeline
    from cldm_jax.runs import inputs
    from faults.common import hash_tree

    config = make_config(folder.parent, "unet")
    source = inputs.train_source(config, inputs.open_inputs(config))
    options = dict(batch_size=4, seed=seed, start_step=3, num_threads=threads, num_workers=workers)
    with pipeline.make_train_iterator(source, **options) as batches:
        return hash_tree([next(batches) for _ in range(READ_STEPS)])


# ---- sampling ----


class _Sampler:
    """The trained tiny model's samples for slices of a test person, in batches of any kind."""

    def __init__(self, folder: pathlib.Path, run: str):
        import jax

        from cldm_jax.methods.registry import make_method
        from cldm_jax.runs import inputs
        from cldm_jax.runtime.checkpoint import restore_for_inference
        from cldm_jax.runtime.train_state import TrainState

        config = make_config(folder.parent, "ldm")
        opened = inputs.open_inputs(config)
        _, ema, frozen = restore_for_inference(folder / run / "checkpoints")
        self.state = TrainState(0, (), ema, (), (), frozen)
        source = inputs.image_source(config, opened.prepared, "test", ("ct", "mr"), 1)
        self.items = source.read(np.arange(8))
        self.predict = jax.jit(make_method(config.method, **opened.recipe).predict["sample"])
        self.key = jax.random.key(0)

    def __call__(self, batches: list[list[int]]) -> np.ndarray:
        """Images [8, H, W, 1] of the items in their own order, made in these batches."""
        out = np.zeros_like(self.items["target"])
        for rows in batches:
            batch = {k: v[rows] for k, v in self.items.items()}
            out[rows] = self.predict(self.state, batch, self.key).image
        return out


def _differs(a: np.ndarray, b: np.ndarray) -> str:
    far = float(np.abs(a - b).max())
    return f"images differ by {far:.2g}" if far > TOLERANCE * 2 else ""


def _by_place(folder: pathlib.Path, run: str) -> bool:
    """Negative control: noise drawn by the place in the batch depends on the order."""
    import jax

    from cldm_jax.methods import latent_diffusion

    def keys(rng, batch, ahead=0):
        return jax.random.split(rng, len(batch["subject"]))

    with mock.patch.object(latent_diffusion, "example_keys", keys):
        sample = _Sampler(folder, run)
        return bool(_differs(sample([list(range(8))]), sample([list(range(8))[::-1]])))


# ---- cells ----


def _cells(folder: pathlib.Path, truth: dict, quick: bool) -> dict:
    """{name: () -> why it is another run}."""
    sample = _Sampler(folder, "one")
    together, order = [list(range(8))], [3, 7, 0, 5, 2, 6, 1, 4]
    images = sample(together)
    read = _batches(folder, 2, 0)

    def readers(threads: int, workers: int) -> str:
        return "" if _batches(folder, threads, workers) == read else "other batches"

    def devices(count: int) -> str:
        return _unlike(_train(folder, f"devices{count}", count), truth)

    def resumed() -> str:
        """Six steps on one device, the others on two."""
        shutil.copytree(folder / "one", folder / "resumed")
        for path in (folder / "resumed" / "checkpoints").glob("*12*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return _unlike(_train(folder, "resumed", 2), truth)

    def twice(config: str) -> str:
        first = truth if config == "ldm" else _train(folder, f"{config}1", config=config)
        return _unlike(_train(folder, f"{config}2", config=config), first, _names(first))

    cells = {
        "no reader threads": lambda: readers(0, 0),
        "samples one at a time": lambda: _differs(sample([[i] for i in range(8)]), images),
        "samples in another order": lambda: _differs(sample([order]), images),
    }
    if quick:
        return cells
    return cells | {
        "ldm twice": lambda: twice("ldm"),
        "unet twice": lambda: twice("unet"),
        "cyclegan twice": lambda: twice("cyclegan"),
        "2 devices": lambda: devices(2),
        "4 devices": lambda: devices(4),
        "8 devices": lambda: devices(8),
        "resumed on 2 devices": resumed,
        "1 reader process": lambda: readers(2, 1),
        "4 reader processes": lambda: readers(2, 4),
    }


def _names(rows: dict) -> set[str]:
    return {name for row in rows.values() for name in row}


def deterministic(folder: pathlib.Path, quick: bool) -> Outcome:
    truth = _train(folder, "one")
    with training.quiet():
        cells = _cells(folder, truth, quick)
        notes = [f"{name}: {why}" for name, cell in cells.items() if (why := cell())]
        control = _by_place(folder, "one") and _batches(folder, 0, 0, seed=1) != _batches(
            folder, 0, 0
        )
    if not quick:
        control = control and bool(_unlike(_train(folder, "seed1", seed=1), truth))
    short = len(notes)
    if not quick:
        far = _furthest(loss_bits(folder / "devices8"), truth)
        notes.append(
            f"loss on 8 devices within {far:.1g} of that on one, relative, {len(truth)} lines"
        )
    return Outcome(len(cells), len(cells) - short, short, control, notes)


PROMISES = [Promise(7, "one seed, one run", deterministic)]
