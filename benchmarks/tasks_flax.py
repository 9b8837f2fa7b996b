"""What the JAX worker times: one function of no arguments per task, ready compiled, finished when it
returns. Its facts: parameters, FLOPs of a call (direct convolutions), seconds of tracing and compiling.
"""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import flops, tasks
from cldm_jax.diffusion import parametrisation, samplers, schedule
from cldm_jax.models.conv import prepare_params
from cldm_jax.models.init import init_params
from cldm_jax.models.monai import AutoencoderKL, DiffusionModelUNet
from cldm_jax.runtime import device

OPTIMIZER = optax.adamw(tasks.LEARNING_RATE, weight_decay=tasks.WEIGHT_DECAY)


def make_autoencoder() -> AutoencoderKL:
    """The network of `nets_torch.make_autoencoder`."""
    return AutoencoderKL(num_classes=tasks.NUM_CLASSES, **tasks.AUTOENCODER)


def make_unet() -> DiffusionModelUNet:
    """The network of `nets_torch.make_unet`."""
    return DiffusionModelUNet(tasks.LATENT_CHANNELS, **tasks.UNET)


def prepare_variables(variables):
    """What inference takes instead of `variables`: computed once per checkpoint, outside jit."""
    return {**variables, "params": prepare_params(variables["params"])}


def latent_shape(net, images) -> tuple[int, ...]:
    """Of the latents of images [B, H, W, 1]."""
    b, h, w, _ = images.shape
    return b, h // net.factor, w // net.factor, net.latent_channels


def autoencoder_loss(net, params, images, key):
    """L1 + 1e-6 KL (mean over the latent), as in `nets_torch`."""
    eps = jax.random.normal(key, latent_shape(net, images))
    reconstruction, mean, logvar = net.apply({"params": params}, images, None, None, eps)
    kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - logvar - 1).mean()
    return jnp.abs(reconstruction - images).mean() + tasks.KL_WEIGHT * kl


def ldm_loss(net, params, latents, source, code, key):
    """Mean squared error of the v-prediction at random steps, as in `nets_torch`."""
    noise_key, step_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, latents.shape)
    t = jax.random.randint(step_key, latents.shape[:1], 0, tasks.TIMESTEPS)
    a, s = parametrisation.coefficients(schedule.cosine(tasks.TIMESTEPS), t, latents.ndim)
    noisy = parametrisation.add_noise(latents, noise, a, s)
    target = parametrisation.make_target("v", latents, noise, a, s)
    prediction = net.apply({"params": params}, noisy, t, code, source)
    return jnp.square(prediction - target).mean()


def ddim(net, variables, start, source, code, alphas_bar, num_sampling_steps: int):
    """Deterministic DDIM from the noise `start` [B, h, w, 4] with this project's sampler."""

    def denoise(zt, t):
        return net.apply(variables, zt, t, code, source)

    options = {"target": "v", "num_sampling_steps": num_sampling_steps, "eta": 0.0}
    return samplers.ddim(
        denoise, start, alphas_bar, noise_fn=lambda i: jnp.zeros_like(start), **options
    )


def read_out(unet, autoencoder, variables, source, start, code, steps: int = 0):
    """PET latents to images [B, H, W, 1]: DDIM from `start`, or with 0 steps one evaluation at the last
    step from a zero latent. variables: "params" of both, "mean" and "std" [4] of the target's latents.
    """
    alphas_bar, params = schedule.cosine(tasks.TIMESTEPS), variables["params"]
    own = {"params": params["unet"]}
    if steps:
        z = ddim(unet, own, start, source, code, alphas_bar, steps)
    else:
        one = lambda zt, t: unet.apply(own, zt, t, code, source)  # noqa: E731
        z = samplers.onestep(one, jnp.zeros_like(source), alphas_bar, target="v")
    z = z * variables["std"][None, None, None] + variables["mean"][None, None, None]
    return autoencoder.apply({"params": params["autoencoder"]}, z, None, None, method="decode")


