"""The product against what it says it equals: MONAI's networks, files and gates, diffusers' DDIM, the
published CycleGAN. Rows for `python -m benchmarks.check`.

MONAI's networks compute the reference in float64: in float32 their own rounding (1e-4 of the largest
value in one decoder below, and a fraction of that of ours) is all that would be seen.
"""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.torch
import torch
from diffusers import DDIMScheduler
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.nets.attentionunet import AttentionBlock

from benchmarks.compare import (
    Row,
    carried,
    check_sizes,
    count_parameters,
    nhwc,
    normal,
    randomise,
    shapes_of,
)
from cldm_jax.diffusion import samplers, schedule
from cldm_jax.models import monai, monai_names, unet
from cldm_jax.models.discriminator import PatchDiscriminator
from cldm_jax.models.resnet_generator import ResnetGenerator
from cldm_jax.runtime import foreign, weights

STEPS, NUM_TIMESTEPS = (5, 10, 50), 1000
DDIM_TOLERANCE = 1e-5
LATENTS = 3  # channels
AUTOENCODERS = {  # case -> MONAI's keywords
    "2 levels, no attention": dict(
        channels=(8, 16),
        num_res_blocks=1,
        attention_levels=(False, False),
        norm_num_groups=8,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    ),
    "3 levels, blocks by level, attention at one and in the encoder's middle": dict(
        channels=(8, 16, 16),
        num_res_blocks=(1, 2, 1),
        attention_levels=(False, True, False),
        norm_num_groups=8,
        with_decoder_nonlocal_attn=False,
    ),
    "3 levels, attention at the lowest and in both middles": dict(
        channels=(16, 32, 32),
        num_res_blocks=2,
        attention_levels=(False, False, True),
        norm_num_groups=16,
    ),
}
UNETS = {  # case -> MONAI's keywords, channels of the condition
    "2 levels, no classes, no condition": (
        dict(
            channels=(32, 64),
            num_res_blocks=1,
            attention_levels=(False, True),
            norm_num_groups=32,
            num_head_channels=32,
            num_class_embeds=None,
        ),
        0,
    ),
    "3 levels, blocks and heads by level": (
        dict(
            channels=(16, 32, 32),
            num_res_blocks=(1, 2, 1),
            attention_levels=(True, False, True),
            norm_num_groups=8,
            num_head_channels=(8, 0, 16),
            num_class_embeds=4,
        ),
        3,
    ),
    "3 levels, two of them with attention": (
        dict(
            channels=(32, 64, 64),
            num_res_blocks=2,
            attention_levels=(False, True, True),
            norm_num_groups=32,
            num_head_channels=(0, 32, 64),
            num_class_embeds=4,
        ),
        6,
    ),
}


def rows():
    yield from _autoencoders()
    yield from _unets()
    yield from _files()
    yield from _ddim()
    yield from _gates()
    yield from _cyclegan()


def _make_autoencoder(keywords):
    shared = dict(latent_channels=LATENTS, **keywords)
    net = AutoencoderKL(spatial_dims=2, in_channels=1, out_channels=1, **shared).eval()
    return net, monai.AutoencoderKL(num_classes=4, **shared)


