"""NIfTI volumes in and out: a bounded, checked reader and an atomic, reproducible writer.

The only file that imports nibabel, and only for headers, affines and orientations: the voxels are
read here, because nibabel neither bounds what it decompresses nor reads a gzip stream to its
checksum, and loads NaN, 2D, RGB and constant images without complaint.
"""

import dataclasses
import gzip
import hashlib
import logging
import math
import pathlib
import zlib

import nibabel as nib
import numpy as np
from scipy import ndimage

from cldm_jax.errors import UserError
from cldm_jax.files import atomic_path, sha256_file

MAX_BYTES = 1 << 30  # of the decoded float32 volume: 256 million voxels, a 640 x 640 x 640 head
SPACING_MM = (0.1, 50.0)  # outside: a header in metres or micrometres, or a damaged one
MAX_SHEAR_COSINE = 0.02  # between voxel axes: 1.1 degrees; a gantry tilt is well above
_CHUNK = 1 << 20
# Of gzip, as nibabel's: noise packs no better at 6, which took half of a simulation's time.
_LEVEL = 1
_GEOMETRY = (  # header fields that say where the voxels are
    *("pixdim", "xyzt_units", "qform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "sform_code", "srow_x", "srow_y", "srow_z"),
)
_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}  # by sizeof_hdr
SYNTHETIC = "synthetic, not for clinical use"  # in the header of what this program makes
_FIX_FILE = "Export or copy the file again"
_FETCH = "Fetch its content (datalad get, git annex get, git lfs pull), or copy the file again"
_POINTERS = (b"annex/objects/", b"https://git-lfs.github.com/spec")  # what stands in for a file
_POINTER_BYTES = 2048
# What nibabel finds wrong in a header is raised, and said once, by the reader below.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)


@dataclasses.dataclass(frozen=True)
class Volume:
    """A checked 3D image.

    array    float32 [x, y, z] in the file's voxel order, slope and intercept applied, all finite
    affine   float64 [4, 4], voxel index -> world mm (RAS+)
    header   the nibabel header, opaque to callers; `write_volume(like=...)` takes codes from it
    sha256   of the file's bytes
    notes    what a person should know and the reader could not decide (shown as audit warnings)
    """

    array: np.ndarray
    affine: np.ndarray
    header: object
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def spacing(self) -> np.ndarray:
        """float64 [3], mm per voxel along each array axis."""
        return np.sqrt((self.affine[:3, :3] ** 2).sum(0))


