"""The lapped transform: it loses nothing, weighs errors as the image does, leaves no borders of cells."""

import numpy as np
import pytest

from cldm_jax.models import wavelet
from cldm_jax.models.autoencoder import Autoencoder, fit_patch_basis, from_cells, to_cells
from cldm_jax.models.layers import space_to_depth


def pictures(count: int = 2, size=(32, 48)) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *size, 1)).astype(np.float32)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_synthesis_undoes_analysis(factor):
    x = pictures()
    y = np.asarray(wavelet.analysis(x, factor))
    np.testing.assert_allclose(wavelet.synthesis(y, factor), x, atol=5e-6)
    assert factor == 1 or np.abs(y - x).max() > 0.1


def test_details_of_a_straight_line_are_zero():
    """Four vanishing moments: cubic and straighter pictures have no details away from the border."""
    line = np.linspace(-1, 1, 64, dtype=np.float32)
    ramp = (line[:, None] ** 3 + line[None] ** 2)[None, ..., None]
    cells = np.asarray(space_to_depth(wavelet.analysis(ramp, 2), 2))[0, 8:-8, 8:-8]
    np.testing.assert_allclose(cells[..., 1:], 0, atol=1e-5)
    np.testing.assert_allclose(wavelet.analysis(ramp * 0 + 1, 2)[0, ::2, ::2], 2, rtol=1e-5)


def test_energy_is_nearly_kept():
    """Orthonormal but for 13 %: an error in the code weighs as it does in the image."""
    x = np.zeros((1, 64, 64, 1), np.float32)
    x[:, 16:48, 16:48] = pictures(1, (32, 32))
    ratio = np.square(wavelet.analysis(x, 4)).sum() / np.square(x).sum()
    assert 0.88 < ratio < 1.13


def borders(image, factor: int) -> float:
    """Share of squared steps between neighbours that are those of two cells: one half has no borders."""
    steps = np.square(np.diff(image, axis=2))
    across = np.arange(steps.shape[2]) % factor == factor - 1
    between, inside = steps[:, :, across].mean(), steps[:, :, ~across].mean()
    return float(between / (between + inside))


@pytest.mark.parametrize("factor", [2, 4])
def test_coarse_predictions_have_no_borders(factor):
    """Only the coarsest number of every cell is known, as in a blurred prediction."""
    cells = {}
    for lapped in (True, False):
        known = np.asarray(to_cells(pictures(4, (64, 64)), factor, lapped)).copy()
        coarse = known.mean(-1, keepdims=True) if not lapped else known[..., :1]
        kept = np.concatenate([coarse, 0 * known[..., 1:]], -1) if lapped else coarse + 0 * known
        cells[lapped] = borders(np.asarray(from_cells(kept, factor, lapped)), factor)
    assert 0.4 < cells[True] < 0.6
    assert cells[False] > 0.99  # can fail: cells of their own are flat inside


@pytest.mark.parametrize("lapped", [True, False])
def test_a_linear_autoencoder_is_its_patch_code(lapped):
    x, label = pictures(8, (32, 32)), np.arange(8, dtype=np.int32) % 2
    basis = fit_patch_basis(x, label, 2, 4, 16, lapped)
    net = Autoencoder(16, 2, 4, 8, (1,), 1, False, -8.0, linear=True, lapped=lapped)
    z, logvar = net.apply({}, x, label, basis, method="encode")
    assert z.shape == logvar.shape == (8, 8, 8, 16)
    np.testing.assert_allclose(net.apply({}, z, label, basis, method="decode"), x, atol=2e-5)


def test_other_factors_are_refused():
    with pytest.raises(ValueError, match="power of 2"):
        wavelet.analysis(pictures(), 3)
