"""DICOM files for tests, made of an array and an affine: single-frame or enhanced, in any transfer syntax."""

from pathlib import Path

import dicom_jpeg
import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    MRImageStorage,
    RLELossless,
    generate_uid,
)


def header(description="cine SAX", study="1.2.3", patient="P 1", number=1, series=None, syntax=ExplicitVRLittleEndian):
    """What the images of a series have in common."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    dataset.Modality, dataset.PatientID, dataset.StudyInstanceUID = "MR", patient, study
    dataset.SeriesInstanceUID, dataset.SeriesNumber = series or generate_uid(), number
    dataset.SeriesDescription = description
    return dataset


def geometry(affine) -> tuple[list[float], list[float], np.ndarray, np.ndarray]:
    """(orientation, spacing, step between slices, first position) in DICOM's coordinates, of a (4, 4) to RAS+."""
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    dx, dy = np.linalg.norm(lps[:, 0]), np.linalg.norm(lps[:, 1])
    orientation = [round(float(v), 9) for v in (*(lps[:, 0] / dx), *(lps[:, 1] / dy))]
    return orientation, [round(float(dy), 9), round(float(dx), 9)], lps[:, 2], lps[:, 3]


def set_pixels(dataset, frames: list[np.ndarray]) -> None:
    """frames: integers (Rows, Columns), stored as the transfer syntax of the dataset says."""
    first, syntax = frames[0], dataset.file_meta.TransferSyntaxUID
    dataset.Rows, dataset.Columns = first.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * first.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(first.dtype.kind == "i")
    if syntax.is_encapsulated:
        dataset.PixelData = encapsulate([_encode(dataset, syntax, np.ascontiguousarray(frame)) for frame in frames])
        dataset["PixelData"].VR = "OB"
    else:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        content = b"".join(frame.astype(frame.dtype.newbyteorder(order)).tobytes() for frame in frames)
        dataset.PixelData = content + b"\0" * (len(content) % 2)
        dataset["PixelData"].VR = "OW"


def _encode(dataset, syntax, frame: np.ndarray) -> bytes:
    if syntax == JPEGBaseline8Bit:
        return dicom_jpeg.baseline(frame)
    if syntax == JPEGLosslessSV1:
        return dicom_jpeg.lossless(frame)
    plugin = "pydicom" if syntax == RLELossless else "pylibjpeg"
    return get_encoder(syntax).encode(
        frame, encoding_plugin=plugin, rows=dataset.Rows, columns=dataset.Columns, number_of_frames=1,
        samples_per_pixel=1, bits_allocated=dataset.BitsAllocated, bits_stored=dataset.BitsStored,
        pixel_representation=dataset.PixelRepresentation, photometric_interpretation="MONOCHROME2",
    )  # fmt: skip


def save(dataset, path: Path) -> Path:
    """Write a file, its meta information completed."""
    dataset.SOPInstanceUID = generate_uid()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, data, affine, *, frame_ms=40.0, change=lambda dataset, z, t: None, first=1, **options):
    """One file per slice and frame of (X, Y, Z, T); `change` may alter each before it is written."""
    orientation, spacing, step, position = geometry(affine)
    series, paths = generate_uid(), []
    for t in range(data.shape[3]):
        for z in range(data.shape[2]):
            dataset = header(**{"series": series, **options})
            dataset.ImageOrientationPatient, dataset.PixelSpacing = orientation, spacing
            dataset.ImagePositionPatient = [round(float(v), 6) for v in position + z * step]
            dataset.SliceThickness = float(np.linalg.norm(step))
            dataset.InstanceNumber = first + t * data.shape[2] + z
            dataset.TriggerTime = t * frame_ms
            set_pixels(dataset, [data[:, :, z, t].T])
            change(dataset, z, t)
            # names say nothing of the order
            paths.append(save(dataset, folder / f"{(7919 * (t * data.shape[2] + z)) % 1009:04}_{series[-6:]}.dcm"))
    return paths


def write_slice(folder: Path, data, affine, z: int, **options) -> list[Path]:
    """Slice z of (X, Y, Z, T) as a series of its own."""
    affine = affine.copy()
    affine[:3, 3] += z * affine[:3, 2]
    return write_series(folder, data[:, :, z : z + 1], affine, **options)


def write_enhanced(path: Path, data, affine, *, frame_ms=40.0, order=None, change=lambda dataset: None, **options):
    """All slices and frames of (X, Y, Z, T) in one file, in `order`: a list of (z, t)."""
    orientation, spacing, step, position = geometry(affine)
    order = order or [(z, t) for z in range(data.shape[2]) for t in range(data.shape[3])]
    dataset = header(**options)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = EnhancedMRImageStorage
    dataset.NumberOfFrames = len(order)

    def group(**attributes):
        item = Dataset()
        for name, value in attributes.items():
            setattr(item, name, value)
        return [item]

    shared, per_frame = Dataset(), []
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=orientation)
    shared.PixelMeasuresSequence = group(PixelSpacing=spacing, SliceThickness=float(np.linalg.norm(step)))
    for z, t in order:
        item = Dataset()
        item.PlanePositionSequence = group(
            ImagePositionPatient=[round(float(v), 6) for v in position + z * step])
        item.CardiacSynchronizationSequence = group(NominalCardiacTriggerDelayTime=t * frame_ms)
        item.PixelValueTransformationSequence = group(RescaleSlope=2.0, RescaleIntercept=-5.0)
        per_frame.append(item)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], per_frame
    set_pixels(dataset, [data[:, :, z, t].T for z, t in order])
    change(dataset)
    return save(dataset, path)
