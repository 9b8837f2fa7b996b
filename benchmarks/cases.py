"""Networks that are compared with MONAI's: {case: MONAI's keywords}. No PyTorch here."""

from cldm_jax.models import monai

LATENTS, NUM_CLASSES = 3, 4
AUTOENCODERS = {
    "2 levels, no attention": dict(
        channels=(8, 16),
        num_res_blocks=1,
        attention_levels=(False, False),
        norm_num_groups=8,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    ),
    "3 levels, blocks by level, attention at one and in the encoder's middle": dict(
        channels=(8, 16, 16),
        num_res_blocks=(1, 2, 1),
        attention_levels=(False, True, False),
        norm_num_groups=8,
        with_decoder_nonlocal_attn=False,
    ),
    "3 levels, attention at the lowest and in both middles": dict(
        channels=(16, 32, 32),
        num_res_blocks=2,
        attention_levels=(False, False, True),
        norm_num_groups=16,
    ),
}
UNETS = {  # case -> keywords, channels of the condition
    "2 levels, no classes, no condition": (
        dict(
            channels=(32, 64),
            num_res_blocks=1,
            attention_levels=(False, True),
            norm_num_groups=32,
            num_head_channels=32,
            num_class_embeds=None,
        ),
        0,
    ),
    "3 levels, blocks and heads by level": (
        dict(
            channels=(16, 32, 32),
            num_res_blocks=(1, 2, 1),
            attention_levels=(True, False, True),
            norm_num_groups=8,
            num_head_channels=(8, 0, 16),
            num_class_embeds=NUM_CLASSES,
        ),
        3,
    ),
    "3 levels, two of them with attention": (
        dict(
            channels=(32, 64, 64),
            num_res_blocks=2,
            attention_levels=(False, True, True),
            norm_num_groups=32,
            num_head_channels=(0, 32, 64),
            num_class_embeds=NUM_CLASSES,
        ),
        6,
    ),
}


def autoencoder(keywords: dict) -> monai.AutoencoderKL:
    return monai.AutoencoderKL(latent_channels=LATENTS, num_classes=NUM_CLASSES, **keywords)


def unet(keywords: dict) -> monai.DiffusionModelUNet:
    classes = keywords["num_class_embeds"] or 0
    return monai.DiffusionModelUNet(LATENTS, **{**keywords, "num_class_embeds": classes})
