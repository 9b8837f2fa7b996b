"""Whether images and class codes fit the networks of a training config."""

from cldm_jax.data.index import Index
from cldm_jax.data.shards import Prepared
from cldm_jax.errors import UserError


def check(config, prepared: Prepared) -> None:
    """UserError where the networks of training `config` cannot take these images or class codes."""
    check_size(config, prepared.index.grid.size)
    _check_codes(config, prepared.index)
    _check_source(config)
    _check_loss(config)


def check_size(config, size) -> None:
    """UserError where images of `size` (rows, columns) cannot be halved as often as the networks do."""
    recipe = config.recipe.to_dict()
    multiple = _multiple(recipe.get("model") or recipe["generator"])
    if config.data.kind == "latents":
        multiple *= _multiple(config.autoencoder.train.recipe.model.to_dict())
    if any(n % multiple for n in size):
        fitting = ",".join(str(-(-n // multiple) * multiple) for n in size)
        raise UserError(
            f"images of {size[0]} x {size[1]}",
            f"the networks of these settings need multiples of {multiple}",
            f'Prepare them with --config.size="({fitting})", or give fewer levels (channel_mult, of '
            "MONAI's networks channels).",
        )


def _check_codes(config, index: Index) -> None:
    """UserError where a class code that the network is asked for has no row in its embedding: the answer
    would be NaN, or that of the last row.
    """
    recipe = config.recipe.to_dict()
    model = recipe.get("model") or recipe["generator"]
    setting = next((s for s in ("num_class_embeds", "num_classes") if s in model), None)
    if setting is None:
        return
    rows = model[setting]
    asked = {name: index.code(name) for name in config.data.targets}
    if rows == 0 and len(asked) > 1:
        reason = f"cannot tell {' from '.join(asked)} without class embeddings"
        raise UserError("num_class_embeds=0", reason, "Give one of them as config.data.targets.")
    diffusion = recipe.get("diffusion")
    if diffusion and diffusion["class_dropout_prob"] > 0:
        asked["no class (null_code)"] = diffusion["null_code"]
    missing = [f"{name}: {code}" for name, code in asked.items() if code >= rows > 0]
    if missing:
        raise UserError(
            f"{setting}={rows}",
            f"has no row for the class code of {', '.join(missing)}",
            "Give as many as the highest code and one; for no class, class_dropout_prob=0 will do.",
        )


def _check_source(config) -> None:
    """UserError where the source slices are not what the method takes."""
    data, diffusion = config.data, config.recipe.to_dict().get("diffusion")
    if config.method == "cyclegan" and data.context != 1:
        reason = "CycleGAN takes one source slice"
        raise UserError(f"config.data.context={data.context}", reason, "Give 1.")
    if diffusion is None or diffusion["conditioning"] == "sdedit":  # which sees no source
        return
    kind, encoding = data.source_kind, diffusion["source_encoding"]
    if (kind == "latent") != (encoding == "latent"):
        what = f"config.data.source_kind={kind}, config.recipe.diffusion.source_encoding={encoding}"
        reason = "one is of latents, the other of pixels"
        raise UserError(what, reason, "Give latent for both, or image and s2d.")


def _check_loss(config) -> None:
    """UserError where the loss of another target is weighted as if it were that of x0."""
    diffusion = config.recipe.to_dict().get("diffusion")
    if diffusion is None or diffusion["target"] == "x0" or not diffusion["noise_weight_power"]:
        return
    what = f"config.recipe.diffusion.noise_weight_power={diffusion['noise_weight_power']:g}"
    raise UserError(what, f"is for target x0, and target is {diffusion['target']}", "Give 0.0.")


def _multiple(model: dict) -> int:
    """Pixels that become one at the network's lowest level, along a side."""
    levels = model.get("channel_mult") or model.get("unet", {}).get("channel_mult")
    levels = levels or model.get("channels")  # MONAI's networks
    if levels is None:  # CycleGAN's generator
        return 4
    return model.get("stem_block", 1) * 2 ** (len(levels) - 1)
