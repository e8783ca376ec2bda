"""Reading, checking and downloading the images of a dataset, one split at a time."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.config import DatasetConfig, InputError, SyntheticConfig
from mgdm_ray.data.apportion import apportion
from mgdm_ray.data.info import DatasetInfo, dataset_info
from mgdm_ray.data.npz import (
    IMAGE_SUFFIX,
    LABEL_SUFFIX,
    SPLITS,
    THUMBNAIL,
    THUMBNAIL_SUFFIX,
    SplitName,
    channels_of,
    missing_file,
    npz_path,
    open_npz,
    read_array,
    read_header,
    read_labels,
    resolve_data_dir,
)
from mgdm_ray.data.phantoms import PHANTOM_VERSION, class_counts, draw_split
from mgdm_ray.data.sources.prepare import own_fingerprint
from mgdm_ray.data.sources.source import own_listing
from mgdm_ray.seeding import derive_seed
from mgdm_ray.storage.remote.objects import Objects, is_url

if TYPE_CHECKING:
    import torch

__all__ = [
    "SPLITS",
    "Split",
    "SplitName",
    "check_source",
    "check_top_up",
    "count_test_images",
    "download",
    "fingerprint",
    "load_split",
    "load_thumbnails",
    "npz_path",
    "resolve_data_dir",
    "to_tensor",
    "to_uint8",
]

ABSENT = "absent"
# Files up to this size are read through once by check_source (well under a second); larger ones
# are verified member by member when they are loaded.
_VERIFY_BYTES = 64 * 2**20
_CHUNK = 2**20


@dataclass(frozen=True)
class Split:
    """``images`` uint8 `[N, H, W, C]` with C 1 or 3, ``labels`` int64 `[N]`."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def load_split(
    config: DatasetConfig, split: SplitName, data_dir: str | Path | None = None
) -> Split:
    """Images and labels of one split; the other splits' arrays are not opened.

    ``train`` is cut down to ``train_size``: a seeded, stratified choice with at least one image
    per class, in the file's order; smaller choices are (nearly) contained in larger ones.
    Raises InputError where the file is missing or not what it should be.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
    if config.phantom is not None:
        loaded = Split(*draw_split(config.origin, config.phantom, config.size, split))
    else:
        loaded = _read_split(config, split, data_dir)
    keep = _kept(config, split, loaded.labels)
    if len(keep) == len(loaded):
        return loaded
    return Split(loaded.images[keep], loaded.labels[keep])


def _read_split(config: DatasetConfig, split: SplitName, data_dir: str | Path | None) -> Split:
    path = npz_path(config, data_dir)
    if not path.is_file():
        raise missing_file(config, path, dataset_info(config, data_dir).url)
    with open_npz(path) as archive:
        _check_images(archive, split, config)
        images = read_array(archive, split + IMAGE_SUFFIX).astype(np.uint8, copy=False)
        labels = read_labels(archive, split + LABEL_SUFFIX)
        if len(images) != len(labels):
            raise InputError(f"{split} has {len(images)} images but {len(labels)} labels")
    if images.ndim == 3:
        images = images[..., None]
    return Split(np.ascontiguousarray(images), labels)


def load_thumbnails(
    config: DatasetConfig, split: SplitName, data_dir: str | Path | None = None
) -> NDArray[np.uint8] | None:
    """`[N, 32, 32, 1]`: the images of ``load_split`` stretched, without the bars that made them
    square; None where the file has none, as only prepared own images do."""
    if config.phantom is not None:
        return None
    with open_npz(npz_path(config, data_dir)) as archive:
        if split + THUMBNAIL_SUFFIX + ".npy" not in archive.namelist():
            return None
        labels = read_labels(archive, split + LABEL_SUFFIX)
        header = read_header(archive, split + THUMBNAIL_SUFFIX)
        if header.shape != (len(labels), THUMBNAIL, THUMBNAIL) or header.dtype != np.uint8:
            return None  # somebody else's array of that name
        found = read_array(archive, split + THUMBNAIL_SUFFIX).astype(np.uint8, copy=False)
    return found[_kept(config, split, labels), :, :, None]


def _kept(config: DatasetConfig, split: SplitName, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of the split's images a study has: all, or the ``train_size`` chosen of train."""
    if split != "train" or config.train_size is None or config.train_size >= len(labels):
        return np.arange(len(labels))
    return _stratified(labels, config.train_size, config.origin)


