"""What the PyTorch worker times: the same tasks as `tasks_flax`, in NCHW shapes."""

from collections.abc import Callable

import torch

from benchmarks import nets_torch, tasks

KINDS = ("ae_train", "ae_encode", "ae_decode", "ldm_train", "ddim")


def make_task(
    spec: tasks.Spec, *, bf16: bool = False, channels_last: bool = False
) -> tuple[Callable, dict]:
    """(call, facts). bf16: autocast. channels_last: of weights and inputs. Raises KeyError for an
    unknown kind.
    """
    if spec.kind not in KINDS:
        raise KeyError(spec.kind)
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    is_ae, trains = spec.kind.startswith("ae"), spec.kind.endswith("train")
    net = nets_torch.make_autoencoder() if is_ae else nets_torch.make_unet()
    net = net.to(memory_format=layout)
    function = (_autoencoder if is_ae else _unet)(spec, net, layout)
    call = (_training if trains else _inference)(net, function, bf16)
    return call, {"params": sum(p.numel() for p in net.parameters())}


def _training(net, loss, bf16: bool):
    """The loss and its backward pass, then AdamW; autocast around the forward pass only."""
    optimizer = nets_torch.make_optimizer(net.train())

    def call():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = loss()
        value.backward()
        optimizer.step()

    return call


def _inference(net, function, bf16: bool):
    net.eval()

    def call():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
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
