"""Where the files of a prediction lie: BIDS-derivative names, and whether all of them are whole."""

import pathlib

from cldm_jax import files
from cldm_jax.errors import UserError
from cldm_jax.volumes.synthesis import CALIBRATED

SUFFIX = {"ct": ("ct", "ct"), "mr": ("anat", "T1w")}  # BIDS folder of a dataset, suffix


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
        if self.out.exists() and not self.out.is_dir():
            raise UserError(self.out, "is a file", "Give a folder as the output")
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

    def partial(self) -> pathlib.Path:
        """There while the files are being written: what lies beside it may be overwritten."""
        return self.out / self.found.folder / f"{self.found.name}_desc-synth_unfinished.json"

    def all(self, with_report: bool) -> list[pathlib.Path]:
        paths = [p for made in self.data() for p in (made, sidecar(made))]
        return [*paths, self.report()] if with_report else paths

    def is_whole(self, key: str, with_report: bool) -> bool:
        """Every file is there, of the run `key`, and the data are the bytes that were written."""
        if not all(p.is_file() for p in self.all(with_report)):
            return False
        for made in self.data():
            try:
                found = files.read_json(sidecar(made))
            except (ValueError, RecursionError):
                return False
            if not isinstance(found, dict) or found.get("RunKey") != key:
                return False
            if found.get("SHA256") != files.sha256_file(made):
                return False
        return True


def sidecar(made: pathlib.Path) -> pathlib.Path:
    return made.with_name(made.name.removesuffix(".nii.gz").removesuffix(".tsv") + ".json")


def is_calibrated(model) -> bool:
    """Whether the SD is that of the calibrated ensemble."""
    return model.sd_mode == CALIBRATED


def kinds(model) -> tuple[str, ...]:
    return ("synth", "synthsd") if model.sd_mode else ("synth",)
