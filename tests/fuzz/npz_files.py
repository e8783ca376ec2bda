"""Files in MedMNIST's format that lie: headers, members, dtypes, pickles, sizes, checksums."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mgdm_ray.config import DatasetConfig
from mgdm_ray.data.load import data_source
from mgdm_ray.data.npz import SPLITS
from tests.fuzz.harness import noise

SIZE = 8
MEMBERS = [f"{split}_{what}" for split in SPLITS for what in ("images", "labels")]


class Touch:
    """Makes a file as it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


def case(rng: random.Random, folder: Path, canary: Path) -> bool:
    path = folder / "mine.npz"
    members = {name: _good(rng, name) for name in MEMBERS}
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        name = rng.choice(MEMBERS)
        members[name] = _bad(rng, name, members[name], canary)
    _write(rng, path, members)
    if rng.random() < 0.25:
        path.write_bytes(_damaged(rng, path.read_bytes()))
    config = DatasetConfig(name="mine", path=str(path), size=SIZE)
    data_source(config).fingerprint()
    data_source(config).train_images()
    data_source(config).counts("test")
    data_source(config).check()
    for split in SPLITS:
        data_source(config).load(split)
    return True


def _good(rng: random.Random, name: str) -> bytes:
    if name.endswith("images"):
        array = np.zeros((6, SIZE, SIZE, rng.choice((1, 1, 1, 3))), np.uint8)
        return npy(array[..., 0] if array.shape[3] == 1 else array)
    return npy(np.array([[0], [1], [0], [1], [0], [1]], np.uint8))


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), **options)
    return buffer.getvalue()


def header(shape: str, dtype: str = "|u1", version: int = 1, order: str = "False") -> bytes:
    """The first bytes of an .npy file, which say what they please."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text


def _bad(rng: random.Random, name: str, good: bytes, canary: Path) -> bytes:
    labels = name.endswith("labels")
    strange = [0, -1, 255, 2**31, 2**62] if labels else [0, 1]
    kind = rng.choice(("header", "pickle", "dtype", "shape", "labels", "cut", "noise", "text"))
    if kind == "header":
        shape = rng.choice(
            ("(99999999999, 8, 8)", "(6, 1)", "(-1, 8, 8)", "(6, 8)", "()", "(0, 8, 8)", "6",
             "(6.0, 8, 8)", f"({'9' * 4000}, 8, 8)", "(" * 300 + ")" * 300, "(True, 8, 8)",
             "(4000000000,)", "(1000000, 8, 8, 3)", "__import__('os').getpid()")
        )  # fmt: skip
        dtype = rng.choice(("|u1", "|u1", "<f8", "|O", ">i8", "|V0", "<U99999999", "|S0", "x"))
        return header(shape, dtype, rng.choice((1, 2, 3, 9))) + b"\0" * rng.choice((0, 64, 4096))
    if kind == "pickle":
        return rng.choice(
            (
                npy(np.array([Touch(canary)], object), allow_pickle=True),
                pickle.dumps(Touch(canary)),
                header("(1,)", "|O") + pickle.dumps(Touch(canary)),
            )
        )
    if kind == "dtype":
        dtype = rng.choice(("f4", "i8", "u8", "c16", "bool", "S3", "U3", "M8[s]", "i4,f4", "f2"))
        return npy(np.zeros((6,) if labels else (6, SIZE, SIZE), dtype))
    if kind == "shape":
        shape = rng.choice(((), (0,), (6,), (6, 8), (1, 8, 8), (6, 8, 9), (6, 8, 8, 2), (1,) * 9))
        return npy(np.zeros(shape, np.uint8))
    if kind == "labels":
        return npy(np.array([rng.choice(strange) for _ in range(6)], np.int64))
    return {"cut": good[: rng.randrange(len(good) + 1)], "noise": noise(rng, 200)}.get(kind, b"")


def _write(rng: random.Random, path: Path, members: dict[str, bytes]) -> None:
    names = list(members)
    if rng.random() < 0.1:
        names.remove(rng.choice(names))
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            archive.writestr(f"{name}.npy", members[name])
        if rng.random() < 0.1:
            archive.writestr(rng.choice(("../outside/x.npy", "/tmp/x.npy", "a\nb", "b/")), b"x")
        if rng.random() < 0.05:  # a few kilobytes that become many megabytes
            archive.writestr("train_more.npy", b"\0" * 5_000_000, zipfile.ZIP_DEFLATED)
    if rng.random() < 0.1:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{rng.choice(MEMBERS)}.npy", npy(np.zeros(3, np.int64)))


def _damaged(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return rng.choice(
        (
            data[:at],
            data[at:],
            b"",
            data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :],
            data[:at] + rng.randbytes(8) + data[at + 8 :],
            # The directory at the end: sizes, methods, flags, offsets.
            data[: -min(rng.randint(1, 300), len(data))] + noise(rng, 60),
            _flip_tail(rng, data),
        )
    )


def _flip_tail(rng: random.Random, data: bytes) -> bytes:
    broken = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        broken[-rng.randint(1, min(400, len(broken)))] = rng.randrange(256)
    return bytes(broken)
