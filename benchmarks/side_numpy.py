"""The NumPy worker: matrix products only, for the machine's limit."""

import numpy as np


def setup(gemm):
    """gemm: size, dtype ("float32")."""
    size, dtype = gemm
    a = np.random.default_rng(0).standard_normal((size, size)).astype(dtype)
    out = np.empty_like(a)
    return lambda: np.matmul(a, a, out=out), {}
