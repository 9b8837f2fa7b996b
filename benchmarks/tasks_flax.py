"""What the JAX worker times: one function of no arguments per task, ready compiled."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import flops
from benchmarks.tasks import Spec
from cldm_jax.diffusion import parametrisation, samplers, schedule
from cldm_jax.models.conv import prepare_params
from cldm_jax.models.init import init_params
from cldm_jax.models.monai import AutoencoderKL, DiffusionModelUNet
from cldm_jax.runtime import device

KL_WEIGHT = 1e-6
OPTIMIZER = optax.adamw(1e-4, weight_decay=1e-2)


class Task(NamedTuple):
    call: Callable[[], None]  # one step, sample or pass, finished when it returns
    params: int
    flops: int  # of one call, direct convolutions
    compile_s: float  # tracing and compiling


def make_autoencoder(channels=(32, 64, 128)) -> AutoencoderKL:
    """The network of `nets_torch.make_autoencoder`."""
    return AutoencoderKL(
        channels=channels,
        latent_channels=4,
        num_classes=4,
        num_res_blocks=2,
        attention_levels=(False,) * len(channels),
        norm_num_groups=16,
    )


def make_unet(channels=(64, 128, 256), num_classes: int = 4) -> DiffusionModelUNet:
    """The network of `nets_torch.make_unet`."""
    return DiffusionModelUNet(
        latent_channels=4,
        channels=channels,
        num_res_blocks=2,
        attention_levels=(False,) + (True,) * (len(channels) - 1),
        norm_num_groups=32,
        num_head_channels=64,
        num_class_embeds=num_classes,
    )


def prepare_variables(variables):
    """What inference takes instead of `variables`: computed once per checkpoint, outside jit."""
    return {**variables, "params": prepare_params(variables["params"])}


def latent_shape(net, images) -> tuple[int, ...]:
    """Of the latents of images [B, H, W, 1]."""
    b, h, w, _ = images.shape
    return b, h // net.factor, w // net.factor, net.latent_channels


def encode(net, variables, images):
    """images [B, H, W, 1] -> posterior mean, log-variance [B, h, w, 4]."""
    return net.apply(variables, images, None, None, method="encode")


def decode(net, variables, z):
    """z [B, h, w, 4] -> images [B, H, W, 1]."""
    return net.apply(variables, z, None, None, method="decode")


def autoencoder_loss(net, params, images, key):
    """L1 + 1e-6 KL (mean over the latent), as in `nets_torch`."""
    eps = jax.random.normal(key, latent_shape(net, images))
    reconstruction, mean, logvar = net.apply({"params": params}, images, None, None, eps)
    kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - logvar - 1).mean()
    return jnp.abs(reconstruction - images).mean() + KL_WEIGHT * kl


def ldm_loss(net, alphas_bar, params, latents, source, code, key):
    """Mean squared error of the v-prediction at random steps, as in `nets_torch`."""
    noise_key, step_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, latents.shape)
    t = jax.random.randint(step_key, latents.shape[:1], 0, alphas_bar.shape[0])
    a, s = parametrisation.coefficients(alphas_bar, t, latents.ndim)
    noisy = parametrisation.add_noise(latents, noise, a, s)
    target = parametrisation.make_target("v", latents, noise, a, s)
    prediction = net.apply({"params": params}, noisy, t, code, source)
    return jnp.square(prediction - target).mean()


def ddim(net, variables, start, source, code, alphas_bar, num_sampling_steps: int):
    """Deterministic DDIM from the noise `start` [B, h, w, 4] with this project's sampler."""

    def denoise(zt, t):
        return net.apply(variables, zt, t, code, source)

    return samplers.ddim(
        denoise,
        start,
        alphas_bar,
        target="v",
        num_sampling_steps=num_sampling_steps,
        eta=0.0,
        noise_fn=lambda i: jnp.zeros_like(start),
    )


def onestep_latents(unet, params, source, code, alphas_bar):
    """One evaluation at the last step from a zero latent. source [B, h, w, 4] -> latents of its shape."""

    def denoise(zt, t):
        return unet.apply({"params": params["unet"]}, zt, t, code, source)

    return samplers.onestep(denoise, source, alphas_bar, target="v")


def make_update(loss):
    """(params, optimiser state, key, *data) -> (params, optimiser state, next key, loss)."""

    def update(params, opt_state, key, *data):
        key, used = jax.random.split(key)
        value, grads = jax.value_and_grad(loss)(params, *data, used)
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, key, value

    return update


def unet_inputs(batch: int, size: int):
    """Latents, source latents [B, h, w, 4] and class codes [B]."""
    rng = np.random.default_rng(0)
    latents, source = rng.standard_normal((2, batch, size, size, 4)).astype(np.float32)
    return jnp.asarray(latents), jnp.asarray(source), jnp.zeros(batch, jnp.int32)


def unet_params(net, latents, code):
    """Parameters for inputs of these shapes, and the FLOPs of one evaluation."""
    args = (latents, code, code, latents)
    return init_params(net, jax.random.key(0), *args), flops.forward_flops(net, *args)