def read_out_flops(unet, autoencoder, z, steps: int) -> int:
    """Of `read_out` for latents z [B, h, w, 4]."""
    code = jnp.zeros(len(z), jnp.int32)
    evaluation = flops.forward_flops(unet, z, code, code, z)
    decoding = flops.forward_flops(autoencoder, z, None, None, method="decode")
    return max(1, steps) * evaluation + decoding


def make_task(spec: tasks.Spec) -> tuple[Callable, dict]:
    """(one step, sample or pass; its facts). Raises KeyError for an unknown kind."""
    return _MAKERS[spec.kind](spec)


def _compiled(function, *args, **options):
    """(compiled function, seconds of compiling it)."""
    began = time.perf_counter()
    compiled = device.compile_step(jax.jit(function, **options), *args)
    return compiled, time.perf_counter() - began


def _training(loss, params, data, forward: int):
    """One step of AdamW; loss(params, *data, key) -> scalar."""

    def update(params, opt_state, key, *data):
        key, used = jax.random.split(key)
        value, grads = jax.value_and_grad(loss)(params, *data, used)
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, key, value

    params = jax.tree.map(jnp.asarray, params)
    state = [params, OPTIMIZER.init(params), jax.random.key(1)]
    facts = {"params": flops.count_parameters(params), "flops": flops.TRAINING_FACTOR * forward}
    compiled, compile_s = _compiled(update, *state, *data, donate_argnums=(0, 1, 2))

    def call():
        *state[:], value = compiled(*state, *data)
        value.block_until_ready()
        return np.asarray(value)

    return call, {**facts, "compile_s": compile_s}


def _inference(function, params, data, forward: int):
    """function(variables, *data)."""
    count = flops.count_parameters(params)
    variables = prepare_variables({"params": jax.tree.map(jnp.asarray, params)})
    compiled, compile_s = _compiled(function, variables, *data)

    def call():
        return jax.block_until_ready(compiled(variables, *data))

    return call, {"params": count, "flops": forward, "compile_s": compile_s}


def _autoencoder(spec: tasks.Spec):
    net, key = make_autoencoder(), jax.random.key(0)
    images = jax.random.uniform(key, (spec.batch, spec.size, spec.size, 1))
    eps = jnp.zeros(latent_shape(net, images))
    params = init_params(net, key, images, None, None, eps)
    if spec.kind == "ae_train":
        forward = flops.forward_flops(net, images, None, None, eps)
        return _training(functools.partial(autoencoder_loss, net), params, (images,), forward)
    half = {"method": spec.kind.removeprefix("ae_")}
    given = images if spec.kind == "ae_encode" else jax.random.normal(jax.random.key(2), eps.shape)
    forward = flops.forward_flops(net, given, None, None, **half)
    return _inference(lambda v, x: net.apply(v, x, None, None, **half), params, (given,), forward)


def _unet(spec: tasks.Spec):
    net, rng = make_unet(), np.random.default_rng(0)
    shape = (2, spec.batch, spec.size, spec.size, tasks.LATENT_CHANNELS)
    latents, source = jnp.asarray(rng.standard_normal(shape).astype(np.float32))
    code = jnp.zeros(spec.batch, jnp.int32)
    args = (latents, code, code, latents)
    params, forward = init_params(net, jax.random.key(0), *args), flops.forward_flops(net, *args)
    if spec.kind == "ldm_train":
        loss = functools.partial(ldm_loss, net)
        return _training(loss, params, (latents, source, code), forward)

    def sample(variables, key, source, code):
        start, alphas_bar = jax.random.normal(key, source.shape), schedule.cosine(tasks.TIMESTEPS)
        return ddim(net, variables, start, source, code, alphas_bar, spec.steps)

    data = (jax.random.key(1), source, code)
    return _inference(sample, params, data, spec.steps * forward)


_MAKERS = dict.fromkeys(("ae_train", "ae_encode", "ae_decode"), _autoencoder)
_MAKERS |= dict.fromkeys(("ldm_train", "ddim"), _unet)
