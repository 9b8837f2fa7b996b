"""MONAI's DDIM over the volume, for the PyTorch worker."""

import pathlib

import numpy as np
import torch

from benchmarks import nets_torch, tasks_torch, volume_case


def load_net(net, weights: dict[str, np.ndarray], prefix: str, layout):
    state = {
        name.removeprefix(prefix): torch.from_numpy(array)
        for name, array in weights.items()
        if name.startswith(prefix)
    }
    net.load_state_dict(state)
    return net.to(memory_format=layout).eval()


def setup(folder: str, steps: int, limit: int = 0, bf16: bool = False, channels_last: bool = False):
    """DDIM with `steps` steps and the decoder, for all batches or the first `limit`.

    Returns (call -> images [N, H, W], facts). A single step of one batch is run here to warm up.
    """
    case = volume_case.load_case(folder)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    weights = volume_case.load_arrays(pathlib.Path(folder) / volume_case.TORCH_WEIGHTS)
    unet = load_net(nets_torch.make_unet(), weights, "unet/", layout)
    autoencoder = load_net(nets_torch.make_autoencoder(), weights, "autoencoder/", layout)
    alphas_bar = tasks_torch.cosine_alphas_bar(volume_case.TRAINED_STEPS)
    mean, std = (torch.from_numpy(a)[None, :, None, None] for a in (case.mean, case.std))

    def nchw(array):
        return torch.from_numpy(array.transpose(0, 3, 1, 2)).contiguous(memory_format=layout)

    def read_out(rows, scheduler):
        code = torch.from_numpy(case.code[rows]).long()
        start, source = nchw(case.start[rows]), nchw(case.source[rows])
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            z = nets_torch.ddim(unet, scheduler, start, source, code)
            return autoencoder.decode(z * std + mean)[:, 0].float().numpy()

    def call():
        scheduler = nets_torch.sampling_scheduler(alphas_bar, steps)
        return np.concatenate(
            [read_out(rows, scheduler) for rows in volume_case.batches(case, limit=limit)]
        )

    read_out(slice(0, volume_case.BATCH), nets_torch.sampling_scheduler(alphas_bar, 1))
    return call, {}
