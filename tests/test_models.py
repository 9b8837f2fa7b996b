"""Layers against Flax's own, cheap initialisation against `module.init`, shapes of every network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cldm_jax.models import layers, monai
from cldm_jax.models.autoencoder import Autoencoder, fit_patch_basis
from cldm_jax.models.init import init_params
from cldm_jax.models.unet import ClassUNet, LatentUNet
from configs import ae

UNET = dict(
    base_channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attn_levels=(1,),
    groups=4,
    dtype="float32",
)
AE = dict(
    latent_channels=3,
    num_classes=4,
    stem_block=2,
    base_channels=8,
    channel_mult=(1,),
    num_res_blocks=1,
    middle_attention=False,
    init_logvar=-8.0,
)


def random(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("size, stride", [(3, 1), (3, 2), (1, 1)])
def test_conv_equals_flax(size, stride):
    x = random((2, 8, 8, 5))
    ours = layers.Conv(7, size, stride)
    params = init_params(ours, jax.random.key(0), x)
    theirs = nn.Conv(7, (size, size), (stride, stride))
    np.testing.assert_allclose(
        ours.apply({"params": params}, x), theirs.apply({"params": params}, x), atol=1e-5
    )


def test_group_norm_equals_flax():
    x = 3 + 2 * random((2, 6, 6, 12))
    params = {"scale": random((12,), 1), "bias": random((12,), 2)}
    ours = layers.GroupNorm(4, activate=False).apply({"params": params}, x)
    theirs = nn.GroupNorm(4, epsilon=1e-6).apply({"params": params}, x)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize("dtype, allowed", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_the_written_out_gradient_of_group_norm_is_its_gradient(activate, dtype, allowed):
    x, film = (3 * random((3, 6, 5, 16), 1) + 1).astype(dtype), random((3, 32), 2)
    params = {"params": {"scale": 1 + random((16,), 3), "bias": random((16,), 4)}}
    weight, norm = random(x.shape, 5), layers.GroupNorm(4, activate)

    def written(x, params, film):
        p, (more, shift) = params["params"], jnp.split(film, 2, axis=-1)
        gain, offset = p["scale"][None] * (1 + more), p["bias"][None] * (1 + more) + shift
        y = layers.normalise(x, gain, offset, 4, activate)
        return (y * weight).sum(), y

    def plain(x, params, film):
        y = norm.apply(params, x.astype(jnp.float32), film)
        return (y * weight).sum(), y

    found, y = jax.grad(written, (0, 1, 2), has_aux=True)(x, params, film)
    known, reference = jax.grad(plain, (0, 1, 2), has_aux=True)(x, params, film)
    for a, b in zip(jax.tree.leaves((found, y)), jax.tree.leaves((known, reference)), strict=True):
        np.testing.assert_allclose(
            np.float32(a), np.float32(b), atol=allowed * float(jnp.abs(b).max())
        )
    half = norm.apply(params, x.astype(jnp.bfloat16), film)  # what networks call
    np.testing.assert_allclose(np.float32(half), np.float32(reference), atol=0.1)


def test_space_to_depth_is_lossless():
    x = random((2, 8, 12, 3))
    y = layers.space_to_depth(x, 4)
    assert y.shape == (2, 2, 3, 48)
    assert (layers.depth_to_space(y, 4) == x).all()


def test_upsample_repeats_pixels():
    x = random((1, 2, 3, 4))
    np.testing.assert_array_equal(layers.upsample(x), x.repeat(2, 1).repeat(2, 2))


def latent_unet_args():
    label = jnp.array([1, 2])
    return random((2, 8, 8, 3)), jnp.array([0, 999]), label, random((2, 8, 8, 12))


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_patch_basis_of_flat_patches_is_not_left_to_the_processor(factor):
    """Patches of one grey each fix a single direction. The others must not turn with rounding errors."""
    grey = np.random.default_rng(0).normal(size=(6, 4, 4, 1)).repeat(factor, 1).repeat(factor, 2)
    noise = 1e-8 * np.random.default_rng(1).normal(size=grey.shape)
    label, channels = np.zeros(6, np.int32), factor**2
    bases = [fit_patch_basis(x, label, 1, factor, channels, False) for x in (grey, grey + noise)]
    first, second = (b["components"][0] for b in bases)
    np.testing.assert_allclose(first, second, atol=1e-3)
    np.testing.assert_allclose(first[:, 0], 1 / factor, atol=1e-4)
    np.testing.assert_allclose(first.T @ first, np.eye(channels), atol=1e-5)


def modules():
    net = LatentUNet(latent_channels=3, num_classes=4, unet=UNET)
    yield "latent_unet", net, latent_unet_args()
    unet = ClassUNet(num_classes=4, unet=UNET)
    yield "unet", unet, (random((2, 16, 16, 3)), jnp.array([1, 2]))
    x, label = random((2, 16, 16, 1)), jnp.array([0, 2])
    basis = fit_patch_basis(x, label, 4, 2, 3, False)
    yield "autoencoder", Autoencoder(**AE), (x, label, basis, jnp.zeros((2, 8, 8, 3)))


@pytest.mark.parametrize(
    "name, net, args", list(modules()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_cheap_init_has_the_shapes_and_scale_of_init(name, net, args):
    ours = init_params(net, jax.random.key(3), *args)
    theirs = jax.eval_shape(net.init, jax.random.key(3), *args)["params"]
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, theirs)
    again = init_params(net, jax.random.key(3), *args)
    other = init_params(net, jax.random.key(4), *args)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, ours, again)))
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, ours, other)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(ours):
        names = [p.key for p in path]
        if names[-1] == "kernel" and leaf.size > 500:
            want = 0 if names[-2].endswith("_zero") else 1 / np.sqrt(np.prod(leaf.shape[:-1]))
            assert abs(leaf.std() - want) < 0.15 * want + 1e-9, names


def test_networks_start_at_zero_output():
    _, net, args = next(iter(modules()))
    params = init_params(net, jax.random.key(0), *args)
    assert (net.apply({"params": params}, *args) == 0).all()


def test_time_class_and_condition_reach_the_output():
    _, net, args = next(iter(modules()))
    params = init_params(net, jax.random.key(0), *args)
    params = jax.tree.map(lambda p: p + 0.1 * random(p.shape, 5), params)
    base = net.apply({"params": params}, *args)
    zt, t, label, condition = args
    for changed in (
        (zt, t + 1, label, condition),
        (zt, t, 3 - label, condition),
        (zt, t, label, -condition),
    ):
        assert not np.allclose(net.apply({"params": params}, *changed), base)


def test_remat_keeps_names_and_numbers():
    _, net, args = next(iter(modules()))
    remat = LatentUNet(latent_channels=3, num_classes=4, unet={**UNET, "remat": True})
    params = init_params(net, jax.random.key(0), *args)
    params = jax.tree.map(lambda p: p + 0.1 * random(p.shape, 5), params)
    np.testing.assert_allclose(
        remat.apply({"params": params}, *args), net.apply({"params": params}, *args), atol=1e-5
    )


def test_remat_of_the_autoencoder_keeps_names_and_gradients():
    keywords = ae.get_config("tiny").recipe.model.to_dict()
    x, label = random((2, 16, 16, 1)), jnp.array([1, 2])
    net, remat = (Autoencoder(**{**keywords, "remat": flag}) for flag in (False, True))
    eps = random((2, 16 // net.factor, 16 // net.factor, net.latent_channels), 3)
    args = (x, label, None, eps)
    params = init_params(net, jax.random.key(0), *args)
    params = jax.tree.map(lambda p: p + 0.1 * random(p.shape, 5), params)

    def gradients(module):
        return jax.grad(lambda p: jnp.square(module.apply({"params": p}, *args)[0]).mean())(params)

    for one, other in zip(*map(jax.tree.leaves, map(gradients, (net, remat))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


def test_patch_basis_is_orthonormal_and_is_pca():
    x, label = random((8, 16, 16, 1)), jnp.array([1] * 8)
    basis = fit_patch_basis(x, label, 4, 2, 3, False)
    gram = np.einsum("cpi,cpj->cij", basis["components"], basis["components"])
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), (4, 3, 3)), atol=1e-5)
    patches = np.asarray(layers.space_to_depth(x, 2)).reshape(-1, 4)
    _, _, vt = np.linalg.svd(patches - patches.mean(0), full_matrices=False)
    cosine = np.abs((basis["components"][1] * vt[:3].T).sum(0))
    np.testing.assert_allclose(cosine, 1, atol=1e-4)


def test_autoencoder_starts_at_the_linear_ceiling():
    """Before training, decode(encode(x)) is the rank-3 projection of every 2x2 patch."""
    x, label = random((4, 16, 16, 1)), jnp.array([0, 1, 2, 2])
    net, basis = Autoencoder(**AE), None
    basis = fit_patch_basis(x, label, 4, 2, 3, False)
    eps = jnp.zeros((4, 8, 8, 3))
    params = init_params(net, jax.random.key(0), x, label, basis, eps)
    x_hat, mean, logvar = net.apply({"params": params}, x, label, basis, eps)
    assert mean.shape == (4, 8, 8, 3) and (logvar == -8).all()
    patches = np.asarray(layers.space_to_depth(x, 2))
    for i, code in enumerate(label.tolist()):
        v, m = basis["components"][code], basis["mean"][code]
        want = (patches[i] - m) @ v @ v.T + m
        got = np.asarray(layers.space_to_depth(x_hat[i : i + 1], 2))[0]
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_plain_autoencoder_factor():
    plain = Autoencoder(
        **{**AE, "stem_block": 1, "channel_mult": (1, 2, 2), "middle_attention": True}
    )
    x, label = random((1, 16, 16, 1)), jnp.array([1])
    eps = jnp.zeros((1, 4, 4, 3))
    params = init_params(plain, jax.random.key(0), x, label, None, eps)
    x_hat, mean, _ = jax.eval_shape(plain.apply, {"params": params}, x, label, None, eps)
    assert plain.factor == 4 and x_hat.shape == x.shape and mean.shape == (1, 4, 4, 3)


def test_cudnn_attention_is_asked_for_on_gpus_only(monkeypatch):
    """JAX looks for cuDNN before it lowers anything, so this is all that can be seen without it."""
    x = jnp.ones((1, 8, 8, 64), jnp.bfloat16)
    fused, plain = (
        layers.SelfAttention(8, attention=name, dtype=jnp.bfloat16) for name in ("cudnn", "xla")
    )
    params = plain.init(jax.random.key(0), x)
    np.testing.assert_array_equal(fused.apply(params, x), plain.apply(params, x))
    asked, attend = [], jax.nn.dot_product_attention

    def record(q, k, v, implementation):
        asked.append(implementation)
        return attend(q, k, v)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    for net in (fused, plain):
        net.apply(params, x)
    assert asked == ["cudnn", "xla"]
    assert layers.attention_for("cudnn", jnp.float32, 32) == "xla"  # its kernel takes 16 bits
    assert layers.attention_for("cudnn", jnp.bfloat16, 256) == "xla"  # and heads of up to 128
    assert layers.attention_for("cudnn", jnp.float16, 128) == "cudnn"


@pytest.mark.parametrize("channels", [8, 56, 74, 112])
def test_attention_takes_any_number_of_channels(channels):
    """Where 32 a head do not divide them, the heads are wider; else as ever."""
    net, x = layers.SelfAttention(groups=2), jnp.ones((1, 4, 4, channels))
    assert jax.eval_shape(net.init_with_output, jax.random.key(0), x)[0].shape == x.shape


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv(8, dtype=jnp.bfloat16),
        layers.Conv(8, 1, dtype=jnp.bfloat16),
        layers.Dense(8, dtype=jnp.bfloat16),
        layers.Conv(8, stride=2, padding=monai.CENTRED, dtype=jnp.bfloat16),
        layers.ResBlock(8, 4, dtype=jnp.bfloat16),
        monai.TimeResBlock(8, 4, dtype=jnp.bfloat16),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_bias_gradients_of_bfloat16_are_summed_in_float32(layer):
    """Sums over thousands of pixels: in bfloat16 they stop at 256 times the terms."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 128, 64, 8)), jnp.float32)
    is_block = isinstance(layer, layers.ResBlock | monai.TimeResBlock)
    extra = (jnp.ones((2, 16)),) if is_block else ()
    params = layer.init(jax.random.key(0), x, *extra)
    wide = layer.clone(dtype=jnp.float32)

    def gradients(layer):
        def loss(params):
            return layer.apply(params, x, *extra).astype(jnp.float32).sum()

        return flatten_dict(jax.grad(loss)(params))

    found, exact = gradients(layer), gradients(wide)
    checked = [k for k in exact if k[-1] == "bias" and jnp.abs(exact[k]).max() > 1000]
    assert checked
    for key in checked:
        np.testing.assert_allclose(found[key], exact[key], rtol=0.02, atol=60)
