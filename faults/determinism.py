"""Promise 7: the same seed gives the same run, on any number of devices, readers and images at a time.

Devices are simulated (devices.py).
"""

import pathlib
from unittest import mock

from faults import devices, twins
from faults.common import Outcome, Promise, loss_bits, tally

TWINS = (
    "test_methods.py::test_a_patient_does_not_depend_on_the_batch",
    "test_data_shards.py::test_order_resumes_by_step",
    "test_data_shards.py::test_order_is_the_same_with_worker_processes",
)


def deterministic(folder: pathlib.Path, quick: bool) -> Outcome:
    outcome = tally(0, [], _by_place())
    if not quick:
        outcome = _trained(devices.Study(folder), outcome.negative_control)
    return twins.added(outcome, folder, TWINS)


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


def _trained(study: devices.Study, control: bool | None) -> Outcome:
    """Order and noise by hash, losses of every step, runs saved here and gone on with there; and each
    method once more, to the bit.
    """
    rows = [row for check in devices.CHECKS for row in check(study)]
    wrong = [row.line() for row in rows if not row.is_met]
    truth = _again(study, "ldm")
    for config in ("ldm", "unet", "cyclegan"):
        first = truth if config == "ldm" else _again(study, config)
        wrong += [] if _again(study, config) == first else [f"{config} twice: other lines"]
    far = max(row.measured for row in rows if "loss" in row.case)
    note = f"losses within {far:.1g}, relative, of those on one device over {devices.STEPS} steps"
    return tally(len(rows) + 3, wrong, control and _again(study, "ldm", seed=1) != truth, note)


def _again(study: devices.Study, config: str, seed: int = 0) -> dict:
    """The lines of a training of a method once more."""
    workdir = study.folder / f"{config}-{len(list(study.folder.iterdir()))}"
    words = [word for word in study.words(workdir)[1:] if config == "ldm" or "autoenc" not in word]
    words = [f"--config=configs/{config}.py:tiny", *words, f"--config.seed={seed}"]
    devices.run("cldm_jax.main", words)
    return loss_bits(workdir)


PROMISES = [Promise(7, "one seed, one run", deterministic)]
