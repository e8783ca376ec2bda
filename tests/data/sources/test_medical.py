"""DICOM and NIfTI: windows, photometric interpretation, slices, directions, identity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from mgdm_ray.config import ReadingConfig
from mgdm_ray.data.sources import medical
from mgdm_ray.data.sources.image_files import Raw, Unreadable, to_uint8
from mgdm_ray.data.sources.medical import read_dicom, read_nifti
from tests.data.sources.files import dicom, nifti, ramp

PLAIN = ReadingConfig()
READERS_WORDS = r": \w+(Error|Exception): .|^a DICOM file without pixels$"
"""How the libraries' own errors are passed on: a kind and a text."""


def shown(raw: Raw) -> np.ndarray:
    return to_uint8(raw, PLAIN, 0)


def test_hounsfield_units_and_the_files_window(tmp_path: Path) -> None:
    """Catches a window applied to stored values instead of rescaled ones, or not at all.

    By hand (PS3.3 C.11.2.1.2.1): centre 40, width 401 is black up to -160.5, white from 239.5.
    """
    stored = np.array([[863, 864, 1064, 1264, 1265, 0, 3000, 1064]] * 8, np.uint16)
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 401}
    found = shown(read_dicom(dicom(tmp_path / "ct.dcm", stored, **tags)))[0]
    wanted = [(hu + 160.5) / 400 * 255 for hu in (-161, -160, 40, 240, 241, -1024, 1976, 40)]
    np.testing.assert_array_equal(found, np.rint(np.clip(wanted, 0, 255)))


def test_the_studys_window_overrules(tmp_path: Path) -> None:
    """Catches a study whose window is ignored because the file has one of its own."""
    stored = np.full((8, 8), 1024 + 40, np.uint16)
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 5000, "WindowWidth": 10}
    raw = read_dicom(dicom(tmp_path / "ct.dcm", stored, **tags))
    reading = ReadingConfig.model_validate({"window": [40, 400]})
    assert set(to_uint8(raw, reading, 0).ravel()) == {128}


def test_several_windows_the_first_counts(tmp_path: Path) -> None:
    """Catches a crash for the many CT files with a list of windows."""
    stored = np.array([[0, 100, 200, 300]] * 8, np.uint16)
    tags = {"WindowCenter": [100, 9000], "WindowWidth": [101, 10]}
    found = shown(read_dicom(dicom(tmp_path / "a.dcm", stored, **tags)))[0]
    assert found[0] == 0
    assert found[1] == round((100 - 49.5) / 100 * 255)
    assert found[3] == 255


