"""The product against MONAI's networks and files. Rows for `python -m benchmarks.check`.

MONAI's networks compute the reference in float64: in float32 their own rounding (1e-4 of the largest
value in one decoder below, and a fraction of that of ours) is all that would be seen.
"""

import copy
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors.torch
import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet

from benchmarks.compare import Row, carried, check_sizes, nhwc, normal, randomise, shapes_of
from cldm_jax.models import monai, monai_names
from cldm_jax.runtime import foreign, weights

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


class Case(NamedTuple):
    """One network on both sides and the same input for them."""

    net: Any  # MONAI's, with random weights
    module: Any  # ours
    args: tuple  # of the module
    ours: Callable  # parameters -> output
    theirs: Callable  # a net of MONAI's -> its output, computed in float64


def _make_autoencoder(keywords, **storage):
    """storage: keywords of MONAI's that change how weights are stored, and not the network."""
    shared = dict(latent_channels=LATENTS, **keywords)
    net = AutoencoderKL(spatial_dims=2, in_channels=1, out_channels=1, **shared, **storage)
    return net.eval(), monai.AutoencoderKL(num_classes=4, **shared)


def _make_unet(keywords, condition: int, **storage):
    """storage: as in _make_autoencoder."""
    channels = dict(in_channels=LATENTS + condition, out_channels=LATENTS)
    net = DiffusionModelUNet(spatial_dims=2, **channels, **keywords, **storage)
    classes = keywords["num_class_embeds"] or 0
    module = monai.DiffusionModelUNet(LATENTS, **{**keywords, "num_class_embeds": classes})
    return net.eval(), module


def _autoencoder_case(keywords, seed: int, **storage) -> Case:
    """The output is the reconstruction from the posterior's mean."""
    net, module = _make_autoencoder(keywords, **storage)
    randomise(net, seed)
    images = normal(seed, 2, 1, 32, 32)
    eps = jnp.zeros((2, 32 // module.factor, 32 // module.factor, LATENTS))
    args = (jnp.asarray(nhwc(images)), None, None, eps)

    def theirs(net):
        wide = copy.deepcopy(net).double()
        with torch.inference_mode():
            return nhwc(wide.decode(wide.encode(images.double())[0]))

    def ours(params):
        return module.apply({"params": params}, *args)[0]

    return Case(net, module, args, ours, theirs)


def _unet_case(keywords, condition: int, seed: int, **storage) -> Case:
    net, module = _make_unet(keywords, condition, **storage)
    randomise(net, seed)
    x, t, code = normal(seed, 2, LATENTS + condition, 16, 16), [3, 900], [1, 2]
    labels = torch.tensor(code) if keywords["num_class_embeds"] else None
    z, source = np.split(nhwc(x), [LATENTS], -1)
    args = (z, jnp.array(t), jnp.array(code), source if condition else None)

    def theirs(net):
        wide = copy.deepcopy(net).double()
        with torch.inference_mode():
            return nhwc(wide(x.double(), torch.tensor(t), class_labels=labels))

    return Case(net, module, args, lambda params: module.apply({"params": params}, *args), theirs)


def _autoencoders():
    for number, (case, keywords) in enumerate(AUTOENCODERS.items()):
        net, module, args, _, _ = _autoencoder_case(keywords, number)
        name, params = f"AutoencoderKL, {case}", carried(module, net, *args)
        yield from check_sizes(name, net, params)
        x, wide = args[0], copy.deepcopy(net).double()
        with torch.inference_mode():
            mean, sigma = wide.encode(torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).double())
            z = mean.float()
            decoded = wide.decode(z.double())
        ours = module.apply({"params": params}, x, None, None, method="encode")
        yield Row(f"{name}: mean", ours[0], nhwc(mean))
        yield Row(f"{name}: sigma", jnp.exp(0.5 * ours[1]), nhwc(sigma))
        z = jnp.asarray(nhwc(z))
        again = module.apply({"params": params}, z, None, None, method="decode")
        yield Row(f"{name}: decoded", again, nhwc(decoded))


def _unets():
    for number, (case, (keywords, condition)) in enumerate(UNETS.items()):
        net, module, args, ours, theirs = _unet_case(keywords, condition, 10 + number)
        params, name = carried(module, net, *args), f"DiffusionModelUNet, {case}"
        yield from check_sizes(name, net, params)
        yield Row(name, ours(params), theirs(net))


def _files():
    """Files that MONAI's users have, through the product's reader, and its own back into MONAI."""
    keywords = AUTOENCODERS["3 levels, attention at the lowest and in both middles"]
    unet = UNETS["3 levels, blocks and heads by level"]
    for name, make in (
        ("AutoencoderKL", lambda **storage: _autoencoder_case(keywords, 20, **storage)),
        ("DiffusionModelUNet", lambda **storage: _unet_case(*unet, 20, **storage)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            yield from _files_of(name, make, pathlib.Path(folder))


def _files_of(name: str, make: Callable, folder: pathlib.Path):
    case, combined = make(), make(use_combined_linear=True)
    state, shapes = case.net.state_dict(), shapes_of(case.module, *case.args)
    wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    torch.save(state, folder / "plain.pt")
    torch.save(wrapped, folder / "wrapped.pt")
    safetensors.torch.save_file(state, folder / "plain.safetensors")
    torch.save(combined.net.state_dict(), folder / "combined.pt")

    def imported(path):
        (found,) = foreign.read_states(path).values()
        arrays = foreign.to_float32(path, monai_names.split_qkv(found))
        return monai_names.to_params(arrays, shapes)

    for path in sorted(folder.iterdir()):
        first = combined if path.stem == "combined" else case
        answer = first.theirs(first.net)
        yield Row(f"{name}, imported from {path.name}", case.ours(imported(path)), answer)
    params = imported(folder / "plain.pt")
    weights.write_tensors(folder / "ours.safetensors", monai_names.to_state_dict(params))
    again = make().net
    randomise(again, 21)  # nothing is left of the weights it is to be given
    exported = safetensors.torch.load_file(folder / "ours.safetensors")
    again.load_state_dict(exported, strict=True)
    what = f"{name}, exported and loaded by MONAI (strict)"
    yield Row(what, case.ours(params), case.theirs(again))
