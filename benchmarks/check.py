"""Dev-only, in an environment with benchmarks/requirements.txt: `python -m benchmarks.check`.

Both sides of the benchmark must be the same networks before they are timed: parameter counts, forward
FLOPs and, on carried random weights, the outputs of encoder, decoder, U-Net and a five-step DDIM. Then
`parity` and `published`: the product against MONAI, diffusers and published architectures. Exit status 1
where one differs; --out FILE keeps the rows (docs/results/parity.json).
"""

import argparse
import importlib.metadata
import sys

import jax
import jax.numpy as jnp
import torch
from monai.networks.blocks import SpatialAttentionBlock
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import flops, nets_torch, parity, published, tasks, tasks_flax
from benchmarks.compare import Row, carried, check_sizes, nhwc, normal, randomise
from cldm_jax import files
from cldm_jax.diffusion import schedule
from cldm_jax.runtime import device

SIZE, LATENT_SIZE, BATCH, STEPS = 64, 16, 2, 5
PACKAGES = ("jax", "flax", "torch", "monai", "diffusers")


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
    """Yields the rows of the benchmark's autoencoder."""
    net, module = nets_torch.make_autoencoder().eval(), tasks_flax.make_autoencoder()
    images = normal(1, BATCH, 1, SIZE, SIZE)
    x = jnp.asarray(nhwc(images))
    args = (x, None, None, jnp.zeros(tasks_flax.latent_shape(module, x)))
    randomise(net, 0)
    params = carried(module, net, *args)
    yield from check_sizes("autoencoder", net, params)
    reference = torch_flops(net, lambda: net(images))
    yield Row("autoencoder FLOPs", flops.forward_flops(module, *args), reference, 0)
    yield from parity.coded(
        "autoencoder, ", net, module, tasks_flax.prepare_variables({"params": params}), x
    )


def check_unet():
    """Yields the rows of the benchmark's U-Net and its sampler."""
    net, module = nets_torch.make_unet().eval(), tasks_flax.make_unet()
    randomise(net, 2)
    start, source = normal(3, 2, BATCH, 4, LATENT_SIZE, LATENT_SIZE)
    code, t = torch.arange(BATCH) + 1, torch.tensor([10, 700])
    both = torch.cat([start, source], 1)
    z, s = jnp.asarray(nhwc(start)), jnp.asarray(nhwc(source))
    args = (z, jnp.asarray(t.numpy()), jnp.asarray(code.numpy()), s)
    params = carried(module, net, *args)
    yield from check_sizes("U-Net", net, params)
    variables = tasks_flax.prepare_variables({"params": params})
    reference = torch_flops(net, lambda: net(both, t, class_labels=code))
    yield Row("U-Net FLOPs", flops.forward_flops(module, *args), reference, 0)
    alphas_bar, theirs = schedule.cosine(tasks.TIMESTEPS), nets_torch.cosine_alphas_bar()
    yield Row("noise schedule", theirs, alphas_bar, 0)
    scheduler = nets_torch.sampling_scheduler(theirs, STEPS)
    with torch.inference_mode():
        prediction = net(both, t, class_labels=code)
        sample = nets_torch.ddim(net, scheduler, start, source, code)
    yield Row("U-Net", jax.jit(module.apply)(variables, *args), nhwc(prediction))
    ddim = jax.jit(lambda v, *a: tasks_flax.ddim(module, v, *a, alphas_bar, STEPS))
    yield Row(f"DDIM, {STEPS} steps", ddim(variables, z, s, args[2]), nhwc(sample))


def main(argv=None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", help="JSON file of the rows")
    out, kept = parser.parse_args(argv).out, []
    for row in (*check_autoencoder(), *check_unet(), *parity.rows(), *published.rows()):
        number = "" if row.count is None else f" {row.count:,}"
        verdict = "ok" if row.is_met else f"DIFFERS (allowed {row.allowed:g})"
        print(f"check: {row.what}:{number} difference {row.difference:.1e} {verdict}", flush=True)
        own = {"what": row.what, "count": row.count, "difference": row.difference}
        kept.append({**own, "allowed": row.allowed, "ok": row.is_met})
    if out:
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        record = {"command": "python -m benchmarks.check", "hardware": device.describe()}
        files.write_json(out, {**record, "versions": versions, "rows": kept})
    return 0 if all(row["ok"] for row in kept) else 1


if __name__ == "__main__":
    sys.exit(main())