def test_monochrome1_is_turned(tmp_path: Path) -> None:
    """Catches X-rays that are shown as negatives."""
    image = ramp().astype(np.uint8)
    same = shown(read_dicom(dicom(tmp_path / "a.dcm", image)))
    turned = dicom(tmp_path / "b.dcm", image, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(same, image)
    np.testing.assert_array_equal(shown(read_dicom(turned)), 255 - image)


def test_colour(tmp_path: Path) -> None:
    """Catches channels that are swapped, and YBR shown as if it were RGB."""
    image = np.zeros((8, 8, 3), np.uint8)
    image[:] = (200, 30, 60)
    assert read_dicom(dicom(tmp_path / "a.dcm", image)).pixels[0, 0].tolist() == [200, 30, 60]
    # ITU-R 601: Y = 0.299 R + 0.587 G + 0.114 B; Cb, Cr around 128
    y = 0.299 * 200 + 0.587 * 30 + 0.114 * 60
    ybr = np.zeros_like(image)
    ybr[:] = np.rint((y, 128 + (60 - y) / 1.772, 128 + (200 - y) / 1.402))
    path = dicom(tmp_path / "b.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(read_dicom(path).pixels[0, 0], (200, 30, 60), atol=2)


def test_without_a_window_percentiles(tmp_path: Path) -> None:
    """Catches MR images, which have no unit, shown black."""
    image = np.linspace(300, 900, 400).reshape(20, 20).astype(np.uint16)
    found = shown(read_dicom(dicom(tmp_path / "mr.dcm", image)))
    assert found[0, 0] == 0
    assert found[-1, -1] == 255
    assert 120 < found[10, 0] < 136


def test_frames(tmp_path: Path) -> None:
    """Catches another frame than the one asked for."""
    frames = np.stack([np.full((8, 8), v, np.uint8) for v in (10, 20, 30)])
    path = dicom(tmp_path / "a.dcm", frames)
    assert medical.frames_of_dicom(path) == 3
    assert int(read_dicom(path).pixels[0, 0]) == 20
    assert int(read_dicom(path, 2).pixels[0, 0]) == 30
    with pytest.raises(Unreadable, match=r"3.*0 \.\. 2"):
        read_dicom(path, 3)


def test_dicomdir_is_not_followed(tmp_path: Path) -> None:
    """Catches a directory file through which other files are read."""
    record = Dataset()
    record.ReferencedFileID = ["SECRET"]
    path = dicom(tmp_path / "x.dcm", np.zeros((8, 8), np.uint8))
    data = medical._header(path)
    data.DirectoryRecordSequence = Sequence([record])
    data.save_as(path)
    with pytest.raises(Unreadable, match="DICOMDIR"):
        read_dicom(path)


def test_what_is_no_dicom(tmp_path: Path) -> None:
    """Catches tracebacks for cut files, files without pixels and lying headers."""
    whole = dicom(tmp_path / "a.dcm", np.zeros((64, 64), np.uint16)).read_bytes()
    for name, data in (
        ("cut", whole[:-4000]),
        ("none", b"hello"),
        ("empty", b""),
        ("header", whole[:200]),
    ):
        path = tmp_path / f"{name}.dcm"
        path.write_bytes(data)
        with pytest.raises(Unreadable, match=READERS_WORDS):
            read_dicom(path)
    big = dicom(tmp_path / "big.dcm", np.zeros((8, 8), np.uint8), Rows=60000, Columns=60000)
    with pytest.raises(Unreadable, match="60000 x 60000"):
        read_dicom(big)
    many = dicom(tmp_path / "many.dcm", np.zeros((8, 8), np.uint8), NumberOfFrames=10**9)
    with pytest.raises(Unreadable, match="1000000000 frames"):
        read_dicom(many)


def test_identity_is_named_not_told(tmp_path: Path) -> None:
    """Catches values of identity tags that get out, and filled tags that are not noticed."""
    image = np.zeros((8, 8), np.uint8)
    named = dicom(tmp_path / "a.dcm", image, PatientName="Doe^Jane", PatientID="77", Modality="CT")
    assert medical.identity_in(named) == ["PatientName", "PatientID"]
    assert medical.patient_of(named) == "77"
    assert medical.identity_in(dicom(tmp_path / "b.dcm", image, PatientName="")) == []


def test_nifti_directions_and_slices(tmp_path: Path) -> None:
    """Catches slices that are mirrored, turned, or cut along another axis.

    In RAS the last index of the second axis is anterior, which is shown at the top; the first
    index of the first axis is left, which is shown at the left.
    """
    volume = np.zeros((6, 8, 5), np.float32)
    volume[0, -1, 2] = 1.0  # left, anterior, in the middle slice
    volume[:, :, 3] = 0.5
    data = nifti(tmp_path / "a.nii.gz", volume).read_bytes()
    middle = read_nifti(data).pixels
    assert middle.shape == (8, 6)
    assert middle[0, 0] == 1.0
    assert middle.sum() == 1.0
    assert float(read_nifti(data, 3).pixels.mean()) == 0.5
    assert medical.slices_of_nifti(data) == 5


def test_slices_of_one_volume_are_shown_alike(tmp_path: Path) -> None:
    """Catches each slice stretched to its own range."""
    volume = np.zeros((8, 8, 4), np.int16)
    volume[:, :, 0], volume[:, :, 3] = 100, 1000
    data = nifti(tmp_path / "a.nii", volume).read_bytes()
    assert set(to_uint8(read_nifti(data, 0), PLAIN, 0).ravel()) == {round(100 / 1000 * 255)}
    assert set(to_uint8(read_nifti(data, 3), PLAIN, 0).ravel()) == {255}


def test_what_is_no_nifti(tmp_path: Path) -> None:
    """Catches tracebacks, volumes of more dimensions, NaN, and memory filled by a header."""
    whole = nifti(tmp_path / "a.nii", np.zeros((8, 8, 4), np.float32)).read_bytes()
    huge = bytearray(whole)
    huge[40:56] = np.array([3, 30000, 30000, 30000, 1, 1, 1, 1], "<i2").tobytes()
    four = nifti(tmp_path / "four.nii", np.zeros((8, 8, 4, 3), np.float32)).read_bytes()
    nan = nifti(tmp_path / "nan.nii", np.full((8, 8, 4), np.nan, np.float32)).read_bytes()
    cases = (
        (b"", READERS_WORDS),
        (whole[:400], READERS_WORDS),
        (bytes(huge), "30000"),
        (four, r"\(8, 8, 4, 3\)"),
        (nan, "NaN"),
    )
    for data, message in cases:
        with pytest.raises(Unreadable, match=message):
            read_nifti(data)
