"""MONAI's networks, in and out: state dicts of theirs as the weights that a training begins with, and a
run's own as state dicts, with a card that says how to build and feed them.
"""

import pathlib

import jax
import numpy as np

from cldm_jax import __version__, files
from cldm_jax.errors import UserError
from cldm_jax.models import monai_names
from cldm_jax.runs.stored import Stored
from cldm_jax.runtime import foreign, weights

CARD = "monai.json"
CLASSES = {"autoencoder": "AutoencoderKL", "unet": "DiffusionModelUNet"}
OWN_KEYWORDS = ("architecture", "num_classes", "attention", "remat", "dtype")  # not MONAI's


def import_weights(config, params) -> tuple[dict, dict]:
    """(a tree like `params` with the weights of `config.init`, facts about the file for run.json).

    Raises UserError for networks that are not MONAI's, and a file that cannot be read or does not fit.
    """
    path, key = config.init.weights, config.init.key
    if config.recipe.model.to_dict().get("architecture") != "monai":
        raise UserError(
            f"config.init.weights={path}",
            "is for networks of MONAI's architecture, and these are cldm_jax's own",
            "Use configs/monai_ae.py or configs/monai_ldm.py.",
        )
    expected = monai_names.expected_shapes(params)
    states = {k: monai_names.split_qkv(s) for k, s in foreign.read_states(path).items()}
    key, state = _choose_state(path, key, states, expected)
    arrays = foreign.to_float32(path, state)
    facts = {"file": pathlib.Path(path).name, "sha256": files.sha256_file(path), "key": key}
    return monai_names.to_params(arrays, params), facts


def _choose_state(path, key: str, states: dict, expected: dict) -> tuple[str, dict]:
    """(key, state dict) of the one named or, without a name, of the only one that fits."""
    shapes = {k: {n: tuple(v.shape) for n, v in s.items()} for k, s in states.items()}
    listed = ", ".join(k or "(the file itself)" for k in states)
    if key and key not in states:
        raise UserError(path, f"holds no state dict {key!r}", f"It holds: {listed}.")
    candidates = [key] if key else list(states)
    fitting = [k for k in candidates if not monai_names.explain(shapes[k], expected)]
    if len(fitting) > 1:
        remedy = "Say which one: --config.init.key=NAME."
        raise UserError(path, f"holds several state dicts that fit ({', '.join(fitting)})", remedy)
    if fitting:
        return fitting[0], states[fitting[0]]
    nearest = max(candidates, key=lambda k: len(shapes[k].keys() & expected.keys()))
    reason = monai_names.explain(shapes[nearest], expected)
    if len(candidates) > 1:
        reason = f"holds the state dicts {listed}, and none fits; {nearest or 'the file itself'} {reason}"
    remedy = "Set config.recipe.model to the keywords it was trained with."
    if reason.endswith(monai_names.LEGACY):
        remedy = (
            "Where it was trained: net.load_old_state_dict(torch.load(OLD)), then "
            "torch.save(net.state_dict(), NEW)."
        )
    elif len(candidates) > 1:
        remedy = f"{remedy} If another one is meant: --config.init.key=NAME."
    raise UserError(path, reason, remedy)


def write(config, folder: pathlib.Path, stored: Stored) -> None:
    """Writes autoencoder.safetensors and, of a latent run, unet.safetensors: state dicts that MONAI's
    networks load as they are; last monai.json, which says how to build them and scale the latents.

    Raises UserError for networks that are not MONAI's.
    """
    if config.dtype != "float32":
        raise UserError("config.format=monai", "is float32", "Leave dtype out.")
    if config.steps:
        raise UserError("config.format=monai", "holds no sampler", "Leave steps out.")
    networks = _networks(config.run, stored)
    (folder / CARD).unlink(missing_ok=True)  # from here on, nothing that looks whole
    card = _card(stored)
    for name, (keywords, params) in networks.items():
        arrays = monai_names.to_state_dict(jax.tree.map(np.asarray, params))
        path = folder / f"{name}.safetensors"
        weights.write_tensors(path, arrays)
        card[name] = {
            "class": f"monai.networks.nets.{CLASSES[name]}",
            "keywords": keywords,
            "file": path.name,
            "sha256": files.sha256_file(path),
            "parameters": sum(a.size for a in arrays.values()),
        }
    weights.refuse_paths(card)
    files.write_json(folder / CARD, card)
    print(f"exported {', '.join(networks)} of {card['name']}, step {card['step']}, for MONAI")


def _networks(run: str, stored: Stored) -> dict[str, tuple[dict, dict]]:
    """{name: (MONAI's constructor keywords, parameters)} of the run's networks."""
    method, model = stored.config["method"], stored.config["recipe"].get("model", {})
    models = {method: (model, stored.params)}
    if method == "ldm":
        frozen = stored.frozen["autoencoder"]["params"]
        models = {
            "autoencoder": (stored.manifest.autoencoder, frozen),
            "unet": (model, stored.params),
        }
    found = {}
    for name, (settings, params) in models.items():
        if settings.get("architecture") != "monai":
            reason = f"its {name} is not MONAI's network (architecture 'monai')"
            remedy = (
                "Export it with --config.format=cldm_jax. For MONAI, train configs/monai_ldm.py."
            )
            raise UserError(run, reason, remedy)
        kept = {k: v for k, v in settings.items() if k not in OWN_KEYWORDS}
        keywords = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, **kept}
        if name == "unet":
            shapes = monai_names.expected_shapes(params)
            keywords |= {
                "in_channels": shapes["conv_in.conv.weight"][1],
                "out_channels": shapes["out.2.conv.weight"][0],
                "num_class_embeds": settings["num_class_embeds"] or None,
            }
        found[name] = keywords, params
    return found


def _card(stored: Stored) -> dict:
    """monai.json, but for the networks."""
    config, manifest = stored.config, stored.manifest
    card = {
        "format": "cldm_jax-monai",
        "name": config["name"],
        "intended_use": weights.INTENDED_USE,
        "exported_by": {"name": "cldm_jax", "version": __version__},
        "step": int(stored.step),
        "imported": manifest.imported,
        "class_codes": {name: m.code for name, m in manifest.data.modalities.items()},
    }
    if "statistics" in stored.frozen:
        # z = (latent - mean) / std by class and channel; MONAI's scale_factor is 1 / std of one number.
        found = {k: np.asarray(v).tolist() for k, v in stored.frozen["statistics"].items()}
        card |= {"latent_statistics": found, "diffusion": config["recipe"]["diffusion"]}
    return card
