"""Promise 7: the same seed gives the same run, on any number of devices, readers and images at a time.

Devices are those of benchmarks/scale.py (launch/scale_check.sh), over 12 steps instead of its 100.
"""

import contextlib
import pathlib
from unittest import mock

import numpy as np

from benchmarks import scale
from faults.common import Outcome, Promise, hash_tree, loss_bits, make_config, quiet, tally

SHORT = dict(STEPS=12, SAVE_EVERY=6, TRAINED=((8, 1), (4, 1), (2, 1)), SAVED=(1, 2))
SHORT |= dict(SHARES=SHORT["TRAINED"])
TOLERANCE = 1e-5  # of images where sums are added in another order, of their range
READ_STEPS = 12  # batches compared between readers


def _study(folder: pathlib.Path) -> scale.Study:
    """scale.py's latent model on the promises' data; its autoencoder is copied by nobody."""
    for name in ("data", "ae"):
        (folder.parent / name).mkdir(exist_ok=True)
        (folder / name).symlink_to(folder.parent / name)
    return scale.Study(folder)


def _devices(study: scale.Study) -> dict[str, scale.Row]:
    """Order and noise by hash, losses of every step, and runs saved here and gone on with there."""
    checks = (scale.order_and_noise, scale.same_losses, scale.restored_elsewhere)
    return {f"{row.check}, {row.case}": row for check in checks for row in check(study)}


def _again(study: scale.Study, config: str, seed: int = 0) -> dict:
    """The lines of a training of a method once more, to the bit."""
    workdir = study.folder / f"{config}-{len(list(study.folder.iterdir()))}"
    words = study.words(workdir, log_every=1)
    words[0] = f"--config=configs/{config}.py:tiny"
    if config != "ldm":
        words = [word for word in words if "autoencoder" not in word]
    log = study.folder / f"{workdir.name}.log"
    scale.run("cldm_jax.main", [*words, f"--config.seed={seed}"], 1, 1, log)
    return loss_bits(workdir)


def _batches(folder: pathlib.Path, threads: int, workers: int, seed: int = 0) -> str:
    """The bytes of the first batches, hashed."""
    from cldm_jax.data import pipeline
    from cldm_jax.runs import inputs

    config = make_config(folder.parent, "unet")
    source = inputs.train_source(config, inputs.open_inputs(config))
    options = dict(batch_size=4, seed=seed, start_step=3, num_threads=threads, num_workers=workers)
    with pipeline.make_train_iterator(source, **options) as batches:
        return hash_tree([next(batches) for _ in range(READ_STEPS)])


def _sampler(folder: pathlib.Path, run: pathlib.Path):
    """f(batches of rows) -> images [8, H, W, 1] of a test person's slices, made in these batches."""
    import jax

    from cldm_jax.methods.registry import make_method
    from cldm_jax.runs import inputs
    from cldm_jax.runtime.checkpoint import restore_for_inference
    from cldm_jax.runtime.train_state import TrainState

    config = make_config(folder.parent, "ldm")
    opened = inputs.open_inputs(config)
    _, ema, frozen = restore_for_inference(run / "checkpoints")
    state = TrainState(0, (), ema, (), (), frozen)
    items = inputs.image_source(config, opened.prepared, "test", ("ct", "mr"), 1).read(np.arange(8))
    predict = jax.jit(make_method(config.method, **opened.recipe).predict["sample"])

    def sample(batches: list[list[int]]) -> np.ndarray:
        out = np.zeros_like(items["target"])
        for rows in batches:
            batch = {k: v[rows] for k, v in items.items()}
            out[rows] = predict(state, batch, jax.random.key(0)).image
        return out

    return sample


def _by_place(folder: pathlib.Path, run: pathlib.Path) -> bool:
    """Negative control: noise drawn by the place in the batch depends on the order."""
    import jax

    from cldm_jax.methods import latent_diffusion

    def keys(rng, batch, ahead=0):
        return jax.random.split(rng, len(batch["subject"]))

    with mock.patch.object(latent_diffusion, "example_keys", keys):
        sample = _sampler(folder, run)
        return not _alike(sample([list(range(8))]), sample([list(range(8))[::-1]]))


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    return float(np.abs(a - b).max()) <= TOLERANCE * 2


def deterministic(folder: pathlib.Path, quick: bool) -> Outcome:
    with contextlib.ExitStack() as stack:
        for name, value in SHORT.items():
            stack.enter_context(mock.patch.object(scale, name, value))
        stack.enter_context(quiet())
        study = _study(folder)
        cells, far, control = _cells(folder, study, quick)
    wrong = [name for name, is_same in cells.items() if not is_same]
    return tally(len(cells), wrong, control, *far)


def _cells(folder: pathlib.Path, study: scale.Study, quick: bool) -> tuple[dict, list[str], bool]:
    """({case: it is the same run}, notes, what the controls saw)."""
    sample, together = _sampler(folder, study.alone), [list(range(8))]
    images, read = sample(together), _batches(folder, 2, 0)
    cells = {
        "no reader threads": _batches(folder, 0, 0) == read,
        "samples one at a time": _alike(sample([[i] for i in range(8)]), images),
        "samples in another order": _alike(sample([[3, 7, 0, 5, 2, 6, 1, 4]]), images),
    }
    control = _by_place(folder, study.alone) and _batches(folder, 0, 0, seed=1) != read
    if quick:
        return cells, [], control
    rows = _devices(study)
    cells |= {name: row.ok for name, row in rows.items()}
    for count in (1, 4):
        cells[f"{count} reader processes"] = _batches(folder, 2, count) == read
    truth = _again(study, "ldm")
    for config in ("ldm", "unet", "cyclegan"):
        first = truth if config == "ldm" else _again(study, config)
        cells[f"{config} twice"] = _again(study, config) == first
    far = max(row.measured for name, row in rows.items() if "loss" in name)
    notes = [f"losses within {far:.1g}, relative, of those on one device over {scale.STEPS} steps"]
    return cells, notes, control and _again(study, "ldm", seed=1) != truth


PROMISES = [Promise(7, "one seed, one run", deterministic)]
