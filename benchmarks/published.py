"""The product against diffusers' DDIM, MONAI's attention gates and the published CycleGAN. Rows for
`python -m benchmarks.check`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import DDIMScheduler
from monai.networks.nets.attentionunet import AttentionBlock

from benchmarks.compare import Row
from benchmarks.flops import count_parameters, shapes_of
from cldm_jax.diffusion import samplers, schedule
from cldm_jax.models import unet
from cldm_jax.models.discriminator import PatchDiscriminator
from cldm_jax.models.resnet_generator import ResnetGenerator

STEPS, NUM_TIMESTEPS = (5, 10, 50), 1000
DDIM_TOLERANCE = 1e-5
SCHEDULE_TOLERANCE = 1e-6  # diffusers multiplies its alphas in float32: 5e-7 from float64


def rows():
    yield from _schedules()
    yield from _ddim()
    yield from _gates()
    yield from _cyclegan()


def _their_scheduler(is_zero_snr: bool, prediction: str) -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type=prediction,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=is_zero_snr,
    )


def _schedules():
    for name, is_zero_snr in (("scaled_linear", True), ("scaled_linear_plain", False)):
        reference = _their_scheduler(is_zero_snr, "epsilon").alphas_cumprod.numpy()
        ours = schedule.SCHEDULES[name](NUM_TIMESTEPS)
        yield Row(f"noise schedule {name}", ours, reference, SCHEDULE_TOLERANCE)


def _ddim():
    """Every latent on the way of both samplers, with a network that depends on latent and step."""
    rng = np.random.default_rng(0)
    start, matrix = rng.standard_normal((2, 8, 8, 4)), rng.standard_normal((4, 4)) / 2
    start, matrix = start.astype(np.float32), matrix.astype(np.float32)
    cases = [("scaled_linear", True, "v", "v_prediction")]
    cases += [("scaled_linear_plain", False, "v", "v_prediction")]
    cases += [("scaled_linear_plain", False, "eps", "epsilon")]
    for name, is_zero_snr, target, prediction in cases:
        for steps in STEPS:
            scheduler = _their_scheduler(is_zero_snr, prediction)
            reference = _their_way(scheduler, start, matrix, steps)
            ours = _our_way(schedule.SCHEDULES[name](NUM_TIMESTEPS), start, matrix, target, steps)
            what = f"DDIM, {name}, {target}, {steps} steps, every latent"
            yield Row(what, ours, reference, DDIM_TOLERANCE)


def _our_way(alphas_bar, start, matrix, target: str, steps: int) -> np.ndarray:
    way = []

    def denoise(z, t):
        jax.debug.callback(lambda z: way.append(np.asarray(z)), z, ordered=True)
        return jnp.tanh(z @ matrix + t[:, None, None, None] / NUM_TIMESTEPS)

    options = dict(target=target, num_sampling_steps=steps, eta=0.0, noise_fn=jnp.zeros)
    end = samplers.ddim(denoise, jnp.asarray(start), alphas_bar, **options)
    jax.effects_barrier()
    return np.stack([*way, np.asarray(end)])


def _their_way(scheduler, start, matrix, steps: int) -> np.ndarray:
    scheduler.set_timesteps(steps)
    z, matrix = torch.from_numpy(start), torch.from_numpy(matrix)
    way = [z]
    for t in scheduler.timesteps:
        answer = torch.tanh(z @ matrix + t / NUM_TIMESTEPS)
        z = scheduler.step(answer, t, z, eta=0.0).prev_sample
        way.append(z)
    return torch.stack(way).numpy()


def _gates():
    """The Attention U-Net is the U-Net and MONAI's gates without their batch normalisation."""
    settings = dict(out_channels=1, base_channels=8, channel_mult=(1, 2, 4), num_res_blocks=1)
    x, emb = jnp.zeros((1, 16, 16, 1)), jnp.zeros((1, 8))
    plain, gated = (
        shapes_of(unet.UNet(**settings, attn_levels=(), attention_gates=g), x, emb)
        for g in (False, True)
    )
    gates = {name: tree for name, tree in gated.items() if name not in plain}
    reference = 0
    for tree in gates.values():
        skip, gate = (tree[name]["kernel"].shape[2] for name in ("theta", "phi"))
        block = AttentionBlock(2, skip // 2, gate, skip)  # half the skip's channels, as published
        convolutions = (m for m in block.modules() if isinstance(m, torch.nn.Conv2d))
        reference += sum(p.numel() for m in convolutions for p in m.parameters())
    added = count_parameters(gated) - count_parameters(plain)
    yield Row("Attention U-Net less U-Net, gates of MONAI without BatchNorm", added, reference, 0)


def _cyclegan():
    """Parameters of the networks of Zhu 2017 (64 channels, one image channel; instance norm has none)."""
    conv, up = torch.nn.Conv2d, torch.nn.ConvTranspose2d
    generator = [conv(1, 64, 7), conv(64, 128, 3, 2, 1), conv(128, 256, 3, 2, 1)]
    generator += [conv(256, 256, 3) for _ in range(2 * 9)]
    generator += [up(256, 128, 3, 2, 1, 1), up(128, 64, 3, 2, 1, 1), conv(64, 1, 7)]
    discriminator = [conv(1, 64, 4, 2, 1), conv(64, 128, 4, 2, 1), conv(128, 256, 4, 2, 1)]
    discriminator += [conv(256, 512, 4, 1, 1), conv(512, 1, 4, 1, 1)]
    x = jnp.zeros((1, 64, 64, 1))
    for name, module, layers in (
        ("ResNet-9 generator", ResnetGenerator(1, 64, 9), generator),
        ("70 x 70 PatchGAN", PatchDiscriminator(64, 3), discriminator),
    ):
        reference = sum(p.numel() for layer in layers for p in layer.parameters())
        yield Row(f"CycleGAN, {name}", count_parameters(shapes_of(module, x)), reference, 0)
