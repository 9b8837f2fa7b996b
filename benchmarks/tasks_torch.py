"""What the PyTorch worker times: the same tasks as `tasks_flax`, in NCHW shapes."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from benchmarks import nets_torch
from benchmarks.tasks import Spec


class Task(NamedTuple):
    call: Callable[[], None]
    params: int
    compile_s: float  # of the first call where the network is compiled, else 0


def cosine_alphas_bar(num_timesteps: int = 1000) -> np.ndarray:
    """The project's cosine schedule with zero terminal SNR, float32 [T] (checked to be the same)."""
    u = np.arange(1, num_timesteps + 1, dtype=np.float64) / num_timesteps
    alphas_bar = np.cos(0.5 * np.pi * u) ** 2
    alphas_bar[-1] = 0.0
    return alphas_bar.astype(np.float32)


def make_task(
    spec: Spec, *, bf16: bool = False, channels_last: bool = False, compiled: bool = False
) -> Task:
    """bf16: autocast. channels_last: of weights and inputs. compiled: torch.compile."""
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    make_net = nets_torch.make_autoencoder if spec.kind[:2] == "ae" else nets_torch.make_unet
    net = make_net().to(memory_format=layout)
    params = sum(p.numel() for p in net.parameters())
    call = _MAKERS[spec.kind](spec, net, layout, bf16, torch.compile if compiled else _as_it_is)
    compile_s = 0.0
    if compiled:
        began = time.perf_counter()
        call()
        compile_s = time.perf_counter() - began
    return Task(call, params, compile_s)


def _as_it_is(function):
    return function


def _autocast(bf16: bool):
    return torch.autocast("cpu", torch.bfloat16, enabled=bf16)


def _training(net, loss, bf16: bool):
    """The loss and its backward pass, then AdamW; autocast around the forward pass only."""
    optimizer = nets_torch.make_optimizer(net.train())

    def call():
        optimizer.zero_grad(set_to_none=True)
        with _autocast(bf16):
            value = loss()
        value.backward()
        optimizer.step()

    return call


def _inference(net, function, bf16: bool):
    net.eval()

    def call():
        with torch.inference_mode(), _autocast(bf16):
            function()

    return call


def _images(spec: Spec, layout):
    return torch.rand(spec.batch, 1, spec.size, spec.size).contiguous(memory_format=layout)


def _unet_inputs(spec: Spec, layout):
    """Latents, source latents [B, 4, h, w] and class codes [B]."""
    latents, source = torch.randn(2, spec.batch, nets_torch.LATENT_CHANNELS, spec.size, spec.size)
    code = torch.zeros(spec.batch, dtype=torch.long)
    return latents.contiguous(memory_format=layout), source.contiguous(memory_format=layout), code


def _ae_train(spec, net, layout, bf16, wrap):
    images, forward = _images(spec, layout), wrap(net)
    return _training(net, lambda: nets_torch.autoencoder_loss(forward, images), bf16)


def _ae_encode(spec, net, layout, bf16, wrap):
    images, encode = _images(spec, layout), wrap(net.encode)
    return _inference(net, lambda: encode(images), bf16)


def _ae_decode(spec, net, layout, bf16, wrap):
    factor = 2 ** (len(net.encoder.channels) - 1)
    shape = (spec.batch, nets_torch.LATENT_CHANNELS, spec.size // factor, spec.size // factor)
    latents, decode = torch.randn(shape).contiguous(memory_format=layout), wrap(net.decode)
    return _inference(net, lambda: decode(latents), bf16)


def _ldm_train(spec, net, layout, bf16, wrap):
    latents, source, code = _unet_inputs(spec, layout)
    scheduler, forward = nets_torch.training_scheduler(cosine_alphas_bar()), wrap(net)
    return _training(
        net, lambda: nets_torch.ldm_loss(forward, scheduler, latents, source, code), bf16
    )


def _unet(spec, net, layout, bf16, wrap):
    latents, source, code = _unet_inputs(spec, layout)
    x, forward = torch.cat([latents, source], 1), wrap(net)
    return _inference(net, lambda: forward(x, code + 10, class_labels=code), bf16)


def _ddim(spec, net, layout, bf16, wrap):
    _, source, code = _unet_inputs(spec, layout)
    scheduler, forward = nets_torch.sampling_scheduler(cosine_alphas_bar(), spec.steps), wrap(net)

    def sample():
        nets_torch.ddim(forward, scheduler, torch.randn_like(source), source, code)

    return _inference(net, sample, bf16)


_MAKERS = {
    "ae_train": _ae_train,
    "ae_encode": _ae_encode,
    "ae_decode": _ae_decode,
    "ldm_train": _ldm_train,
    "unet": _unet,
    "ddim": _ddim,
}
