"""Find a dataset's .npz file and read its headers, labels and arrays safely.

MedMNIST's format: ``{train,val,test}_images`` uint8 `[N, H, W]`, `[N, H, W, 1]` or
`[N, H, W, 3]` and ``{train,val,test}_labels`` integers `[N]` or `[N, 1]`. Object arrays are
refused: nothing is unpickled.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.config import DatasetConfig, InputError
from mgdm_ray.storage.remote.cache import at_hand
from mgdm_ray.storage.remote.objects import is_url

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
MEDMNIST_SIZES = (28, 64, 128, 224)
DATA_DIR_VARIABLE = "MGDM_DATA_DIR"
IMAGE_SUFFIX = "_images"
LABEL_SUFFIX = "_labels"
THUMBNAIL_SUFFIX = "_thumbnails"
GROUP_SUFFIX = "_groups"
"""Optional arrays `[N]`, integer or text: images of one patient have one value."""
THUMBNAIL = 32
"""Side of the small stretched copies of own images, in which duplicates are searched."""
LARGEST_RATIO = 1032
"""Largest compression ratio of deflate."""
MAX_CLASSES = 10_000
"""A larger label is a mistake, and counting up to it would take all memory."""
MAX_IMAGES = 20_000_000
MAX_NAME_BYTES = 4 * 200
CLASSES = "classes"
"""Optional array of class names `[K]`, in the order of the labels."""

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# What zipfile, zlib and numpy raise for damaged bytes.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError)


class Header(NamedTuple):
    """Shape and dtype of one array of an .npz."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


def resolve_data_dir(data_dir: str | Path | None) -> str:
    """Folder or URL: ``data_dir``, else the environment's MGDM_DATA_DIR, else ~/.medmnist."""
    chosen = str(data_dir or os.environ.get(DATA_DIR_VARIABLE) or "~/.medmnist")
    return chosen if is_url(chosen) else str(Path(chosen).expanduser())


def npz_path(config: DatasetConfig, data_dir: str | Path | None) -> Path:
    """File of a MedMNIST dataset (NAME.npz at 28 px, else NAME_SIZE.npz) or of a user's dataset.

    It need not exist. Of a URL, this machine's copy. InputError for phantoms, which have no file,
    and for sizes that MedMNIST does not have.
    """
    folder = resolve_data_dir(data_dir)
    if config.path is not None:
        given = Path(config.path).expanduser()
        return given if given.is_absolute() else at_hand(folder, str(given))
    if config.phantom is not None:
        raise InputError(f"dataset {config.name!r} is drawn by code and has no file")
    if config.size not in MEDMNIST_SIZES:
        known = ", ".join(map(str, MEDMNIST_SIZES))
        raise InputError(
            f"dataset {config.name!r} has no size {config.size}; MedMNIST has {known}. "
            "Set its 'size' (or 'image_size') to one of them"
        )
    suffix = "" if config.size == 28 else f"_{config.size}"
    return at_hand(folder, f"{config.origin}{suffix}.npz")


def missing_file(config: DatasetConfig, path: Path, url: str | None) -> InputError:
    """Error for a file that does not exist: its name, its folder, and how to get it."""
    get = f"Download {url} and save it as {path.absolute()}" if url else "Put it there"
    where = "" if url else ", give 'path' as an absolute path"
    text = (
        f"dataset {config.name!r}: file {path.name} is not in {path.parent.absolute()}. {get}"
        f"{where}, or set {DATA_DIR_VARIABLE} (or 'data_dir' in the study) to its folder."
    )
    near = sorted(p.name for p in path.parent.glob("*.npz")) if path.parent.is_dir() else []
    return InputError(text + (f" That folder has: {', '.join(near[:12])}." if near else ""))


@contextmanager
def open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an .npz; damage met inside the block becomes an InputError with the path."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except _DAMAGE as error:
        raise InputError(
            f"{path}: damaged, or not an .npz (zip) file: {error}. Fetch or write it again"
        ) from error


def _open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    present = [member.removesuffix(".npy") for member in archive.namelist()]
    if name not in present:
        arrays = ", ".join(sorted(present)) or "nothing"
        raise InputError(f"array {name!r} is missing; the file has {arrays}")
    return archive.open(f"{name}.npy")


def read_header(archive: zipfile.ZipFile, name: str) -> Header:
    """Shape and dtype of array ``name``, from its first bytes only."""
    with _open_member(archive, name) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise InputError(f"array {name!r} has .npy version {version}; 1.0 and 2.0 are known")
        shape, _, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise InputError(
            f"array {name!r} holds pickled Python objects, which are never loaded; "
            "save it as a plain integer array"
        )
    if not all(type(side) is int and side >= 0 for side in shape):
        raise InputError(f"array {name!r} has shape {shape}; sides must be integers >= 0")
    return Header(name, shape, dtype)


