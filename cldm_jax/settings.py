"""The settings' law: what each may be, and what is said about one that cannot be."""

import difflib
import math
import re
import sys
from importlib import import_module

from ml_collections import config_dict

from cldm_jax.errors import UserError

# Job -> whether it computes with JAX (the others never import it).
JOBS = {
    "simulate": False,
    "prepare": False,
    "train": True,
    "encode": True,
    "evaluate": True,
    "predict": True,
    "reproduce": True,
    "export": True,
    "calibrate": True,
    "tasks": True,
}
# What a setting may be, by the end of its name, so that hours are not spent before it is refused:
# lowest and highest number, or the words there are. Jobs check the rest themselves.
LIMITS = {
    name: limits
    for limits, names in {
        # num_train_steps of 0: weights are only imported
        (
            0,
            math.inf,
        ): "seed split_seed workers num_workers warmup_steps batch_size steps weight_decay "
        "people_per_group folds calibrate_samples calibrate_steps calibrate_people people samples "
        "sharpness max_people num_train_steps scale_factor",
        (0, 1): "b1 b2 ema_decay class_dropout_prob onestep_share onestep_ramp eta sdedit_strength "
        "jump_from min_head_fraction train_min_head_fraction mi_threshold split_fractions "
        "randomised_share",
        (1, math.inf): "template_people calibrate_slice_stride train.batch_size encode_batch_size "
        "log_every val_every save_every num_threads init_items steps_per_call accumulate slice_stride "
        "val_slice_stride train_slice_stride context num_timesteps num_sampling_steps num_samples "
        "base_channels latent_channels channel_mult groups num_classes n_subjects variants_per_head "
        "shard_items pets_per_person pool_size",
        (sys.float_info.min, math.inf): "learning_rate clip_norm spacing_mm",
        (0, 20): "noise_slices",
        (-1, math.inf): "fold",  # of reproduce: -1, none
    }.items()
    for name in names.split()
}
# Words that the code which obeys them keeps are looked up there, as "module:NAME" below cldm_jax.
CHOICES = {
    "job": tuple(JOBS),
    "method": "methods.registry:METHODS",
    "kernels": "kernels.library:MODES",
    "protocol": "metrics.protocol:PROTOCOLS",
    "center": ("pet", "fov"),
    "format": ("cldm_jax", "monai"),
    "kind": ("images", "latents"),
    "source_kind": ("image", "latent"),
    "on_device": "runs.feed:ON_DEVICE",
    "targets": "data.intensity:MODALITIES",
    "data.source": "data.intensity:SOURCES",
    "conditioning": "methods.readings:READINGS",
    "source_encoding": "methods.latent_diffusion:SOURCE_ENCODINGS",
    "schedule": "diffusion.schedule:SCHEDULES",
    "diffusion.target": "diffusion.parametrisation:TARGETS",
    "optimizer": "runtime.optim:OPTIMIZERS",
    "decay": "runtime.optim:DECAYS",
    "attention": ("xla", "cudnn"),
    "recipe.loss": ("l1", "l2", "gaussian", "energy"),
    **dict.fromkeys(("mr_target", "ct_target"), "phantom.cohort:TARGETS"),
    "dtype": ("float32", "float16", "bfloat16"),
}
# Lists that are as long as their default.
FIXED = (
    "size spacing_mm shape fold split_fractions ct_window window onestep_share onestep_ramp".split()
)


def names(config, prefix: str = "") -> dict[str, object]:
    """{dotted name: value} of every setting and section."""
    found = {}
    for key, value in config.items(preserve_field_references=False):
        found[prefix + key] = value
        if isinstance(value, config_dict.ConfigDict):
            found |= names(value, f"{prefix}{key}.")
    return found


def nearest(name: str, known, prefix: str) -> str:
    """The nearest of the `known` names: as it is written, else by its last part."""
    close = difflib.get_close_matches(name, list(known), 1, 0.6)
    leaf = name.rpartition(".")[2]
    leaves = difflib.get_close_matches(leaf, {k.rpartition(".")[2] for k in known}, 5, 0.75)
    if leaves and (not close or close[0].rpartition(".")[2] != leaves[0]):
        near = {v: difflib.SequenceMatcher(None, v, leaf).ratio() for v in leaves}
        nearest = {v for v in leaves if near[v] == near[leaves[0]]}
        close = [min((k for k in known if k.rpartition(".")[2] in nearest), key=len)]
    if close:
        return f"Did you mean {prefix}{close[0]}?"
    tops = [k for k in known if "." not in k]
    return f"Known: {', '.join(tops[:30])}"


