"""Whatever grid a PET comes on, its CT comes back on it, and what lay at a place lies there again.

The network is the identity here: what is measured is the way in, the way out and the headers.
"""

import dataclasses
import gzip
import json
import types

import nibabel as nib
import numpy as np
import pytest
import test_data_dicom

from cldm_jax.data import dicom, intensity, nifti, pet_checks
from cldm_jax.data.grid import ModelGrid
from cldm_jax.data.index import Modality
from cldm_jax.errors import UserError
from cldm_jax.jobs import predict
from cldm_jax.methods.base import Method, Prediction
from cldm_jax.runs import stored
from cldm_jax.runs.manifest import Data
from cldm_jax.volumes import names, opened, sidecars, synthesis

CT_WINDOW = (-1024.0, 3071.0)
GRID = ModelGrid((112, 96), (2.0, 2.0), 2.0)
MARKER = np.array([31.0, 18.0, 12.0])  # world mm; a blob in a head
BLOB_MM = 7.0
CENTRE = (5.0, -3.0, 4.0)  # world mm of the field of view's


def _identity(state, batch, rng):
    source = batch["source"]
    middle = source.shape[-1] // 2
    return Prediction(source[..., middle : middle + 1], None)


@pytest.fixture(scope="module", autouse=True)
def identity_model():
    """A model whose CT is its PET: -1 is air, 1 the top of the window."""
    specs = {
        "pet": intensity.fit(
            intensity.make("pet", "volume_percentile", low=0, high=1.5, percentile=99), [1.0]
        ),
        "ct": intensity.fit(
            intensity.make("ct", "window", low=CT_WINDOW[0], high=CT_WINDOW[1], percentile=None), []
        ),
    }
    modalities = {
        name: Modality(intensity.MODALITIES[name].code, "", spec) for name, spec in specs.items()
    }
    data = Data("identity", "", "", 0, "simulated", GRID, "pet", modalities)
    config = {"recipe": {}, "data": {"context": 3, "targets": ["ct"]}}
    method = Method(None, None, {"onestep": _identity}, {"onestep": 1})
    made = stored.Run(
        "",
        "identity",
        config,
        types.SimpleNamespace(data=data, pet_ranges=None),
        0,
        method,
        (),
        None,
    )
    patch = pytest.MonkeyPatch()
    patch.setattr(opened, "open_run", lambda *args: made)
    patch.setattr(sidecars, "model_identity", lambda *args: "0" * 64)
    yield
    patch.undo()


def rotation(degrees, axis):
    angle = np.radians(degrees)
    i, j = [k for k in range(3) if k != axis]
    matrix = np.eye(3)
    matrix[[i, j], [i, j]] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


@dataclasses.dataclass(frozen=True)
class Case:
    shape: tuple = (80, 96, 70)
    spacing: tuple = (2.0, 2.0, 2.0)
    axes: str = "RAS"  # where the voxel axes point
    turn: tuple = ()  # (degrees, world axis) about the centre
    dtype: str = "float32"
    codes: tuple = (1, 1)  # qform, sform
    frames: bool = False
    version2: bool = False
    offset: tuple = (0.0, 0.0, 0.0)  # world mm; moves everything

    def affine(self):
        directions = {
            "R": (0, 1),
            "L": (0, -1),
            "A": (1, 1),
            "P": (1, -1),
            "S": (2, 1),
            "I": (2, -1),
        }
        axes = np.zeros((3, 3))
        for column, letter in enumerate(self.axes):
            row, sign = directions[letter]
            axes[row, column] = sign * self.spacing[column]
        if self.turn:
            axes = rotation(*self.turn) @ axes
        affine = np.eye(4)
        affine[:3, :3] = axes
        affine[:3, 3] = np.array(CENTRE) + self.offset - axes @ ((np.array(self.shape) - 1) / 2)
        return affine

    def write(self, path):
        affine = self.affine()
        index = np.stack(np.meshgrid(*(np.arange(n) for n in self.shape), indexing="ij"), -1)
        world = index @ affine[:3, :3].T + affine[:3, 3] - self.offset
        head = np.sqrt((((world - (4, -2, 0)) / (62, 76, 58)) ** 2).sum(-1))
        array = 3.0 / (1 + np.exp((head - 1) * 20))
        array += 1.2 * np.exp(-0.5 * ((world - MARKER) ** 2).sum(-1) / BLOB_MM**2)
        if self.frames:
            array = array[..., None]
        image = (nib.Nifti2Image if self.version2 else nib.Nifti1Image)(
            array.astype(np.float32), affine
        )
        image.set_qform(affine, code=self.codes[0])
        image.set_sform(affine if self.codes[1] else None, code=self.codes[1])
        if self.dtype == "int16":
            image.header.set_data_dtype(np.int16)  # nibabel chooses slope and intercept
        nib.save(image, path)


