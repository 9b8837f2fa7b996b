"""The other side of the race, a worker of `race`: MONAI's networks under PyTorch, bfloat16 autocast,
channels_last, fused AdamW. `python -m benchmarks.gpu.race_torch full|tiny`

Without a GPU (a rehearsal) everything runs on the CPU; CUDA graphs cannot.
"""

import contextlib
import gc
import pathlib
import sys
import time

import numpy as np
import torch

from benchmarks import nets_torch
from benchmarks.compare import nhwc, normal, numpy_state, randomise
from benchmarks.gpu import lines, part, rows, sizes

WARM = 3  # calls before a capture
CHECKED, CHECK_STEPS = 2, 5


class Side:
    """The worker's operations."""

    def __init__(self, chosen: sizes.Sizes):
        self.sizes = chosen
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cudnn.benchmark = True
        if self.device.type == "cpu":  # a rehearsal, perhaps beside other work: no barriers
            torch.set_num_threads(1)
        self.alphas_bar = nets_torch.cosine_alphas_bar()

    # Networks and inputs

    def place(self, value):
        """On the device; pictures and networks in channels_last."""
        value = value.to(self.device)
        if isinstance(value, torch.nn.Module) or value.ndim == 4:
            value = value.to(memory_format=torch.channels_last)
        return value

    def autoencoder(self):
        torch.manual_seed(0)
        channels, blocks = self.sizes.ae_channels, self.sizes.blocks
        no_attention = (False,) * len(channels)
        return nets_torch.make_autoencoder(
            channels=channels, num_res_blocks=blocks, attention_levels=no_attention
        )

    def unet(self, name: str):
        torch.manual_seed(0)
        channels = self.sizes.unets[name]
        attention = (False,) * (len(channels) - 1) + (True,)
        return nets_torch.make_unet(
            channels=channels,
            num_res_blocks=self.sizes.blocks,
            attention_levels=attention,
            num_head_channels=tuple(self.sizes.head_channels * a for a in attention),
        )

    def latents(self, batch: int):
        h, w = (n // 2 ** (len(self.sizes.ae_channels) - 1) for n in self.sizes.image)
        return torch.randn(batch, nets_torch.LATENT_CHANNELS, h, w)

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16)

    def parameters(self, row: rows.Row) -> int:
        net = self.autoencoder() if row.kind == "ae_train" else self.unet(row.unet)
        return sum(p.numel() for p in net.parameters())

    # What is timed

    def call(self, row: rows.Row, variant: str):
        """() -> None: one call of `row`, handed to the device."""
        wrap = torch.compile if variant == "compile" else lambda net: net
        make = self.training if row.kind.endswith("_train") else self.inference
        call = make(row, wrap, variant == "graphs")
        if variant == "graphs":
            call = captured(call)
        if row.calls == 1:
            return call

        def several():
            for _ in range(row.calls):
                call()

        return several

    def training(self, row: rows.Row, wrap, capturable: bool):
        if row.kind == "ae_train":
            net = self.place(self.autoencoder())
            forward, images = wrap(net), self.place(torch.rand(row.batch, 1, *self.sizes.image))

            def loss():
                return nets_torch.autoencoder_loss(forward, images)
        else:
            net = self.place(self.unet(row.unet))
            forward = wrap(net)
            scheduler = nets_torch.training_scheduler(self.alphas_bar)
            scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(self.device)
            z, source = (self.place(self.latents(row.batch)) for _ in range(2))
            code = torch.ones(row.batch, dtype=torch.long, device=self.device)

            def loss():
                return nets_torch.ldm_loss(forward, scheduler, z, source, code)

        return nets_torch.training(net, loss, self.autocast, capturable)

    def inference(self, row: rows.Row, wrap, capturable: bool):
        autoencoder = self.place(self.autoencoder()).eval()
        encode, decode = wrap(autoencoder.encode), wrap(autoencoder.decode)
        images = self.place(torch.rand(row.batch, 1, *self.sizes.image))
        z = self.place(self.latents(row.batch))
        if row.kind == "sample":
            unet = wrap(self.place(self.unet(row.unet)).eval())
            code = torch.ones(row.batch, dtype=torch.long, device=self.device)
            steps = self.sizes.ddim_steps
            scheduler = nets_torch.sampling_scheduler(self.alphas_bar, steps, self.device)

        def work():
            if row.kind == "encode":
                encode(images)
            elif row.kind == "decode":
                decode(z)
            else:
                source, start = encode(images)[0].float(), torch.randn_like(z)
                decode(nets_torch.ddim(unet, scheduler, start, source, code))

        mode = torch.no_grad if capturable else torch.inference_mode

        def call():
            with mode(), self.autocast():
                work()

        return call

    # Operations

    def time(self, name: str, variant: str, seconds: float) -> dict:
        """Like `part.timed`, and the peak of memory."""
        row = rows.find(self.sizes, name)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        call = self.call(row, variant)
        call()
        self.wait()
        first_s = time.perf_counter() - began
        took = part.timed(call, self.wait, seconds)
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else None
        facts = {"first_s": first_s, "peak_gb": peak, "params": self.parameters(row)}
        del call
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return {**took, **facts}

    def wait(self, _=None) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def weights(self, folder: str) -> dict:
        """Random weights of both networks, and what they answer in float32: for our side to repeat."""
        autoencoder, unet = self.autoencoder().eval(), self.unet("12M").eval()
        randomise(autoencoder, 1)
        randomise(unet, 2)
        state = {
            f"{name}/{key}": value
            for name, net in (("autoencoder", autoencoder), ("unet", unet))
            for key, value in numpy_state(net).items()
        }
        np.savez(pathlib.Path(folder) / "weights.npz", **state)
        shape = self.latents(CHECKED).shape
        start, source = normal(3, *shape), normal(4, *shape)
        images = normal(5, CHECKED, 1, *self.sizes.image)
        code, t = torch.arange(CHECKED) + 1, torch.tensor([10, 700])
        autoencoder, unet = autoencoder.to(self.device), unet.to(self.device)
        given = [x.to(self.device) for x in (images, start, source, code, t)]
        with exact(), torch.inference_mode():
            images_, start_, source_, code_, t_ = given
            scheduler = nets_torch.sampling_scheduler(self.alphas_bar, CHECK_STEPS, self.device)
            out = {
                "mean": autoencoder.encode(images_)[0],
                "decoded": autoencoder.decode(start_),
                "prediction": unet(torch.cat([start_, source_], 1), t_, class_labels=code_),
                "sample": nets_torch.ddim(unet, scheduler, start_, source_, code_),
            }
        pictures = {"images": images, "start": start, "source": source, **out}
        np.savez(
            pathlib.Path(folder) / "reference.npz",
            code=code.numpy().astype(np.int32),
            t=t.numpy().astype(np.int32),
            steps=CHECK_STEPS,
            **{name: nhwc(x.cpu()) for name, x in pictures.items()},
        )
        facts = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": str(self.device)}
        return {**facts, "weights": len(state)}

    def ceilings(self) -> dict:
        """As on our side."""
        n = self.sizes.gemm
        a, b = (torch.randn(n, n, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        gemm = part.timed(lambda: torch.mm(a, b), self.wait, 0.5)
        x = torch.randn(self.sizes.copy_mb * 2**20 // 4, device=self.device)
        copy = part.timed(lambda: x + 1, self.wait, 0.5)
        size = 2 * x.numel() * x.element_size()
        return {
            "bfloat16_tflops": 2 * n**3 / gemm["seconds"] / 1e12,
            "copy_gb_s": size / copy["seconds"] / 1e9,
        }


@contextlib.contextmanager
def exact():
    """Float32 products without TF32."""
    kept = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = kept[0]
        torch.set_float32_matmul_precision(kept[1])


def captured(call):
    """`call` as the replay of a CUDA graph. Raises RuntimeError without a GPU."""
    if not torch.cuda.is_available():
        raise RuntimeError("CUDA graphs need a GPU")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def main() -> None:
    side = Side(sizes.choose(sys.argv[1] == "tiny"))
    operations = ("weights", "time", "ceilings")
    lines.serve({name: getattr(side, name) for name in operations})


if __name__ == "__main__":
    main()
