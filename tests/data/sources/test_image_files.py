"""Decoding PNG, JPEG, TIFF and BMP: depths, colours, directions, and files that are none."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mgdm_ray.config import ReadingConfig
from mgdm_ray.data.sources.image_files import (
    MAX_PIXELS,
    Raw,
    Unreadable,
    read_picture,
    square,
    to_uint8,
)
from tests.data.sources.files import ramp

PLAIN = ReadingConfig()


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "JPEG"])
def test_grey_of_eight_bits_stays_as_it_is(kind: str) -> None:
    """Catches a scale or an offset between the file and the image."""
    image = ramp().astype(np.uint8)
    options = {"quality": 100} if kind == "JPEG" else {}
    raw = read_picture(saved(Image.fromarray(image), kind, **options))
    shown = to_uint8(raw, PLAIN, 0).astype(int)
    assert np.abs(shown - image).max() <= (2 if kind == "JPEG" else 0)
    assert not raw.colour


@pytest.mark.parametrize(("top", "bits"), [(65535, 16), (4095, 12), (1000, 10), (200, 8)])
def test_sixteen_bits_are_divided_by_the_bits_in_use(top: int, bits: int) -> None:
    """Catches 12-bit images that come out nearly black, and 16-bit ones cut off at 255."""
    image = ramp(top=top).astype(np.uint16)
    raw = read_picture(saved(Image.fromarray(image)))
    assert raw.pixels.dtype == np.uint16
    wanted = np.rint(image / (2**bits - 1) * 255)
    np.testing.assert_array_equal(to_uint8(raw, PLAIN, top), wanted)


def test_one_scale_for_all_deep_images() -> None:
    """Catches each image stretched by its own maximum, which makes dark and bright ones alike."""
    dim = read_picture(saved(Image.fromarray(np.full((8, 8), 100, np.uint16))))
    assert set(to_uint8(dim, PLAIN, 4000).ravel()) == {round(100 / 4095 * 255)}


def test_float_images_show_all_but_the_ends() -> None:
    """Catches float TIFF clipped to 0..1, and one outlier that makes the rest black."""
    values = np.linspace(-3, 5, 40 * 40, dtype=np.float32).reshape(40, 40)
    values[0, 0] = 1e6
    shown = to_uint8(read_picture(saved(Image.fromarray(values), "TIFF")), PLAIN, 0)
    assert shown[0, 1] == 0, "the lowest half percent is black"
    assert shown[-1, -1] == 255
    assert 120 < shown[20, 0] < 136, "the middle is grey, in spite of the outlier"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_refused(value: float) -> None:
    """Catches NaN that becomes black silently."""
    image = np.full((8, 8), value, np.float32)
    with pytest.raises(Unreadable, match="NaN"):
        read_picture(saved(Image.fromarray(image), "TIFF"))


def test_colours() -> None:
    """Catches grey saved as RGB taken for colour, and lost palettes, CMYK and alpha."""
    grey = ramp().astype(np.uint8)
    three = np.dstack([grey, grey, grey])
    assert not read_picture(saved(Image.fromarray(three))).colour
    red = Image.new("RGB", (8, 8), (200, 10, 30))
    for image, kind in ((red, "PNG"), (red.quantize(4), "PNG"), (red.convert("CMYK"), "TIFF")):
        raw = read_picture(saved(image, kind))
        assert raw.colour
        np.testing.assert_allclose(raw.pixels[0, 0], (200, 10, 30), atol=3)


def test_what_is_transparent_is_black() -> None:
    """Catches the colour that a drawing program left below a transparent pixel."""
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    raw = read_picture(saved(image))
    assert raw.pixels[0, 0].tolist() == [10, 20, 30]
    assert not raw.pixels[1:].any()
    assert not read_picture(saved(Image.new("LA", (8, 8), (200, 0)))).pixels.any()


def test_exif_says_how_to_turn() -> None:
    """Catches photographs that lie on their side."""
    image = Image.fromarray(ramp(6, 9).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    raw = read_picture(saved(image, "JPEG", exif=exif, quality=100))
    assert raw.pixels.shape == (9, 6)
    assert raw.pixels[0, -1] > 200, "the bright corner is at the top right now"


def test_frames() -> None:
    """Catches another frame than the one asked for, and a frame that is not there."""
    frames = [Image.new("L", (8, 8), value) for value in (10, 20, 30, 40)]
    data = saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert int(read_picture(data).pixels[0, 0]) == 30, "the middle one of four is the third"
    assert int(read_picture(data, 1).pixels[0, 0]) == 20
    with pytest.raises(Unreadable, match=r"4.*0 \.\. 3"):
        read_picture(data, 4)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more than it holds."""
    data = bytearray(saved(Image.new("L", (8, 8))))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "PNG, JPEG"),
        (b"GIF89a", "PNG, JPEG"),
        (saved(Image.new("L", (64, 64), 5))[:60], r"\w+Error: "),
        (saved(Image.fromarray(ramp(64, 64).astype(np.uint8)), "JPEG")[:-300], r"\w+Error: "),
        (bomb(60000, 60000), "80 million"),
        (bomb(1, 100_000), "1 x 100000"),
        (saved(Image.new("L", (3, 900))), "3 x 900"),
    ],
    ids=["empty", "another format", "cut PNG", "cut JPEG", "bomb", "a line", "thin"],
)
def test_what_is_no_image(data: bytes, message: str) -> None:
    """Catches tracebacks, half images taken for whole ones, and memory filled by a header."""
    with pytest.raises(Unreadable, match=message):
        read_picture(data)


def test_the_limit_is_below_pillows() -> None:
    """Catches a limit above the one at which Pillow only warns."""
    assert Image.MAX_IMAGE_PIXELS is not None
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS


def test_fits() -> None:
    """Catches a wrong side that is padded or cut, and pixels that move."""
    image = np.zeros((10, 20), np.uint8)
    image[:, 5:15] = 200
    padded = square(image, 20, "pad")
    assert padded.shape == (20, 20, 3)
    assert not padded[:4].any()
    assert padded[10, 10].tolist() == [200] * 3
    assert square(image, 10, "crop").min() > 150, "only the middle is left"
    assert square(image, 10, "stretch")[0, 0, 0] == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 40), st.integers(4, 40), st.integers(8, 48), st.sampled_from(["pad", "crop"]))
def test_a_flat_image_stays_flat(height: int, width: int, size: int, fit: Any) -> None:
    """Catches resampling that darkens borders, at any shape."""
    found = square(np.full((height, width), 137, np.uint8), size, fit)
    assert set(np.unique(found)) <= ({0, 137} if fit == "pad" else {137})


def test_inverted_and_window() -> None:
    """Catches MONOCHROME1 that stays a negative, with and without a window."""
    grey = np.array([[0, 255]], np.uint8)
    assert to_uint8(Raw(grey, "m", inverted=True), PLAIN, 0).tolist() == [[255, 0]]
    deep = Raw(np.array([[900.0, 1000.0, 1100.0]], np.float32), "m", (900.0, 1100.0), inverted=True)
    assert to_uint8(deep, PLAIN, 0).tolist() == [[255, 128, 0]]
    reading = ReadingConfig.model_validate({"window": [1000, 100]})
    assert to_uint8(deep, reading, 0).tolist() == [[255, 128, 0]]
    half = Raw(np.array([[975.0]], np.float32), "m", (0.0, 4000.0))
    assert to_uint8(half, reading, 0).tolist() == [[64]], (
        "the study's window counts, not the file's"
    )
