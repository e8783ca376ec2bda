"""Class folders, manifests, pictures, DICOM and NIfTI files that are broken or lie."""

from __future__ import annotations

import contextlib
import csv
import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from mgdm_ray.config import DatasetConfig
from mgdm_ray.data.load import data_source
from mgdm_ray.data.npz import SPLITS
from mgdm_ray.data.sources.prepare import prepare
from mgdm_ray.data.sources.source import own_listing
from tests.fuzz.harness import noise

SIDES = (1, 2, 7, 8, 33)
MODES = ("L", "RGB", "RGBA", "P", "1", "I;16", "F", "LA", "CMYK", "I")
FORMATS = ("png", "jpg", "tiff", "bmp")
NAMES = (
    "a\nb.png", "a b.png", "é.png", "-rf.png", "$(x).png", "a'b\".png", "\u202egnp.png",
    "x" * 240 + ".png", "%s.png", "..png", "a\\b.png", "\x7f.png",
)  # fmt: skip
CELLS = (
    "", "../outside/secret", "../../outside/secret", "/etc/passwd", "a\0b", "x" * 5000, "b/0.png",
    "nothing.png", "a/" * 3000, "~/x", "file:///etc/passwd", "a\nb", "=cmd|' /C calc'!A0", ".",
)  # fmt: skip


def case(rng: random.Random, folder: Path, _canary: Path) -> bool:
    root = folder / "images"
    for label in ("b", "a"):
        (root / label).mkdir(parents=True)
        for number in range(12):
            (root / label / f"{number}.png").write_bytes(picture(rng, "L", 8, 8, "png"))
    for _ in range(rng.randint(1, 2)):
        _break(rng, root)
    path = root
    if rng.random() < 0.35:
        path = root / "list.csv"
        path.write_bytes(_table(rng))
    config = DatasetConfig(name="mine", path=str(path), size=8)
    listing = own_listing(config, folder)
    assert listing is not None
    made = prepare(config, folder, folder / "prepared")
    data_source(made, folder).check()
    for split in SPLITS:
        data_source(made, folder).load(split)
    return True


def picture(rng: random.Random, mode: str, width: int, height: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    image = Image.frombytes("L", (width, height), noise(rng, width * height))
    with contextlib.suppress(OSError, ValueError):  # not every format has every mode
        image.convert(mode).save(buffer, {"jpg": "jpeg"}.get(kind, kind))
        return buffer.getvalue()
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def png(width: int, height: int, rows: bytes, bits: int = 8, colour: int = 0) -> bytes:
    """A PNG that says it has ``width`` x ``height`` pixels, whatever ``rows`` holds."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checked = name + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _break(rng: random.Random, root: Path) -> None:
    """One file more, or another in place of a right one."""
    place = root / rng.choice("ab") / f"{rng.randrange(12)}.png"
    kind = rng.random()
    if place.is_symlink():  # an earlier change made it one
        return
    if kind < 0.15:
        side = rng.choice((0, 1, 20_000, 65_000, 2**31 - 1, 100_000))
        lying = png(rng.choice((1, side)), side, b"\0" * rng.choice((10, 10**6)))
        place.write_bytes(lying)
    elif kind < 0.3:
        mode, suffix = rng.choice(MODES), rng.choice(FORMATS)
        sides = rng.choice(SIDES), rng.choice((*SIDES, 3000))
        place.with_suffix(f".{suffix}").write_bytes(picture(rng, mode, *sides, suffix))
    elif kind < 0.5:
        good = picture(rng, "RGB", 9, 9, rng.choice(FORMATS))
        at = rng.randrange(len(good))
        place.write_bytes(rng.choice((good[:at], good[:at] + rng.randbytes(4) + good[at + 4 :])))
    elif kind < 0.6:
        place.unlink(missing_ok=True)
        place.symlink_to(rng.choice(("../../../outside/secret", "/dev/null", "0.png", place)))
    elif kind < 0.75:
        (root / rng.choice("ab") / rng.choice(NAMES)).write_bytes(picture(rng, "L", 8, 8, "png"))
    elif kind < 0.85:
        pixels = np.full((8, 8), rng.choice((np.nan, np.inf, -np.inf, 3e38)), np.float32)
        Image.fromarray(pixels).save(place.with_suffix(".tiff"))
    else:
        suffix = rng.choice((".dcm", ".nii", ".nii.gz", "", ".tiff"))
        place.with_suffix(suffix).write_bytes(_medical(rng))


def _medical(rng: random.Random) -> bytes:
    nifti = struct.pack("<i", 348) + noise(rng, 344) + b"\0" * 4
    sides = [struct.pack("<h", rng.choice((0, 1, -1, 8, 32767))) for _ in range(8)]
    lying = nifti[:40] + b"".join(sides) + nifti[56:344] + b"n+1\0" + b"\0" * 4
    tags = (0x00280010, 0x00280011, 0x00280008, 0x7FE00010)
    elements = b"".join(
        struct.pack("<HHI", tag >> 16, tag & 0xFFFF, rng.choice((2, 4, 2**32 - 1)))
        + rng.randbytes(2)
        for tag in tags
    )
    return rng.choice(
        (b"", b"\0" * 128 + b"DICM" + elements, b"\0" * 128 + b"DICM", noise(rng, 300),
         nifti, lying, b"\x1f\x8b" + rng.randbytes(50), b"II*\0" + rng.randbytes(40))
    )  # fmt: skip


def _table(rng: random.Random) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    columns = ["path", "label", *(["split"] if rng.random() < 0.4 else [])]
    writer.writerow(columns if rng.random() < 0.9 else rng.choice((["x"], [], columns[:1])))
    for label in "ab":
        for number in range(12):
            row = [f"{label}/{number}.png", label, ("train", "val", "test")[number % 3]]
            writer.writerow(row[: len(columns)])
    for _ in range(rng.randint(0, 2)):
        row = [rng.choice(CELLS), rng.choice(("a", "b", "c", "", *CELLS)), "train", "more"]
        writer.writerow(row[: rng.randint(1, 4)])
    data = buffer.getvalue().encode()
    at = rng.randrange(len(data))
    return rng.choice((data, data, data, data[:at], data[:at] + b'\0\xff"' + data[at:], b""))
