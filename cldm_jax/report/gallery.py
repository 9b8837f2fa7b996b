"""The pictures of a report kept as arrays, so that reports of folds can be pooled."""

import json

import numpy as np

from cldm_jax import files

GALLERY = "gallery.npz"


def save_gallery(path, gallery: dict) -> None:
    """Arrays as they are (float32), everything else as JSON beside them in one file."""
    arrays: dict[str, np.ndarray] = {}

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, np.ndarray) and value.ndim:
            name = f"a{len(arrays)}"
            arrays[name] = value if value.dtype == bool else value.astype(np.float32)
            return {"array": name}
        return value.item() if isinstance(value, (np.generic, np.ndarray)) else value

    text = json.dumps(plain(gallery))
    with files.atomic_path(path) as tmp:
        np.savez_compressed(tmp, text=np.array(text), **arrays)


def load_gallery(path) -> dict:
    """What `save_gallery` wrote; tuples come back as lists."""
    with np.load(path, allow_pickle=False) as stored:

        def rebuild(value):
            if isinstance(value, dict):
                if value.keys() == {"array"}:
                    return stored[value["array"]]
                return {k: rebuild(v) for k, v in value.items()}
            return [rebuild(v) for v in value] if isinstance(value, list) else value

        return rebuild(json.loads(str(stored["text"])))
