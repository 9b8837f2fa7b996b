"""Regressions that answer with a distribution: what the CLDM's spread is compared with.

gaussian  mean and variance of every pixel, trained on the Gaussian likelihood. Independent pixels: it
          says how sure a pixel is, and cannot say it of a region
energy    a network with noise among its inputs, trained on the energy score of two of its answers
          (Gneiting & Raftery 2007, eq. 22; Shen & Meinshausen 2307.00835): one evaluation a sample
"""

import jax
import jax.numpy as jnp

from cldm_jax.diffusion.noise import through_plane_weights
from cldm_jax.methods.base import (
    Method,
    Prediction,
    deterministic,
    mean_of_samples,
    sample_noise,
    sample_read_outs,
)
from cldm_jax.methods.common import make_update
from cldm_jax.models.init import init_params
from cldm_jax.models.layers import space_to_depth
from cldm_jax.models.unet import ClassUNet

LOG_VARIANCE = (-12.0, 3.0)  # limits, of images in [-1, 1]
DRAWS = 2  # of the energy score in training


def gaussian_loss(mean, log_variance, target, beta: float):
    """Negative log-likelihood of every pixel times variance^beta, without the constant (Seitzer 2022,
    2203.09168: plain likelihood, beta 0, starves the mean where the variance is large).
    """
    variance = jnp.exp(log_variance)
    loss = 0.5 * (jnp.square(target - mean) / variance + log_variance)
    return jax.lax.stop_gradient(variance) ** beta * loss


def energy_score(draws, target):
    """Fair energy score of draws [D, ..., P] of vectors target [..., P]: mean |x - y| minus half of the
    mean |x - x'| over pairs of different draws; lower is better, zero-mean bias for any D >= 2.
    """
    count = draws.shape[0]
    error = _norm(draws - target[None]).mean(0)
    pairs = [_norm(draws[i] - draws[j]) for i in range(count) for j in range(i)]
    return error - 0.5 * sum(pairs) / len(pairs)


def _norm(x):
    return jnp.sqrt(jnp.square(x).sum(-1) + 1e-12)  # its gradient at 0 is not defined


def make(*, model: dict, loss: str, beta: float, sampling: dict, optim: dict) -> Method:
    """model: keywords of ClassUNet. loss: "gaussian" | "energy", over the pixels of a cell of
    `stem_block`. beta: of `gaussian_loss`. sampling: num_samples (K of each mean), noise_slices, as of
    the CLDM, both of "energy" alone.
    """
    if loss not in ("gaussian", "energy"):
        raise ValueError(f"unknown loss {loss!r}; known: gaussian, energy")
    if loss == "gaussian":
        return _make_gaussian(model, beta, optim)
    return _make_energy(model, sampling, optim)


def _make_gaussian(model: dict, beta: float, optim: dict) -> Method:
    net = ClassUNet(**model, outputs=2)

    def apply(params, batch):
        out = net.apply({"params": params}, batch["source"], batch["label"])
        return out[..., :1], jnp.clip(out[..., 1:], *LOG_VARIANCE)

    def init(rng, batch, frozen):
        return init_state(init_params(net, rng, batch["source"][:1], batch["label"][:1]), {})

    def loss_fn(params, state, batch, noise):
        mean, log_variance = apply(params, batch)
        metrics = {"mse": jnp.square(mean - batch["target"]).mean()}
        return gaussian_loss(mean, log_variance, batch["target"], beta).mean(), metrics

    init_state, train_step = make_update(loss_fn, optim)

    def predict(state, batch, rng):
        mean, log_variance = apply(state.ema_params, batch)
        return Prediction(mean, jnp.exp(0.5 * log_variance))

    return deterministic(init, train_step, predict)


def _make_energy(model: dict, sampling: dict, optim: dict) -> Method:
    net = ClassUNet(**model)
    block = net.stem_block

    def apply(params, source, label, eps):
        """eps [B, H, W, 1]: the noise, a picture like a slice of the source."""
        return net.apply({"params": params}, jnp.concatenate([source, eps], -1), label)

    def init(rng, batch, frozen):
        source = batch["source"][:1]
        noisy = jnp.concatenate([source, source[..., :1]], -1)
        return init_state(init_params(net, rng, noisy, batch["label"][:1]), {})

    def draw(rng, batch):
        return {"eps": jax.random.normal(rng, (*batch["target"].shape[:3], DRAWS))}

    def loss_fn(params, state, batch, noise):
        eps = jnp.moveaxis(noise["eps"], -1, 0)[..., None]  # [D, B, H, W, 1]
        source, label = (jnp.concatenate([batch[k]] * DRAWS) for k in ("source", "label"))
        made = apply(params, source, label, eps.reshape(-1, *eps.shape[2:]))
        cells = space_to_depth(made, block)
        cells = cells.reshape(DRAWS, -1, *cells.shape[1:])
        return energy_score(cells, space_to_depth(batch["target"], block)).mean(), {}

    init_state, train_step = make_update(loss_fn, optim, draw)
    weights = through_plane_weights(sampling["noise_slices"])

    def predict_samples(state, batch, rng, *, num_samples: int):
        source, label = (jnp.repeat(batch[k], num_samples, axis=0) for k in ("source", "label"))
        eps = sample_noise(batch, rng, num_samples, weights)(0, (*source.shape[1:3], 1))
        return mean_of_samples(apply(state.ema_params, source, label, eps), num_samples)

    return Method(init, train_step, *sample_read_outs(predict_samples, sampling["num_samples"], 1))
