"""Weights that other programs saved: the state dicts in a PyTorch file or a safetensors file.

PyTorch files are read by torch itself, and only what is no code (weights_only). Torch is no requirement
of this package: it is imported when such a file is opened. The only module that imports it.
"""

import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from cldm_jax import console
from cldm_jax.errors import UserError
from cldm_jax.runtime import weights

SAFETENSORS = ".safetensors"
DEPTH = 3  # dicts within dicts that are looked into
WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name
CONVERT = (
    "python -c \"import torch, safetensors.torch as s; s.save_file(torch.load('IN.pt', "
    "weights_only=True, map_location='cpu'), 'OUT.safetensors')\""
)


def read_states(path) -> dict[str, dict[str, Any]]:
    """{key: {name: tensor}} of all state dicts that the file holds; "" is the key of the file itself.

    Tensors are NumPy arrays, or torch's of a PyTorch file: `to_float32` makes arrays of them. Raises
    UserError for a file that cannot be read, or holds none.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(path, "no such file", "Correct --config.init.weights.")
    is_safetensors = path.suffix == SAFETENSORS
    content = weights.read_tensors(path) if is_safetensors else _load_torch(path)
    states = {key: _unwrapped(state) for key, state in _find_states(content, "", DEPTH).items()}
    if not states:
        reason = f"holds no state dict (but {type(content).__name__})"
        raise UserError(path, reason, "Save net.state_dict() where it was trained.")
    return states


def to_float32(path, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors as float32 arrays, whatever their precision. UserError for one that is not finite."""
    out = {}
    for name, value in state.items():
        if not isinstance(value, np.ndarray):
            value = value.detach().float().numpy()
        value = np.asarray(value, np.float32)
        if not np.isfinite(value).all():
            reason = f"{name} holds values that are not finite"
            raise UserError(path, reason, "Take an earlier checkpoint of that training.")
        out[name] = value
    return out


def _load_torch(path: pathlib.Path):
    if importlib.util.find_spec("torch") is None:
        reason = "is taken for a PyTorch file, and torch is not installed here"
        install = console.command("pip", "install", "torch")
        remedy = f"Run: {install}. Or convert it where torch is: {CONVERT}"
        raise UserError(path, reason, remedy)
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, zipfile's, torch's own
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = f"cannot be read as weights ({message:.200})"
        remedy = "Give what torch.save(net.state_dict(), FILE) wrote: no whole modules, no other objects."
        raise UserError(path, reason, remedy) from error


def _find_states(content, key: str, depth: int) -> dict[str, dict]:
    """Dicts of which a value is a tensor, by the dotted way to them; of each only its tensors."""
    if not isinstance(content, Mapping):
        return {}
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and hasattr(v, "shape")}
    found = {key: tensors} if tensors else {}
    for name, value in content.items() if depth else ():
        if isinstance(name, str):
            found.update(_find_states(value, f"{key}.{name}".lstrip("."), depth - 1))
    return found


def _unwrapped(state: dict) -> dict:
    """Without the wrappers that all of its names begin with."""
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in state):
            return _unwrapped({name.removeprefix(wrapper): v for name, v in state.items()})
    return state