def make_task(spec: Spec) -> Task:
    """Raises KeyError for an unknown kind."""
    return _MAKERS[spec.kind](spec)


def _training(loss, params, data, forward: int) -> Task:
    params = jax.tree.map(jnp.asarray, params)
    count = sum(p.size for p in jax.tree.leaves(params))
    state = [params, OPTIMIZER.init(params), jax.random.key(1)]
    began = time.perf_counter()
    update = device.compile_step(
        jax.jit(make_update(loss), donate_argnums=(0, 1, 2)), *state, *data
    )
    compile_s = time.perf_counter() - began

    def call():
        *state[:], value = update(*state, *data)
        value.block_until_ready()

    return Task(call, count, flops.TRAINING_FACTOR * forward, compile_s)


def _inference(function, params, data, forward: int) -> Task:
    count = sum(p.size for p in jax.tree.leaves(params))
    variables = prepare_variables({"params": jax.tree.map(jnp.asarray, params)})
    began = time.perf_counter()
    compiled = jax.jit(function).lower(variables, *data).compile()
    compile_s = time.perf_counter() - began
    return Task(
        lambda: jax.block_until_ready(compiled(variables, *data)), count, forward, compile_s
    )


def _ae_train(spec: Spec) -> Task:
    net, images, params = _autoencoder(spec)
    forward = flops.forward_flops(net, images, None, None, jnp.zeros(latent_shape(net, images)))

    def loss(params, images, key):
        return autoencoder_loss(net, params, images, key)

    return _training(loss, params, (images,), forward)


def _ae_encode(spec: Spec) -> Task:
    net, images, params = _autoencoder(spec)
    forward = flops.forward_flops(net, images, None, None, method="encode")
    return _inference(lambda v, x: encode(net, v, x), params, (images,), forward)


def _ae_decode(spec: Spec) -> Task:
    net, images, params = _autoencoder(spec)
    latents = jax.random.normal(jax.random.key(2), latent_shape(net, images))
    forward = flops.forward_flops(net, latents, None, None, method="decode")
    return _inference(lambda v, z: decode(net, v, z), params, (latents,), forward)


def _autoencoder(spec: Spec):
    net = make_autoencoder()
    images = jax.random.uniform(jax.random.key(0), (spec.batch, spec.size, spec.size, 1))
    eps = jnp.zeros(latent_shape(net, images))
    return net, images, init_params(net, jax.random.key(0), images, None, None, eps)


def _ldm_train(spec: Spec) -> Task:
    net, data = make_unet(), unet_inputs(spec.batch, spec.size)
    params, forward = unet_params(net, data[0], data[2])
    alphas_bar = schedule.cosine(1000)

    def loss(params, *data_and_key):
        return ldm_loss(net, alphas_bar, params, *data_and_key)

    return _training(loss, params, data, forward)


def _unet(spec: Spec) -> Task:
    net, (latents, source, code) = make_unet(), unet_inputs(spec.batch, spec.size)
    params, forward = unet_params(net, latents, code)
    data = (latents, code + 10, code, source)
    return _inference(lambda v, *args: net.apply(v, *args), params, data, forward)


def _ddim(spec: Spec) -> Task:
    net, (latents, source, code) = make_unet(), unet_inputs(spec.batch, spec.size)
    params, forward = unet_params(net, latents, code)
    alphas_bar = schedule.cosine(1000)

    def sample(variables, key, source, code):
        start = jax.random.normal(key, source.shape)
        return ddim(net, variables, start, source, code, alphas_bar, spec.steps)

    return _inference(sample, params, (jax.random.key(1), source, code), spec.steps * forward)


def _volume(spec: Spec) -> Task:
    """The one-step read-out of `spec.slices` slices, `spec.batch` at a time."""
    unet, decoder = make_unet(), make_autoencoder()
    latents, source, code = unet_inputs(spec.batch, spec.size)
    unet_tree, forward = unet_params(unet, latents, code)
    decode_flops = flops.forward_flops(decoder, latents, None, None, method="decode")
    decoder_tree = init_params(decoder, jax.random.key(0), latents, None, None, method="decode")
    params = {"unet": unet_tree, "decoder": decoder_tree}
    batches = -(-spec.slices // spec.batch)
    alphas_bar = schedule.cosine(1000)

    def read_out(variables, source, code):
        params = variables["params"]
        z = onestep_latents(unet, params, source, code, alphas_bar)
        return decode(decoder, {"params": params["decoder"]}, z)

    one = _inference(read_out, params, (source, code), forward + decode_flops)

    def call():
        for _ in range(batches):
            one.call()

    return one._replace(call=call, flops=batches * one.flops)


_MAKERS = {
    "ae_train": _ae_train,
    "ae_encode": _ae_encode,
    "ae_decode": _ae_decode,
    "ldm_train": _ldm_train,
    "unet": _unet,
    "ddim": _ddim,
    "volume": _volume,
}
