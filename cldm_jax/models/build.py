"""The two networks of the latent method by the name of their architecture.

model["architecture"]: "cldm", this package's own (also where the key is absent: configs and checkpoints
that are older than the choice), or "monai", for weights that MONAI trained. The rest of `model` are
keywords of the network.
"""

from cldm_jax.models.autoencoder import Autoencoder
from cldm_jax.models.monai import AutoencoderKL, DiffusionModelUNet
from cldm_jax.models.unet import LatentUNet

AUTOENCODERS = {"cldm": Autoencoder, "monai": AutoencoderKL}
LATENT_UNETS = {"cldm": LatentUNet, "monai": DiffusionModelUNet}


def make_autoencoder(model: dict) -> Autoencoder | AutoencoderKL:
    """Raises ValueError for an unknown architecture."""
    make, keywords = _choose(AUTOENCODERS, model)
    return make(**keywords)


def make_latent_unet(model: dict, latent_channels: int) -> LatentUNet | DiffusionModelUNet:
    """Raises ValueError for an unknown architecture."""
    make, keywords = _choose(LATENT_UNETS, model)
    return make(latent_channels=latent_channels, **keywords)


def _choose(known: dict, model: dict):
    name = model.get("architecture", "cldm")
    if name not in known:
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(known)}")
    return known[name], {k: v for k, v in model.items() if k != "architecture"}
