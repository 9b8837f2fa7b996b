"""Phase two: the class-conditioned latent diffusion model (CLDM), three readings of the abstract.

  concat  denoise the target latent given the source and the target's class code (the default)
  sdedit  denoise any modality's latent given only its class; sample by noising the source latent part
          of the way and denoising towards the target class (the literal "noise, then denoise")
  bridge  a Brownian bridge from the source latent to the target latent, with the class code

The autoencoder is frozen inside the state: a checkpoint is all that prediction needs.
"""

import jax
import jax.numpy as jnp

from cldm_jax.diffusion import guidance, parametrisation, samplers
from cldm_jax.diffusion.schedule import SCHEDULES
from cldm_jax.methods.base import Method, Prediction, example_keys, normal_like
from cldm_jax.methods.codec import make_codec
from cldm_jax.methods.common import make_update
from cldm_jax.models.init import init_params
from cldm_jax.models.latent_unet import LatentUNet
from cldm_jax.models.layers import space_to_depth

CONDITIONINGS = ("concat", "sdedit", "bridge")


def ramp(step, num_train_steps: int, first: float, last: float, begin: float, end: float):
    """`first` until `begin` of training, `last` from `end` on, linear between (shares of all steps)."""
    u = jnp.clip((step / num_train_steps - begin) / (end - begin), 0.0, 1.0)
    return first + u * (last - first)


def channel_weights(std, power: float):
    """Loss weights std^power per channel, mean 1. std [B, C] -> [B, 1, 1, C].

    Latent channels are standardised for the network, which makes a flat loss spend itself on channels
    that hardly matter in the image; power 2 restores the image-space error, 0 is the flat loss.
    """
    weights = std**power
    return (weights / weights.mean(-1, keepdims=True))[:, None, None]


