"""Networks that are compared with MONAI's: {case: MONAI's keywords}. No PyTorch here."""

from cldm_jax.models import monai

LATENTS, NUM_CLASSES = 3, 4
_SHARED = ("channels", "num_res_blocks", "attention_levels", "norm_num_groups")
_OF_AUTOENCODERS = (*_SHARED, "with_encoder_nonlocal_attn", "with_decoder_nonlocal_attn")
_OF_UNETS = (*_SHARED, "num_head_channels", "num_class_embeds")


def _named(names: tuple, *values) -> dict:
    return dict(zip(names, values, strict=True))


AUTOENCODERS = {
    "2 levels, no attention": _named(_OF_AUTOENCODERS, (8, 16), 1, (False, False), 8, False, False),
    "3 levels, blocks by level, attention at one and in the encoder's middle": _named(
        _OF_AUTOENCODERS, (8, 16, 16), (1, 2, 1), (False, True, False), 8, True, False
    ),
    "3 levels, attention at the lowest and in both middles": _named(
        _OF_AUTOENCODERS, (16, 32, 32), 2, (False, False, True), 16, True, True
    ),
}
UNETS = {  # case -> keywords, channels of the condition
    "2 levels, no classes, no condition": (
        _named(_OF_UNETS, (32, 64), 1, (False, True), 32, 32, None),
        0,
    ),
    "3 levels, blocks and heads by level": (
        _named(_OF_UNETS, (16, 32, 32), (1, 2, 1), (True, False, True), 8, (8, 0, 16), NUM_CLASSES),
        3,
    ),
    "3 levels, two of them with attention": (
        _named(_OF_UNETS, (32, 64, 64), 2, (False, True, True), 32, (0, 32, 64), NUM_CLASSES),
        6,
    ),
}


def autoencoder(keywords: dict) -> monai.AutoencoderKL:
    return monai.AutoencoderKL(latent_channels=LATENTS, num_classes=NUM_CLASSES, **keywords)


def unet(keywords: dict) -> monai.DiffusionModelUNet:
    classes = keywords["num_class_embeds"] or 0
    return monai.DiffusionModelUNet(LATENTS, **{**keywords, "num_class_embeds": classes})
