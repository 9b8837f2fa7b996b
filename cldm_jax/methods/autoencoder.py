"""Phase one: the KL autoencoder shared by PET, CT and MR (Rombach 2022, with a linear skip path)."""

import jax
import jax.numpy as jnp

from cldm_jax.methods.base import Method, Prediction
from cldm_jax.methods.codec import make_codec
from cldm_jax.methods.common import make_update
from cldm_jax.models.autoencoder import fit_patch_basis
from cldm_jax.models.build import make_autoencoder
from cldm_jax.models.init import init_params


def kl_divergence(mean, logvar):
    """KL(N(mean, exp(logvar)) || N(0, 1)) summed over the latent, [B] (Kingma & Welling, eq. 10)."""
    terms = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar)
    return terms.sum(axis=(1, 2, 3))


def make(*, model: dict, patch_skip: bool, loss: dict, optim: dict) -> Method:
    """model: of `make_autoencoder`. loss: l1_weight, l2_weight (pixel means), kl_weight (on the KL
    summed over the latent and averaged over the batch: MONAI's convention, so 1e-6 means what it means
    there). patch_skip: principal components of the training patches as the skip path.
    """
    net, codec = make_autoencoder(model), make_codec(model)
    if model.get("linear") and not patch_skip:
        raise ValueError("a linear autoencoder is its patch transform: patch_skip must be True")
    most = net.factor**2
    if patch_skip and model["latent_channels"] > most:
        raise ValueError(f"patch_skip: a cell of {most} pixels has at most {most} latent_channels")

    def latent_shape(images):
        b, h, w, _ = images.shape
        return b, h // net.factor, w // net.factor, model["latent_channels"]

    def init(rng, batch, frozen):
        images, label = batch["target"], batch["label"]
        patch = None
        if patch_skip:
            patch = fit_patch_basis(
                images,
                label,
                model["num_classes"],
                net.factor,
                model["latent_channels"],
                model.get("lapped", False),  # MONAI's know neither patches nor laps
            )
        eps = jnp.zeros(latent_shape(images[:1]))
        params = init_params(net, rng, images[:1], label[:1], patch, eps)
        return init_state(params, {} if patch is None else {"patch": patch})

    def draw(rng, batch):
        return {"eps": jax.random.normal(rng, latent_shape(batch["target"]))}

    def loss_fn(params, state, batch, noise):
        x, label = batch["target"], batch["label"]
        patch = state.frozen.get("patch")
        x_hat, mean, logvar = net.apply({"params": params}, x, label, patch, noise["eps"])
        l1, l2 = jnp.abs(x_hat - x).mean(), jnp.square(x_hat - x).mean()
        kl = kl_divergence(mean, logvar).mean()
        total = loss["l1_weight"] * l1 + loss["l2_weight"] * l2 + loss["kl_weight"] * kl
        return total, {"l1": l1, "l2": l2, "kl": kl, "posterior_std": jnp.exp(0.5 * logvar).mean()}

    init_state, train_step = make_update(loss_fn, optim, draw)

    def reconstruct(state, batch, rng):
        """The ceiling: encode and decode the true target (posterior mean)."""
        variables = {"params": state.ema_params, **state.frozen}
        z = codec.encode(variables, batch["target"], batch["label"])
        return Prediction(codec.decode(variables, z, batch["label"]))

    read_outs = {"reconstruct": reconstruct}
    return Method(init, train_step, read_outs, {"reconstruct": 1}, reads=("target", "label"))