def make(*, autoencoder: dict, model: dict, diffusion: dict, sampling: dict, optim: dict) -> Method:
    """autoencoder: keywords of the frozen Autoencoder. model: keywords of LatentUNet without
    latent_channels. diffusion: conditioning, source_encoding ("s2d" | "latent"), schedule,
    num_timesteps, target, class_dropout_prob, onestep_share (first, last), onestep_ramp (begin, end),
    onestep_weight_power, noisy_weight_power, min_snr_gamma (0 = off), bridge_variance, null_code,
    source_code. sampling: num_sampling_steps, num_samples (K of each mean), eta, guidance_scale,
    sdedit_strength.
    """
    d, s = diffusion, sampling
    if d["conditioning"] not in CONDITIONINGS:
        raise ValueError(f"unknown conditioning {d['conditioning']!r}; known: {CONDITIONINGS}")
    if d["conditioning"] != "concat" and d["source_encoding"] != "latent":
        raise ValueError(f"conditioning {d['conditioning']!r} needs source_encoding 'latent'")
    if d["conditioning"] == "bridge" and d["target"] != "x0":
        raise ValueError("conditioning 'bridge' predicts x0: set target to 'x0'")
    if max(d["onestep_share"]) > 0 and (d["target"] == "eps" or d["conditioning"] != "concat"):
        raise ValueError("onestep rows need conditioning 'concat' and a v or x0 target")
    codec = make_codec(autoencoder)
    latent_channels = codec.latent_channels
    net = LatentUNet(latent_channels=latent_channels, **model)
    schedule = SCHEDULES[d["schedule"]]
    num_timesteps, num_train_steps = d["num_timesteps"], optim["num_train_steps"]
    is_bridge = d["conditioning"] == "bridge"

    def standardise(frozen, z, label):
        stats = frozen["statistics"]
        return (z - stats["mean"][label][:, None, None]) / stats["std"][label][:, None, None]

    def destandardise(frozen, z, label):
        stats = frozen["statistics"]
        return z * stats["std"][label][:, None, None] + stats["mean"][label][:, None, None]

    def source_latents(frozen, z):
        """Standardises [B, h, w, C*S] latents of S source slices."""
        b, h, w, c = z.shape
        slices = c // latent_channels
        stats = frozen["statistics"]
        mean, std = (jnp.tile(stats[k][d["source_code"]], slices) for k in ("mean", "std"))
        return (z - mean[None, None, None]) / std[None, None, None]

    def centre(z):
        """The middle slice's latent of a [B, h, w, C*S] stack."""
        start = (z.shape[-1] // latent_channels // 2) * latent_channels
        return z[..., start : start + latent_channels]

    def training_source(frozen, batch):
        if d["source_encoding"] == "latent":
            return source_latents(frozen, batch["source"])
        return space_to_depth(batch["source"], codec.factor)

    def image_source(frozen, source):
        """The same representation from PET slices [B, H, W, S], at prediction time."""
        if d["source_encoding"] == "s2d":
            return space_to_depth(source, codec.factor)
        b, h, w, slices = source.shape
        flat = source.transpose(0, 3, 1, 2).reshape(b * slices, h, w, 1)
        code = jnp.full((b * slices,), d["source_code"], jnp.int32)
        z = codec.encode(frozen["autoencoder"], flat, code)
        z = z.reshape(b, slices, *z.shape[1:]).transpose(0, 2, 3, 1, 4)
        return source_latents(frozen, z.reshape(*z.shape[:3], -1))

    def condition(source):
        return None if d["conditioning"] == "sdedit" else source

    def init(rng, batch, frozen):
        z, label = batch["target"][:1], batch["label"][:1]
        source = training_source(frozen, {"source": batch["source"][:1]})
        params = init_params(net, rng, z, label, label, condition(source))
        return init_state(params, frozen)

    def loss_fn(params, state, batch, rng):
        label, frozen = batch["label"], state.frozen
        keys = jax.random.split(rng, 4)
        z0 = standardise(frozen, batch["target"], label)
        source = training_source(frozen, batch)
        rows = z0.shape[:1]
        t = jax.random.randint(keys[0], rows, 0, num_timesteps)
        eps = jax.random.normal(keys[1], z0.shape)
        share = ramp(state.step, num_train_steps, *d["onestep_share"], *d["onestep_ramp"])
        is_onestep = jax.random.uniform(keys[2], rows) < share
        is_dropped = jax.random.uniform(keys[3], rows) < d["class_dropout_prob"]
        code = jnp.where(is_dropped & ~is_onestep, d["null_code"], label)
        wide = is_onestep[:, None, None, None]
        if is_bridge:
            m, delta = samplers.bridge_coefficients(t, num_timesteps, d["bridge_variance"])
            m, delta = (v[:, None, None, None] for v in (m, delta))
            zt, target = (1 - m) * z0 + m * centre(source) + jnp.sqrt(delta) * eps, z0
        else:
            alphas_bar = schedule(num_timesteps)
            t = jnp.where(is_onestep, num_timesteps - 1, t)
            a, sigma = parametrisation.coefficients(alphas_bar, t, z0.ndim)
            zt = jnp.where(wide, 0.0, parametrisation.add_noise(z0, eps, a, sigma))
            target = parametrisation.make_target(d["target"], z0, eps, a, sigma)
        prediction = net.apply({"params": params}, zt, t, code, condition(source))
        std = frozen["statistics"]["std"][label]
        weights = jnp.where(
            wide,
            channel_weights(std, d["onestep_weight_power"]),
            channel_weights(std, d["noisy_weight_power"]),
        )
        per_example = (weights * jnp.square(prediction - target)).mean((1, 2, 3))  # [B]
        noisy = ~is_onestep
        metrics = {
            "loss_onestep": masked_mean(per_example, is_onestep),
            "loss_noisy": masked_mean(per_example, noisy),
            "onestep_share": share,
        }
        if d["min_snr_gamma"] > 0 and not is_bridge:
            snr_weight = parametrisation.min_snr_weight(
                d["target"], schedule(num_timesteps), t, d["min_snr_gamma"]
            )
            per_example = jnp.where(noisy, snr_weight * per_example, per_example)
        return per_example.mean(), metrics

    init_state, train_step = make_update(loss_fn, optim)

    def denoiser(state, source, label):
        """denoise_fn of the conditional model with guidance, for the samplers."""
        variables = {"params": state.ema_params}

        def with_code(code):
            return lambda zt, t: net.apply(variables, zt, t, code, condition(source))

        null = jnp.full_like(label, d["null_code"])
        return guidance.with_guidance(with_code(label), with_code(null), s["guidance_scale"])

    def decode(state, z, label):
        z = destandardise(state.frozen, z, label)
        return codec.decode(state.frozen["autoencoder"], z, label)

    def predict_onestep(state, batch, rng):
        del rng
        source, label = image_source(state.frozen, batch["source"]), batch["label"]
        shape = (*source.shape[:3], latent_channels)
        z = samplers.onestep(
            denoiser(state, source, label),
            jnp.zeros(shape),
            schedule(num_timesteps),
            target=d["target"],
        )
        return Prediction(decode(state, z, label), None)

    def sample_latents(state, source, label, keys):
        shape = (*source.shape[1:3], latent_channels)
        fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
        start = normal_like(fold(keys, 0), shape)
        denoise_fn = denoiser(state, source, label)
        steps = s["num_sampling_steps"]
        if is_bridge:
            return samplers.bridge(
                denoise_fn,
                centre(source),
                num_timesteps,
                variance=d["bridge_variance"],
                num_sampling_steps=steps,
                noise_fn=lambda i: start,
            )
        alphas_bar, t_start = schedule(num_timesteps), None
        if d["conditioning"] == "sdedit":
            t_start = max(int(round(s["sdedit_strength"] * num_timesteps)) - 1, 0)
            a = jnp.sqrt(alphas_bar[t_start])
            start = a * centre(source) + jnp.sqrt(1 - alphas_bar[t_start]) * start
        return samplers.ddim(
            denoise_fn,
            start,
            alphas_bar,
            target=d["target"],
            num_sampling_steps=steps,
            eta=s["eta"],
            noise_fn=lambda i: normal_like(fold(keys, i + 1), shape),
            t_start=t_start,
        )

    def make_predict_samples(num_samples: int):
        def predict_samples(state, batch, rng):
            """Mean and SD of K *decoded* samples (the decoder is not linear), K folded into the batch."""
            b, label = batch["label"].shape[0], batch["label"]
            source = jnp.repeat(image_source(state.frozen, batch["source"]), num_samples, axis=0)
            keys = jnp.repeat(example_keys(rng, batch), num_samples)
            keys = jax.vmap(jax.random.fold_in)(keys, jnp.tile(jnp.arange(num_samples), b))
            labels = jnp.repeat(label, num_samples)
            images = decode(state, sample_latents(state, source, labels, keys), labels)
            images = images.reshape(b, num_samples, *images.shape[1:])
            sd = images.std(axis=1) if num_samples > 1 else None
            return Prediction(images.mean(axis=1), sd)

        return predict_samples

    per_sample = s["num_sampling_steps"] * (1 if s["guidance_scale"] == 1.0 else 2)
    predict, evaluations = {}, {}
    if max(d["onestep_share"]) > 0:
        predict["onestep"], evaluations["onestep"] = predict_onestep, 1
    for k in s["num_samples"]:
        name = "sample" if k == 1 else f"mean{k}"
        predict[name], evaluations[name] = make_predict_samples(k), k * per_sample
    return Method(init, train_step, predict, evaluations)


def masked_mean(values, mask):
    """Mean of values [B] where mask [B]; 0 where nothing is (a batch may hold no such row)."""
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)
