"""The other side: MONAI's own autoencoder, U-Net and DDIM scheduler, used as a MONAI user would.

Images and latents are NCHW. Defaults are the benchmark's; `tasks_flax` builds the same networks.
"""

import torch
import torch.nn.functional as F
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

LATENT_CHANNELS = 4
KL_WEIGHT = 1e-6


def make_autoencoder(channels=(32, 64, 128), num_res_blocks: int = 2) -> AutoencoderKL:
    """[B, 1, H, W] <-> latents [B, 4, H/f, W/f], f = 2^(levels - 1); attention in the middle only."""
    return AutoencoderKL(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        channels=channels,
        latent_channels=LATENT_CHANNELS,
        num_res_blocks=num_res_blocks,
        norm_num_groups=16,
        attention_levels=(False,) * len(channels),
        use_flash_attention=True,
    )


def make_unet(
    channels=(64, 128, 256),
    num_classes: int = 4,
    has_attention=None,
    head_channels: int = 64,
    num_res_blocks: int = 2,
) -> DiffusionModelUNet:
    """Noisy latent and source latent [B, 4 + 4, h, w], step [B], class [B] -> [B, 4, h, w].

    has_attention: of every level; default all but the first.
    """
    has_attention = has_attention or (False,) + (True,) * (len(channels) - 1)
    return DiffusionModelUNet(
        spatial_dims=2,
        in_channels=2 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        channels=channels,
        num_res_blocks=num_res_blocks,
        attention_levels=has_attention,
        norm_num_groups=32,
        num_head_channels=tuple(head_channels if a else 0 for a in has_attention),
        num_class_embeds=num_classes,
        use_flash_attention=True,
    )


def autoencoder_loss(net, images):
    """L1 + 1e-6 KL (mean over the latent)."""
    reconstruction, mean, sigma = net(images)
    kl = 0.5 * (mean.pow(2) + sigma.pow(2) - torch.log(sigma.pow(2)) - 1).mean()
    return F.l1_loss(reconstruction, images) + KL_WEIGHT * kl


def ldm_loss(net, scheduler, latents, source, code):
    """Mean squared error of the v-prediction at random steps."""
    noise = torch.randn_like(latents)
    steps = scheduler.num_train_timesteps
    t = torch.randint(0, steps, latents.shape[:1], device=latents.device)
    noisy = scheduler.add_noise(latents, noise, t)
    target = scheduler.get_velocity(latents, noise, t)
    return F.mse_loss(net(torch.cat([noisy, source], 1), t, class_labels=code), target)


def make_optimizer(net, capturable: bool = False):
    """AdamW; `fused` is the fastest of torch's implementations. capturable: in a CUDA graph."""
    settings = dict(lr=1e-4, weight_decay=1e-2, fused=True, capturable=capturable)
    return torch.optim.AdamW(net.parameters(), **settings)


def set_schedule(scheduler, alphas_bar):
    """Replaces MONAI's noise schedule; alphas_bar [T] float32. Returns the scheduler."""
    scheduler.alphas_cumprod = torch.as_tensor(alphas_bar)
    return scheduler


def training_scheduler(alphas_bar) -> DDPMScheduler:
    return set_schedule(DDPMScheduler(num_train_timesteps=len(alphas_bar)), alphas_bar)


def sampling_scheduler(alphas_bar, num_sampling_steps: int, device="cpu") -> DDIMScheduler:
    """MONAI's DDIM with this project's schedule, v-prediction and trailing steps.

    `set_timesteps` spaces steps otherwise (linspace to 0) but `step` takes t - T // steps as the next
    one, which is exact for trailing steps where `num_sampling_steps` divides T. Zero terminal SNR works:
    with v-prediction nothing is divided by alphas_bar[T - 1] = 0.
    """
    total = len(alphas_bar)
    if total % num_sampling_steps:
        raise ValueError(f"num_sampling_steps {num_sampling_steps} does not divide {total}")
    scheduler = DDIMScheduler(
        num_train_timesteps=total, clip_sample=False, prediction_type="v_prediction"
    )
    set_schedule(scheduler, alphas_bar)
    scheduler.num_inference_steps = num_sampling_steps
    # The steps twice: on the device for the network, as numbers for `step`, which looks at their values.
    scheduler.steps = list(range(total - 1, -1, -(total // num_sampling_steps)))
    scheduler.timesteps = torch.tensor(scheduler.steps, device=device)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(device)
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.to(device)
    return scheduler


def ddim(net, scheduler, start, source, code):
    """Deterministic DDIM from the noise `start` [B, 4, h, w] -> latents of that shape."""
    z = start
    for i, t in enumerate(scheduler.steps):
        step = scheduler.timesteps[i].expand(len(z))
        v = net(torch.cat([z, source], 1), step, class_labels=code)
        z, _ = scheduler.step(v.float(), t, z)
    return z