def read_volume(path, *, allow_constant: bool = False, outside: float | None = None) -> Volume:
    """Reads a `.nii` or `.nii.gz` (told apart by content) and checks it.

    Raises UserError, naming the file, for anything but a finite, non-constant, scalar 3D image (or 4D
    with one frame) of at most MAX_BYTES with an orthogonal, invertible affine and 0.1-50 mm voxels.
    `allow_constant`: a label map may be all background. `outside`: see `fill_outside`.
    """
    path = pathlib.Path(path)
    check_file(path)
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if zipped else raw
            header = _read_header(path, stream)
            shape = _check_header(path, header)
            array = _read_voxels(path, stream, header, shape)
        sha256 = sha256_file(path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise UserError(
            path, f"the compressed data are damaged or cut short ({e})", _FIX_FILE
        ) from e
    except OSError as e:
        raise UserError(path, f"cannot be read ({e.strerror or e})", _FIX_FILE) from e
    affine, notes = _check_affine(path, header)
    array, filled = fill_outside(array, outside)
    check_values(path, array, allow_constant=allow_constant)
    return Volume(array, affine, header, sha256, notes + filled)


def write_volume(path, array, affine, *, dtype, like: Volume | None = None, description: str = ""):
    """Writes `array` [x, y, z] as NIfTI, whole or not at all, the same bytes for the same input.

    Integer types are rounded and stored with slope 1, intercept 0; values that do not fit raise
    ValueError. `like` (an image on the same voxels, `affine` its own) lends its NIfTI version, its qform
    and sform as they are, codes included, its units and its trailing dimension of one frame. Nothing
    else of its header is copied: free text and extensions may name a person. `description` is cut at 79
    bytes.
    """
    dtype = np.dtype(dtype)
    data = np.asarray(array)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        data = np.rint(data)
        if not (np.isfinite(data).all() and data.min() >= info.min and data.max() <= info.max):
            raise ValueError(f"{path}: values outside {dtype} ({data.min()} .. {data.max()})")
    header = _header_like(data.shape, dtype, affine, like, description)
    header["vox_offset"] = header.single_vox_offset
    body = header.binaryblock + b"\0\0\0\0" + data.astype(dtype.newbyteorder("<")).tobytes("F")
    with atomic_path(path) as tmp:
        if str(path).endswith(".gz"):  # mtime 0 and no file name: the bytes depend on the data only
            with open(tmp, "wb") as f, gzip.GzipFile("", "wb", _LEVEL, f, mtime=0) as g:
                g.write(body)
        else:
            tmp.write_bytes(body)


def _header_like(shape, dtype, affine, like: Volume | None, description: str):
    """See `write_volume`."""
    version2 = like is not None and isinstance(like.header, nib.Nifti2Header)
    header = make_header(shape, dtype, affine, version2=version2)
    if like is not None:
        theirs = like.header.get_data_shape()
        if shape != theirs[:3]:
            raise ValueError(f"{shape} voxels, but those of `like` are {theirs[:3]}")
        header.set_data_shape(theirs)
        for field in _GEOMETRY:
            header[field] = like.header[field]
    header.set_slope_inter(1.0, 0.0)
    header["descrip"] = description.encode()[:79]
    return header


def is_image(value) -> bool:
    """Whether it is an image of nibabel's, of a kind that has voxels in space."""
    return isinstance(value, nib.spatialimages.SpatialImage)


def from_image(image, name: str = "image", outside: float | None = None) -> Volume:
    """A nibabel image as a checked volume: what `read_volume` refuses in a file is refused in it."""
    if math.prod(image.shape[:3]) * 4 > MAX_BYTES or math.prod(image.shape[3:]) > 1:
        _check_header(name, image.header)  # before a voxel is read
    array = np.asanyarray(image.dataobj)
    if image.affine is None or not isinstance(image, nib.Nifti1Image):  # Nifti2Image is one
        return from_array(array, image.affine, name, outside)
    header = image.header.copy()
    if not np.allclose(header.get_best_affine(), image.affine, atol=1e-4):
        header.set_sform(image.affine, code=2)  # changed since: as nibabel saves it
        header.set_qform(image.affine, code=0)
    return _from_memory(array, header, name, outside)


def from_array(array, affine, name: str = "array", outside: float | None = None) -> Volume:
    """Voxels [x, y, z] and the affine that takes their indices to world mm (RAS+), checked. What a masked
    array hides counts as NaN.
    """
    try:
        array, affine = np.asanyarray(array), np.asarray(affine, np.float64)
        header = make_header(array.shape, np.float32, affine)
    except (TypeError, ValueError, nib.spatialimages.HeaderDataError) as e:
        # Ragged or words; too large or 8D; an affine of another shape, singular or with NaN.
        remedy = "Give a 3D array of numbers and 4 x 4 of them: voxel index to world mm (RAS+)"
        raise UserError(name, " ".join(str(e).split()), remedy) from e
    return _from_memory(array, header, name, outside)


def _from_memory(array: np.ndarray, header, name: str, outside: float | None) -> Volume:
    if array.dtype.names or array.dtype.kind not in "iuf":
        raise UserError(name, f"voxels are {array.dtype}", "Give real numbers")
    header.set_data_dtype(array.dtype if array.dtype.kind != "f" else np.float32)
    shape = _check_header(name, header)
    if np.ma.is_masked(array):
        name = f"{name} (its masked voxels as NaN)"
        array = np.ma.filled(array.astype(np.float64), np.nan)
    with np.errstate(over="ignore"):  # beyond float32 becomes inf and is refused
        array = np.asarray(array, np.float32).reshape(shape)
    affine, notes = _check_affine(name, header)
    array, filled = fill_outside(array, outside)
    check_values(name, array)
    digest = hashlib.sha256(repr((shape, affine.tolist())).encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return Volume(array, affine, header, digest.hexdigest(), notes + filled)


def to_image(array, like: Volume):
    """`array` [x, y, z] on the voxels of `like` as a nibabel image, float32, with the header that
    `write_volume` gives a file.
    """
    data = np.asarray(array, np.float32)
    header = _header_like(data.shape, np.float32, like.affine, like, SYNTHETIC)
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    return kind(data.reshape(header.get_data_shape()), header.get_best_affine(), header)


def canonical(volume: Volume) -> Volume:
    """The same image with its axes permuted and flipped to the closest RAS+; no interpolation."""
    ornt = nib.io_orientation(volume.affine)
    array = nib.apply_orientation(volume.array, ornt)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(ornt, volume.array.shape)
    return dataclasses.replace(volume, array=array, affine=affine)


def make_header(shape, dtype, affine, *, version2: bool = False):
    """A little-endian NIfTI-1 (or NIfTI-2) header in scanner coordinates and mm."""
    header = (nib.Nifti2Header if version2 else nib.Nifti1Header)(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm", "sec")
    return header


def to_canonical(array: np.ndarray, like: Volume) -> np.ndarray:
    """`array` on the voxels of `like`, in the order of `canonical(like)`."""
    return nib.apply_orientation(array, nib.io_orientation(like.affine))


def description(volume: Volume) -> str:
    """What the header's free text says, for looking at: it may name a person."""
    return volume.header["descrip"].item().decode("latin-1")


def orientation(affine) -> str:
    """Where each array axis points, for example "RAS" or "LPI"."""
    return "".join(nib.aff2axcodes(affine))


def check_file(path) -> None:
    """UserError where no regular file is, or one that is empty or a pointer to another."""
    path = pathlib.Path(path)
    try:
        size = path.stat().st_size
    except FileNotFoundError as e:
        if path.is_symlink():
            raise UserError(path, "a link to nothing", _FETCH) from e
        raise UserError(path, "no such file", "Check the path in the manifest") from e
    except OSError as e:
        raise UserError(path, f"cannot be read ({e.strerror})", _FIX_FILE) from e
    except ValueError as e:  # a NUL byte in the name
        raise UserError(repr(str(path)), str(e), "Check the path in the manifest") from e
    if not path.is_file():
        kind = "is not a file but a folder" if path.is_dir() else "is not a file"
        raise UserError(path, kind, "Give the .nii.gz file itself, not a folder")
    if size == 0:
        raise UserError(path, "the file is empty (0 bytes)", _FIX_FILE)
    if size < _POINTER_BYTES:
        try:
            start = path.read_bytes()
        except OSError as e:
            raise UserError(path, f"cannot be read ({e.strerror})", _FIX_FILE) from e
        if any(mark in start for mark in _POINTERS):
            raise UserError(path, "a pointer to a file that was not fetched, no image", _FETCH)


def sha256(path) -> str:
    """Of the file's bytes. UserError where it is none that can be read."""
    check_file(path)
    try:
        return sha256_file(path)
    except OSError as e:
        raise UserError(path, f"cannot be read ({e.strerror or e})", _FIX_FILE) from e


def _read_header(path, stream):
    block = stream.read(540)
    code = {int.from_bytes(block[:4], order) for order in ("little", "big")} & set(_HEADERS)
    if len(block) < 348 or not code:
        raise UserError(path, "not a NIfTI file", "Convert it to .nii.gz (dcm2niix for DICOM)")
    length = code.pop()
    if block[{348: 344, 540: 4}[length] :][:2] != b"n+":
        reason = "a header of an .hdr/.img pair or of Analyze, not a single-file NIfTI"
        raise UserError(path, reason, "Convert it to one .nii.gz file")
    try:
        header = _HEADERS[length](block[:length], check=True)
        stream.seek(length)  # what the header's own length left over is read again
    except (nib.spatialimages.HeaderDataError, ValueError) as e:
        raise UserError(path, f"the NIfTI header is damaged ({e})", _FIX_FILE) from e
    return header


def _check_header(path, header) -> tuple[int, int, int]:
    """The 3D shape, refused before a voxel is read when it is not an image of ours."""
    try:
        dims, dtype = header.get_data_shape(), header.get_data_dtype()
    except nib.spatialimages.HeaderDataError as e:
        raise UserError(path, f"the NIfTI header is damaged ({e})", _FIX_FILE) from e
    if any(int(d) < 1 for d in dims):
        raise UserError(path, f"the header declares dimensions {dims}", _FIX_FILE)
    if dtype.names or dtype.kind not in "iuf":
        kind = "colour (RGB)" if dtype.names else f"{dtype} (complex or not a number)"
        raise UserError(path, f"voxels are {kind}", "Export a scalar image: one number per voxel")
    if any(int(d) != 1 for d in dims[3:]):
        remedy = "Give one frame, for example the average of the frames used for reading"
        raise UserError(path, f"{len(dims)}D image of shape {dims}, more than one frame", remedy)
    if len(dims) < 3 or min(dims[:3]) < 2:
        raise UserError(path, f"shape {dims} is not a 3D volume", "Export all slices in one file")
    shape = tuple(int(d) for d in dims[:3])
    need = shape[0] * shape[1] * shape[2] * max(4, dtype.itemsize)
    if need > MAX_BYTES:
        reason = f"its header declares {shape} voxels, {need / 2**20:.0f} MiB to read"
        remedy = f"The limit is {MAX_BYTES / 2**20:.0f} MiB; crop to the head or resample"
        raise UserError(path, reason, remedy)
    return shape


def _read_voxels(path, stream, header, shape) -> np.ndarray:
    """float32 [x, y, z]; leaves the stream at its end, where gzip verifies its checksum."""
    dtype = header.get_data_dtype()
    start = float(header["vox_offset"])
    if not 348 <= start <= 1 << 24:
        raise UserError(path, f"the header puts the voxels at byte {start}", _FIX_FILE)
    raw = np.empty(shape, dtype, order="F")
    stream.seek(int(start))
    view, done = memoryview(raw.reshape(-1, order="F")).cast("B"), 0
    while done < len(view):
        chunk = stream.read(min(_CHUNK, len(view) - done))
        if not chunk:
            reason = f"cut short: {done} bytes of voxels, {len(view)} declared"
            raise UserError(path, reason, _FIX_FILE)
        view[done : done + len(chunk)] = chunk
        done += len(chunk)
    if stream.read(1):
        raise UserError(path, "holds more data than its header declares", _FIX_FILE)
    try:
        slope, inter = header.get_slope_inter()
    except nib.spatialimages.HeaderDataError as e:
        raise UserError(path, f"the intensity scaling is damaged ({e})", _FIX_FILE) from e
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf and is refused later
        if slope is None or (slope == 1 and inter == 0):
            return raw.astype(np.float32, copy=False)
        scaled = np.empty(shape, np.float32, order="F")
        for z in range(shape[2]):  # slice by slice: three whole copies would not fit the bound
            scaled[:, :, z] = raw[:, :, z].astype(np.float64) * slope + inter  # as nibabel does
    return scaled


def _check_affine(path, header):
    """(affine, notes); sform first, then qform, as nibabel and most tools choose."""
    q_code, s_code = int(header["qform_code"]), int(header["sform_code"])
    fix = "Set the sform from the scanner's geometry (dcm2niix does)"
    try:
        affine = np.asarray(header.get_best_affine(), np.float64)
    except (ValueError, nib.spatialimages.HeaderDataError) as e:
        raise UserError(path, f"the affine is damaged ({e})", fix) from e
    if not np.isfinite(affine).all():
        raise UserError(path, "the affine holds NaN or infinity", fix)
    spacing = check_spacing(path, affine, fix)
    axes = affine[:3, :3] / spacing
    cosines = axes.T @ axes - np.eye(3)
    if np.abs(cosines).max() > MAX_SHEAR_COSINE:
        reason = "the voxel axes are not perpendicular (gantry tilt?)"
        raise UserError(path, reason, "Resample the volume to perpendicular axes")
    notes = []
    if q_code == 0 and s_code == 0:
        notes.append("no qform or sform: left and right are a guess")
    elif q_code > 0 and s_code > 0:
        try:
            with np.errstate(all="ignore"):
                gap = np.abs(np.asarray(header.get_qform()) - affine).max()
        except ValueError:  # no rotation has these numbers
            gap = np.inf
        if not gap < 0.5 * spacing.min():
            notes.append(f"qform and sform disagree (up to {gap:.2f}); the sform is used")
    return affine, tuple(notes)


def check_spacing(path, affine: np.ndarray, remedy: str) -> np.ndarray:
    """mm per voxel along each axis. UserError where a head has none such."""
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(0))
    low, high = SPACING_MM
    if not ((spacing >= low) & (spacing <= high)).all():
        mm = " x ".join(f"{s:.3g}" for s in spacing)
        raise UserError(path, f"voxels of {mm} mm (allowed: {low} to {high})", remedy)
    return spacing


def check_values(path, array: np.ndarray, *, allow_constant: bool = False) -> None:
    """UserError for voxels that are not finite, or all the same."""
    low, high = float(array.min()), float(array.max())  # NaN and infinity show in min or max
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(array.size - np.isfinite(array).sum())
        raise UserError(path, f"{bad} voxels are NaN or infinite", "Export it again or repair them")
    if low == high and not allow_constant:
        raise UserError(path, f"every voxel is {low:g}", "Check that the right series was exported")


def fill_outside(array: np.ndarray, outside: float | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """(array, notes): NaN that reaches the volume's border becomes `outside`. SPM writes it where a
    resliced image has no data. None, or NaN within the image: all stays, for `check_values`.
    """
    if outside is None or not (missing := np.isnan(array)).any():
        return array, ()
    # A layer of its own around the volume joins all that touch the border, and nothing else.
    blocks, _ = ndimage.label(np.pad(missing, 1, constant_values=True), np.ones((3, 3, 3), bool))
    if (blocks > 1).any():
        return array, ()
    note = f"{missing.sum()} voxels up to its border are NaN: no data, taken as {outside:g}"
    return np.where(missing, np.float32(outside), array), (note,)
