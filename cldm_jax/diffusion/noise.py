"""Noise for slices that belong to one volume."""

import math

import numpy as np


def through_plane_weights(noise_slices: float) -> tuple[float, ...]:
    """Weights w [R] that make a field correlated from slice to slice out of independent ones.

    With independent standard normals n(z), sum_k w_k n(z + k) is standard normal in every slice, because
    sum w^2 = 1, and correlated by exp(-d^2 / 4 s^2) between slices d apart, s = `noise_slices`, the
    SD in slices of the Gaussian w. 0: one weight, independent slices.
    """
    if noise_slices == 0:
        return (1.0,)
    reach = math.ceil(3 * noise_slices)
    w = np.exp(-np.square(np.arange(-reach, reach + 1)) / (2 * noise_slices**2))
    return tuple(float(x) for x in w / np.sqrt(np.square(w).sum()))
