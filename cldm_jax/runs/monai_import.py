"""MONAI's state dict as the weights that a training begins with."""

import pathlib

from cldm_jax import files
from cldm_jax.errors import UserError
from cldm_jax.models import monai_names
from cldm_jax.runtime import foreign


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