def _stratified(labels: NDArray[np.int64], size: int, name: str) -> NDArray[np.int64]:
    """Sorted indices `[size]`, classes in the shares of ``labels``, each class at least once."""
    values, counts = np.unique(labels, return_counts=True)
    if size < len(values):
        raise InputError(
            f"dataset {name!r}: train_size {size} is less than its {len(values)} classes; "
            "every class needs at least one training image"
        )
    take = apportion(counts, size, minimum=1, capacity=counts)
    chosen = []
    for value, n in zip(values, take, strict=True):
        rng = np.random.default_rng(derive_seed("train_size", name, int(value)))
        chosen.append(rng.permutation(np.flatnonzero(labels == value))[:n])
    return np.sort(np.concatenate(chosen))


def fingerprint(config: DatasetConfig, data_dir: str | Path | None = None) -> str:
    """Identity of the dataset's content, without reading pixels.

    Of a file: sha256 over name, CRC-32 and size of every member, as its zip directory has them;
    "absent" where the file is not there. Of one's own images: of all files, labels and splits. Of a
    phantom: the version of the drawing code.
    Raises InputError where the file is no zip.
    """
    if config.phantom is not None:
        return PHANTOM_VERSION
    listing = own_listing(config, data_dir)
    if listing is not None:
        return own_fingerprint(config, listing)
    path = npz_path(config, data_dir)
    if not path.is_file():
        return ABSENT
    digest = hashlib.sha256()
    with open_npz(path) as archive:
        for member in sorted(archive.infolist(), key=lambda m: m.filename):
            digest.update(f"{member.filename}\0{member.CRC:08x}\0{member.file_size}\n".encode())
    return digest.hexdigest()


def train_images(config: DatasetConfig, data_dir: str | Path | None = None) -> int | None:
    """How many training images a study has of this dataset, without reading pixels; None where the
    file is not there."""
    if config.phantom is not None:
        number = config.phantom.train
    elif (listing := own_listing(config, data_dir)) is not None:
        number = len(listing.of("train"))
    else:
        path = npz_path(config, data_dir)
        if not path.is_file():
            return None
        with open_npz(path) as archive:
            header = read_header(archive, "train" + IMAGE_SUFFIX)
            channels_of(header)  # it has images at all
            number = header.shape[0]
    return min(number, config.train_size or number)


def count_test_images(
    config: DatasetConfig, data_dir: str | Path | None = None
) -> list[int] | None:
    """Test images per class, without reading pixels; None where the file is not there.

    For what a plan says of a study's power: that needs how many there are, and nothing of them.
    """
    if config.phantom is not None:
        classes = dataset_info(config, data_dir).num_classes
        counts = class_counts(config.phantom.test, classes, config.phantom.imbalance)
        return [int(count) for count in counts]
    listing = own_listing(config, data_dir)
    if listing is not None:
        return listing.counts("test")
    path = npz_path(config, data_dir)
    if not path.is_file():
        return None
    with open_npz(path) as archive:
        labels = read_labels(archive, "test" + LABEL_SUFFIX)
    return [int(count) for count in np.bincount(labels)]


def check_source(config: DatasetConfig, data_dir: str | Path | None = None) -> list[str]:
    """Check the dataset before anything is started; returns warnings, one sentence each.

    Raises InputError with the file and what to do: missing, not a zip, an array missing, pickled,
    of the wrong dtype, shape or size, labels out of range, fewer than two classes, a class without
    training image. Small files are verified whole; large ones by headers and labels only.
    """
    info = dataset_info(config, data_dir)
    if config.phantom is not None:
        return []
    path = npz_path(config, data_dir)
    if not path.is_file():
        raise missing_file(config, path, info.url)
    with open_npz(path) as archive:
        warnings = _check_arrays(archive, config, info)
        if path.stat().st_size <= _VERIFY_BYTES:
            broken = archive.testzip()
            if broken is not None:
                raise zipfile.BadZipFile(f"the checksum of {broken} is wrong")
    if info.md5 is not None and path.stat().st_size <= _VERIFY_BYTES:
        found = _md5(path)
        if found != info.md5:
            warnings.append(
                f"{path} is not the official {path.name} (md5 {found}, official {info.md5}): "
                "results are not comparable with published ones."
            )
    return warnings


def check_top_up(
    synthetic: SyntheticConfig, config: DatasetConfig, data_dir: str | Path | None = None
) -> None:
    """InputError where ``balance: top_up`` would add nothing to this dataset; reads labels only."""
    if synthetic.per_class is None:
        return
    if config.phantom is not None:
        labels = draw_split(config.origin, config.phantom, config.size, "train")[1]
    else:
        with open_npz(npz_path(config, data_dir)) as archive:
            labels = read_labels(archive, "train" + LABEL_SUFFIX)
    if config.train_size is not None and config.train_size < len(labels):
        labels = labels[_stratified(labels, config.train_size, config.origin)]
    counts = np.bincount(labels)
    if counts.min() >= synthetic.per_class:
        raise InputError(
            f"dataset {config.name!r}: synthetic.per_class {synthetic.per_class} tops up nothing: "
            f"its classes have {', '.join(map(str, counts))} training images; give more than "
            f"{counts.min()}"
        )


