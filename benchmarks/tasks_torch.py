"""What the PyTorch worker times: the same tasks as `tasks_flax`, in NCHW shapes."""

import functools
from collections.abc import Callable

import torch

from benchmarks import nets_torch, tasks


def make_task(
    spec: tasks.Spec, *, bf16: bool = False, channels_last: bool = False
) -> tuple[Callable, dict]:
    """(call, facts). bf16: autocast. channels_last: of weights and inputs."""
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    is_ae, trains = spec.kind.startswith("ae"), spec.kind.endswith("train")
    net = nets_torch.make_autoencoder() if is_ae else nets_torch.make_unet()
    net = net.to(memory_format=layout)
    function = (_autoencoder if is_ae else _unet)(spec, net, layout)
    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=bf16)
    make = nets_torch.training if trains else _inference
    return make(net, function, autocast), {"params": sum(p.numel() for p in net.parameters())}


def _inference(net, function, autocast):
    net.eval()

    def call():
        with torch.inference_mode(), autocast():
            function()

    return call


def _autoencoder(spec: tasks.Spec, net, layout):
    """What one call of the task computes."""
    size, factor = spec.size, 2 ** (len(net.encoder.channels) - 1)
    if spec.kind == "ae_decode":
        z = torch.randn(spec.batch, tasks.LATENT_CHANNELS, size // factor, size // factor)
        z = z.contiguous(memory_format=layout)
        return lambda: net.decode(z)
    images = torch.rand(spec.batch, 1, size, size).contiguous(memory_format=layout)
    if spec.kind == "ae_encode":
        return lambda: net.encode(images)
    return lambda: nets_torch.autoencoder_loss(net, images)


def _unet(spec: tasks.Spec, net, layout):
    shape = (2, spec.batch, tasks.LATENT_CHANNELS, spec.size, spec.size)
    latents, source = (x.contiguous(memory_format=layout) for x in torch.randn(shape))
    code = torch.zeros(spec.batch, dtype=torch.long)
    alphas_bar = nets_torch.cosine_alphas_bar()
    if spec.kind == "ddim":
        scheduler = nets_torch.sampling_scheduler(alphas_bar, spec.steps)
        start = torch.randn_like
        return lambda: nets_torch.ddim(net, scheduler, start(source), source, code)
    scheduler = nets_torch.training_scheduler(alphas_bar)
    return lambda: nets_torch.ldm_loss(net, scheduler, latents, source, code)
