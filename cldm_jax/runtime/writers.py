"""Metrics to TensorBoard event files and to metrics.jsonl, under clu's method names.

clu.metric_writers itself imports TensorFlow. The only module that imports tensorboardX.
"""

import json
import logging
import math
import os
import pathlib
import time

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter  # synchronous: nothing is lost at exit
from tensorboardX.proto import event_pb2

from cldm_jax import files

METRICS = "metrics.jsonl"


def read_rows(workdir) -> list[dict]:
    """The rows of a run's metrics.jsonl. A line torn by a crash is passed over, with a warning."""
    path = pathlib.Path(workdir) / METRICS
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            row["step"] = int(row["step"])
        except (ValueError, KeyError, TypeError):
            logging.warning("%s: a line that is no row was passed over: %.60r", path, line)
            continue
        rows.append(row)
    return rows


def open_writer(workdir, resume_step: int, *, is_writing: bool):
    """The MetricWriter of a workdir, or one that writes nothing: of the other processes of its run."""
    return MetricWriter(workdir, resume_step) if is_writing else _Silent()


class _Silent:
    """Takes all calls of a MetricWriter."""

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: None


class MetricWriter:
    """write_scalars, write_events, write_images, write_validation, flush, close. One per workdir."""

    def __init__(self, workdir, resume_step: int):
        """Lines after `resume_step` come from steps that will be run again: they are cut off."""
        self.path = pathlib.Path(workdir) / METRICS
        kept = [row for row in read_rows(workdir) if row["step"] <= resume_step]
        files.write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.lines = open(self.path, "a", encoding="utf-8", buffering=1)
        self.events = EventsWriter(os.path.join(str(workdir), "events"))

    def _put(self, step: int, value) -> None:
        event = event_pb2.Event(wall_time=time.time(), step=int(step), summary=value)
        self.events.write_event(event)

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        row = {k: float(v) for k, v in scalars.items()}
        self.write_events(step, row)
        finite = {k: v if math.isfinite(v) else None for k, v in row.items()}
        self.lines.write(json.dumps({"step": int(step), **finite}) + "\n")

    def write_events(self, step: int, scalars: dict[str, float]) -> None:
        """For the live view only: what another run of the same steps would not repeat (speed)."""
        for name, value in scalars.items():
            self._put(step, summary.scalar(name, value))

    def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """images: [N, H, W, C] in [0, 1]."""
        for name, batch in images.items():
            for i, image in enumerate(np.asarray(batch)):
                self._put(step, summary.image(f"{name}/{i}", image, dataformats="HWC"))

    def write_validation(self, step: int, scalars: dict, images: dict) -> None:
        """Images first: where the row is, all of it is."""
        self.write_images(step, images)
        self.write_scalars(step, scalars)
        self.flush()

    def flush(self) -> None:
        self.events.flush()

    def close(self) -> None:
        self.events.close()
        self.lines.close()