def _check_images(
    archive: zipfile.ZipFile, split: SplitName, config: DatasetConfig
) -> tuple[int, int]:
    """Number and channels of a split's images; InputError where dtype, shape or size is wrong."""
    header = read_header(archive, split + IMAGE_SUFFIX)
    channels = channels_of(header)
    number, height, width = header.shape[:3]
    if number == 0:
        raise InputError(f"array {header.name!r} is empty")
    if (height, width) != (config.size, config.size):
        advice = f"set size: {height}" if height == width else "images must be square"
        raise InputError(
            f"array {header.name!r} has images of {height} x {width} pixels, but dataset "
            f"{config.name!r} has size {config.size}; {advice}"
        )
    return number, channels


def _check_arrays(archive: zipfile.ZipFile, config: DatasetConfig, info: DatasetInfo) -> list[str]:
    warnings = []
    for split in SPLITS:
        number, channels = _check_images(archive, split, config)
        labels = read_labels(archive, split + LABEL_SUFFIX)
        if len(labels) != number:
            raise InputError(f"{split} has {number} images but {len(labels)} labels")
        if channels != info.channels:
            raise InputError(f"{split}_images have {channels} channel(s), not {info.channels}")
        counts = np.bincount(labels, minlength=info.num_classes)
        if len(counts) > info.num_classes:
            raise InputError(
                f"{split}_labels go up to {len(counts) - 1}, but there are {info.num_classes} "
                f"classes: 0..{info.num_classes - 1}"
                + (" (those of train_labels)" if config.path is not None else "")
            )
        absent = [str(k) for k in np.flatnonzero(counts == 0)]
        if absent and split == "train":
            raise InputError(f"train_labels have no image of class {', '.join(absent)}")
        if absent:
            warnings.append(
                f"dataset {config.name!r}: {split} has no image of class {', '.join(absent)}, "
                "whose recall cannot be measured there."
            )
        if split == "train" and config.train_size is not None:
            _warn_train_size(config, labels, warnings)
    return warnings


def _warn_train_size(config: DatasetConfig, labels: NDArray[np.int64], warnings: list[str]) -> None:
    if config.train_size is None:
        return
    if config.train_size > len(labels):
        warnings.append(
            f"dataset {config.name!r}: train_size {config.train_size} is more than the "
            f"{len(labels)} training images; all are used."
        )
    else:
        _stratified(labels, config.train_size, config.origin)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def download(config: DatasetConfig, data_dir: str | Path | None = None) -> Path:
    """Fetch a MedMNIST file from Zenodo; returns its path, at once where it is already there.

    Written to a temporary file beside its place, compared with the official md5, then renamed.
    Raises InputError where there is nothing to download from or the network does not allow it.
    """
    info = dataset_info(config, data_dir)
    path = npz_path(config, data_dir)
    if path.is_file():
        return path
    if info.url is None or info.md5 is None:
        raise missing_file(config, path, None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise InputError(f"cannot write to {path.parent}: {error.strerror or error}") from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            _fetch(info.url, file)
        found = _md5(temporary)
        if found != info.md5:
            raise InputError(f"{info.url} has md5 {found}; expected {info.md5}. Try again")
        temporary.chmod(0o644)  # mkstemp's file is private; a data folder is often shared
        temporary.replace(path)
        folder = resolve_data_dir(data_dir)
        if is_url(folder):
            Objects(folder).upload(path, path.name)
    except OSError as error:
        raise InputError(
            f"cannot download: {error}. {missing_file(config, path, info.url)}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _fetch(url: str, file: IO[bytes]) -> None:
    """Raises OSError (urllib's errors are) where the network or the server refuses."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        while chunk := answer.read(_CHUNK):
            file.write(chunk)


def to_tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 `[N, H, W, C]` in 0..255 to float32 `[N, C, H, W]` in [-1, 1]."""
    import torch

    nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return torch.from_numpy(nchw).to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images: torch.Tensor) -> NDArray[np.uint8]:
    """Float `[N, C, H, W]` in [-1, 1] to uint8 `[N, H, W, C]`: rounded, and clipped to 0..255."""
    import torch

    scaled = images.detach().to("cpu", torch.float32).add(1.0).mul(127.5).round().clamp(0, 255)
    array: NDArray[np.uint8] = scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return array
