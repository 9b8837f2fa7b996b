"""The volume that both sides synthesise: its arrays on disk. NumPy only."""

import pathlib
from typing import NamedTuple

import numpy as np

from cldm_jax import files

SLICES = 150
BATCH = 8
TRAINED_STEPS = 1000  # of the noise schedule
CASE, FLAX_WEIGHTS, TORCH_WEIGHTS, RECORD = "case.npz", "flax.npz", "torch.npz", "training.json"


class Case(NamedTuple):
    """Inputs and truth of the slices, in order. Latents are standardised."""

    source: np.ndarray  # [N, h, w, 4] latents of the PET slices
    start: np.ndarray  # [N, h, w, 4] standard normal: where sampling starts
    code: np.ndarray  # [N] int32, the target's class
    mean: np.ndarray  # [4] of the target's latents
    std: np.ndarray  # [4]
    truth: np.ndarray  # [N, H, W] the target image, model range [-1, 1]
    mask: np.ndarray  # [N, H, W] bool, the head


def save_arrays(path, arrays: dict[str, np.ndarray]) -> None:
    with files.atomic_path(path) as tmp:
        np.savez(tmp, **arrays)


def load_arrays(path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def load_case(folder) -> Case:
    return Case(**load_arrays(pathlib.Path(folder) / CASE))


def batches(case: Case, size: int = BATCH, limit: int = 0):
    """Slices of rows, the last one shorter; the first `limit` of them where that is not 0."""
    rows = [slice(i, min(i + size, len(case.code))) for i in range(0, len(case.code), size)]
    return rows[:limit] if limit else rows
