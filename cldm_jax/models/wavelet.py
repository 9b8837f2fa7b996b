"""The lapped transform under the patch code: Cohen-Daubechies-Feauveau 9/7 wavelets by lifting.

Cells that are coded each for itself show their borders in whatever a network predicts of them, as JPEG's
blocks do. Here a cell's numbers are coefficients of waves that reach into its neighbours: a prediction
that knows only the coarse ones decodes to a smooth image, and an error of the fine ones has no borders.
Filters: Antonini 1992; their lifting: Daubechies & Sweldens 1998, section 7.7.
"""

import jax.numpy as jnp

_STEPS = (-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971)
_GAIN = 1.149604398860241  # makes the transform nearly orthonormal: errors weigh as in the image


def analysis(x, factor: int):
    """[B, H, W, C] -> its coefficients in place: of every cell of factor x factor pixels the coarsest at
    its corner. `factor` a power of 2 that divides H and W.
    """
    x = jnp.asarray(x)
    for level in range(_levels(factor)):
        step = 2**level
        coarse = _forward(_forward(x[:, ::step, ::step], 1), 2)
        x = coarse if step == 1 else x.at[:, ::step, ::step].set(coarse)
    return x


def synthesis(x, factor: int):
    """The inverse of `analysis`."""
    x = jnp.asarray(x)
    for level in reversed(range(_levels(factor))):
        step = 2**level
        finer = _backward(_backward(x[:, ::step, ::step], 2), 1)
        x = finer if step == 1 else x.at[:, ::step, ::step].set(finer)
    return x


def _levels(factor: int) -> int:
    levels = factor.bit_length() - 1
    if factor < 1 or 2**levels != factor:
        raise ValueError(f"factor {factor}: a lapped transform needs a power of 2")
    return levels


def _forward(x, axis: int):
    even, odd = _lifted(*_split(x, axis), axis, enumerate(_STEPS))
    return _join(even * _GAIN, odd / _GAIN, axis)


def _backward(x, axis: int):
    even, odd = _split(x, axis)
    undone = [(i, -weight) for i, weight in enumerate(_STEPS)][::-1]
    return _join(*_lifted(even / _GAIN, odd * _GAIN, axis, undone), axis)


def _lifted(even, odd, axis: int, steps):
    for i, weight in steps:
        if i % 2 == 0:
            odd = odd + weight * (even + _after(even, axis))
        else:
            even = even + weight * (odd + _before(odd, axis))
    return even, odd


def _split(x, axis: int):
    shape = (*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    pairs = x.reshape(shape)
    return jnp.take(pairs, 0, axis + 1), jnp.take(pairs, 1, axis + 1)


def _join(even, odd, axis: int):
    shape = (*even.shape[:axis], 2 * even.shape[axis], *even.shape[axis + 1 :])
    return jnp.stack([even, odd], axis + 1).reshape(shape)


def _after(x, axis: int):
    """The next along `axis`, mirrored at the end."""
    index = jnp.minimum(jnp.arange(x.shape[axis]) + 1, x.shape[axis] - 1)
    return jnp.take(x, index, axis)


def _before(x, axis: int):
    index = jnp.maximum(jnp.arange(x.shape[axis]) - 1, 0)
    return jnp.take(x, index, axis)
