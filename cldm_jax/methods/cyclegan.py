"""Baseline: CycleGAN (Zhu 2017), unpaired translation from PET to one target modality.

Two generators, two discriminators, least-squares losses, cycle and identity terms, image pools. The
pairing is ignored: read it with `data.paired=False`. One model per target.
"""

import jax
import jax.numpy as jnp

from cldm_jax.methods import adversarial
from cldm_jax.methods.base import Method, Prediction, deterministic
from cldm_jax.models.discriminator import PatchDiscriminator
from cldm_jax.models.init import init_params
from cldm_jax.models.resnet_generator import ResnetGenerator


def make(
    *, generator: dict, discriminator: dict, loss: dict, pool_size: int, optim: dict
) -> Method:
    """generator: keywords of ResnetGenerator without out_channels. discriminator: keywords of
    PatchDiscriminator. loss: cycle_weight, identity_weight (a share of cycle_weight). One source slice.
    """
    net = ResnetGenerator(out_channels=1, **generator)
    judge = PatchDiscriminator(**discriminator)

    def translate(params, x):
        return net.apply({"params": params}, x)

    def scores(params, x):
        return judge.apply({"params": params}, x)

    def init(rng, batch, frozen):
        source, target = batch["source"][:1], batch["target"][:1]
        there, back, of_target, of_source = jax.random.split(rng, 4)
        generators = {
            "forward": init_params(net, there, source),
            "backward": init_params(net, back, target),
        }
        judged = {"target": (of_target, target), "source": (of_source, source)}
        discriminators = {k: init_params(judge, *of) for k, of in judged.items()}
        pools = {k: adversarial.make_pool(pool_size, target.shape[1:]) for k in judged}
        return init_state(generators, discriminators, pools)

    def generator_loss(generators, discriminators, batch):
        source, target = batch["source"], batch["target"]
        fakes = {
            "target": translate(generators["forward"], source),
            "source": translate(generators["backward"], target),
        }
        gan = sum(adversarial.lsgan(scores(discriminators[k], fakes[k]), True) for k in fakes)
        cycle = jnp.abs(translate(generators["backward"], fakes["target"]) - source).mean()
        cycle += jnp.abs(translate(generators["forward"], fakes["source"]) - target).mean()
        identity = jnp.abs(translate(generators["forward"], target) - target).mean()
        identity += jnp.abs(translate(generators["backward"], source) - source).mean()
        total = gan + loss["cycle_weight"] * (cycle + loss["identity_weight"] * identity)
        return total, ({"gan": gan, "cycle": cycle, "identity": identity}, fakes)

    def discriminator_loss(discriminators, batch, fakes):
        return sum(
            0.5 * adversarial.lsgan(scores(discriminators[k], batch[k]), True)
            + 0.5 * adversarial.lsgan(scores(discriminators[k], fakes[k]), False)
            for k in ("target", "source")
        )

    init_state, train_step = adversarial.make_update(generator_loss, discriminator_loss, optim)

    def predict(state, batch, rng):
        return Prediction(translate(state.ema_params, batch["source"]))

    return deterministic(init, train_step, predict, reads=("source", "target"))
