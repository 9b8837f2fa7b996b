"""The read-outs of the volume: ours for the JAX worker, MONAI's DDIM for the PyTorch one."""

import pathlib

import numpy as np

from benchmarks import tasks, volume_case


def flax_setup(folder: str, steps: int):
    """One evaluation (steps 0) or DDIM with that many steps, and the decoder. Returns (call -> images
    [N, H, W], facts).
    """
    import jax

    from benchmarks import flops, tasks_flax
    from cldm_jax.models import monai_names
    from cldm_jax.runtime import device, weights

    case = volume_case.load_case(folder)
    nets = {"autoencoder": tasks_flax.make_autoencoder(), "unet": tasks_flax.make_unet()}
    z, code, batch = case.source[:1], case.code[:1], volume_case.BATCH
    image, params = case.truth[:1, ..., None], {}
    args = {"autoencoder": (image, None, None, z), "unet": (z, code, code, z)}
    for name, net in nets.items():
        state = weights.read_tensors(pathlib.Path(folder) / f"{name}.safetensors")
        params[name] = monai_names.to_params(state, flops.shapes_of(net, *args[name]))
    variables = tasks_flax.prepare_variables({"params": jax.tree.map(jax.numpy.asarray, params)})
    variables |= {"mean": case.mean, "std": case.std}
    unet, net = nets["unet"], nets["autoencoder"]

    def read_out(variables, *args):
        return tasks_flax.read_out(unet, net, variables, *args, steps)[..., 0]

    def inputs(picks):
        return variables, case.source[picks], case.start[picks], case.code[picks]

    compiled = device.compile_step(jax.jit(read_out), *inputs(np.zeros(batch, int)))

    def call():
        parts = []
        for rows in volume_case.batches(case):
            picks = np.resize(np.arange(rows.start, rows.stop), batch)  # the last one is filled up
            images = compiled(*inputs(picks))
            parts.append(np.asarray(images)[: rows.stop - rows.start])
        return np.concatenate(parts)

    of_batch = tasks_flax.read_out_flops(unet, net, case.source[:batch], steps)
    return call, {"flops": of_batch * len(case.code) // batch}


def torch_setup(folder: str, steps: int, limit: int = 0, bf16=False, channels_last=False):
    """DDIM with `steps` steps and the decoder, for all batches or the first `limit`.

    Returns (call -> images [N, H, W], facts). A single step of one batch is run here to warm up.
    """
    import safetensors.torch
    import torch

    from benchmarks import nets_torch

    case = volume_case.load_case(folder)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    nets = {"autoencoder": nets_torch.make_autoencoder(), "unet": nets_torch.make_unet()}
    for name, net in nets.items():
        state = safetensors.torch.load_file(pathlib.Path(folder) / f"{name}.safetensors")
        net.load_state_dict(state)
        net.to(memory_format=layout).eval()
    alphas_bar = nets_torch.cosine_alphas_bar(tasks.TIMESTEPS)
    mean, std = (torch.from_numpy(a)[None, :, None, None] for a in (case.mean, case.std))

    def nchw(array):
        return torch.from_numpy(array.transpose(0, 3, 1, 2)).contiguous(memory_format=layout)

    def read_out(rows, scheduler):
        code = torch.from_numpy(case.code[rows]).long()
        start, source = nchw(case.start[rows]), nchw(case.source[rows])
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            z = nets_torch.ddim(nets["unet"], scheduler, start, source, code)
            return nets["autoencoder"].decode(z * std + mean)[:, 0].float().numpy()

    def call():
        scheduler = nets_torch.sampling_scheduler(alphas_bar, steps)
        rows = volume_case.batches(case, limit=limit)
        return np.concatenate([read_out(r, scheduler) for r in rows])

    read_out(slice(0, volume_case.BATCH), nets_torch.sampling_scheduler(alphas_bar, 1))
    return call, {}
