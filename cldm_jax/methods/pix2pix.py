"""Baseline: pix2pix (Isola 2017), an L1 regression with a conditional PatchGAN on top.

The generator is the class-conditioned U-Net of the regression baseline, so that the loss is what
differs; no dropout. The discriminator sees source, image and the class code as a constant plane.
"""

import jax
import jax.numpy as jnp

from cldm_jax.methods import adversarial
from cldm_jax.methods.base import Method, Prediction, deterministic
from cldm_jax.models.discriminator import PatchDiscriminator
from cldm_jax.models.init import init_params
from cldm_jax.models.unet import ClassUNet


def make(*, generator: dict, discriminator: dict, loss: dict, optim: dict) -> Method:
    """generator: keywords of ClassUNet. discriminator: of PatchDiscriminator. loss: l1_weight."""
    net, judge = ClassUNet(**generator), PatchDiscriminator(**discriminator)

    def translate(params, batch):
        return net.apply({"params": params}, batch["source"], batch["label"])

    def judged(batch, image):
        """source [B, H, W, S], image and the code in [0, 1] as a plane."""
        plane = batch["label"].astype(jnp.float32)[:, None, None, None] / generator["num_classes"]
        return jnp.concatenate([batch["source"], image, jnp.broadcast_to(plane, image.shape)], -1)

    def scores(params, batch, image):
        return judge.apply({"params": params}, judged(batch, image))

    def init(rng, batch, frozen):
        first = {k: v[:1] for k, v in batch.items()}
        keys = jax.random.split(rng)
        generators = {"forward": init_params(net, keys[0], first["source"], first["label"])}
        example = judged({**first, "label": jnp.asarray(first["label"])}, first["target"])
        return init_state(generators, {"target": init_params(judge, keys[1], example)}, {})

    def generator_loss(generators, discriminators, batch):
        fake = translate(generators["forward"], batch)
        gan = adversarial.cross_entropy(scores(discriminators["target"], batch, fake), True)
        l1 = jnp.abs(fake - batch["target"]).mean()
        return gan + loss["l1_weight"] * l1, ({"gan": gan, "l1": l1}, {"target": fake})

    def discriminator_loss(discriminators, batch, fakes):
        params = discriminators["target"]
        real = adversarial.cross_entropy(scores(params, batch, batch["target"]), True)
        fake = adversarial.cross_entropy(scores(params, batch, fakes["target"]), False)
        return 0.5 * (real + fake)

    init_state, train_step = adversarial.make_update(generator_loss, discriminator_loss, optim)

    def predict(state, batch, rng):
        return Prediction(translate(state.ema_params, batch))

    return deterministic(init, train_step, predict)
