"""Phase two: the class-conditioned latent diffusion model (CLDM), in the readings of `readings.py`.

The autoencoder is frozen inside the state: a checkpoint is all that prediction needs.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cldm_jax.diffusion import parametrisation, samplers
from cldm_jax.diffusion.noise import through_plane_weights
from cldm_jax.methods.base import (
    Method,
    Prediction,
    mean_of_samples,
    sample_noise,
    sample_read_outs,
    with_mirror,
)
from cldm_jax.methods.codec import Codec, make_codec
from cldm_jax.methods.common import make_update
from cldm_jax.methods.readings import READINGS, Reading, alphas_bar, sdedit_steps
from cldm_jax.models.build import make_latent_unet
from cldm_jax.models.init import init_params
from cldm_jax.models.layers import space_to_depth

SOURCE_ENCODINGS = ("s2d", "latent")
LOG_VARIANCE = (-12.0, 4.0)  # limits, of standardised latents
# Settings of the diffusion that runs of before do not name, as they had them.
BEFORE = {"gaussian_denoiser": False, "noise_weight_power": 0.0, "young_at": 0.0}
YOUNG = "young"  # in `frozen`: the averaged parameters of an earlier step, the younger self
SIGMA_FLOOR = 0.15  # of `noise_weight`: nearly clean rows must not outweigh all others


def ramp(step, num_train_steps: int, first: float, last: float, begin: float, end: float):
    """`first` until `begin` of training, `last` from `end` on, linear between (shares of all steps)."""
    at = step / num_train_steps
    u = jnp.clip((at - begin) / (end - begin), 0.0, 1.0) if end > begin else at >= begin
    return first + u * (last - first)


def channel_weights(std, power: float):
    """Loss weights std^power per channel, mean 1. std [B, C] -> [B, 1, 1, C].

    Latent channels are standardised for the network, which makes a flat loss spend itself on channels
    that hardly matter in the image; power 2 restores the image-space error, 0 is the flat loss.
    """
    weights = std**power
    return (weights / weights.mean(-1, keepdims=True))[:, None, None]


def masked_mean(values, mask):
    """Mean of values [B] where mask [B]; 0 where nothing is (a batch may hold no such row)."""
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def _draws(d: dict) -> bool:
    """Whether noisy rows are ever learnt; without, there are no samples to read out."""
    return min(d["onestep_share"]) < 1


def _check(d: dict, s: dict) -> None:
    """ValueError for diffusion settings `d` and sampling settings `s` that cannot work together."""
    if d["conditioning"] not in READINGS:
        known = ", ".join(READINGS)
        raise ValueError(f"unknown conditioning {d['conditioning']!r}; known: {known}")
    if d["gaussian_denoiser"] and d["target"] != "x0":
        raise ValueError("gaussian_denoiser gives x0: set it to False, or target to 'x0'")
    READINGS[d["conditioning"]].check(d)
    steps, most, of = s["num_sampling_steps"], d["num_timesteps"], "the diffusion"
    if d["conditioning"] == "sdedit":
        most, of = sdedit_steps(d, s), f"sdedit_strength {s['sdedit_strength']:g}"
    if not 1 <= steps <= most:
        raise ValueError(f"{steps} sampling steps: give 1 to {most}, the steps of {of}")
    if s["guidance_scale"] != 1.0 and d["class_dropout_prob"] == 0:
        raise ValueError(
            "the null class is never trained (class_dropout_prob 0): guidance_scale can be 1"
        )
    if not 0 <= d["young_at"] < 1:
        raise ValueError(f"young_at {d['young_at']:g} is no share of training below 1")
    if s["autoguidance_scale"] != 1.0 and not d["young_at"] and _draws(d):
        raise ValueError(
            "no younger self to guide by is kept (young_at 0): autoguidance_scale can be 1"
        )


def make(*, autoencoder: dict, model: dict, diffusion: dict, sampling: dict, optim: dict) -> Method:
    """autoencoder: of `make_autoencoder`, the frozen one's. model: of `make_latent_unet`. diffusion:
    conditioning, source_encoding ("s2d" | "latent"), schedule, num_timesteps, target, gaussian_denoiser,
    class_dropout_prob, onestep_share (first, last), onestep_ramp (begin, end), onestep_weight_power,
    noisy_weight_power, min_snr_gamma (0 = off), bridge_variance, young_at (share of training at which
    the younger self is kept; 0: none is), null_code, source_code. sampling: num_sampling_steps,
    num_samples (K of each mean), eta, jump_from (`sampling_timesteps`; a bridge has none),
    guidance_scale, autoguidance_scale (by the younger self), sdedit_strength, noise_slices (SD in slices
    of the filter that correlates a patient's noise through plane; 0: every slice has its own). Raises
    ValueError for combinations that cannot work.
    """
    d, s = {**BEFORE, **diffusion}, sampling
    _check(d, s)
    codec = make_codec(autoencoder)
    outputs = 2 if d["gaussian_denoiser"] else 1
    net = make_latent_unet(model, outputs * codec.latent_channels)
    cldm = _Cldm(codec, net, d, s, optim["num_train_steps"])
    init_state, update = make_update(cldm.loss, optim, cldm.draw)
    young_step = round(d["young_at"] * cldm.num_train_steps)

    def init(rng, batch, frozen):
        """frozen: {"autoencoder": {"params", "patch"}, "statistics": {"mean", "std"} [classes, C]}; the
        younger self is put beside them.
        """
        z, label = batch["target"][:1], batch["label"][:1]
        source = cldm.training_source(frozen, batch["source"][:1])
        params = init_params(net, rng, z, label, label, cldm.condition(source))
        if d["young_at"]:
            frozen = {**frozen, YOUNG: jax.tree.map(jnp.copy, params)}
        return init_state(params, frozen)

    def train_step(state, batch, rng):
        state, metrics = update(state, batch, rng)
        if d["young_at"]:  # follows the average until its step
            keep = functools.partial(jnp.where, state.step <= young_step)
            young = jax.tree.map(keep, state.ema_params, state.frozen[YOUNG])
            state = state._replace(frozen={**state.frozen, YOUNG: young})
        return state, metrics

    per_step = 1 + (s["guidance_scale"] != 1.0) + (s["autoguidance_scale"] != 1.0)
    per_sample = s["num_sampling_steps"] * per_step
    samples = s["num_samples"] if _draws(d) else ()
    predict, evaluations = sample_read_outs(cldm.predict_samples, samples, per_sample)
    if max(d["onestep_share"]) > 0:
        mirror = with_mirror(cldm.predict_onestep)
        predict = {"onestep": cldm.predict_onestep, "mirror": mirror, **predict}
        evaluations = {"onestep": 1, "mirror": 2, **evaluations}
    return Method(init, train_step, predict, evaluations, cldm.reads)


@dataclasses.dataclass(frozen=True)
class _Cldm:
    """The settings of one model and the pure functions that share them; holds no arrays."""

    codec: Codec
    net: nn.Module
    diffusion: dict[str, Any]
    sampling: dict[str, Any]
    num_train_steps: int

    @property
    def reading(self) -> Reading:
        return READINGS[self.diffusion["conditioning"]]

    @property
    def reads(self) -> tuple[str, ...]:
        """What a training step is given: sdedit learns one modality's latents, and no source."""
        return ("source",) * self.reading.sees_source + ("target", "label")

    # Latents and the source

    def standardise(self, frozen, z, label):
        stats = frozen["statistics"]
        return (z - stats["mean"][label][:, None, None]) / stats["std"][label][:, None, None]

    def decode(self, state, z, label):
        """Standardised latents -> images."""
        stats = state.frozen["statistics"]
        z = z * stats["std"][label][:, None, None] + stats["mean"][label][:, None, None]
        return self.codec.decode(state.frozen["autoencoder"], z, label)

    def source_latents(self, frozen, z):
        """Standardises the [B, h, w, C*S] latents of S source slices."""
        slices, code = z.shape[-1] // self.codec.latent_channels, self.diffusion["source_code"]
        stats = frozen["statistics"]
        mean, std = (jnp.tile(stats[k][code], slices) for k in ("mean", "std"))
        return (z - mean[None, None, None]) / std[None, None, None]

    def training_source(self, frozen, source):
        if self.diffusion["source_encoding"] == "latent":
            return self.source_latents(frozen, source)
        return space_to_depth(source, self.codec.factor)

    def image_source(self, frozen, source):
        """The same representation from PET slices [B, H, W, S], at prediction time."""
        if self.diffusion["source_encoding"] == "s2d":
            return space_to_depth(source, self.codec.factor)
        return self.encoded(frozen, source)

    def encoded(self, frozen, source):
        """Standardised latents [B, h, w, C*S] of PET slices [B, H, W, S]."""
        b, h, w, slices = source.shape
        flat = source.transpose(0, 3, 1, 2).reshape(b * slices, h, w, 1)
        code = jnp.full((b * slices,), self.diffusion["source_code"], jnp.int32)
        z = self.codec.encode(frozen["autoencoder"], flat, code)
        z = z.reshape(b, slices, *z.shape[1:]).transpose(0, 2, 3, 1, 4)
        return self.source_latents(frozen, z.reshape(*z.shape[:3], -1))

    def middle(self, frozen, images, source):
        """The middle source slice's latent, where the reading begins there: of the stack of latents
        `source` [B, h, w, C*S], or of PET slices `images` [B, H, W, S] that come as pixels.
        """
        if not self.reading.from_source:
            return None
        if self.diffusion["source_encoding"] == "s2d":
            i = images.shape[-1] // 2
            return self.encoded(frozen, images[..., i : i + 1])
        channels = self.codec.latent_channels
        start = (source.shape[-1] // channels // 2) * channels
        return source[..., start : start + channels]

    def condition(self, source):
        """What is concatenated to the noisy latent, if anything."""
        return source if self.reading.sees_source else None

    def denoise(self, params, zt, t, code, condition):
        """The regression target, [B, h, w, C], of noisy latents at steps t [B].

        With `gaussian_denoiser` the network tells mean and log variance of each latent, and the noise is
        weighed in closed form: where it is sure none passes. At t = T - 1 that is the mean.
        """
        out = self.net.apply({"params": params}, zt, t, code, condition)
        if not self.diffusion["gaussian_denoiser"]:
            return out
        mean, log_variance = jnp.split(out, 2, axis=-1)
        a, s = parametrisation.coefficients(alphas_bar(self.diffusion), t, zt.ndim)
        variance = jnp.exp(jnp.clip(log_variance, *LOG_VARIANCE))
        return parametrisation.gaussian_x0(mean, variance, zt, a, s)

    # Training

    def noisy_input(self, z0, zs, t, is_onestep, eps):
        """(network input zt, step t, regression target) of each row."""
        d = self.diffusion
        t = jnp.where(is_onestep, d["num_timesteps"] - 1, t)
        zt, target = self.reading.add_noise(d, z0, zs, t, eps)
        if self.reading.blank is not None:
            zt = jnp.where(is_onestep[:, None, None, None], self.reading.blank(zs, zt), zt)
        return zt, t, target

    def draw(self, rng, batch):
        """Step, noise and the two lots of every row."""
        keys, shape = jax.random.split(rng, 4), batch["target"].shape
        return {
            "t": jax.random.randint(keys[0], shape[:1], 0, self.diffusion["num_timesteps"]),
            "eps": jax.random.normal(keys[1], shape),
            "onestep_lot": jax.random.uniform(keys[2], shape[:1]),
            "drop_lot": jax.random.uniform(keys[3], shape[:1]),
        }

    def noise_weight(self, t):
        """Loss weight of noisy rows at steps t, [B]: max(sigma, SIGMA_FLOOR)^-p. With a target of x0,
        p = 0 is its own loss and p = 2 that of v (Salimans & Ho 2022, appendix D: 1 + SNR = 1 / sigma^2).
        """
        power = self.diffusion["noise_weight_power"]
        if power == 0.0:
            return jnp.ones(t.shape)
        sigma = jnp.sqrt(1 - alphas_bar(self.diffusion)[t])
        return jnp.maximum(sigma, SIGMA_FLOOR) ** -power

    def loss(self, params, state, batch, noise):
        d, label, frozen = self.diffusion, batch["label"], state.frozen
        z0 = self.standardise(frozen, batch["target"], label)
        source = zs = None
        if "source" in self.reads:
            source = self.training_source(frozen, batch["source"])
            zs = self.middle(frozen, batch["source"], source)
        share = ramp(state.step, self.num_train_steps, *d["onestep_share"], *d["onestep_ramp"])
        is_onestep = noise["onestep_lot"] < share
        is_dropped = noise["drop_lot"] < d["class_dropout_prob"]
        code = jnp.where(is_dropped & ~is_onestep, d["null_code"], label)
        zt, t, target = self.noisy_input(z0, zs, noise["t"], is_onestep, noise["eps"])
        prediction = self.denoise(params, zt, t, code, self.condition(source))
        std = frozen["statistics"]["std"][label]
        noisy_weights = channel_weights(std, d["noisy_weight_power"])
        weights = jnp.where(
            is_onestep[:, None, None, None],
            channel_weights(std, d["onestep_weight_power"]),
            noisy_weights * self.noise_weight(t)[:, None, None, None],
        )
        per_example = (weights * jnp.square(prediction - target)).mean((1, 2, 3))  # [B]
        metrics = {
            "loss_onestep": masked_mean(per_example, is_onestep),
            "loss_noisy": masked_mean(per_example, ~is_onestep),
            "onestep_share": share,
        }
        if d["min_snr_gamma"] > 0:
            snr_weight = parametrisation.min_snr_weight(
                d["target"], alphas_bar(d), t, d["min_snr_gamma"]
            )
            per_example = jnp.where(is_onestep, per_example, snr_weight * per_example)
        return per_example.mean(), metrics

    # Read-outs

    def denoiser(self, state, source, label):
        """denoise_fn of the conditional model with its guidances, for the samplers."""
        condition, s = self.condition(source), self.sampling

        def of(params, code):
            return lambda zt, t: self.denoise(params, zt, t, code, condition)

        null = of(state.ema_params, jnp.full_like(label, self.diffusion["null_code"]))
        guided = samplers.with_guidance(of(state.ema_params, label), null, s["guidance_scale"])
        young = of(state.frozen.get(YOUNG), label)
        return samplers.with_guidance(guided, young, s["autoguidance_scale"])

    def predict_onestep(self, state, batch, rng):
        """The conditional mean: one evaluation at t = T - 1 of a latent without noise. Without guidance:
        the null class is never trained there.
        """
        source, label = self.image_source(state.frozen, batch["source"]), batch["label"]
        like = jnp.zeros((*source.shape[:3], self.codec.latent_channels))
        start = self.reading.blank(self.middle(state.frozen, batch["source"], source), like)
        condition, target = self.condition(source), self.diffusion["target"]

        def denoise_fn(zt, t):
            return self.denoise(state.ema_params, zt, t, label, condition)

        z = samplers.onestep(denoise_fn, start, alphas_bar(self.diffusion), target=target)
        return Prediction(self.decode(state, z, label))

    def sample_latents(self, state, source, zs, label, noise_fn):
        """One standardised latent per row. noise_fn(i, shape) -> standard normal [rows, *shape]: the
        start's for i = 0, sampling step i - 1's where eta > 0.
        """
        shape = (*source.shape[1:3], self.codec.latent_channels)
        return self.reading.sample(
            self.diffusion,
            self.sampling,
            self.denoiser(state, source, label),
            zs,
            noise_fn(0, shape),
            lambda i: noise_fn(i + 1, shape),
        )

    def predict_samples(self, state, batch, rng, *, num_samples: int):
        """Mean and SD of K *decoded* samples (the decoder is not linear), K folded into the batch."""
        label = batch["label"]
        source = self.image_source(state.frozen, batch["source"])
        zs = self.middle(state.frozen, batch["source"], source)
        repeat = functools.partial(jnp.repeat, repeats=num_samples, axis=0)
        source, zs, labels = jax.tree.map(repeat, (source, zs, label))
        weights = through_plane_weights(self.sampling["noise_slices"])
        noise_fn = sample_noise(batch, rng, num_samples, weights)
        latents = self.sample_latents(state, source, zs, labels, noise_fn)
        return mean_of_samples(self.decode(state, latents, labels), num_samples)
