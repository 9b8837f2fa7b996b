"""The PyTorch worker."""

import os

import torch

from benchmarks import tasks_torch, volume_torch
from benchmarks.tasks import Spec

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def setup(spec=None, gemm=None, volume=None, **variant):
    """A task of `tasks_torch` (`spec`: its fields), a matrix product (`gemm`: size, dtype) or a read-out
    of the volume (`volume`: keywords of `volume_torch.setup`).
    """
    if gemm is not None:
        return _gemm(*gemm), {}
    if volume is not None:
        return volume_torch.setup(**volume)
    task = tasks_torch.make_task(Spec(*spec), **variant)
    return task.call, {"params": task.params, "compile_s": task.compile_s}


def _gemm(size: int, dtype: str):
    a = torch.randn(size, size).to(getattr(torch, dtype))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, a, out=out)
