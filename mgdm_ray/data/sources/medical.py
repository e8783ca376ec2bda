"""Read DICOM and NIfTI with MONAI's readers: pixels, and of DICOM the patient's id."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mgdm_ray.data.sources.image_files import (
    ENDS,
    Raw,
    Unreadable,
    check_size,
    decoding,
    finite,
    frame_of,
)

MAX_VOXELS = 300_000_000
IDENTITY = tuple(
    """
    PatientName PatientID PatientBirthDate PatientAddress OtherPatientIDs ReferringPhysicianName
    InstitutionName AccessionNumber
    """.split()
)
"""Tags that identify a person. Reported as filled or not, never with their values."""


@decoding()
def read_dicom(path: Path, slice_index: int | Literal["middle"] = "middle") -> Raw:
    """One frame with its rescaling, window and photometric interpretation. Raises Unreadable."""
    from monai.data.image_reader import PydicomReader
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
    from pydicom.pixels.utils import pixel_array

    data = PydicomReader().read(str(path))
    frames = _check_dicom(data)
    index = frame_of(slice_index, frames)
    kind = str(data.get("PhotometricInterpretation", ""))
    pixels = pixel_array(data, index=index)
    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, data)
        return Raw((pixels >> 8).astype(np.uint8) if pixels.itemsize > 1 else pixels, kind)
    if pixels.ndim == 3:
        if pixels.dtype != np.uint8:
            raise Unreadable(f"colour of {pixels.dtype}; only 8 bits are supported")
        return Raw(pixels, kind)
    rescaled = "RescaleSlope" in data or "ModalityLUTSequence" in data
    inverted = kind == "MONOCHROME1"
    values = finite(apply_modality_lut(pixels, data).astype(np.float32))
    window = _window(data)
    if window is None and pixels.dtype == np.uint8 and not rescaled:
        return Raw(pixels, kind, inverted=inverted)
    return Raw(values, kind, window, inverted)


def _check_dicom(data: Any) -> int:
    """Number of frames; Unreadable, before pixels are unpacked, without or with too many pixels."""
    if "DirectoryRecordSequence" in data:
        raise Unreadable("a DICOMDIR, which only lists other files")
    rows, columns = [int(data.get(k, 0) or 0) for k in ("Rows", "Columns")]
    frames = int(data.get("NumberOfFrames", 1) or 1)
    if not rows or not columns or "PixelData" not in data:
        raise Unreadable("a DICOM file without pixels")
    check_size(columns, rows)
    if rows * columns * frames > MAX_VOXELS:
        raise Unreadable(f"{frames} frames of {columns} x {rows} pixels: too many")
    return frames


def _window(data: Any) -> tuple[float, float] | None:
    """The file's first window as (low, high), linear: DICOM PS3.3 C.11.2.1.2."""
    centre, width = data.get("WindowCenter"), data.get("WindowWidth")
    if centre is None or width is None:
        return None
    middle, wide = [float(np.atleast_1d(v)[0]) for v in (centre, width)]
    if not np.isfinite([middle, wide]).all() or wide < 1:
        return None
    return middle - 0.5 - (wide - 1) / 2, middle - 0.5 + (wide - 1) / 2


@decoding()
def frames_of_dicom(path: Path) -> int:
    """Raises Unreadable."""
    return int(_header(path).get("NumberOfFrames", 1) or 1)


@decoding()
def patient_of(path: Path) -> str:
    """PatientID, to keep a patient in one split, or "". Raises Unreadable."""
    return str(_header(path).get("PatientID", "") or "")


@decoding()
def identity_in(path: Path) -> list[str]:
    """Names of the filled tags that identify the patient."""
    header = _header(path)
    return [name for name in IDENTITY if str(header.get(name, "") or "").strip()]


def _header(path: Path) -> Any:
    from pydicom import dcmread

    return dcmread(path, stop_before_pixels=True)


@decoding()
def read_nifti(data: bytes, slice_index: int | Literal["middle"] = "middle") -> Raw:
    """One axial slice, anterior on top, in the units of the file. Raises Unreadable.

    The window is by percentiles of the whole volume, so that its slices are comparable.
    """
    volume = _volume(data)
    index = frame_of(slice_index, volume.shape[2])
    slice_ = finite(np.rot90(volume[:, :, index]).astype(np.float32))
    check_size(slice_.shape[1], slice_.shape[0])
    low, high = np.percentile(volume, ENDS)
    return Raw(np.ascontiguousarray(slice_), "NIfTI", (float(low), float(high)))


@decoding()
def slices_of_nifti(data: bytes) -> int:
    return int(_volume(data).shape[2])


@lru_cache(maxsize=1)
def _volume(data: bytes) -> Any:
    """`[X, Y, Z]` in the nearest axial orientation; cached for the other slices."""
    from monai.data.image_reader import NibabelReader

    suffix = ".nii.gz" if data[:2] == b"\x1f\x8b" else ".nii"
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(data)
        file.flush()
        reader = NibabelReader(as_closest_canonical=True)
        image = reader.read(file.name)
        shape = tuple(int(n) for n in image.shape)
        if len(shape) not in (2, 3) and not (len(shape) == 4 and shape[3] == 1):
            raise Unreadable(f"NIfTI of shape {shape}; only 2 or 3 dimensions are supported")
        if int(np.prod(shape, dtype=object)) > MAX_VOXELS:
            raise Unreadable(f"NIfTI of shape {shape} is too large")
        values = np.asarray(reader.get_data(image)[0])
    if values.dtype.kind not in "iuf":
        raise Unreadable(f"NIfTI of {values.dtype}; numbers are needed")
    return values.reshape((*values.shape, 1, 1)[:3])
