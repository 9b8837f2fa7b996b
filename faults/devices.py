"""Promise 7: the same seed gives the same run, on any number of devices, readers and images at a time.

Devices are simulated. `python -m faults.devices`, with the flags of a training, prints what `probe` found
as one JSON line.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import operator
import pathlib
import shutil
from unittest import mock

import numpy as np

from faults import hurt, twins
from faults.common import Outcome, Promise, command, loss_bits, tally

STEPS, HALF = 12, 6
TRAIN = {
    "train.num_train_steps": STEPS,
    "train.save_every": HALF,
    "train.val_every": HALF,
    "train.batch_size": 8,  # a row for every device
}
LOSS_LIMIT = 1e-5  # relative, over STEPS
DEVICES = (8, 4, 2)  # compared with one; the longest first: two run side by side
SAVED = (1, 2)  # devices that save, devices that restore
PROBED = 8  # batches whose order and noise are looked at
METHODS = ("ldm", "unet", "cyclegan")  # each is trained twice
TWINS = (
    "test_methods.py::test_a_patient_does_not_depend_on_the_batch",
    "test_data_shards.py::test_order_resumes_by_step",
    "test_data_shards.py::test_order_is_the_same_with_worker_processes",
)


def deterministic(folder: pathlib.Path, quick: bool) -> Outcome:
    found, control, notes = twins.run(folder, TWINS), _by_place(), []
    if not quick:
        more, seed_matters, note = trained(folder)
        found, control, notes = found | more, control and seed_matters, [note]
    return tally(found, control, *notes)


def _by_place() -> bool:
    """Negative control: where noise is drawn by the place in the batch, the twin sees it."""
    import jax
    import test_methods

    from cldm_jax.methods import base

    def keys(rng, batch, ahead=0):
        return jax.random.split(rng, len(batch["subject"]))

    with mock.patch.object(base, "example_keys", keys):
        try:
            test_methods.test_a_patient_does_not_depend_on_the_batch()
        except AssertionError:
            return True
    return False


def run(module: str, words: list[str], devices: int = 1) -> str:
    """What `python -m module words` said. RuntimeError where it failed."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    done = command(module, *words, XLA_FLAGS=flag)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(words)}: {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def arguments(workdir: pathlib.Path, name: str = "ldm", seed: int = 0) -> list[str]:
    """Of a training in a promise's folder."""
    return hurt.arguments(workdir.parents[1], workdir, {**TRAIN, "seed": seed}, name)


def train(workdir: pathlib.Path, devices: int = 1, **given) -> dict:
    """Its `loss_bits`. One that is there is gone on with."""
    run("cldm_jax.main", arguments(workdir, **given), devices)
    return loss_bits(workdir)


def side_by_side(call, items) -> dict:
    """{item: call(item)}, two at a time: a launch alone leaves the second core half idle."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(zip(items, pool.map(call, items), strict=True))


def farthest(rows: dict, alone: dict) -> float:
    """The largest relative difference of a step's loss."""
    keys = [(step, "train") for step in range(1, STEPS + 1)]
    if not rows.keys() == alone.keys() >= set(keys):
        raise RuntimeError(f"other lines: {sorted(rows)}")
    a, b = (np.array([float.fromhex(of[k]["train/loss"]) for k in keys]) for of in (rows, alone))
    return float((abs(a - b) / abs(b)).max())


def order_and_noise(folder: pathlib.Path) -> dict[str, int]:
    """{case: steps that differ} of batches and noise of the first PROBED, by hash."""

    def probed(devices: int) -> dict[str, list]:
        said = run("faults.devices", arguments(folder / "probe"), devices)
        return json.loads(said.splitlines()[-1])

    found = side_by_side(probed, (1, *DEVICES))
    return {
        f"{what}, {n} devices": sum(map(operator.ne, hashes, found[n][what]))
        for n in DEVICES
        for what, hashes in found[1].items()
    }


def other_devices(folder: pathlib.Path, alone: dict) -> dict[str, float]:
    """{case: `farthest`} of runs on many devices, and of those saved on n and gone on with on m."""

    def go_on(pair: tuple[int, int]) -> float:
        n, m = pair
        half = folder / f"saved-{n}-restored-{m}"
        shutil.copytree(folder / f"devices-{n}", half)
        shutil.rmtree(half / "checkpoints" / str(STEPS))
        (half / "checkpoints" / f"sha256-{STEPS}.json").unlink()
        return farthest(train(half, m), alone)

    def on_many(devices: int) -> float:
        return farthest(train(folder / f"devices-{devices}", devices), alone)

    many = side_by_side(on_many, DEVICES)
    pairs = side_by_side(go_on, [(n, m) for n in SAVED for m in SAVED])
    return {f"{n} devices": far for n, far in many.items()} | {
        f"saved on {n}, restored on {m}": far for (n, m), far in pairs.items()
    }


def trained(folder: pathlib.Path) -> tuple[dict[str, str], bool, str]:
    """({case: why it differs}, whether another seed does, how far losses are): order and noise, losses of
    every step, and each method once more, to the bit.
    """
    alone = train(folder / "devices-1")
    found = {k: f"{n} steps differ" if n else "" for k, n in order_and_noise(folder).items()}
    far = other_devices(folder, alone)
    found |= {f"loss, {k}": "" if x <= LOSS_LIMIT else f"{x:.3g} away" for k, x in far.items()}
    for name in METHODS:
        first = alone if name == "ldm" else train(folder / f"{name}-first", name=name)
        again = train(folder / f"{name}-again", name=name)
        found[f"{name} twice"] = "" if again == first else "other lines"
    note = f"losses within {max(far.values()):.1g}, relative, of those on one device, {STEPS} steps"
    return found, train(folder / "another-seed", seed=1) != alone, note


# ---- of one training ----


def digest(*arrays) -> str:
    joined = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)
    return hashlib.sha256(joined).hexdigest()[:16]


def probe(config) -> dict[str, list]:
    """{"order": hashes of the rows of every batch, "noise": hash of every batch's noise}."""
    import jax

    from cldm_jax.jobs import make
    from cldm_jax.methods.latent_diffusion import _Cldm
    from cldm_jax.runs import inputs as inputs_lib
    from cldm_jax.runs.feed import make_batches
    from cldm_jax.runtime import sharding

    make.needs(config)
    inputs = inputs_lib.open_inputs(config)
    recipe, steps = inputs.recipe, config.train.num_train_steps
    cldm = _Cldm(None, None, recipe["diffusion"], recipe["sampling"], steps)
    rows, replicated = sharding.make_shardings()

    def draw(key, step, batch):
        return cldm.draw(jax.random.fold_in(key, step), batch)

    drawn = jax.jit(draw, out_shardings=replicated)
    key = sharding.replicate(jax.random.key(config.seed))
    found = {"order": [], "noise": []}
    source = inputs_lib.train_source(config, inputs)
    with contextlib.closing(make_batches(config, source, 0)) as batches:
        for step in range(1, PROBED + 1):
            batch = next(batches)
            own = zip(*(batch[name] for name in sorted(batch)), strict=True)
            found["order"].append([digest(*row) for row in own])
            noise = drawn(key, np.int32(step), sharding.put_batch(batch, rows))
            found["noise"].append(digest(*(noise[n] for n in sorted(noise))))
    return found


PROMISES = [Promise(7, "one seed, one run", deterministic)]

if __name__ == "__main__":
    from absl import app, flags

    from cldm_jax import main as door

    def main(_) -> None:
        print(json.dumps(probe(flags.FLAGS.config)), flush=True)

    app.run(main, flags_parser=door.parse_flags)
