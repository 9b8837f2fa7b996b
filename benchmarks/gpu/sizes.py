"""The networks, batches and trainings of each part, at the size of a GPU ("full") and of a rehearsal."""

from typing import NamedTuple


class Sizes(NamedTuple):
    name: str
    preset: str  # of configs/, what is not said here
    image: tuple[int, int]  # rows, columns
    ae_channels: tuple[int, ...]
    unets: dict[str, tuple[int, ...]]  # name -> channels; attention at the last level
    head_channels: int
    blocks: int  # residual ones of every level, of both networks
    batches: tuple[int, int]  # of the latent network's training: large, small
    ae_batch: int
    sampled: tuple[int, int]  # slices of a DDIM call
    ddim_steps: int
    coded: int  # slices of an encoding or decoding
    volume: tuple[int, int]  # slices, slices at a time
    gemm: int
    copy_mb: int
    sample_s: float  # seconds of calls a measurement, at least


# The latents of 192 x 224 mm at 1 mm are 48 x 56.
FULL = Sizes(
    name="full",
    preset="cpu1mm",
    image=(224, 192),
    ae_channels=(32, 64, 128),
    unets={"12M": (64, 128, 256), "51M": (128, 256, 512)},
    head_channels=64,
    blocks=2,
    batches=(256, 64),
    ae_batch=32,
    sampled=(1, 8),
    ddim_steps=50,
    coded=64,
    volume=(150, 50),
    gemm=8192,
    copy_mb=2048,
    sample_s=1.0,
)
TINY = Sizes(
    name="tiny",
    preset="tiny",
    image=(16, 16),
    ae_channels=(16, 32),
    unets={"12M": (32, 64), "51M": (64, 64)},
    head_channels=32,
    blocks=1,
    batches=(4, 2),
    ae_batch=2,
    sampled=(1, 2),
    ddim_steps=4,
    coded=2,
    volume=(6, 2),
    gemm=256,
    copy_mb=8,
    sample_s=0.1,
)


def choose(rehearse: bool) -> Sizes:
    return TINY if rehearse else FULL


class Lesson(NamedTuple):
    """A training: its config, steps and dotted settings."""

    config: str
    steps: int
    settings: dict[str, object]


class Schooling(NamedTuple):
    """What the part "train" does at one size."""

    preset: str
    people: int
    autoencoder: Lesson
    trainings: dict[str, Lesson]  # the first ones first, if it gets late


# Steps of about 40 device seconds by the one step that was measured on an H200, of networks 4/3 as wide
# (docs/results/gpu): what each took is in the results. Widths: exported, each model is a file of 16 MiB.
_LATENT = {
    "recipe.model.unet.base_channels": 48,
    "recipe.model.unet.num_res_blocks": 2,
    "recipe.model.unet.dtype": "bfloat16",
    "train.batch_size": 128,
}
_PIXELS = {
    "recipe.model.unet.base_channels": 24,
    "recipe.model.unet.dtype": "bfloat16",
    "train.batch_size": 32,
}
_ONESTEP = {
    "recipe.diffusion.onestep_share": (1.0, 1.0),
    "recipe.diffusion.gaussian_denoiser": False,
    "recipe.sampling.num_samples": (),
}


def _lessons(steps: int, latent: dict, pixels: dict, cells: dict) -> dict[str, Lesson]:
    return {
        "ldm": Lesson("ldm", steps, latent),
        "unet": Lesson("unet", steps, pixels),
        "unet-cells": Lesson("unet", steps, latent | cells),
        "latent_regression": Lesson("ldm", steps, latent | _ONESTEP),
    }


FULL_SCHOOLING = Schooling(
    preset="cpu1mm",
    people=208,
    autoencoder=Lesson("ae", 480, {"recipe.model.dtype": "bfloat16", "train.batch_size": 64}),
    trainings=_lessons(
        2800,
        _LATENT,
        _PIXELS,
        {
            "recipe.model.stem_block": 4,
            "recipe.model.unet.channel_mult": (1, 2, 4),
            "recipe.model.unet.attn_levels": (2,),
        },
    ),
)
TINY_SCHOOLING = Schooling(
    preset="tiny",
    people=12,
    autoencoder=Lesson("ae", 20, {}),
    trainings=_lessons(
        40,
        {},
        {},
        {"recipe.model.stem_block": 2, "recipe.model.unet.channel_mult": (1, 2)},
    ),
)


def schooling(rehearse: bool) -> Schooling:
    return TINY_SCHOOLING if rehearse else FULL_SCHOOLING