def _autoencoders():
    for number, (case, keywords) in enumerate(AUTOENCODERS.items()):
        net, module = _make_autoencoder(keywords)
        randomise(net, number)
        images = normal(number, 2, 1, 32, 32)
        x, name = jnp.asarray(nhwc(images)), f"AutoencoderKL, {case}"
        eps = jnp.zeros((2, 32 // module.factor, 32 // module.factor, LATENTS))
        params = carried(module, net, x, None, None, eps)
        yield from check_sizes(name, net, params)
        with torch.inference_mode():
            mean, sigma = net.double().encode(images.double())
            z = mean.float()
            decoded = net.decode(z.double())
        ours = module.apply({"params": params}, x, None, None, method="encode")
        yield Row(f"{name}: mean", ours[0], nhwc(mean))
        yield Row(f"{name}: sigma", jnp.exp(0.5 * ours[1]), nhwc(sigma))
        z = jnp.asarray(nhwc(z))
        again = module.apply({"params": params}, z, None, None, method="decode")
        yield Row(f"{name}: decoded", again, nhwc(decoded))


def _make_unet(keywords, condition: int):
    net = DiffusionModelUNet(
        spatial_dims=2, in_channels=LATENTS + condition, out_channels=LATENTS, **keywords
    )
    classes = keywords["num_class_embeds"] or 0
    module = monai.DiffusionModelUNet(LATENTS, **{**keywords, "num_class_embeds": classes})
    return net.eval(), module


def _unet_case(keywords, condition: int, seed: int):
    """(MONAI's net, module, its arguments, what MONAI answers to the same)."""
    net, module = _make_unet(keywords, condition)
    randomise(net, seed)
    x, t, code = normal(seed, 2, LATENTS + condition, 16, 16), [3, 900], [1, 2]
    labels = torch.tensor(code) if keywords["num_class_embeds"] else None
    with torch.inference_mode():
        answer = nhwc(net.double()(x.double(), torch.tensor(t), class_labels=labels))
    z, source = np.split(nhwc(x), [LATENTS], -1)
    args = (z, jnp.array(t), jnp.array(code), source if condition else None)
    return net.float(), module, args, answer


def _unets():
    for number, (case, (keywords, condition)) in enumerate(UNETS.items()):
        net, module, args, answer = _unet_case(keywords, condition, 10 + number)
        params, name = carried(module, net, *args), f"DiffusionModelUNet, {case}"
        yield from check_sizes(name, net, params)
        yield Row(name, module.apply({"params": params}, *args), answer)


def _files():
    """Files that MONAI's users have, through the product's reader, and its own back into MONAI."""
    keywords, condition = UNETS["3 levels, blocks and heads by level"]
    net, module, args, answer = _unet_case(keywords, condition, 20)
    state, shapes = net.state_dict(), shapes_of(module, *args)
    wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        torch.save(state, folder / "plain.pt")
        torch.save(wrapped, folder / "wrapped.pt")
        safetensors.torch.save_file(state, folder / "plain.safetensors")
        for path in sorted(folder.iterdir()):
            (found,) = foreign.read_states(path).values()
            params = monai_names.to_params(foreign.to_float32(path, found), shapes)
            ours = module.apply({"params": params}, *args)
            yield Row(f"imported from {path.name}", ours, answer)
        weights.write_tensors(folder / "ours.safetensors", monai_names.to_state_dict(params))
        again, _ = _make_unet(keywords, condition)
        exported = safetensors.torch.load_file(folder / "ours.safetensors")
        again.load_state_dict(exported, strict=True)
        z, source = torch.from_numpy(args[0]), torch.from_numpy(args[3])
        x = torch.cat([z, source], -1).permute(0, 3, 1, 2)
        with torch.inference_mode():
            labels = torch.tensor(np.array(args[2]))
            back = again(x, torch.tensor(np.array(args[1])), class_labels=labels)
        yield Row("exported and loaded by MONAI (strict)", ours, nhwc(back))


def _ddim():
    """Every latent on the way of both samplers, with a network that depends on latent and step."""
    rng = np.random.default_rng(0)
    start, matrix = rng.standard_normal((2, 8, 8, 4)), rng.standard_normal((4, 4)) / 2
    start, matrix = start.astype(np.float32), matrix.astype(np.float32)
    cases = [("scaled_linear", True, "v", "v_prediction")]
    cases += [("scaled_linear_plain", False, "v", "v_prediction")]
    cases += [("scaled_linear_plain", False, "eps", "epsilon")]
    for name, is_zero_snr, target, prediction in cases:
        for steps in STEPS:
            scheduler = DDIMScheduler(
                num_train_timesteps=NUM_TIMESTEPS,
                beta_start=0.0015,
                beta_end=0.0195,
                beta_schedule="scaled_linear",
                clip_sample=False,
                prediction_type=prediction,
                timestep_spacing="trailing",
                rescale_betas_zero_snr=is_zero_snr,
            )
            reference = _their_way(scheduler, start, matrix, steps)
            ours = _our_way(schedule.SCHEDULES[name](NUM_TIMESTEPS), start, matrix, target, steps)
            what = f"DDIM, {name}, {target}, {steps} steps, every latent"
            yield Row(what, ours, reference, DDIM_TOLERANCE)


def _our_way(alphas_bar, start, matrix, target: str, steps: int) -> np.ndarray:
    way = []

    def denoise(z, t):
        jax.debug.callback(lambda z: way.append(np.asarray(z)), z, ordered=True)
        return jnp.tanh(z @ matrix + t[:, None, None, None] / NUM_TIMESTEPS)

    options = dict(target=target, num_sampling_steps=steps, eta=0.0, noise_fn=jnp.zeros)
    end = samplers.ddim(denoise, jnp.asarray(start), alphas_bar, **options)
    jax.effects_barrier()
    return np.stack([*way, np.asarray(end)])


def _their_way(scheduler, start, matrix, steps: int) -> np.ndarray:
    scheduler.set_timesteps(steps)
    z, matrix = torch.from_numpy(start), torch.from_numpy(matrix)
    way = [z]
    for t in scheduler.timesteps:
        answer = torch.tanh(z @ matrix + t / NUM_TIMESTEPS)
        z = scheduler.step(answer, t, z, eta=0.0).prev_sample
        way.append(z)
    return torch.stack(way).numpy()


def _gates():
    """The Attention U-Net is the U-Net and MONAI's gates without their batch normalisation."""
    settings = dict(out_channels=1, base_channels=8, channel_mult=(1, 2, 4), num_res_blocks=1)
    x, emb = jnp.zeros((1, 16, 16, 1)), jnp.zeros((1, 8))
    plain, gated = (
        shapes_of(unet.UNet(**settings, attn_levels=(), attention_gates=g), x, emb)
        for g in (False, True)
    )
    gates = {name: tree for name, tree in gated.items() if name not in plain}
    reference = 0
    for tree in gates.values():
        inner = tree["theta"]["kernel"].shape[2] // 2  # half the skip's, as published
        block = AttentionBlock(
            2, inner, tree["phi"]["kernel"].shape[2], tree["theta"]["kernel"].shape[2]
        )
        reference += sum(p.numel() for p in block.parameters())
        reference -= sum(
            p.numel()
            for m in block.modules()
            if isinstance(m, torch.nn.BatchNorm2d)
            for p in m.parameters()
        )
    added = count_parameters(gated) - count_parameters(plain)
    yield Row("Attention U-Net less U-Net, gates of MONAI without BatchNorm", added, reference, 0)


def _cyclegan():
    """Parameters of the networks of Zhu 2017 (64 channels, one image channel; instance norm has none)."""
    conv, up = torch.nn.Conv2d, torch.nn.ConvTranspose2d
    generator = [conv(1, 64, 7), conv(64, 128, 3, 2, 1), conv(128, 256, 3, 2, 1)]
    generator += [conv(256, 256, 3) for _ in range(2 * 9)]
    generator += [up(256, 128, 3, 2, 1, 1), up(128, 64, 3, 2, 1, 1), conv(64, 1, 7)]
    discriminator = [conv(1, 64, 4, 2, 1), conv(64, 128, 4, 2, 1), conv(128, 256, 4, 2, 1)]
    discriminator += [conv(256, 512, 4, 1, 1), conv(512, 1, 4, 1, 1)]
    x = jnp.zeros((1, 64, 64, 1))
    for name, module, layers in (
        ("ResNet-9 generator", ResnetGenerator(1, 64, 9), generator),
        ("70 x 70 PatchGAN", PatchDiscriminator(64, 3), discriminator),
    ):
        reference = sum(p.numel() for layer in layers for p in layer.parameters())
        yield Row(f"CycleGAN, {name}", count_parameters(shapes_of(module, x)), reference, 0)
