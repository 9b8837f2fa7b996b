"""Of one process of a run: its rows of the first batches and their noise, as hashes (scale.py)."""

import hashlib
import json
import sys

import jax
import numpy as np
from absl import app, flags

from benchmarks.scale import PROBED
from cldm_jax import main as door
from cldm_jax.jobs import make
from cldm_jax.methods.latent_diffusion import _Cldm
from cldm_jax.runs import inputs as inputs_lib
from cldm_jax.runs.feed import make_batches
from cldm_jax.runtime import processes, sharding


def digest(*arrays) -> str:
    joined = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)
    return hashlib.sha256(joined).hexdigest()[:16]


def probe(config) -> dict[str, list]:
    """{"rows": hash of every own row of every batch, "noise": hash of every batch's noise}."""
    make.needs(config)
    inputs = inputs_lib.open_inputs(config)
    recipe, steps = inputs.recipe, config.train.num_train_steps
    cldm = _Cldm(None, None, recipe["diffusion"], recipe["sampling"], steps)
    rows, replicated = sharding.make_shardings()

    def draw(key, step, batch):
        return cldm.draw(jax.random.fold_in(key, step), batch)

    drawn = jax.jit(draw, out_shardings=replicated)
    key = sharding.replicate(jax.random.key(config.seed))
    found = {"rows": [], "noise": []}
    with make_batches(config, inputs_lib.train_source(config, inputs), 0) as batches:
        for step in range(1, PROBED + 1):
            batch = next(batches)
            own = zip(*(batch[name] for name in sorted(batch)), strict=True)
            found["rows"].append([digest(*row) for row in own])
            noise = drawn(key, np.int32(step), sharding.put_batch(batch, rows))
            found["noise"].append(digest(*(np.asarray(noise[n]) for n in sorted(noise))))
    return found


def main(_) -> None:
    if flags.FLAGS.coordinator:
        out = sys.stdout
        processes.start(flags.FLAGS.coordinator, flags.FLAGS.processes, flags.FLAGS.process)
        sys.stdout = out
    print(json.dumps(probe(flags.FLAGS.config)), flush=True)


if __name__ == "__main__":
    app.run(main, flags_parser=door.parse_flags)
