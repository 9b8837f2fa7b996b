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


class Schooling(NamedTuple):
    """What the part "train" does at one size."""

    preset: str
    overrides: dict[str, dict[str, object]]  # training -> dotted settings
    person_s: float  # CPU seconds of simulating one person, about
    most_people: int
    test_stride: int  # every n-th slice of the test people is scored at once
    least_s: float  # device seconds of a training below which it is left out
    most_s: float  # and more than which none gets: what is left goes to further methods
    around_s: float  # a training's validations, saves, read-outs and scores, about


_LATENT = {
    "recipe.model.unet.base_channels": 64,
    "recipe.model.unet.num_res_blocks": 2,
    "recipe.model.unet.dtype": "bfloat16",
    "train.batch_size": 128,
}
_PIXELS = {
    "recipe.model.unet.base_channels": 32,
    "recipe.model.unet.dtype": "bfloat16",
    "train.batch_size": 32,
}
FULL_SCHOOLING = Schooling(
    preset="cpu1mm",
    overrides={
        "ae": {"recipe.model.dtype": "bfloat16", "train.batch_size": 64},
        "ldm": {**_LATENT, "recipe.sampling.num_samples": (1,)},
        "unet": _PIXELS,
        "unet-cells": _LATENT,
        "latent_regression": _LATENT,
        "attention_unet": _PIXELS,
    },
    person_s=12.0,
    most_people=200,
    test_stride=6,
    least_s=8.0,
    most_s=90.0,
    around_s=15.0,
)
TINY_SCHOOLING = Schooling(
    preset="tiny",
    overrides={
        "ae": {},
        "ldm": {"recipe.sampling.num_samples": (1,)},
        "unet": {},
        "unet-cells": {},
        "latent_regression": {},
        "attention_unet": {},
    },
    person_s=2.0,
    most_people=12,
    test_stride=1,
    least_s=0.5,
    most_s=4.0,
    around_s=20.0,
)


def schooling(rehearse: bool) -> Schooling:
    return TINY_SCHOOLING if rehearse else FULL_SCHOOLING
