"""Small files made by the tests, and tasks that worker processes can import."""

from __future__ import annotations

import atexit
import ctypes
import io
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian

from pipeline.imaging.image import Policy
from pipeline.imaging.quarantine import Refused

POLICY = Policy(max_file_bytes=50_000_000, max_pixel_bytes=50_000_000, min_side=8)
DX = "1.2.840.10008.5.1.4.1.1.1.1"


def gradient(rows: int = 40, columns: int = 48, top: int = 4095) -> np.ndarray:
    """Return a slope of uint16 values from 0 to `top`."""
    return np.linspace(0, top, rows * columns).round().astype(np.uint16).reshape(rows, columns)


def make_dataset(pixels: np.ndarray, **elements: Any) -> Dataset:
    """Return a grey DX image with one patient; keyword arguments replace elements, None removes them."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = elements.pop("TransferSyntaxUID", ExplicitVRLittleEndian)
    dataset.SOPClassUID = elements.pop("SOPClassUID", DX)
    dataset.SOPInstanceUID = elements.pop("SOPInstanceUID", "2.25.1")
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    bits = pixels.dtype.itemsize * 8
    standard = {
        "Modality": "DX",
        "PatientID": "P1",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": 12 if bits == 16 else bits,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes(),
    }
    for keyword, value in (standard | elements).items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.HighBit = dataset.BitsStored - 1
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    return dataset


def to_bytes(dataset: Dataset) -> bytes:
    """Return the file."""
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def make_dicom(pixels: np.ndarray | None = None, **elements: Any) -> bytes:
    """Return a DICOM file; see `make_dataset`."""
    return to_bytes(make_dataset(gradient() if pixels is None else pixels, **elements))


def make_jpeg_dicom(jpeg: bytes, rows: int, columns: int, **elements: Any) -> bytes:
    """Return a DICOM file with the bytes of a grey 8-bit JPEG."""
    dataset = make_dataset(np.zeros((rows, columns), np.uint8), TransferSyntaxUID="1.2.840.10008.1.2.4.50", **elements)
    dataset.PixelData = encapsulate([jpeg])
    dataset["PixelData"].is_undefined_length = True
    return to_bytes(dataset)


# ---------------------------------------------------------------- tasks


def process_id(item: object) -> int:
    """Return the process that the work was done in."""
    return os.getpid()


def double(item: int) -> int:
    return 2 * item


def slow_to_end(item: int) -> int:
    atexit.register(time.sleep, 2)
    return item


def fragile(item: str) -> str:
    """Do as the item says; what begins with `once` happens only the first time."""
    action, _, where = item.partition(" ")
    if where:
        if Path(where).exists():
            return "recovered"
        Path(where).touch()
    if action == "crash":
        ctypes.string_at(0)  # a segmentation fault, as of a broken decoder
    if action == "exit":
        os._exit(7)
    if action == "hang":
        time.sleep(60)
    if action == "refuse":
        raise Refused("colour", "as asked")
    if action == "panic":
        raise BaseException("Musterfrau^Erika")  # what the panic of a Rust decoder looks like
    if action == "raise":
        raise ValueError("Musterfrau^Erika")
    return action