def read_array(archive: zipfile.ZipFile, name: str) -> NDArray[np.generic]:
    """Read array ``name`` and verify its checksum; nothing larger than the file can hold."""
    header = read_header(archive, name)
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"array {name!r} uses a compression that numpy does not write")
    packed = min(member.compress_size, Path(str(archive.filename)).stat().st_size)
    most = min(member.file_size, packed * LARGEST_RATIO)
    if math.prod(header.shape) * header.dtype.itemsize > most:
        raise InputError(
            f"array {name!r} claims shape {str(list(header.shape))[:100]}, more than its "
            f"{member.compress_size} compressed bytes can hold; the file is damaged"
        )
    with _open_member(archive, name) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def channels_of(header: Header) -> Literal[1, 3]:
    """Channels of an image array; InputError unless uint8 `[N, H, W]` or `[N, H, W, 1 or 3]`."""
    shape = header.shape
    if header.dtype != np.uint8:
        raise InputError(
            f"array {header.name!r} has dtype {header.dtype}; uint8 (0..255) is needed"
        )
    if len(shape) == 3 or (len(shape) == 4 and shape[3] == 1):
        return 1
    if len(shape) == 4 and shape[3] == 3:
        return 3
    raise InputError(
        f"array {header.name!r} has shape {list(shape)}; [N, H, W] or [N, H, W, 3] is needed "
        "(channels last)"
    )


def read_labels(archive: zipfile.ZipFile, name: str) -> NDArray[np.int64]:
    """Labels `[N]` int64 >= 0 from an integer array `[N]` or `[N, 1]`."""
    header = read_header(archive, name)
    shape = header.shape
    if not np.issubdtype(header.dtype, np.integer):
        raise InputError(f"array {name!r} has dtype {header.dtype}; integers are needed")
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
        raise InputError(
            f"array {name!r} has shape {list(shape)}; one label per image, [N] or [N, 1], "
            "is needed (multi-label data is not supported)"
        )
    if shape[0] > MAX_IMAGES:
        raise InputError(f"array {name!r} has {shape[0]} labels; at most {MAX_IMAGES} are read")
    labels = read_array(archive, name).reshape(-1).astype(np.int64)
    low, high = labels.min(initial=0), labels.max(initial=0)
    if high >= MAX_CLASSES:
        most = f"labels are class numbers, at most {MAX_CLASSES - 1}"
        raise InputError(f"array {name!r} has label {high}; {most}")
    if low < 0:
        raise InputError(f"array {name!r} has label {low}; labels start at 0")
    return labels


def read_groups(archive: zipfile.ZipFile, name: str, number: int) -> NDArray[Any] | None:
    """The patient of each of ``number`` images, where the file has them; InputError for others."""
    if f"{name}.npy" not in archive.namelist():
        return None
    header = read_header(archive, name)
    text = header.dtype.kind == "U" and header.dtype.itemsize <= MAX_NAME_BYTES
    if not (text or header.dtype.kind in "iu") or header.shape not in ((number,), (number, 1)):
        raise InputError(
            f"array {name!r} has dtype {header.dtype} and shape {list(header.shape)}; one patient "
            f"per image is needed, {number} integers or texts of at most {MAX_NAME_BYTES // 4} "
            "characters. Rename the array if it holds something else"
        )
    return read_array(archive, name).reshape(-1)


def require_apart(archive: zipfile.ZipFile) -> None:
    """Raise InputError where one patient is in several splits."""
    found: dict[str, set[str]] = {}
    for split in SPLITS:
        number = len(read_labels(archive, split + LABEL_SUFFIX))
        groups = read_groups(archive, split + GROUP_SUFFIX, number)
        for group in () if groups is None else np.unique(groups):
            found.setdefault(str(group), set()).add(split)
    twice = {group: splits for group, splits in found.items() if len(splits) > 1}
    if twice:
        group, splits = min(twice.items())
        raise InputError(
            f"{len(twice)} patient(s) are in more than one split, so the test is not held out: "
            f"{group[:80]!r} is in {' and '.join(s + GROUP_SUFFIX for s in SPLITS if s in splits)}"
            ". Put each patient into one split and write the file again"
        )


def numbered(values: NDArray[Any]) -> NDArray[np.int64]:
    """0, 1, ... for equal values, in the order of first appearance."""
    _, first, place = np.unique(values, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first)).astype(np.int64)[place]


def read_class_names(archive: zipfile.ZipFile) -> tuple[str, ...] | None:
    """Class names where the file has them; InputError unless they are text."""
    if f"{CLASSES}.npy" not in archive.namelist():
        return None
    header = read_header(archive, CLASSES)
    plain = header.dtype.kind == "U" and header.dtype.itemsize <= MAX_NAME_BYTES
    if not plain or len(header.shape) != 1 or not 2 <= header.shape[0] <= MAX_CLASSES:
        raise InputError(
            f"array {CLASSES!r} has dtype {header.dtype} and shape {list(header.shape)}; one name "
            f"per label (2 to {MAX_CLASSES}), each at most {MAX_NAME_BYTES // 4} characters"
        )
    return tuple(str(name) for name in read_array(archive, CLASSES))
