"""Methods by name; an unknown name is answered with the known ones."""

from cldm_jax.errors import UserError
from cldm_jax.methods import (
    autoencoder,
    cyclegan,
    distributional,
    latent_diffusion,
    pix2pix,
    regression,
)
from cldm_jax.methods.base import Method

METHODS = {
    "autoencoder": autoencoder.make,
    "ldm": latent_diffusion.make,
    "unet": regression.make,
    "distributional": distributional.make,
    "cyclegan": cyclegan.make,
    "pix2pix": pix2pix.make,
}


def make_method(name: str, **kwargs) -> Method:
    """kwargs: the recipe's settings. UserError for a name that is not known, and for settings that
    cannot work together.
    """
    if name not in METHODS:
        raise UserError(f"method {name!r}", "not known", f"Choose one of: {', '.join(METHODS)}.")
    try:
        method = METHODS[name](**kwargs)
        if not method.predict:
            raise ValueError("no read-out: num_samples is empty and there are no one-step rows")
    except ValueError as error:
        raise UserError("config.recipe", str(error), "Change one of these settings.") from error
    return method
