"""One sound slice of a PET as DICOM, to be made wrong by the tests and by faults/; imports neither."""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SUV_FACTOR = 70e3 / (3.7e8 * 2 ** (-3600 / 6586.2))  # Bq/ml -> SUVbw of `dicom_slice`


def dicom_slice(z: int, stored: np.ndarray, affine: np.ndarray, slope: float) -> Dataset:
    """One slice of a PET in Bq/ml with all that SUV needs."""
    lps = LPS @ affine
    axes = lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.128"
    meta.MediaStorageSOPInstanceUID = f"1.2.3.77704.{z}"
    ds = Dataset()
    ds.file_meta, ds.preamble = meta, bytes(128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, f"1.2.3.77704.{z}"
    ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3.77702", "1.2.3.77703"
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "PT", 3, z + 1
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImagePositionPatient = [f"{v:.8f}" for v in (lps @ [0, 0, z, 1])[:3]]
    ds.ImageOrientationPatient = [f"{v:.10f}" for v in (*axes[:, 0], *axes[:, 1])]
    ds.PixelSpacing = [float(np.linalg.norm(lps[:3, 1])), float(np.linalg.norm(lps[:3, 0]))]
    ds.Rows, ds.Columns = stored.shape[1], stored.shape[0]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleSlope, ds.RescaleIntercept = f"{slope:.10g}", 0.0
    ds.PixelData = stored[:, :, z].T.astype("<u2").tobytes()
    ds.SeriesDate = ds.AcquisitionDate = "20200101"
    ds.SeriesTime = ds.AcquisitionTime = "101112.000000"
    ds.Units, ds.CorrectedImage, ds.DecayCorrection = "BQML", ["DECY", "ATTN", "SCAT"], "START"
    ds.PatientWeight, ds.NumberOfSlices = 70.0, stored.shape[2]
    drug = Dataset()
    drug.RadiopharmaceuticalStartTime = "091112.00"
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = 3.7e8, 6586.2
    drug.Radiopharmaceutical = "FDG"
    ds.RadiopharmaceuticalInformationSequence = [drug]
    return ds
