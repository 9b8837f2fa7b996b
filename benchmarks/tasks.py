"""What is timed and against which bounds. Standard library only: the parent process reads it."""

from typing import NamedTuple


class Spec(NamedTuple):
    """One piece of work, the same on both sides."""

    kind: str  # ae_train | ae_encode | ae_decode | ldm_train | ddim
    batch: int
    size: int  # pixels of the image (autoencoder) or of the latent (U-Net)
    steps: int = 1  # of DDIM


# The networks, by MONAI's keywords, which are ours too. num_head_channels: where there is attention.
LATENT_CHANNELS, NUM_CLASSES, TIMESTEPS = 4, 4, 1000
AUTOENCODER = dict(
    channels=(32, 64, 128),
    latent_channels=LATENT_CHANNELS,
    num_res_blocks=(2, 2, 2),
    attention_levels=(False, False, False),
    norm_num_groups=16,
)
UNET = dict(
    channels=(64, 128, 256),
    num_res_blocks=(2, 2, 2),
    attention_levels=(False, True, True),
    norm_num_groups=32,
    num_head_channels=(0, 64, 64),
    num_class_embeds=NUM_CLASSES,
)
KL_WEIGHT, LEARNING_RATE, WEIGHT_DECAY = 1e-6, 1e-4, 1e-2

RACES = {
    "ldm_train_b8": Spec("ldm_train", 8, 32),
    "ae_train_b8": Spec("ae_train", 8, 128),
    "ddim_b8": Spec("ddim", 8, 32, steps=5),
    "ddim_b1": Spec("ddim", 1, 32, steps=10),
    "ae_encode_b8": Spec("ae_encode", 8, 128),
    "ae_decode_b8": Spec("ae_decode", 8, 128),
}
VOLUME = "volume_150"  # the row that is no race
QUICK = ("ldm_train_b8", "ddim_b8", VOLUME)

VOLUME_BOUND = 1 / 30  # ours / peer: the one-step read-out of a volume against fifty DDIM steps
# Highest ours / peer that counts as met: (threads, peer) -> ratio. What is not named is reported.
_TRAINING = {(1, "torch_f32"): 0.75, (1, "torch_bf16"): 1.1, (2, "torch_f32"): 0.85}
_SAMPLING = {(1, "torch_f32"): 0.62, (1, "torch_bf16"): 0.95, (2, "torch_f32"): 0.75}


def bound(name: str, threads: int, peer: str) -> float | None:
    """The bound on ours / peer, None where the row is only reported."""
    bounds = _SAMPLING if RACES[name].kind == "ddim" else _TRAINING
    return bounds.get((threads, peer))


# Variants of the peer: settings of its worker. The best one is the peer of record. bf16 is raced where
# the processor has it (proc.has_bf16).
VARIANTS = {
    "torch_f32/contiguous": {},
    "torch_f32/channels_last": {"channels_last": True},
    "torch_bf16/contiguous": {"bf16": True},
    "torch_bf16/channels_last": {"bf16": True, "channels_last": True},
}
