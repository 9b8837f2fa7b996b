"""Methods by name; an unknown name is answered with the known ones."""

import functools

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

REMEDY = "Change one of these settings."
METHODS = {
    "autoencoder": autoencoder.make,
    "ldm": latent_diffusion.make,
    "unet": regression.make,
    "distributional": distributional.make,
    "cyclegan": cyclegan.make,
    "pix2pix": pix2pix.make,
}


def make_method(name: str, **kwargs) -> Method:
    """kwargs: the recipe's settings. UserError for a name that is not known and, here or from `init`,
    for settings that cannot work together.
    """
    if name not in METHODS:
        raise UserError(f"method {name!r}", "not known", f"Choose one of: {', '.join(METHODS)}.")
    method = _named(METHODS[name])(**kwargs)
    if not method.predict:
        reason = "no read-out: num_samples is empty and there are no one-step rows"
        raise UserError("config.recipe", reason, REMEDY)
    return method._replace(init=_named(method.init))


def _named(function):
    """`function`, whose ValueErrors are the user's to mend."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            raise UserError("config.recipe", str(error), REMEDY) from error

    return call
