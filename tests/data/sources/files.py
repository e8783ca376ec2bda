"""Small image files of every kind, made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid


def ramp(height: int = 12, width: int = 16, top: int = 255) -> np.ndarray:
    """Rises from left to right, 0 to ``top``; the top left corner is bright, to tell directions."""
    image = np.tile(np.linspace(0, top, width).round().astype(np.int64), (height, 1))
    image[:3, :3] = top
    return image


def picture(path: Path, value: int = 0, size: int = 12) -> Path:
    """A PNG whose bytes differ with ``value``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(value).integers(0, 256, (size, size), dtype=np.uint8)
    Image.fromarray(image).save(path)
    return path


def tree(root: Path, counts: dict[str, int], start: int = 0) -> Path:
    """A folder per class with so many PNG files, all different."""
    value = start
    for label, number in counts.items():
        for index in range(number):
            value += 1
            picture(root / label / f"{index}.png", value)
    return root


def dicom(path: Path, pixels: np.ndarray, **tags: Any) -> Path:
    """A DICOM file of grey ``pixels`` `[H, W]` or frames `[F, H, W]`, or colour `[H, W, 3]`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    height, width = pixels.shape[:2] if colour or pixels.ndim == 2 else pixels.shape[1:]
    data.Rows, data.Columns = height, width
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    if pixels.ndim == 3 and not colour:
        data.NumberOfFrames = len(pixels)
    bits = 8 * pixels.dtype.itemsize
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit = bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def nifti(path: Path, volume: np.ndarray) -> Path:
    """A NIfTI file in RAS orientation: the first axis to the right, the second to the front."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)
    return path
