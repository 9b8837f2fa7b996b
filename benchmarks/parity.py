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

from benchmarks import cases
from benchmarks.compare import Row, carried, check_sizes, nhwc, normal, randomise
from benchmarks.flops import shapes_of
from cldm_jax.models import monai_names
from cldm_jax.runtime import foreign, weights


class Case(NamedTuple):
    """One network on both sides and the same input for them."""

    net: Any  # MONAI's, with random weights
    module: Any  # ours
    args: tuple  # of the module
    ours: Callable  # parameters -> output
    theirs: Callable  # a net of MONAI's -> its output, computed in float64


def rows():
    for number, (case, keywords) in enumerate(cases.AUTOENCODERS.items()):
        net, module, args, *_ = _autoencoder(keywords, number)
        name, params = f"AutoencoderKL, {case}", carried(module, net, *args)
        yield from check_sizes(name, net, params)
        yield from coded(f"{name}: ", net, module, {"params": params}, args[0])
    for number, (case, (keywords, condition)) in enumerate(cases.UNETS.items()):
        net, module, args, ours, theirs = _unet(keywords, condition, 10 + number)
        params, name = carried(module, net, *args), f"DiffusionModelUNet, {case}"
        yield from check_sizes(name, net, params)
        yield Row(name, ours(params), theirs(net))
    keywords = cases.AUTOENCODERS["3 levels, attention at the lowest and in both middles"]
    unet = cases.UNETS["3 levels, blocks and heads by level"]
    for name, make in (
        ("AutoencoderKL", lambda **storage: _autoencoder(keywords, 20, **storage)),
        ("DiffusionModelUNet", lambda **storage: _unet(*unet, 20, **storage)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            yield from _files_of(name, make, pathlib.Path(folder))


def coded(prefix: str, net, module, variables, x):
    """Yields rows: mean, sigma and decoded mean of the images x [B, H, W, 1]."""
    wide = copy.deepcopy(net).double()
    with torch.inference_mode():
        mean, sigma = wide.encode(torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).double())
        z = mean.float()
        decoded = wide.decode(z.double())
    ours = module.apply(variables, x, None, None, method="encode")
    yield Row(f"{prefix}mean", ours[0], nhwc(mean))
    yield Row(f"{prefix}sigma", jnp.exp(0.5 * ours[1]), nhwc(sigma))
    again = module.apply(variables, jnp.asarray(nhwc(z)), None, None, method="decode")
    yield Row(f"{prefix}decoded", again, nhwc(decoded))


def _autoencoder(keywords, seed: int, **storage) -> Case:
    """The output is the reconstruction from the posterior's mean. storage: keywords of MONAI's that
    change how weights are stored, and not the network.
    """
    shared = dict(spatial_dims=2, in_channels=1, out_channels=1, latent_channels=cases.LATENTS)
    net, module = AutoencoderKL(**shared, **keywords, **storage).eval(), cases.autoencoder(keywords)
    randomise(net, seed)
    images = normal(seed, 2, 1, 32, 32)
    eps = jnp.zeros((2, 32 // module.factor, 32 // module.factor, cases.LATENTS))
    args = (jnp.asarray(nhwc(images)), None, None, eps)

    def theirs(net):
        wide = copy.deepcopy(net).double()
        with torch.inference_mode():
            return nhwc(wide.decode(wide.encode(images.double())[0]))

    def ours(params):
        return module.apply({"params": params}, *args)[0]

    return Case(net, module, args, ours, theirs)


def _unet(keywords, condition: int, seed: int, **storage) -> Case:
    """storage: as in _autoencoder."""
    shared = dict(spatial_dims=2, in_channels=cases.LATENTS + condition, out_channels=cases.LATENTS)
    net, module = DiffusionModelUNet(**shared, **keywords, **storage).eval(), cases.unet(keywords)
    randomise(net, seed)
    x, t, code = normal(seed, 2, cases.LATENTS + condition, 16, 16), [3, 900], [1, 2]
    labels = torch.tensor(code) if keywords["num_class_embeds"] else None
    z, source = np.split(nhwc(x), [cases.LATENTS], -1)
    args = (z, jnp.array(t), jnp.array(code), source if condition else None)

    def theirs(net):
        wide = copy.deepcopy(net).double()
        with torch.inference_mode():
            return nhwc(wide(x.double(), torch.tensor(t), class_labels=labels))

    return Case(net, module, args, lambda params: module.apply({"params": params}, *args), theirs)


def _files_of(name: str, make: Callable, folder: pathlib.Path):
    """Files that MONAI's users have, through the product's reader, and its own back into MONAI."""
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
