"""Real PETs through `predict`: does the answer look like the person's MR and CT?

    .venv/bin/python -m benchmarks.real_cases --data DATA --out docs/results/real

No benchmark and no tuning set: two cases, looked at. DATA holds (origins and licences:
docs/results/real.md)

  rire/sub-001/pet_space-t1w.nii.gz, t1w.nii.gz    one tumour patient: FDG, filtered back-projection with
                                                   streaks, resliced on the grid of her T1
  mni_templates/pet_fdg_cn116.nii.gz, t1w_avg152.nii.gz, ct_older_hu.nii.gz
                                                   averages of three groups of other people

Written: scores.json, rire.png, template.png. The template's PET is about 10 % smaller than the T1 and
CT templates and some mm off: its answers are first laid on the T1 template by one similarity transform
(mutual information).
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import matplotlib
import nibabel as nib
import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from cldm_jax.data.mask import piece
from cldm_jax.metrics.anatomy import mu_511
from cldm_jax.metrics.image import dice

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

RIRE = ("rire/sub-001/pet_space-t1w.nii.gz", "rire/sub-001/t1w.nii.gz")
TEMPLATE = tuple(
    f"mni_templates/{name}.nii.gz" for name in ("pet_fdg_cn116", "t1w_avg152", "ct_older_hu")
)
TISSUE = 0.12  # of an MR's 99th percentile: more is head
MADE_BONE, MEAN_BONE = 300, 150  # HU; averaging over people blunts bone


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--checkpoint", default="", help="default: the model that comes along")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, case in {"rire": rire, "template": template}.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = case(args.data, pathlib.Path(folder), args.checkpoint, args.out)
        print(name, "  ".join(f"{k} {v:.3f}" for k, v in found[name].items()), flush=True)
    (args.out / "scores.json").write_text(json.dumps(found, indent=1) + "\n")


def predicted(pet: pathlib.Path, out: pathlib.Path, checkpoint: str) -> dict[str, pathlib.Path]:
    """Files of the synthetic MR and CT."""
    command = [sys.executable, "-m", "cldm_jax.predict", "-i", str(pet), "-o", str(out)]
    command += ["--checkpoint", checkpoint] if checkpoint else []
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {k: next(out.glob(f"*desc-synth_{s}.nii.gz")) for k, s in (("mr", "T1w"), ("ct", "ct"))}


def rire(data, folder, checkpoint, out) -> dict[str, float]:
    made = predicted(data / RIRE[0], folder, checkpoint)
    files = [data / RIRE[0], data / RIRE[1], made["mr"], made["ct"]]
    images = [nib.as_closest_canonical(nib.load(f)) for f in files]
    spacing = np.linalg.norm(images[0].affine[:3, :3], axis=0)
    pet, t1, mr, ct = (i.get_fdata() for i in images)
    planes = [(2, int(f * pet.shape[2])) for f in (0.35, 0.55, 0.75)]
    columns = {"PET": pet, "synthetic CT": ct, "synthetic MR": mr, "real MR": t1}
    x, y, _ = np.nonzero(ndimage.binary_dilation(head(t1), iterations=8))
    box = np.s_[x.min() : x.max(), y.min() : y.max()]
    columns = {title: image[box] for title, image in columns.items()}
    figure(out / "rire.png", columns, planes, spacing)
    return scores(pet, mr, t1, spacing)


def template(data, folder, checkpoint, out) -> dict[str, float]:
    pet, t1, ct = (data / p for p in TEMPLATE)
    made = predicted(pet, folder, checkpoint)
    fill = {pet: 0.0, made["mr"]: 0.0, made["ct"]: -1000.0}
    (pet, mr, made_ct), scale = aligned(fill, made["mr"], t1)
    spacing = np.linalg.norm(nib.load(t1).affine[:3, :3], axis=0)
    t1, ct = nib.load(t1).get_fdata(), nib.load(ct).get_fdata()
    planes = [(0, t1.shape[0] // 2 + 4), (1, t1.shape[1] // 2), (2, t1.shape[2] // 2)]
    columns = {"PET": pet, "synthetic CT": made_ct, "CT template": ct, "synthetic MR": mr}
    figure(out / "template.png", columns | {"T1 template": t1}, planes, spacing)
    tissue = (made_ct > -300) | (ct > -300)
    return scores(pet, mr, t1, spacing) | {
        "bone_dice": dice(made_ct > MADE_BONE, ct > MEAN_BONE),
        "ct_head_dice": dice(made_ct > -300, ct > -300),
        "mu_ratio": float(mu_511(made_ct)[tissue].sum() / mu_511(ct)[tissue].sum()),
        "scale": scale,
    }


def scores(pet, made, real, spacing) -> dict[str, float]:
    """Of a synthetic MR against a real one of another contrast, [x, y, z]: outline, correlation in the
    brain, that of what is finer than 8 mm SD (and the PET's own), and the share of voxels over 10 mm
    outside the real head that the synthetic MR fills.
    """
    brain = piece(filled(ndimage.binary_opening(pet > 0.25 * np.percentile(pet, 99))))
    brain &= ndimage.distance_transform_edt(brain, sampling=spacing) > 3
    outline, truth = head(made), head(real)
    far = ndimage.distance_transform_edt(~truth, sampling=spacing) > 10

    def fine(image):
        return image - ndimage.gaussian_filter(image, [8 / s for s in spacing])

    def r(a, b):
        return float(np.corrcoef(a[brain], b[brain])[0, 1])

    spikes = made[far] > TISSUE * np.percentile(made, 99)
    return {
        "head_dice": dice(outline, truth),
        "r_brain": r(made, real),
        "r_detail": r(fine(made), fine(real)),
        "r_detail_of_pet": r(fine(pet), fine(real)),
        "spikes": float(spikes.mean()) if far.any() else 0.0,
    }


def head(image):
    """Outline; closed with the edge slices repeated, so that a head cut off there stays whole."""
    inside = np.pad(image > TISSUE * np.percentile(image, 99), 3, mode="edge")
    closed = ndimage.binary_closing(inside, iterations=3)[3:-3, 3:-3, 3:-3]
    return piece(filled(closed))


def filled(mask):
    return np.stack([ndimage.binary_fill_holes(mask[..., k]) for k in range(mask.shape[-1])], -1)


def aligned(fill: dict, moving, fixed):
    """Images (path: value outside) as arrays [x, y, z] on the grid of `fixed`, by the similarity
    transform that lays `moving` on it (paths); and the transform's scale.
    """
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # the same sum in the same order
    read = {f: sitk.ReadImage(str(f), sitk.sitkFloat32) for f in {*fill, moving, fixed}}
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([0.5, 0.15], 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([3, 1])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetOptimizerAsRegularStepGradientDescent(
        1.0, 1e-3, 100, relaxationFactor=0.7, gradientMagnitudeTolerance=1e-9
    )
    method.SetOptimizerScalesFromPhysicalShift()
    transform = sitk.Similarity3DTransform()
    transform.SetCenter((0.0, 18.0, 18.0))  # mm: the middle of the head in these templates
    method.SetInitialTransform(transform, True)
    method.Execute(read[fixed], read[moving])
    moved = [
        sitk.Resample(read[f], read[fixed], transform, sitk.sitkLinear, v) for f, v in fill.items()
    ]
    return [sitk.GetArrayFromImage(m).transpose(2, 1, 0) for m in moved], transform.GetScale()


def figure(path, columns: dict, planes, spacing):
    """A row a plane (axis, index), a column an image [x, y, z] in RAS; CT from -200 to 1200 HU, others
    to their 99.7th percentile.
    """
    fig, axes = plt.subplots(
        len(planes), len(columns), figsize=(2.2 * len(columns), 2.4 * len(planes)), squeeze=False
    )
    for number, (row, (axis, index)) in enumerate(zip(axes, planes, strict=True)):
        across, up = (s for a, s in enumerate(spacing) if a != axis)
        for cell, (title, image) in zip(row, columns.items(), strict=True):
            low, high = (-200, 1200) if "CT" in title else (0, np.percentile(image, 99.7))
            plane = np.take(image, index, axis).T[::-1]
            cell.imshow(plane, cmap="gray", vmin=low, vmax=high, aspect=up / across)
            cell.axis("off")
            if number == 0:
                cell.set_title(title, fontsize=9)
    fig.tight_layout()
    fig.savefig(path, dpi=80)
    plt.close(fig)


if __name__ == "__main__":
    main()