def wrong_type(message: str, argv: list[str], known) -> tuple[str, str, str]:
    """(what, reason, remedy) of a value that cannot be read as its setting's type."""
    named = re.search(r"flag (--\S+?)=", message)
    name = named[1] if named else ""
    argument = next((a for a in argv[1:] if name and a.startswith(name)), "a flag's value")
    own = known.get(name.removeprefix("--config."))
    reason = message.splitlines()[0].partition(f"{argument}: ")[2] or message.splitlines()[0]
    if isinstance(own, config_dict.ConfigDict):
        return argument, "a section, not one setting", f"Give one of: {', '.join(own)}"
    if own is None:
        return argument, reason.rstrip("."), "--help lists the flags"
    kind = {int: "a whole number", float: "a number", bool: "true or false", tuple: "a list"}
    return argument, f"not {kind.get(type(own), 'a text')}", f"The default is {own!r}"


def words_of(setting: str) -> tuple[str, ...]:
    """The words that a setting of CHOICES may be."""
    words = CHOICES[setting]
    if isinstance(words, str):
        module, _, name = words.partition(":")
        words = getattr(import_module(f"cldm_jax.{module}"), name)
    return tuple(words)


def check_settings(settings: dict[str, object], defaults: dict[str, object]) -> None:
    """UserError for a number out of its range, a word that is none of its setting's, a list of another
    length than it must have. Both by dotted name; `defaults` before the command line changed any.
    """
    run = str(settings.get("name", ""))
    # A score's key is method:mode, and floors and ceilings are the method "reference".
    if ":" in run or run == "reference":
        reason = "a report would leave its tests and pictures out, as of another method"
        raise UserError(f"--config.name={run}", reason, "Give another name, without a colon")
    for name, value in settings.items():
        ends = (".".join(name.split(".")[-2:]), name.rpartition(".")[2])
        default = defaults.get(name)
        if isinstance(value, tuple):
            _check_list(name, value, default, fixed=ends[1] in FIXED)
        low, high = next((LIMITS[e] for e in ends if e in LIMITS), (-math.inf, math.inf))
        words = next((words_of(e) for e in ends if e in CHOICES), ())
        for item in value if isinstance(value, tuple) else (value,):
            given = f"--config.{name}={item}"
            if isinstance(item, int | float) and not low <= item <= high:
                limit = f"a number from {low} to {high}"
                if high == math.inf:
                    limit = f"{low} or more" if low in (0, 1) else "a number above 0"
                raise UserError(given, "out of range", f"Give {limit}")
            if words and isinstance(item, str) and item not in words:
                close = difflib.get_close_matches(item, words, 1, 0.5)
                hint = f"Did you mean {close[0]}? " if close else ""
                raise UserError(given, "not known", f"{hint}Known: {', '.join(words)}")


def _check_list(name: str, value: tuple, default, *, fixed: bool) -> None:
    if not isinstance(default, tuple) or not default:
        return
    given = f"--config.{name}={','.join(map(str, value))}"
    if fixed and len(value) != len(default):
        raise UserError(given, f"needs {len(default)} values", f"The default is {default!r}")
    if any(isinstance(item, str) != isinstance(default[0], str) for item in value):
        kind = "words" if isinstance(default[0], str) else "numbers"
        raise UserError(given, f"needs {kind}", f"The default is {default!r}")


def check_sampling(section, prefix: str) -> None:
    """No sampler takes more steps than its diffusion has."""
    for key, value in section.items():
        if isinstance(value, config_dict.ConfigDict):
            check_sampling(value, f"{prefix}{key}.")
    if "sampling" in section and "diffusion" in section:
        steps, most = section.sampling.num_sampling_steps, section.diffusion.num_timesteps
        if steps > most:
            what = f"--config.{prefix}sampling.num_sampling_steps={steps}"
            reason = f"more than {prefix}diffusion.num_timesteps={most}"
            raise UserError(what, reason, f"Give at most {most}")
