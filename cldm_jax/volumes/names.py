"""Where the files of a prediction lie: BIDS-derivative names, and whose those that lie there are."""

import errno
import os
import pathlib

from cldm_jax import files
from cldm_jax.errors import UserError
from cldm_jax.volumes.synthesis import CALIBRATED

SUFFIX = {"ct": ("ct", "ct"), "mr": ("anat", "T1w")}  # BIDS folder of a dataset, suffix
KINDS = ("synth", "synthsd")


class Names:
    """Paths of what `model` makes of the input `found` below the folder `out`. Of a lone file all lie in
    that folder itself.

    UserError where one of them would lie outside: a folder in there may be a link to elsewhere.
    """

    def __init__(self, out, found, model):
        self.out, self.found, self.targets = pathlib.Path(out), found, model.targets
        self.kinds, self.has_regions = kinds(model), is_calibrated(model)
        self._check_inside()

    def _check_inside(self) -> None:
        existing_folder(self.out)
        root = self.out.resolve()
        for path in self.all(with_report=True):
            if not path.parent.resolve().is_relative_to(root):
                reason = f"leads out of the output folder, to {path.parent.resolve()}"
                raise UserError(path.parent, reason, "Remove the link, or give another folder")

    def image(self, target: str, kind: str) -> pathlib.Path:
        folder, suffix = SUFFIX[target]
        below = pathlib.Path(self.found.folder, folder) if self.found.folder else pathlib.Path()
        return self.out / below / f"{self.found.name}_desc-{kind}_{suffix}.nii.gz"

    def images(self) -> list[pathlib.Path]:
        return [self.image(target, kind) for target in self.targets for kind in self.kinds]

    def regions(self) -> pathlib.Path:
        """The table of regions of all targets."""
        return self.out / self.found.folder / f"{self.found.name}_desc-synth_regions.tsv"

    def data(self) -> list[pathlib.Path]:
        """Whatever has a sidecar."""
        return [*self.images(), *([self.regions()] if self.has_regions else [])]

    def report(self) -> pathlib.Path:
        return self.out / self.found.folder / f"{self.found.name}_desc-synth_report.html"

    def partial(self) -> list[pathlib.Path]:
        """There while the files are being written, one for each target, since two targets may be made
        side by side: what lies beside it may be overwritten.
        """
        folder, start = self.out / self.found.folder, f"{self.found.name}_desc-synth_unfinished"
        return [folder / f"{start}-{target}.json" for target in self.targets]

    def all(self, with_report: bool) -> list[pathlib.Path]:
        paths = [p for made in self.data() for p in (made, sidecar(made))]
        return [*paths, self.report()] if with_report else paths

    def everything(self) -> list[pathlib.Path]:
        """Data that any request about an input of this name would write here."""
        return [*(self.image(t, kind) for t in SUFFIX for kind in KINDS), self.regions()]

    def of_others(self, key: str) -> list[pathlib.Path]:
        """Data here whose sidecars name another run than `key`: another input, model or setting."""
        runs = {made: _facts(made).get("RunKey", key) for made in self.everything()}
        return [made for made, run in runs.items() if run != key]

    def left_over(self) -> list[pathlib.Path]:
        """Data that a run cut short left here without a sidecar: nothing says of which input."""
        marks = zip(self.targets, self.partial(), strict=True)
        cut = [target for target, mark in marks if mark.exists()]
        made = [self.image(t, kind) for t in cut for kind in KINDS] + [self.regions()] * bool(cut)
        return [path for path in made if path.exists() and not _facts(path)]

    def is_own(self, made: pathlib.Path, key: str) -> bool:
        """Whether it is there, of the run `key`, and the bytes that were written."""
        found = _facts(made)
        is_named = made.is_file() and found.get("RunKey") == key
        return is_named and found.get("SHA256") == files.sha256_file(made)


def existing_folder(out) -> pathlib.Path:
    """The output folder, or that in which it would be made. UserError where something else is there."""
    out = pathlib.Path(out)
    there = next(path for path in (out, *out.parents) if os.path.lexists(path))
    if not os.path.isdir(there):
        raise UserError(there, "is a file or a link to nothing", "Give a folder as the output")
    return there


def check_writable(out) -> None:
    """OSError where nothing can be written there: said before the hours of predicting."""
    if not os.access(there := existing_folder(out), os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))


def _facts(made: pathlib.Path) -> dict:
    """Its sidecar; {} where there is none that can be read."""
    try:
        found = files.read_json(sidecar(made))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def sidecar(made: pathlib.Path) -> pathlib.Path:
    return made.with_name(made.name.removesuffix(".nii.gz").removesuffix(".tsv") + ".json")


def is_calibrated(model) -> bool:
    """Whether the SD is that of the calibrated ensemble."""
    return model.sd_mode == CALIBRATED


def kinds(model) -> tuple[str, ...]:
    return KINDS if model.sd_mode else KINDS[:1]
