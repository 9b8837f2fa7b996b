"""A trained autoencoder as two functions: what the latent methods and the encode job need of it."""

from collections.abc import Callable
from typing import NamedTuple

from cldm_jax.models.build import make_autoencoder


class Codec(NamedTuple):
    """variables: {"params", "patch" (or absent)}; label [B]: the modality's class code."""

    factor: int  # pixels per latent cell, each way
    latent_channels: int
    encode: Callable  # (variables, images [B, H, W, 1], label) -> posterior mean [B, h, w, C]
    decode: Callable  # (variables, z [B, h, w, C], label) -> images [B, H, W, 1]
    project: Callable  # (variables with "patch", images, label) -> images of the linear code alone


def make_codec(model: dict) -> Codec:
    """model: of `make_autoencoder`."""
    net = make_autoencoder(model)

    def apply(variables, x, label, method):
        params = {"params": variables["params"]}
        return net.apply(params, x, label, variables.get("patch"), method=method)

    def encode(variables, images, label):
        return apply(variables, images, label, method="encode")[0]

    def decode(variables, z, label):
        return apply(variables, z, label, method="decode")

    def project(variables, images, label):
        linear, patch = make_autoencoder({**model, "linear": True}), variables["patch"]
        z = linear.apply({}, images, label, patch, method="encode")[0]
        return linear.apply({}, z, label, patch, method="decode")

    return Codec(net.factor, model["latent_channels"], encode, decode, project)
