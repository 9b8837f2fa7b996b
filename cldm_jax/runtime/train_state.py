"""The state of a run: arrays only, so that it jits, shards, donates and checkpoints as one tree."""

from typing import Any, NamedTuple

import jax


class TrainState(NamedTuple):
    step: jax.Array  # shape=(), dtype=int32
    params: Any
    ema_params: Any
    opt_state: Any
    extra: Any  # method state that is neither parameter nor optimiser, e.g. an image pool
    # Not trained, and what prediction needs beside the average: the LDM's autoencoder, latent statistics
    # and younger self, patch bases.
    frozen: Any
