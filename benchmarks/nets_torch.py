"""The other side: MONAI's own autoencoder, U-Net and DDIM scheduler, used as a MONAI user would.

Images and latents are NCHW. Defaults are the benchmark's; `tasks_flax` builds the same networks.
"""

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

from benchmarks import tasks
from benchmarks.tasks import LATENT_CHANNELS


def make_autoencoder(**changes) -> AutoencoderKL:
    """[B, 1, H, W] <-> latents [B, 4, H/f, W/f], f = 2^(levels - 1). changes: to tasks.AUTOENCODER."""
    keywords = dict(spatial_dims=2, in_channels=1, out_channels=1, use_flash_attention=True)
    return AutoencoderKL(**keywords, **{**tasks.AUTOENCODER, **changes})


def make_unet(**changes) -> DiffusionModelUNet:
    """Noisy latent and source latent [B, 4 + 4, h, w], step [B], class [B] -> [B, 4, h, w].

    changes: to tasks.UNET.
    """
    keywords = dict(spatial_dims=2, in_channels=2 * LATENT_CHANNELS, out_channels=LATENT_CHANNELS)
    return DiffusionModelUNet(**keywords, use_flash_attention=True, **{**tasks.UNET, **changes})


def cosine_alphas_bar(num_timesteps: int = tasks.TIMESTEPS) -> np.ndarray:
    """The project's cosine schedule with zero terminal SNR, float32 [T] (checked to be the same)."""
    u = np.arange(1, num_timesteps + 1, dtype=np.float64) / num_timesteps
    alphas_bar = np.cos(0.5 * np.pi * u) ** 2
    alphas_bar[-1] = 0.0
    return alphas_bar.astype(np.float32)


def autoencoder_loss(net, images):
    """L1 + 1e-6 KL (mean over the latent)."""
    reconstruction, mean, sigma = net(images)
    kl = 0.5 * (mean.pow(2) + sigma.pow(2) - torch.log(sigma.pow(2)) - 1).mean()
    return F.l1_loss(reconstruction, images) + tasks.KL_WEIGHT * kl


def ldm_loss(net, scheduler, latents, source, code):
    """Mean squared error of the v-prediction at random steps."""
    noise = torch.randn_like(latents)
    steps = scheduler.num_train_timesteps
    t = torch.randint(0, steps, latents.shape[:1], device=latents.device)
    noisy = scheduler.add_noise(latents, noise, t)
    target = scheduler.get_velocity(latents, noise, t)
    return F.mse_loss(net(torch.cat([noisy, source], 1), t, class_labels=code), target)


def training(net, loss, autocast, capturable: bool = False):
    """() -> None: loss(), its backward pass and AdamW, of whose implementations `fused` is the fastest;
    autocast() around the forward pass only. capturable: in a CUDA graph.
    """
    settings = dict(lr=tasks.LEARNING_RATE, weight_decay=tasks.WEIGHT_DECAY, capturable=capturable)
    optimizer = torch.optim.AdamW(net.train().parameters(), fused=True, **settings)

    def call():
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            value = loss()
        value.backward()
        optimizer.step()

    return call


def training_scheduler(alphas_bar) -> DDPMScheduler:
    """MONAI's DDPM with another noise schedule, float32 [T]."""
    scheduler = DDPMScheduler(num_train_timesteps=len(alphas_bar))
    scheduler.alphas_cumprod = torch.as_tensor(alphas_bar)
    return scheduler


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
    scheduler.num_inference_steps = num_sampling_steps
    # The steps twice: on the device for the network, as numbers for `step`, which looks at their values.
    scheduler.steps = list(range(total - 1, -1, -(total // num_sampling_steps)))
    scheduler.timesteps = torch.tensor(scheduler.steps, device=device)
    scheduler.alphas_cumprod = torch.as_tensor(alphas_bar, device=device)
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
