"""A training and what it needs, in order: nothing below makes what is missing.

The phantom cohort and its prepared dataset where no other is named, the autoencoder of a latent method,
its latents. Each is kept, and made once.
"""

import pathlib

from cldm_jax.data.shards import Prepared
from cldm_jax.jobs import dry_run, encode, prepare, simulate, train
from cldm_jax.runs import inputs, record
from cldm_jax.runtime import processes
from cldm_jax.runtime.runlock import run_lock


def run(config, workdir: str) -> None:
    """Trains `config` in `workdir` (`jobs/train.py`), after what it reads and nobody has made yet."""
    train.warn_if_gpu_preset(config)
    prepared(config.data)
    train.check(config, workdir)  # before an hour goes into an autoencoder
    needs(config)
    train.run(config, workdir)


def needs(config) -> None:
    """Makes what training `config` reads."""
    prepared(config.data)
    if config.data.kind == "latents":
        autoencoder(config)
        encode.run(config)


def prepared(data) -> Prepared:
    """The prepared dataset of a config's `data` block; the phantom's is simulated and prepared."""
    if not data.prepared:
        folder = inputs.prepared_folder(data)
        with processes.main_first():
            if not (folder / "index.json").is_file():
                with run_lock(data.root, waits=True):  # another training may need the same
                    if not (folder / "index.json").is_file():
                        _phantom(data, folder)
    return inputs.open_prepared(data)


def _phantom(data, folder: pathlib.Path) -> None:
    cohort = pathlib.Path(data.root) / "cohort"
    print(f"no data configured: simulating a phantom cohort into {cohort}", flush=True)
    simulate.run(data.simulate, str(cohort))
    recipe = data.prepare.copy_and_resolve_references()  # `data` stays as it was asked for
    recipe.cohort = str(cohort)
    prepare.run(recipe, str(folder))


def autoencoder(config) -> None:
    """Trains the autoencoder of a latent method where none is, with the recipe that `config` holds."""
    workdir = pathlib.Path(inputs.autoencoder_workdir(config))
    if processes.decided(lambda: record.is_finished(workdir)):
        return
    print(f"no trained autoencoder in {workdir}: training it first", flush=True)
    recipe = config.autoencoder.train.copy_and_resolve_references()
    for field in ("prepared", "root", "simulate", "prepare"):  # the same people
        recipe.data[field] = config.data[field]
    train.warn_if_gpu_preset(recipe)
    dry_run.example(config)  # what its networks cannot be is refused now or never
    train.run(recipe, str(workdir), waits=True)  # for another training that needs the same
