"""Closed forms: schedules, parametrisations, and samplers against distributions that can be solved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cldm_jax.diffusion import parametrisation, samplers
from cldm_jax.diffusion.noise import through_plane_weights
from cldm_jax.diffusion.schedule import SCHEDULES, ZERO_SNR, sampling_timesteps

MEAN, STD = 0.7, 0.3  # the data of the Gaussian tests


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_fall_to_zero_signal(name):
    ab = np.asarray(SCHEDULES[name](1000))
    assert ab.shape == (1000,) and (np.diff(ab) < 0).all() and ab[0] > 0.99
    assert (ab[-1] == 0) == (name in ZERO_SNR) and 0 <= ab[-1] < 3e-4


def test_plain_scaled_linear_is_the_published_one():
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    ab = np.asarray(SCHEDULES["scaled_linear_plain"](1000))
    np.testing.assert_allclose(ab, np.cumprod(1 - betas), rtol=1e-6)
    assert np.sqrt(ab[-1]) == pytest.approx(0.0119, abs=1e-4)


def test_scaled_linear_before_rescaling_is_the_published_one():
    """At small t the rescaled schedule keeps sqrt(alphas_bar) up to the affine map of the paper."""
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    root = np.sqrt(np.cumprod(1 - betas))
    rescaled = np.sqrt(np.asarray(SCHEDULES["scaled_linear"](1000), np.float64))
    slope = root[0] / (root[0] - root[-1])
    np.testing.assert_allclose(rescaled, (root - root[-1]) * slope, atol=1e-4)


def test_sampling_timesteps_start_at_the_last_step():
    assert sampling_timesteps(1000, 1).tolist() == [999]
    assert sampling_timesteps(1000, 4).tolist() == [999, 749, 499, 249]
    assert sampling_timesteps(10, 10).tolist() == list(range(9, -1, -1))


def test_sampling_timesteps_end_where_the_jump_begins():
    assert sampling_timesteps(1000, 3, 0.5).tolist() == [999, 749, 499]
    assert sampling_timesteps(1000, 1, 0.5).tolist() == [999]
    assert sampling_timesteps(1000, 2, 0.4).tolist() == sampling_timesteps(1000, 2).tolist()


@pytest.mark.parametrize("target", parametrisation.TARGETS)
def test_prediction_gives_back_x0_and_eps(target):
    x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 2))
    ab = SCHEDULES["cosine"](1000)
    a, s = parametrisation.coefficients(ab, jnp.array([10, 500, 990]), 4)
    xt = parametrisation.add_noise(x0, eps, a, s)
    prediction = parametrisation.make_target(target, x0, eps, a, s)
    x0_hat, eps_hat = parametrisation.to_x0_eps(target, prediction, xt, a, s)
    np.testing.assert_allclose(x0_hat, x0, atol=2e-3)
    np.testing.assert_allclose(eps_hat, eps, atol=2e-3)


def test_v_at_zero_terminal_snr_is_minus_x0():
    x0, eps = jnp.ones((1, 2)), jnp.full((1, 2), 5.0)
    assert (parametrisation.make_target("v", x0, eps, 0.0, 1.0) == -x0).all()


def test_min_snr_weights():
    ab = jnp.array([0.9, 0.5, 0.1])  # SNR 9, 1, 1/9
    t = jnp.arange(3)
    weight = parametrisation.min_snr_weight("eps", ab, t, 5.0)
    np.testing.assert_allclose(weight, [5 / 9, 1, 1], rtol=1e-5)
    weight = parametrisation.min_snr_weight("v", ab, t, 5.0)
    np.testing.assert_allclose(weight, [5 / 10, 1 / 2, (1 / 9) / (10 / 9)], rtol=1e-5)


def gaussian_denoiser(ab, target):
    """The exact network for N(MEAN, STD^2) data."""

    def denoise(xt, t):
        a, s = parametrisation.coefficients(ab, t, xt.ndim)
        x0 = MEAN + STD**2 * a * (xt - a * MEAN) / (a**2 * STD**2 + s**2)
        if target == "x0":
            return x0
        eps = (xt - a * x0) / jnp.maximum(s, 1e-4)
        return parametrisation.make_target(target, x0, eps, a, s)

    return denoise


@pytest.mark.parametrize(
    "a, mean, variance", [(0.0, 0.3, 2.0), (0.6, -0.5, 0.04), (0.98, 0.2, 1.5)]
)
def test_gaussian_x0_is_the_mean_of_the_posterior(a, mean, variance):
    """By numbers: prior times likelihood on a fine grid. Sure of the mean, xt changes nothing."""
    s, xt, x0 = np.sqrt(1 - a**2), 0.8, np.linspace(-12, 12, 200_001)
    log = -((x0 - mean) ** 2) / (2 * variance) - (xt - a * x0) ** 2 / (2 * s**2)
    weight = np.exp(log - log.max())
    found = parametrisation.gaussian_x0(mean, variance, xt, a, s)
    assert found == pytest.approx((weight * x0).sum() / weight.sum(), abs=1e-5)
    assert parametrisation.gaussian_x0(mean, 1e-9, xt, a, s) == pytest.approx(mean, abs=1e-6)


def test_ddim_equals_the_scalar_recursion_of_eq_12():
    """For Gaussian data every step is affine in xt: a float64 loop over scalars is the reference."""
    ab = SCHEDULES["cosine"](1000)
    x = jnp.linspace(-2, 2, 9)[:, None]
    out = samplers.ddim(
        gaussian_denoiser(ab, "v"),
        x,
        ab,
        target="v",
        num_sampling_steps=7,
        eta=0.0,
        noise_fn=None,
    )
    ab64, ref = np.asarray(ab, np.float64), np.asarray(x, np.float64)
    steps = sampling_timesteps(1000, 7).tolist()
    for t, p in zip(steps, [*steps[1:], -1], strict=True):
        a, s = np.sqrt(ab64[t]), np.sqrt(1 - ab64[t])
        x0 = MEAN + STD**2 * a * (ref - a * MEAN) / (a**2 * STD**2 + s**2)
        eps = (ref - a * x0) / s
        previous = ab64[p] if p >= 0 else 1.0
        ref = np.sqrt(previous) * x0 + np.sqrt(1 - previous) * eps
    np.testing.assert_allclose(out, ref, atol=1e-4)


@pytest.mark.parametrize("target", ["v", "x0"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_samples_the_gaussian(target, eta):
    ab = SCHEDULES["cosine"](1000)
    key = jax.random.key(1)
    xT = jax.random.normal(key, (20000, 1))
    out = samplers.ddim(
        gaussian_denoiser(ab, target),
        xT,
        ab,
        target=target,
        num_sampling_steps=250,
        eta=eta,
        noise_fn=lambda i: jax.random.normal(jax.random.fold_in(key, i), xT.shape),
    )
    assert abs(float(out.mean()) - MEAN) < 0.01
    assert abs(float(out.std()) - STD) < 0.012


def test_ddim_jumps_to_what_is_expected_at_the_noise_of_the_last_step():
    """Of z = a x + s e the mean of x varies by STD^2 a / sqrt(a^2 STD^2 + s^2)."""
    ab = SCHEDULES["cosine"](1000)
    xT = jax.random.normal(jax.random.key(1), (20000, 1))
    options = dict(target="x0", num_sampling_steps=250, eta=0.0, noise_fn=None, jump_from=0.5)
    out = samplers.ddim(gaussian_denoiser(ab, "x0"), xT, ab, **options)
    a2 = float(ab[499])
    wanted = STD**2 * (a2 / (a2 * STD**2 + 1 - a2)) ** 0.5
    assert abs(float(out.std()) - wanted) < 0.012 and wanted < 0.8 * STD
    assert abs(float(out.mean()) - MEAN) < 0.01


def test_few_deterministic_steps_are_too_narrow():
    """Negative control: two steps cannot carry the full variance (so the test above can fail)."""
    ab = SCHEDULES["cosine"](1000)
    xT = jax.random.normal(jax.random.key(1), (20000, 1))
    out = samplers.ddim(
        gaussian_denoiser(ab, "v"), xT, ab, target="v", num_sampling_steps=2, eta=0.0, noise_fn=None
    )
    assert float(out.std()) < 0.8 * STD


@pytest.mark.parametrize("target", ["v", "x0"])
def test_onestep_is_the_posterior_mean(target):
    ab = SCHEDULES["cosine"](1000)
    out = samplers.onestep(gaussian_denoiser(ab, target), jnp.zeros((3, 2)), ab, target=target)
    np.testing.assert_allclose(out, MEAN, atol=1e-5)


@pytest.mark.parametrize("num_timesteps", [10, 1000])
def test_the_bridge_has_no_negative_variance_at_its_end(num_timesteps):
    t = jnp.arange(num_timesteps)
    m, delta = jax.jit(lambda t: samplers.bridge_coefficients(t, num_timesteps, 1.0))(t)
    assert bool((delta >= 0).all()) and float(delta[-1]) < 1e-6 and float(m[-1]) == 1.0
    np.testing.assert_allclose(delta, 4 * m * (1 - m), atol=1e-6)


def test_bridge_samples_the_gaussian_from_any_source():
    variance, num_timesteps = 1.0, 1000
    source = jnp.full((20000, 1), -1.5)

    def denoise(xt, t):
        m, d = samplers.bridge_coefficients(t[:, None].astype(jnp.float32), num_timesteps, variance)
        gain = STD**2 * (1 - m) / ((1 - m) ** 2 * STD**2 + d + 1e-12)
        return MEAN + gain * (xt - (1 - m) * MEAN - m * source)

    noise = jax.random.normal(jax.random.key(2), source.shape)
    out = samplers.bridge(
        denoise,
        source,
        num_timesteps,
        variance=variance,
        num_sampling_steps=500,
        noise_fn=lambda i: noise,
    )
    assert abs(float(out.mean()) - MEAN) < 0.01
    assert abs(float(out.std()) - STD) < 0.02


def test_guidance_extrapolates_and_scale_one_is_free():
    def conditional(x, t):
        return x + 1

    def null(x, t):
        raise AssertionError("scale 1 must not evaluate the null branch")

    assert samplers.with_guidance(conditional, null, 1.0) is conditional
    guided = samplers.with_guidance(conditional, lambda x, t: x, 3.0)
    np.testing.assert_allclose(guided(jnp.zeros(2), None), 3.0)


@pytest.mark.parametrize("noise_slices", [1.0, 2.0, 5.0])
def test_through_plane_weights_keep_the_variance_and_set_the_correlation(noise_slices):
    w = np.array(through_plane_weights(noise_slices))
    assert np.square(w).sum() == pytest.approx(1)
    for d in (1, 2, 4):
        overlap = (w[d:] * w[:-d]).sum()
        assert overlap == pytest.approx(np.exp(-(d**2) / (4 * noise_slices**2)), abs=2e-3)


def test_no_filter_is_one_weight():
    assert through_plane_weights(0.0) == (1.0,)
