"""Image-space regression baseline: a class-conditioned U-Net trained on L1 or L2."""

import jax.numpy as jnp

from cldm_jax.methods.base import Method, Prediction, deterministic
from cldm_jax.methods.common import make_update
from cldm_jax.models.init import init_params
from cldm_jax.models.unet import ClassUNet


def make(*, model: dict, loss: str, optim: dict) -> Method:
    """model: keywords of ClassUNet. loss: "l2" (the PSNR-optimal one) or "l1"."""
    if loss not in ("l1", "l2"):
        raise ValueError(f"unknown loss {loss!r}; known: l1, l2")
    net = ClassUNet(**model)

    def init(rng, batch, frozen):
        return init_state(init_params(net, rng, batch["source"][:1], batch["label"][:1]), {})

    def loss_fn(params, state, batch, noise):
        error = net.apply({"params": params}, batch["source"], batch["label"]) - batch["target"]
        value = jnp.square(error).mean() if loss == "l2" else jnp.abs(error).mean()
        return value, {}

    init_state, train_step = make_update(loss_fn, optim)

    def predict(state, batch, rng):
        params = {"params": state.ema_params}
        return Prediction(net.apply(params, batch["source"], batch["label"]))

    return deterministic(init, train_step, predict)
