"""Coverage and binned error of a sampler whose spread is known."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from cldm_jax.methods.latent_diffusion import _Cldm
from cldm_jax.metrics import calibration


def draw(samples, truth_scale=1.0, n=40_000):
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 2.0, n)
    stack = scale * rng.normal(size=(samples, n))
    truth = truth_scale * scale * rng.normal(size=n)
    return stack.mean(0) - truth, stack.std(0, ddof=1)


@pytest.mark.parametrize("samples", [2, 4, 16])
def test_an_honest_sampler_covers_what_it_says(samples):
    found = calibration.summarise(*draw(samples), samples)
    for level, share in found["coverage"].items():
        assert share == pytest.approx(float(level), abs=0.01)
    assert found["ratio"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("samples", [2, 4])
def test_the_sd_of_a_read_out_is_the_one_that_is_calibrated(samples):
    """Of a model whose decoded samples are standard normal, as the truth is."""
    rng = np.random.default_rng(1)
    size = (8, 64, 64, 1)
    drawn = jnp.asarray(rng.normal(size=(size[0] * samples, *size[1:])), jnp.float32)
    model = types.SimpleNamespace(
        image_source=lambda frozen, source: source,
        sampling={"noise_slices": 0.0},
        sample_latents=lambda *args: drawn,
        decode=lambda state, z, label: z,
    )
    batch = {"source": jnp.zeros(size), "label": jnp.zeros(size[0], jnp.int32)}
    state = types.SimpleNamespace(frozen={})
    made = _Cldm.predict_samples(model, state, batch, None, num_samples=samples)
    stack = np.asarray(drawn).reshape(size[0], samples, *size[1:])
    np.testing.assert_allclose(made.sd, stack.std(1, ddof=1), rtol=1e-5)
    error = (made.image - rng.normal(size=size)).ravel()
    found = calibration.summarise(error, made.sd.ravel(), samples)
    assert found["coverage"]["0.9"] == pytest.approx(0.9, abs=0.01)


def test_an_overconfident_sampler_is_found_out():
    found = calibration.summarise(*draw(16, truth_scale=2.0), 16)
    assert found["coverage"]["0.9"] < 0.7 and found["ratio"] > 1.7


def test_bins_follow_the_spread():
    bins = calibration.summarise(*draw(64), 64)["bins"]
    predicted = [b["sd"] for b in bins]
    assert predicted == sorted(predicted) and len(bins) == calibration.BINS
    for b in bins:
        assert b["rmse"] == pytest.approx(b["sd"], rel=0.1)


def test_one_sample_has_no_spread():
    with pytest.raises(ValueError, match="no spread"):
        calibration.summarise([0.0], [0.0], 1)