CASES = {
    "plain": Case(),
    "LAS": Case(axes="LAS"),
    "LPS": Case(axes="LPS"),
    "RPI": Case(axes="RPI"),
    "LPI": Case(axes="LPI"),
    "PIR: sagittal slices": Case(axes="PIR", shape=(96, 70, 80)),
    "ASR": Case(axes="ASR", shape=(96, 70, 80)),
    "RSA: coronal slices": Case(axes="RSA", shape=(80, 70, 96)),
    "LIP": Case(axes="LIP", shape=(80, 70, 96)),
    "oblique 5 about x": Case(turn=(5.0, 0)),
    "oblique 12 about x": Case(turn=(12.0, 0)),
    "oblique -9 about y": Case(turn=(-9.0, 1)),
    "oblique 20 about z": Case(turn=(20.0, 2)),
    "oblique LPS": Case(turn=(11.0, 1), axes="LPS"),
    "oblique PIR": Case(turn=(8.0, 2), axes="PIR", shape=(96, 70, 80)),
    "anisotropic 2.6 x 2.6 x 4": Case(shape=(64, 72, 38), spacing=(2.6, 2.6, 4.0)),
    "anisotropic 1.2 x 1.2 x 3.3": Case(shape=(128, 150, 43), spacing=(1.2, 1.2, 3.3)),
    "oblique and anisotropic": Case(shape=(64, 72, 38), spacing=(2.6, 2.6, 4.0), turn=(10.0, 0)),
    "odd sizes": Case(shape=(79, 95, 67)),
    "odd sizes, oblique": Case(shape=(81, 97, 71), turn=(6.0, 1)),
    "1 mm": Case(shape=(150, 181, 139), spacing=(1.0, 1.0, 1.0)),
    "field of view larger than trained": Case(shape=(170, 170, 80)),
    "far from the origin": Case(offset=(120.0, -260.0, 900.0)),
    "int16 with slope": Case(dtype="int16"),
    "int16, oblique, LAS": Case(dtype="int16", turn=(7.0, 2), axes="LAS"),
    "qform only": Case(codes=(1, 0), turn=(7.0, 0)),
    "qform only, flipped": Case(codes=(2, 0), axes="LAS"),
    "sform only": Case(codes=(0, 2), turn=(-7.0, 1)),
    "two codes": Case(codes=(1, 4)),
    "four dimensions, one frame": Case(frames=True),
    "NIfTI-2": Case(version2=True, turn=(3.0, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_output_is_on_the_inputs_grid(tmp_path, name):
    case, path = CASES[name], tmp_path / "pet.nii.gz"
    case.write(path)
    request = predict.Request(str(path), str(tmp_path / "out"), checkpoint=str(tmp_path))
    (written,) = predict.predict(request)
    given, made = nib.load(path), nib.load(written)
    assert made.shape == given.shape and type(made) is type(given)
    np.testing.assert_allclose(made.affine, given.affine, rtol=0, atol=1e-6)
    for field in ("qform_code", "sform_code"):
        assert int(made.header[field]) == int(given.header[field])
    assert made.header.get_data_dtype() == np.int16
    assert (made.dataobj.slope, made.dataobj.inter) == (1.0, 0.0)
    found = centre_of_marker(np.asarray(made.dataobj).reshape(case.shape))
    wanted = np.linalg.solve(case.affine(), [*(MARKER + case.offset), 1.0])[:3]
    assert np.abs(found - wanted).max() < 0.5


def centre_of_marker(hu):
    """Voxel index: centre of mass of what is brighter than the head."""
    head = np.median(hu[hu > (hu.min() + hu.max()) / 2])
    weight = np.clip(hu - head - 0.3 * (hu.max() - head), 0, None)
    index = np.indices(hu.shape).reshape(3, -1)
    return (index * weight.ravel()).sum(1) / weight.sum()


def test_the_marker_test_sees_a_shift_and_a_mirror(tmp_path):
    """What the test above must be able to fail on."""
    case, path = CASES["plain"], tmp_path / "pet.nii.gz"
    case.write(path)
    array = nifti.read_volume(path).array
    wanted = np.linalg.solve(case.affine(), [*MARKER, 1.0])[:3]
    assert np.abs(centre_of_marker(1000 * array) - wanted).max() < 0.1
    assert np.abs(centre_of_marker(1000 * np.roll(array, 1, 2)) - wanted).max() > 0.9
    assert np.abs(centre_of_marker(1000 * array[::-1]) - wanted).max() > 10


class TestChecks:
    """Warnings before the images are believed."""

    def found(self, case, tmp_path, change=None):
        path = tmp_path / "pet.nii.gz"
        case.write(path)
        pet = nifti.read_volume(path)
        if change is not None:
            pet = dataclasses.replace(pet, array=change(pet.array).astype(np.float32))
        run = opened.open_run("")
        source = synthesis.make_source(pet, run)
        checks = pet_checks.check_pet(
            pet, run.manifest.data.grid, source.affine, len(source.slices)
        )
        return {c.name for c in checks if c.warning}

    def test_nothing_is_said_of_a_good_one(self, tmp_path):
        assert self.found(CASES["plain"], tmp_path) == set()

    @pytest.mark.parametrize(
        "case, change, name",
        [
            (Case(turn=(30.0, 0)), None, "orientation"),
            (Case(shape=(40, 48, 20), spacing=(4.0, 4.0, 7.0)), None, "voxels"),
            (Case(codes=(0, 0)), None, "header"),
            (Case(), lambda a: np.where(np.arange(70) < 30, a, 0), "foreground, below to above"),
            (Case(shape=(200, 200, 70)), lambda a: a + 2, "outside the model's field of view"),
            (Case(shape=(60, 96, 70)), None, "foreground at the image's edge"),
            (Case(), lambda a: np.where(a < 0.3, -0.5, a), "negative voxels"),
            (Case(shape=(40, 48, 35), spacing=(1.0, 1.0, 1.0)), None, "foreground"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path, case, change, name):
        assert name in self.found(case, tmp_path, change)


class TestDicom:
    """A series written here, its NIfTI twin, and one answer for both."""

    def series(self, folder, array, affine):
        """uint16 slices of a PET [x, y, z] in Bq/ml with all that SUV needs."""
        slope = float(array.max()) / 60000
        stored = np.rint(array / slope).astype(np.uint16)
        for z in np.random.default_rng(0).permutation(array.shape[2]):
            ds = test_data_dicom._slice(z, stored=stored, affine=affine)
            ds.RescaleSlope = f"{slope:.10g}"
            test_data_dicom._save(ds, folder / f"{z * 7919 % 1000:03d}.dcm")

    @pytest.mark.parametrize("case", [Case(shape=(64, 80, 40), spacing=(2.5, 2.5, 4.0))])
    def test_dicom_and_nifti_agree(self, tmp_path, case):
        case.write(tmp_path / "pet.nii.gz")
        pet = nifti.read_volume(tmp_path / "pet.nii.gz")
        folder = tmp_path / "DOE^JANE"
        self.series(folder, 1000 * pet.array, pet.affine)
        read = dicom.read_series(folder).volume
        twin = tmp_path / "twin.nii.gz"
        nifti.write_volume(twin, read.array, read.affine, dtype=np.float32)
        options = dict(checkpoint=str(tmp_path), report=True)
        (a,) = predict.predict(predict.Request(str(folder), str(tmp_path / "a"), **options))
        (b,) = predict.predict(predict.Request(str(twin), str(tmp_path / "b"), **options))
        first, second = nifti.read_volume(a), nifti.read_volume(b)
        np.testing.assert_array_equal(first.array, second.array)
        np.testing.assert_allclose(first.affine, second.affine, atol=1e-5)
        direct = predict.Request(str(tmp_path / "pet.nii.gz"), str(tmp_path / "c"), **options)
        (c,) = predict.predict(direct)  # the scale of a PET does not matter, nor does its way in
        third = nifti.canonical(nifti.read_volume(c))
        ras = nifti.canonical(first)
        assert np.abs(ras.array - third.array).max() <= 2  # HU: steps of uint16, rounding
        sidecar = json.loads(names.sidecar(a).read_text())
        assert sidecar["InputFacts"]["units"] == "SUVbw"
        assert sidecar["InputFacts"]["tracer"] == "FDG"
        pages = [next(x.parent.glob("*report.html")).read_text() for x in (a, b)]
        assert ['"units": "SUVbw"' in page for page in pages] == [True, False]
        assert a.name == "pet_desc-synth_ct.nii.gz"
        for path in (tmp_path / "a").rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                data = gzip.decompress(data) if path.suffix == ".gz" else data
                for canary in (*test_data_dicom.CANARIES, "DOE", "JANE"):
                    assert canary.encode() not in data, (path.name, canary)
        again = predict.Request(str(folder), str(tmp_path / "a"), **options)
        before = a.stat().st_mtime_ns
        predict.predict(again)
        assert a.stat().st_mtime_ns == before

    def test_a_ct_series_is_not_taken_for_a_pet(self, tmp_path):
        test_data_dicom._series(tmp_path / "s", modality="CT")
        request = predict.Request(
            str(tmp_path / "s"), str(tmp_path / "o"), checkpoint=str(tmp_path)
        )
        with pytest.raises(UserError, match="modality CT"):
            predict.predict(request)

    def test_a_folder_of_nothing(self, tmp_path):
        (tmp_path / "empty").mkdir()
        request = predict.Request(str(tmp_path / "empty"), "out", checkpoint=str(tmp_path))
        with pytest.raises(UserError, match="no BIDS PET.*no DICOM"):
            predict.predict(request)
