"""The adversarial baselines: image pool, losses, unpaired learning, architectures of the references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cldm_jax.methods import adversarial
from cldm_jax.methods.registry import make_method
from cldm_jax.models.discriminator import PatchDiscriminator
from cldm_jax.models.init import init_params
from cldm_jax.models.resnet_generator import ReflectConv, ResnetGenerator
from cldm_jax.models.unet import AttentionGate
from cldm_jax.runtime.optim import make_optimizer
from configs import cyclegan

REFERENCE = cyclegan.get_config("a6000").recipe


def count(params) -> int:
    return sum(p.size for p in jax.tree.leaves(params))


def numbered(first: int, n: int):
    """n images [4, 4, 1], each filled with its own number."""
    return jnp.broadcast_to(
        jnp.arange(first, first + n, dtype=jnp.float32)[:, None, None, None], (n, 4, 4, 1)
    )


def test_a_pool_that_fills_passes_images_on():
    pool = adversarial.make_pool(6, (4, 4, 1))
    out, pool = adversarial.query_pool(pool, numbered(1, 4), jax.random.key(0))
    np.testing.assert_array_equal(out, numbered(1, 4))
    assert pool["count"] == 4
    np.testing.assert_array_equal(pool["images"][:4], numbered(1, 4))


def test_a_full_pool_swaps_half_of_them_and_loses_none():
    pool = adversarial.make_pool(50, (4, 4, 1))
    _, pool = adversarial.query_pool(pool, numbered(1, 50), jax.random.key(0))
    out, after = jax.jit(adversarial.query_pool)(pool, numbered(51, 400), jax.random.key(1))
    swapped = np.asarray(out[:, 0, 0, 0]) != np.arange(51, 451)
    assert 0.4 < swapped.mean() < 0.6
    # What came out and what stayed are together what went in, each image once.
    both = np.concatenate([out[:, 0, 0, 0], after["images"][:, 0, 0, 0]])
    np.testing.assert_array_equal(np.sort(both), np.arange(1, 451))


def test_losses_have_their_closed_forms():
    scores = jnp.array([0.0, 2.0])
    assert adversarial.lsgan(scores, True) == 1.0 and adversarial.lsgan(scores, False) == 2.0
    assert adversarial.cross_entropy(jnp.zeros(3), True) == pytest.approx(np.log(2))
    want = np.log1p(np.exp(scores)).mean()  # -log(1 - sigmoid)
    assert adversarial.cross_entropy(scores, False) == pytest.approx(want)


def test_reflection_leaves_no_border():
    """A constant image stays constant up to its border; zero padding would darken it."""
    net, x = ReflectConv(8, 7), jnp.ones((1, 16, 16, 8))
    params = init_params(net, jax.random.key(0), x)
    y = net.apply({"params": params}, x)
    np.testing.assert_allclose(y, jnp.broadcast_to(y[:, 8:9, 8:9], y.shape), rtol=1e-4, atol=1e-4)
    inner = jax.lax.conv_general_dilated(
        np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="reflect"),
        params["conv"]["kernel"],
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(y, inner, rtol=1e-4, atol=1e-5)


def test_reference_sizes():
    """ResNet-9 with 64 channels and a three-layer PatchGAN for one channel, as published in PyTorch:
    7x7, 3x3, 4x4 kernels and biases counted by hand; instance norms have no parameters.
    """
    x = jax.ShapeDtypeStruct((1, 64, 64, 1), jnp.float32)
    generator = ResnetGenerator(out_channels=1, **REFERENCE.generator.to_dict())
    conv = lambda k, c, d: k * k * c * d + d  # noqa: E731
    want = conv(7, 1, 64) + conv(3, 64, 128) + conv(3, 128, 256) + 18 * conv(3, 256, 256)
    want += conv(3, 256, 128) + conv(3, 128, 64) + conv(7, 64, 1)
    assert count(init_params(generator, jax.random.key(0), x)) == want == 11_365_633
    judge = PatchDiscriminator(**REFERENCE.discriminator.to_dict())
    want = (
        conv(4, 1, 64) + conv(4, 64, 128) + conv(4, 128, 256) + conv(4, 256, 512) + conv(4, 512, 1)
    )
    assert count(init_params(judge, jax.random.key(0), x)) == want == 2_762_689


def test_patches_of_the_discriminator_are_70_pixels_wide():
    judge = PatchDiscriminator(base_channels=4, num_layers=3)
    x = jnp.zeros((1, 128, 128, 1))
    params = init_params(judge, jax.random.key(0), x)

    # Instance norm looks at the whole image: leave it out by looking at the convolutions alone.
    def convolutions(x):
        for i in range(4):
            kernel = jnp.abs(params[f"conv{i}"]["kernel"])
            stride = (2, 2) if i < 3 else (1, 1)
            x = jax.lax.conv_general_dilated(
                x, kernel, stride, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        kernel = jnp.abs(params["head"]["kernel"])
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return x[0, 8, 8, 0]

    seen = np.flatnonzero(np.abs(jax.grad(convolutions)(x))[0].sum((1, 2)))
    assert seen.max() - seen.min() + 1 == 70


def test_a_gate_scales_the_skip_between_zero_and_one():
    gate = AttentionGate()
    skip, signal = jax.random.normal(jax.random.key(0), (2, 1, 8, 8, 6))
    params = init_params(gate, jax.random.key(1), skip, signal)
    out = gate.apply({"params": params}, skip, signal)
    alpha = out / skip
    np.testing.assert_allclose(alpha, jnp.broadcast_to(alpha[..., :1], alpha.shape), rtol=1e-4)
    assert alpha.min() > 0 and alpha.max() < 1
    closed = jax.tree.map(jnp.zeros_like, params)
    closed["psi"]["bias"] = jnp.array([-50.0])
    assert np.abs(gate.apply({"params": closed}, skip, signal)).max() < 1e-6


def test_decay_of_the_second_half():
    rates = dict(learning_rate=1.0, b1=0.5, b2=0.999, weight_decay=0.0, clip_norm=1e9)
    tx = make_optimizer(**rates, warmup_steps=10, num_train_steps=100, decay="second_half")
    params = {"w": jnp.zeros(())}
    state, sizes = tx.init(params), []
    for _ in range(100):
        updates, state = tx.update({"w": jnp.ones(())}, state, params)
        sizes.append(-float(updates["w"]))  # Adam of a constant gradient moves by the learning rate
    assert sizes[5] == pytest.approx(0.5, abs=0.01)
    assert sizes[20] == pytest.approx(1.0, abs=0.01) and sizes[49] == pytest.approx(sizes[20])
    assert sizes[75] == pytest.approx(0.5, abs=0.01) and sizes[99] == pytest.approx(0.02, abs=0.01)
    with pytest.raises(ValueError, match="unknown decay"):
        make_optimizer(**rates, warmup_steps=1, num_train_steps=2, decay="none")


def test_cyclegan_moves_to_the_other_domain_and_back():
    """Bright blobs on black against dark blobs on white, never paired. Which blob becomes what is not
    determined without pairs (why the method is a weak rival here); the domain and the way back are.
    """
    recipe = cyclegan.get_config("tiny").recipe.to_dict()
    recipe["loss"]["identity_weight"] = 0.0  # its pull is towards no change
    recipe["optim"] = {**recipe["optim"], "num_train_steps": 300, "learning_rate": 2e-3}
    method = make_method("cyclegan", **recipe)
    rng = np.random.default_rng(0)

    def pictures(n):
        coarse = (rng.random((n, 4, 4, 1)) < 0.3).astype(np.float32)
        return 1.6 * coarse.repeat(4, 1).repeat(4, 2) - 0.8

    def batch(n=8):
        return {"source": pictures(n), "target": -pictures(n)}

    state = method.init(jax.random.key(0), batch(), {})
    step = jax.jit(method.train_step, donate_argnums=0)
    cycles = []
    for i in range(300):
        state, metrics = step(state, batch(), jax.random.key(i))
        cycles.append(float(metrics["cycle"]))
    assert np.isfinite(float(metrics["loss"])) and np.mean(cycles[-10:]) < 0.4 * cycles[0]
    test = batch(16)
    image = method.predict["predict"](state, test, jax.random.key(0)).image
    assert test["source"].mean() < -0.2 and image.mean() == pytest.approx(0.32, abs=0.2)
    assert state.extra["target"]["count"] == recipe["pool_size"]
