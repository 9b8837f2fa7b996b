"""Both sides must be the same networks before they are timed: `python -m benchmarks.check`.

Compares parameter counts, forward FLOPs and, on carried random weights, the outputs of encoder, decoder,
U-Net and a five-step DDIM. Exit status 1 where one differs.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch
from monai.networks.blocks import SpatialAttentionBlock
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import carry, flops, nets_flax, nets_torch, tasks_flax, tasks_torch
from cldm_jax.diffusion import schedule

TOLERANCE = 1e-4  # largest difference over the largest value of the reference
SIZE, LATENT_SIZE, BATCH, STEPS = 64, 16, 2, 5


def randomise(net, seed: int) -> None:
    """Every parameter random: MONAI starts residual branches at zero, which would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            offset = 0.0 if parameter.ndim > 1 else 0.5
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(offset * (parameter == 1) + noise * 0.5 / fan_in**0.5)


def numpy_state(net) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in net.state_dict().items()}


def nhwc(x) -> np.ndarray:
    return x.detach().numpy().transpose(0, 2, 3, 1)


def carried(module, net, *args):
    """{"params"} of the Flax module with the weights of the MONAI net."""
    shapes = jax.eval_shape(lambda *a: module.init(jax.random.key(0), *a), *args)["params"]
    return {"params": carry.to_flax(numpy_state(net), shapes)}


def relative_difference(value, reference) -> float:
    value, reference = np.asarray(value, np.float64), np.asarray(reference, np.float64)
    if value.shape != reference.shape:
        raise ValueError(f"shapes differ: {value.shape}, {reference.shape}")
    scale = np.abs(reference).max() or 1.0
    return float(np.abs(value - reference).max() / scale)


def torch_flops(net, run) -> int:
    """FlopCounterMode, plus the attention products that it does not see on a CPU."""
    attention = 0

    def count(block, args, output):
        nonlocal attention
        b, c, h, w = args[0].shape
        attention += 4 * flops.attention_size((b, h, w, c))

    blocks = [m for m in net.modules() if isinstance(m, SpatialAttentionBlock)]
    hooks = [block.register_forward_hook(count) for block in blocks]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops() + attention


def check_autoencoder():
    """Yields (what, value, reference, allowed relative difference)."""
    net, module = nets_torch.make_autoencoder().eval(), nets_flax.Autoencoder()
    randomise(net, 0)
    images = torch.randn(BATCH, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    x, key = jnp.asarray(nhwc(images)), jax.random.key(0)
    carried_variables = carried(module, net, x, key)
    yield from _sizes("autoencoder", net, carried_variables["params"])
    variables = nets_flax.prepare_variables(carried_variables)
    ours = flops.forward_flops(module, x, key)
    yield "autoencoder FLOPs", ours, torch_flops(net, lambda: net(images)), 0
    with torch.inference_mode():
        mean, sigma = net.encode(images)
        reconstruction = net.decode(mean)
    encode = jax.jit(lambda v, x: module.apply(v, x, method="encode"))
    decode = jax.jit(lambda v, z: module.apply(v, z, method="decode"))
    ours_mean, ours_logvar = encode(variables, x)
    yield "encoder mean", ours_mean, nhwc(mean), TOLERANCE
    yield "encoder sigma", jnp.exp(0.5 * ours_logvar), nhwc(sigma), TOLERANCE
    yield "decoder", decode(variables, jnp.asarray(nhwc(mean))), nhwc(reconstruction), TOLERANCE


def check_unet():
    """Yields (what, value, reference, allowed relative difference)."""
    net, module = nets_torch.make_unet().eval(), nets_flax.UNet()
    randomise(net, 2)
    generator = torch.Generator().manual_seed(3)
    start, source = torch.randn(2, BATCH, 4, LATENT_SIZE, LATENT_SIZE, generator=generator)
    code, t = torch.arange(BATCH) + 1, torch.tensor([10, 700])
    both = torch.cat([start, source], 1)
    args = (jnp.asarray(nhwc(both)), jnp.asarray(t.numpy()), jnp.asarray(code.numpy()))
    carried_variables = carried(module, net, *args)
    yield from _sizes("U-Net", net, carried_variables["params"])
    variables = nets_flax.prepare_variables(carried_variables)
    reference = torch_flops(net, lambda: net(both, t, class_labels=code))
    yield "U-Net FLOPs", flops.forward_flops(module, *args), reference, 0
    alphas_bar = schedule.cosine(1000)
    yield "noise schedule", tasks_torch.cosine_alphas_bar(), alphas_bar, 0
    scheduler = nets_torch.sampling_scheduler(tasks_torch.cosine_alphas_bar(), STEPS)
    with torch.inference_mode():
        prediction = net(both, t, class_labels=code)
        sample = nets_torch.ddim(net, scheduler, start, source, code)
    yield "U-Net", jax.jit(module.apply)(variables, *args), nhwc(prediction), TOLERANCE
    ddim = jax.jit(lambda v, *a: tasks_flax.ddim(module, v, *a, alphas_bar, STEPS))
    ours = ddim(variables, jnp.asarray(nhwc(start)), jnp.asarray(nhwc(source)), args[2])
    yield f"DDIM, {STEPS} steps", ours, nhwc(sample), TOLERANCE


def _sizes(name: str, net, params):
    ours = sum(p.size for p in jax.tree.leaves(params))
    yield f"{name} parameters", ours, sum(p.numel() for p in net.parameters()), 0
    back = carry.to_state_dict(params, net.state_dict())
    wrong = sum(not np.array_equal(back[k], v) for k, v in numpy_state(net).items())
    yield f"{name} weights that change there and back", wrong, 0, 0


def main() -> int:
    failed = 0
    for what, value, reference, allowed in (*check_autoencoder(), *check_unet()):
        difference = relative_difference(value, reference)
        failed += not difference <= allowed
        number = f" {int(value):,}" if np.ndim(value) == 0 and allowed == 0 else ""
        verdict = "ok" if difference <= allowed else f"DIFFERS (allowed {allowed:g})"
        print(f"check: {what}:{number} difference {difference:.1e} {verdict}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
