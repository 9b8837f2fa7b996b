"""The second door: from a PET to synthetic CT and MR volumes on the same grid.

.venv/bin/python -m cldm_jax.predict -i pet.nii.gz -o out
"""

import argparse
import difflib
import os
import pathlib
import sys

from cldm_jax import console, errors
from cldm_jax.errors import UserError

MODULE, SCRIPT = "cldm_jax.predict", "cldm-predict"
MODES = ("onestep", "mirror", "sample", "mean", "recentred", "predict")


def _program() -> str:
    """How this command is called: the script that pip installs, or the module."""
    name = pathlib.Path(sys.argv[0]).stem
    return name if name == SCRIPT else console.command(MODULE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_program(),
        description="Synthesise CT and MR volumes from a brain PET, on the PET's own grid: CT in HU "
        "(int16), MR in arbitrary units (float32). Research use only, not for clinical use.",
        epilog="A dataset is gone through to its end: an image that fails is reported, and a rerun skips "
        "what is finished. Exit status 0: all written; 2: something was not.",
    )
    add = parser.add_argument
    add("-i", "--input", required=True, metavar="PET",
        help="NIfTI file, DICOM folder or .zip of one PET series, or BIDS dataset")  # fmt: skip
    add("-o", "--out", required=True, metavar="FOLDER", help="output folder, made if missing")
    add("--checkpoint", default="", metavar="RUN",
        help="workdir of a training, or an exported model; default: the small model that comes along, "
        "trained on simulated heads: to try the command, not to read anatomy from")  # fmt: skip
    add("--target", dest="targets", nargs="+", default=(), choices=("ct", "mr"),
        help="default: all that the model makes")  # fmt: skip
    add("--mode", default="", choices=MODES,
        help="onestep: the expected image in one network evaluation: smooth. mirror: the mean of that "
        "and of the mirrored PET's: the smallest error. sample: one draw as the sampler makes it: sharp, "
        "more error, may invent. mean: of K draws: more error than mirror, smoother than a draw. "
        "recentred: mirror plus one draw's deviation from the mean of K: nearly as sharp as a draw for "
        "less error, its detail as invented. predict: of a U-Net or GAN. "
        "Default: mirror, or the model's only one")  # fmt: skip
    add("--samples", type=int, default=0, metavar="K", help="of mean, recentred and --uncertainty "
        "(default: for the uncertainty as the model was calibrated, else 4)")  # fmt: skip
    add("--sharpness", type=float, default=1.0, metavar="A",
        help="of recentred: times the deviation; 0 is mirror, 1 (default) a draw's")  # fmt: skip
    add("--steps", type=int, default=0, metavar="N", help="DDIM steps (default: the model's own)")
    add("--seed", type=int, default=0, metavar="S", help="of the samples' noise (default 0)")
    add("--uncertainty", action="store_true",
        help="also write an SD map (*_desc-synthsd_*) and, of a calibrated model, regions with 90 %% "
        "intervals (*_desc-synth_regions.tsv); the sidecar says whether it is calibrated")  # fmt: skip
    add("--report", action="store_true", help="also write one HTML page: views, checks, provenance")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default auto")
    add("--batch-size", type=int, default=0, metavar="B",
        help="slices at a time (default 16; GPU 64)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace results of other inputs or settings")
    add("--series", default="", metavar="NUMBER",
        help="which series of a DICOM folder that holds several; an error lists them")  # fmt: skip
    add("--part", default="", metavar="I/N",
        help="of several images every N-th, from the I-th on: for the tasks of a job array")  # fmt: skip
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _parse(argv=None) -> argparse.Namespace:
    parser = _parser()
    known = [option for action in parser._actions for option in action.option_strings]
    for word in sys.argv[1:] if argv is None else argv:
        option = word.partition("=")[0]
        if option.startswith("--") and not any(k.startswith(option) for k in known):
            close = difflib.get_close_matches(option, known, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            parser.error(f"no such option: {option}{hint}")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = _parse(argv)
    if args.device != "auto":
        os.environ["JAX_PLATFORMS"] = args.device
    from cldm_jax.runtime import device

    try:
        device.use_huge_pages()
        device.enable_compilation_cache()
        device.check()
        from cldm_jax.jobs import predict

        predict.predict(predict.Request(**{k: getattr(args, k) for k in predict.Request._fields}))
    except (UserError, OSError, MemoryError) as error:
        # A broken pipe: whoever read the output left, which is no fault of a disk.
        if args.debug or isinstance(error, BrokenPipeError):
            raise
        if isinstance(error, MemoryError):
            remedy = "Give a smaller --batch-size, or crop to the head"
            error = UserError("memory", "not enough", remedy)
        console.refuse(errors.of_system(error, args.out))


def script() -> None:
    """The command, as a process of its own."""
    console.start(MODULE)
    console.run(main)


if __name__ == "__main__":
    script()
