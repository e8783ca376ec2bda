"""One image file as an array: PNG, JPEG, TIFF and BMP with Pillow; see ``medical`` for others."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mgdm_ray.config import ReadingConfig
from mgdm_ray.data.npz import THUMBNAIL
from mgdm_ray.storage.store import no_space

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
MAX_PIXELS = 80_000_000
"""Of one image or slice: larger ones are decompression bombs. Below Pillow's own limit."""
LEAST_SIDE = 4
ENDS = (0.5, 99.5)
"""Percentiles that become black and white in an image of unknown unit."""
Array = NDArray[np.generic]


class Unreadable(Exception):
    """The file is no image; the message says why."""


@dataclass(frozen=True)
class Raw:
    """An image as the file has it.

    ``pixels`` `[H, W]` or `[H, W, 3]`: uint8, or uint16 in the units of the file, or float32.
    ``window``: the file's own (low, high); ``inverted``: 0 is white.
    """

    pixels: Array
    mode: str
    window: tuple[float, float] | None = None
    inverted: bool = False

    @property
    def colour(self) -> bool:
        if self.pixels.ndim == 2:
            return False
        first = self.pixels[..., :1]
        return bool((self.pixels != first).any())


@contextmanager
def decoding() -> Iterator[None]:
    """Any error of a decoder, which depends on the bytes, becomes Unreadable; also a decorator."""
    try:
        yield
    except Unreadable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unreadable(f"more than {MAX_PIXELS / 1e6:g} million pixels") from None
    except UnidentifiedImageError:  # its own message holds a memory address
        raise Unreadable(f"not an image ({', '.join(FORMATS)})") from None
    except MemoryError:
        raise Unreadable("does not fit into memory") from None
    except Exception as error:
        if no_space(error):
            raise  # of a temporary file: the image is not to blame
        raise Unreadable(f"not a readable image: {type(error).__name__}: {error}"[:300]) from None


@decoding()
def read_picture(data: bytes, slice_index: int | Literal["middle"] = "middle") -> Raw:
    """Decode a PNG, JPEG, TIFF or BMP; of many frames ``slice_index``. Raises Unreadable.

    EXIF orientation is applied; transparency becomes black; palettes and CMYK become RGB.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # damaged metadata; pixels count
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(*image.size)
            image.seek(frame_of(slice_index, getattr(image, "n_frames", 1)))
            check_size(*image.size)
            return _raw(ImageOps.exif_transpose(image))


@decoding()
def count_frames(data: bytes) -> int:
    """Frames of a picture file; raises Unreadable."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return int(getattr(image, "n_frames", 1))


def check_size(width: int, height: int) -> None:
    """Raise Unreadable for an image that is too small or too large."""
    if width * height > MAX_PIXELS:
        raise Unreadable(f"{width} x {height} pixels: more than {MAX_PIXELS / 1e6:g} million")
    if min(width, height) < LEAST_SIDE:
        raise Unreadable(f"{width} x {height} pixels: a side below {LEAST_SIDE}")


def frame_of(wanted: int | Literal["middle"], frames: int) -> int:
    """Index of the frame; raises Unreadable if it does not exist."""
    if wanted == "middle":
        return frames // 2
    if not 0 <= wanted < frames:
        raise Unreadable(f"has {frames} slice(s); slice {wanted} is not in 0 .. {frames - 1}")
    return wanted


def _raw(image: Image.Image) -> Raw:
    mode = image.mode
    if mode in ("I;16", "I;16L", "I;16B", "I"):
        values = np.asarray(image).astype(np.int64)
        fits = values.min() >= 0 and values.max() <= 65535
        return Raw(values.astype(np.uint16 if fits else np.float32), mode)
    if mode == "F":
        return Raw(finite(np.asarray(image, dtype=np.float32)), mode)
    if mode in ("1", "L"):
        return Raw(np.asarray(image.convert("L")), mode)
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        ground = Image.new("RGBA", opaque.size, (0, 0, 0, 255))
        return Raw(np.asarray(Image.alpha_composite(ground, opaque).convert("RGB")), mode)
    return Raw(np.asarray(image.convert("RGB")), mode)


def finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise Unreadable("holds NaN or infinite values")
    return values


def to_uint8(raw: Raw, reading: ReadingConfig, deepest: int) -> NDArray[np.uint8]:
    """Pixels in 0..255, of the same shape.

    ``deepest`` is the largest value of all integer images of the dataset with more than 8 bits,
    which are divided by the same power of two.
    """
    pixels = raw.pixels
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(255 - pixels if raw.inverted else pixels)
    low, high = _range(raw, reading, deepest)
    scaled = (pixels.astype(np.float64) - low) / max(high - low, 1e-12)
    scaled = np.clip(1 - scaled if raw.inverted else scaled, 0, 1)
    return np.rint(scaled * 255).astype(np.uint8)


def _range(raw: Raw, reading: ReadingConfig, deepest: int) -> tuple[float, float]:
    """Values that become black and white."""
    if reading.window is not None:
        centre, width = reading.window
        return centre - width / 2, centre + width / 2
    if raw.window is not None:
        return raw.window
    if raw.pixels.dtype == np.uint16:
        bits = next(b for b in (8, 10, 12, 14, 16) if deepest < 2**b)
        return 0.0, 2.0**bits - 1
    low, high = np.percentile(raw.pixels.astype(np.float64), ENDS)
    return float(low), float(high)


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`[32, 32]`, grey and stretched: independent of the aspect ratio."""
    return np.asarray(Image.fromarray(square(pixels, THUMBNAIL, "stretch")).convert("L"))


def square(
    pixels: NDArray[np.uint8], size: int, fit: Literal["pad", "crop", "stretch"]
) -> NDArray[np.uint8]:
    """`[H, W]` or `[H, W, 3]` to `[size, size, 3]`, bicubic, antialiased."""
    image = Image.fromarray(pixels).convert("RGB")
    resample = Image.Resampling.BICUBIC
    if fit == "pad":
        image = ImageOps.pad(image, (size, size), resample, color=(0, 0, 0))
    elif fit == "crop":
        image = ImageOps.fit(image, (size, size), resample)
    else:
        image = image.resize((size, size), resample)
    return np.asarray(image)
