"""Parameters of the networks in `monai` under the names and layouts of MONAI's state_dict, and back.

Modules bear the same names on both sides; leaves differ in name and layout, MONAI wraps convolutions
('.conv'), and the Flax attention holds query, key and value in one matrix. Arrays are NumPy's: neither
torch nor MONAI is needed.
"""

import re
from collections.abc import Mapping

import numpy as np
from flax import traverse_util

_INNER = {  # names inside this package's blocks -> MONAI's
    "conv2_zero": "conv2",
    "skip": "nin_shortcut",
    "out_zero": "attn.out_proj",
    "out.2_zero": "out.2",
}
_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
LEGACY = "is of the older GenerativeModels package, whose layers have other names"
# Names that only the older GenerativeModels package gives: attention without '.attn', and what it called
# 'conv' where MONAI says 'postconv'.
_LEGACY = re.compile(
    r"(?<!\.attn)\.to_[qkv]\.|\.proj_attn\.|\.upsampler\.conv\.|decoder\.blocks\.\d+\.conv\.conv\."
)
# Parts of MONAI's networks that the ones here do not have.
_FOREIGN = (
    (r"\.transformer_blocks\.", "has cross-attention (with_conditioning)"),
    (r"\.(down|up)sampler\.conv1\.", "has residual blocks between its levels (resblock_updown)"),
    (r"\.deconv\.", "has transposed convolutions (use_convtranspose)"),
)


def expected_shapes(params) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the state_dict that holds `params` (anything with .shape at its leaves)."""
    flat, shapes = traverse_util.flatten_dict(params), {}
    for path, names in _leaf_names(flat).items():
        shape = tuple(flat[path].shape)
        if path[-1] != "embedding":
            shape = (shape[-1] // len(names), *shape[-2:-1], *shape[:-2])
        shapes.update(dict.fromkeys(names, shape))
    return shapes


def split_qkv(state: Mapping) -> dict:
    """`state` with attention's combined matrices (use_combined_linear) as the three they consist of."""
    out = {}
    for name, value in state.items():
        head, is_combined, kind = name.rpartition(".attn.qkv.")
        if not is_combined:
            out[name] = value
            continue
        size = value.shape[0] // 3
        for i, part in enumerate(_QKV):
            out[f"{head}.{part}.{kind}"] = value[i * size : (i + 1) * size]
    return out


def to_params(state: Mapping[str, np.ndarray], params) -> dict:
    """A tree like `params` (anything with .shape at its leaves) of the arrays of MONAI's state_dict, of
    the `expected_shapes`.
    """
    flat, out = traverse_util.flatten_dict(params), {}
    for path, names in _leaf_names(flat).items():
        is_embedding = path[-1] == "embedding"
        parts = [np.asarray(state[n]) for n in names]
        value = np.concatenate([p if is_embedding else _to_flax(p) for p in parts], -1)
        out[path] = np.ascontiguousarray(value)
    return traverse_util.unflatten_dict(out)


def to_state_dict(params) -> dict[str, np.ndarray]:
    """MONAI's state_dict (NumPy) of Flax `params`: all of its names and no others."""
    flat, out = traverse_util.flatten_dict(params), {}
    for path, names in _leaf_names(flat).items():
        parts = np.split(np.asarray(flat[path]), len(names), -1)
        for name, part in zip(names, parts, strict=True):
            value = part if path[-1] == "embedding" else _to_torch(part)
            out[name] = np.ascontiguousarray(value)
    return out


def explain(found: Mapping[str, tuple], expected: Mapping[str, tuple]) -> str:
    """Why a state_dict with these shapes is not that of the network; "" where it is."""
    if found == expected:
        return ""
    for pattern, what in _FOREIGN:
        if any(re.search(pattern, name) for name in found):
            return f"{what}, which these networks lack"
    has = {part: any(f".attn.{part}." in n for n in found) for part in ("to_q", "out_proj")}
    if has["to_q"] and not has["out_proj"]:
        return "has attention without its last projection (include_fc), which these networks lack"
    if any(_LEGACY.search(name) for name in found):
        return LEGACY
    if any(len(shape) == 5 for shape in found.values()):
        return "is a 3-D network (spatial_dims=3), and these are 2-D"
    odd = sorted(found.keys() ^ expected.keys())
    if odd:
        kind = "lacks" if odd[0] in expected else "holds, against the settings,"
        return f"{kind} {odd[0]} ({len(odd)} names differ)"
    wrong = [name for name in expected if found[name] != expected[name]]
    is_not = f"holds {wrong[0]} {list(found[wrong[0]])}, not {list(expected[wrong[0]])}"
    return f"{is_not} ({len(wrong)} shapes differ)"


def _leaf_names(flat: Mapping[tuple, object]) -> dict[tuple[str, ...], list[str]]:
    """Flax path -> the state_dict names that the leaf there is made of."""
    found = {}
    for path, leaf in flat.items():
        *modules, kind = path
        stem = [_INNER.get(name, name) for name in modules]
        last = _QKV if stem[-1] == "qkv" else (stem[-1],)
        is_conv = len(flat.get((*modules, "kernel"), leaf).shape) == 4
        tail = ("conv",) if is_conv else ()
        tail += ("bias" if kind == "bias" else "weight",)
        found[path] = [".".join([*stem[:-1], name, *tail]) for name in last]
    return found


def _to_flax(array: np.ndarray) -> np.ndarray:
    """OIHW -> HWIO, [out, in] -> [in, out], vectors as they are."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _to_torch(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
