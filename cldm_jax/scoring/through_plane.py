"""Do a sampled volume's slices fit each other? One person, all slices, noise more and less correlated."""

from typing import NamedTuple

import numpy as np

from cldm_jax.metrics import anatomy, image
from cldm_jax.runs.inputs import image_source
from cldm_jax.runs.readouts import open_run, predict_rows
from cldm_jax.runs.spread import first_people


class ThroughPlane(NamedTuple):
    rows: list[dict]  # {"name", "noise_slices", "target", "consistency", "psnr"}, model range
    planes: dict[str, dict[str, np.ndarray]]  # target -> label -> coronal plane [Z, W], model range
    subject: int
    aspect: float  # slice spacing over column spacing


def measure(config, trained: dict, prepared, names: dict[int, str]) -> ThroughPlane:
    """The first scored person, sampled once with each of `config.noise_slices`, beside the real volume
    and the one-step read-out. consistency: mean change from slice to slice over that of the real
    volume, above 1 flickers. psnr: in the mask, range 2.
    """
    targets = tuple(names.values())
    source = image_source(prepared, config.split, targets, trained["data"], people_per_group=1)
    subject, person = int(source.keys["subject"][0]), first_people(source, 1)
    batch = person.read(np.arange(len(person)))
    real, mask = batch["target"][..., 0], batch["mask"][..., 0] > 0
    volumes = {"real": (None, real)}
    for noise_slices in config.noise_slices:
        sampling = {
            **trained["recipe"]["sampling"],
            "num_samples": (1,),
            "num_sampling_steps": config.main_steps,
            "noise_slices": noise_slices,
        }
        opened = open_run(config.run, sampling)
        options = dict(batch_size=config.batch_size, seed=0)
        if "onestep" in opened.method.predict and "onestep" not in volumes:
            volumes["onestep"] = (None, predict_rows(opened, "onestep", person, **options).images)
        images = predict_rows(opened, "sample", person, **options).images
        label = (
            "sample, independent noise" if not noise_slices else f"sample, noise {noise_slices:g}"
        )
        volumes[label] = (noise_slices, images)
    rows, planes = [], {}
    for code, target in names.items():
        own = batch["label"] == code
        if not own.any():
            continue
        line = int(np.median(np.nonzero(mask[own])[1]))
        planes[target] = {label: images[own][:, line] for label, (_, images) in volumes.items()}
        for label, (noise_slices, images) in volumes.items():
            if label == "real":
                continue
            args = images[own], real[own], mask[own]
            rows.append(
                {
                    "name": label,
                    "noise_slices": noise_slices,
                    "target": target,
                    "consistency": anatomy.consistency(*args, batch["slice"][own]),
                    "psnr": image.psnr(*args[:2], mask=args[2], data_range=2.0),
                }
            )
    height, _, column = prepared.index.people[subject].voxel_mm
    return ThroughPlane(rows, planes, subject, height / column)
