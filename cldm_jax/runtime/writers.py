"""Metrics to TensorBoard event files and to metrics.jsonl, under clu's method names.

clu.metric_writers itself imports TensorFlow. The only module that imports tensorboardX.
"""

import json
import math
import os
import pathlib
import time

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter  # synchronous: nothing is lost at exit
from tensorboardX.proto import event_pb2

from cldm_jax import files


class MetricWriter:
    """write_scalars, write_images, write_hparams, flush, close. One per workdir, process 0 only."""

    def __init__(self, workdir, resume_step: int):
        """Lines after `resume_step` come from steps that will be run again: they are cut off."""
        self.path = pathlib.Path(workdir) / "metrics.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= resume_step]
        files.write_text(self.path, "".join(line + "\n" for line in kept))
        self.lines = open(self.path, "a", encoding="utf-8", buffering=1)
        self.events = EventsWriter(os.path.join(str(workdir), "events"))

    def _put(self, step: int, value) -> None:
        event = event_pb2.Event(wall_time=time.time(), step=int(step), summary=value)
        self.events.write_event(event)

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        row = {k: float(v) for k, v in scalars.items()}
        for name, value in row.items():
            self._put(step, summary.scalar(name, value))
        finite = {k: v if math.isfinite(v) else None for k, v in row.items()}
        self.lines.write(json.dumps({"step": int(step), **finite}) + "\n")

    def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """images: [N, H, W, C] in [0, 1]."""
        for name, batch in images.items():
            for i, image in enumerate(np.asarray(batch)):
                self._put(step, summary.image(f"{name}/{i}", image, dataformats="HWC"))

    def write_hparams(self, hparams: dict) -> None:
        text = "\n".join(f"    {k}: {v}" for k, v in hparams.items())
        self._put(0, summary.text("hparams", text))

    def flush(self) -> None:
        self.events.flush()

    def close(self) -> None:
        self.events.close()
        self.lines.close()
