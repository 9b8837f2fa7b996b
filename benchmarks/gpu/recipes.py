"""Configs of the product for what is raced: its own recipes with other widths. No JAX here."""

from benchmarks.gpu.sizes import Sizes
from benchmarks.tasks import LATENT_CHANNELS


def monai_autoencoder(sizes: Sizes, dtype: str = "bfloat16"):
    """The network of `nets_torch.make_autoencoder` as a training of the product."""
    from configs import monai_ae

    c = monai_ae.get_config(sizes.preset)
    c.data.prepare.size = sizes.image
    c.train.batch_size = sizes.ae_batch
    c.recipe.optim.accumulate, c.recipe.optim.optimizer = 1, "adamw"  # as the other side
    with c.unlocked():
        c.recipe.model.channels = sizes.ae_channels
        c.recipe.model.num_res_blocks = (sizes.blocks,) * len(sizes.ae_channels)
        c.recipe.model.attention_levels = (False,) * len(sizes.ae_channels)
    model = c.recipe.model
    model.latent_channels, model.norm_num_groups = LATENT_CHANNELS, 16
    model.with_encoder_nonlocal_attn = model.with_decoder_nonlocal_attn = True
    model.dtype = dtype
    return c


def monai_ldm(sizes: Sizes, unet: str, batch: int, dtype: str = "bfloat16"):
    """The latent method with MONAI's two networks, this project's schedule, target and one-step rows."""
    from configs import monai_ldm as config

    c = config.get_config(sizes.preset)
    c.autoencoder.train = monai_autoencoder(sizes, dtype)
    c.data.prepare.size = sizes.image
    c.train.batch_size = batch
    channels = sizes.unets[unet]
    with c.unlocked():
        c.recipe.model.channels = channels
        c.recipe.model.num_res_blocks = (sizes.blocks,) * len(channels)
        c.recipe.model.attention_levels = (False,) * (len(channels) - 1) + (True,)
        c.recipe.model.num_head_channels = (sizes.head_channels,) * len(channels)
    c.recipe.model.norm_num_groups = 32
    c.recipe.model.dtype = dtype
    c.recipe.optim.optimizer = "adamw"  # as the other side
    c.recipe.diffusion.schedule, c.recipe.diffusion.target = "cosine", "v"
    c.recipe.diffusion.onestep_share = (1.0, 0.5)
    sampling = c.recipe.sampling
    sampling.num_sampling_steps, sampling.noise_slices = sizes.ddim_steps, 0.0
    sampling.num_samples, sampling.jump_from = (1,), 0.0
    return c


def own_ldm(sizes: Sizes, unet: str, batch: int, dtype: str = "bfloat16"):
    """The product's own CLDM at 1 mm with the width of `unet`, attention at the lowest level."""
    from configs import ldm

    c = ldm.get_config(sizes.preset)
    c.recipe.diffusion.young_at, c.recipe.sampling.autoguidance_scale = 0.0, 1.0  # one network
    c.train.batch_size = batch
    c.autoencoder.train.recipe.model.dtype = dtype
    model = c.recipe.model.unet
    channels = sizes.unets[unet]
    with c.unlocked():
        model.base_channels = channels[0]
        model.channel_mult = tuple(n // channels[0] for n in channels)
        model.attn_levels = (len(channels) - 1,)
    model.num_res_blocks, model.dtype = sizes.blocks, dtype
    return c
