"""The latent model (preset tiny) on one device and on several simulated ones, for promise 7.

`python -m faults.devices`, with the flags of a training, prints what `probe` found as one JSON line.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import pathlib
import shutil
from typing import NamedTuple

import numpy as np

from faults.common import command

STEPS, SAVE_EVERY = 12, 6
LOSS_LIMIT = 1e-5  # relative, over STEPS
DEVICES = (8, 4, 2)  # compared with one; the longest first: two run side by side
SAVED = (1, 2)  # devices that save, devices that restore
PROBED = 8  # batches whose order and noise are looked at


class Row(NamedTuple):
    """One comparison with the run on one device."""

    case: str
    measured: float
    limit: float

    @property
    def is_met(self) -> bool:
        return self.measured <= self.limit

    def line(self) -> str:
        return f"{self.case}: {self.measured:.3g}, at most {self.limit:g} is allowed"


def run(module: str, words: list[str], devices: int = 1) -> str:
    """What `python -m module words` said. RuntimeError where it failed."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    done = command(module, *words, XLA_FLAGS=flag)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(words)}: {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


class Study:
    """A folder of runs on the data and the autoencoder that all promises share; the first run is the one
    that the others are compared with.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.alone = self.train("devices-1", 1)

    def words(self, workdir: pathlib.Path) -> list[str]:
        train = dict(num_train_steps=STEPS, save_every=SAVE_EVERY, val_every=SAVE_EVERY)
        train["batch_size"] = 8  # a row for every device
        return [
            "--config=configs/ldm.py:tiny",
            f"--workdir={workdir}",
            f"--config.data.root={self.folder.parent / 'data'}",
            f"--config.autoencoder.workdir={self.folder.parent / 'ae'}",
            *(f"--config.train.{key}={value}" for key, value in train.items()),
        ]

    def train(self, name: str, devices: int) -> pathlib.Path:
        run("cldm_jax.main", self.words(self.folder / name), devices)
        return self.folder / name

    def row(self, case: str, workdir: pathlib.Path) -> Row:
        """The largest relative difference of a step's loss."""
        mine, theirs = losses(workdir), losses(self.alone)
        if mine.keys() != theirs.keys() or len(mine) != STEPS:
            raise RuntimeError(f"{workdir}: {len(mine)} steps were logged, not {STEPS}")
        difference = max(abs(mine[k] - theirs[k]) / abs(theirs[k]) for k in mine)
        return Row(f"loss, {case}", difference, LOSS_LIMIT)

    def at_half(self, name: str, copy: str) -> pathlib.Path:
        """A copy of a finished run as it was after SAVE_EVERY steps."""
        workdir = self.folder / copy
        shutil.copytree(self.folder / name, workdir)
        shutil.rmtree(workdir / "checkpoints" / str(STEPS))
        (workdir / "checkpoints" / f"sha256-{STEPS}.json").unlink()
        return workdir


def losses(workdir: pathlib.Path) -> dict[int, float]:
    from cldm_jax.runtime import writers

    return {r["step"]: r["train/loss"] for r in writers.read_rows(workdir) if "train/loss" in r}


def side_by_side(call, items) -> list:
    """[call(item) for each item], two at a time: a launch alone leaves the second core half idle."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(call, items))


# ---- equalities ----


def order_and_noise(study: Study) -> list[Row]:
    """Batches and noise of the first PROBED steps, by hash."""

    def probed(devices: int) -> dict[str, list]:
        said = run("faults.devices", study.words(study.folder / "probe"), devices)
        return json.loads(said.splitlines()[-1])

    alone, *others = side_by_side(probed, (1, *DEVICES))
    rows = []
    for devices, found in zip(DEVICES, others, strict=True):
        for what, hashes in alone.items():
            differing = sum(a != b for a, b in zip(hashes, found[what], strict=True))
            rows.append(Row(f"{what}, {devices} devices, steps that differ", differing, 0))
    return rows


def same_losses(study: Study) -> list[Row]:
    def trained(devices: int) -> Row:
        return study.row(f"{devices} devices", study.train(f"devices-{devices}", devices))

    return side_by_side(trained, DEVICES)


def restored_elsewhere(study: Study) -> list[Row]:
    """Saved on n devices, gone on with on m. After `same_losses`, which saves."""

    def go_on(pair: tuple[int, int]) -> Row:
        n, m = pair
        workdir = study.at_half(f"devices-{n}", f"saved-{n}-restored-{m}")
        return study.row(f"saved on {n}, restored on {m}", study.train(workdir.name, m))

    return side_by_side(go_on, [(n, m) for n in SAVED for m in SAVED])


CHECKS = (order_and_noise, same_losses, restored_elsewhere)


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


if __name__ == "__main__":
    from absl import app, flags

    from cldm_jax import main as door

    def main(_) -> None:
        print(json.dumps(probe(flags.FLAGS.config)), flush=True)

    app.run(main, flags_parser=door.parse_flags)
