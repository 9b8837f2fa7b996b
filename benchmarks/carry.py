"""Weights from MONAI's state_dict to the Flax networks of `nets_flax`, and back.

Modules bear the same names on both sides; leaves differ in name and layout, and the Flax attention
holds query, key and value in one matrix.
"""

import numpy as np
from flax import traverse_util

_INNER = {  # names inside this project's blocks -> MONAI's
    "conv2_zero": "conv2",
    "skip": "nin_shortcut",
    "out_zero": "attn.out_proj",
    "out.2_zero": "out.2",
}
_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")


def _sources(path: tuple[str, ...]) -> list[str]:
    """The state_dict names that the Flax leaf at `path` is made of."""
    *modules, leaf = path
    kind = "bias" if leaf == "bias" else "weight"
    stem = [_INNER.get(name, name) for name in modules]
    last = _QKV if stem[-1] == "qkv" else (stem[-1],)
    return [".".join([*stem[:-1], name, kind]) for name in last]


def _to_flax(array: np.ndarray) -> np.ndarray:
    """OIHW -> HWIO, [out, in] -> [in, out], vectors as they are."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _to_torch(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _leaf_names(params, names) -> dict[tuple[str, ...], list[str]]:
    """Flax path -> the state_dict names it is made of, with MONAI's Convolution wrapper ('.conv')."""
    found = {}
    for path in traverse_util.flatten_dict(params):
        sources = _sources(path)
        if sources[0] not in names:
            head, _, kind = sources[0].rpartition(".")
            sources = [f"{head}.conv.{kind}"]
        found[path] = sources
    used = sorted(name for sources in found.values() for name in sources)
    if used != sorted(names):
        odd = sorted(set(used) ^ set(names))
        raise ValueError(
            f"networks differ: {len(odd)} parameters without a partner, first {odd[0]}"
        )
    return found


def to_flax(state_dict: dict[str, np.ndarray], shapes) -> dict:
    """`params` like the tree `shapes` (anything with .shape at its leaves) from MONAI's state_dict.

    Raises ValueError if a parameter has no partner or another shape.
    """
    flat = traverse_util.flatten_dict(shapes)
    out = {}
    for path, names in _leaf_names(shapes, state_dict).items():
        is_embedding = path[-1] == "embedding"
        parts = [np.asarray(state_dict[n]) for n in names]
        value = np.concatenate([p if is_embedding else _to_flax(p) for p in parts], -1)
        if value.shape != flat[path].shape:
            raise ValueError(f"{names[0]}: shape {value.shape}, not {flat[path].shape}")
        out[path] = np.ascontiguousarray(value)
    return traverse_util.unflatten_dict(out)


def to_state_dict(params, names) -> dict[str, np.ndarray]:
    """MONAI's state_dict (numpy) with the keys `names` from Flax `params`; inverse of `to_flax`."""
    flat = traverse_util.flatten_dict(params)
    out = {}
    for path, sources in _leaf_names(params, set(names)).items():
        parts = np.split(np.asarray(flat[path]), len(sources), -1)
        for name, part in zip(sources, parts, strict=True):
            value = part if path[-1] == "embedding" else _to_torch(part)
            out[name] = np.ascontiguousarray(value)
    return out
