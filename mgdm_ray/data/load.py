"""Read, check and download the images of a dataset, one split at a time.

``data_source`` gives one of three classes: phantoms, an .npz file, a user's own image files.
"""

from __future__ import annotations

import hashlib
import shutil
import urllib.request
import zipfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.config import DatasetConfig, InputError, SyntheticConfig
from mgdm_ray.data import npz
from mgdm_ray.data.apportion import apportion
from mgdm_ray.data.info import DatasetInfo, dataset_info
from mgdm_ray.data.npz import SPLITS, SplitName, npz_path, resolve_data_dir
from mgdm_ray.data.phantoms import PHANTOM_VERSION, class_counts, draw_split
from mgdm_ray.data.sources.prepare import own_fingerprint
from mgdm_ray.data.sources.source import is_own, list_own
from mgdm_ray.seeding import derive_seed
from mgdm_ray.storage.files import replacing
from mgdm_ray.storage.remote.objects import Objects, is_url

if TYPE_CHECKING:
    import torch

ABSENT = "absent"
# Files up to this size are verified as a whole by ``check`` (well under a second); of larger
# ones, each array is verified when it is loaded.
_VERIFY_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Split:
    """``images`` uint8 `[N, H, W, C]` with C 1 or 3, ``labels`` int64 `[N]`."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


class DataSource(ABC):
    """One dataset of a study."""

    def __init__(self, config: DatasetConfig, data_dir: str | Path | None) -> None:
        self.config, self.data_dir = config, data_dir

    @abstractmethod
    def fingerprint(self) -> str:
        """Identity of the content, without reading pixels; "absent" where the file is missing."""

    @abstractmethod
    def counts(self, split: SplitName) -> list[int] | None:
        """Images per class before ``train_size``; None where the file is missing. No pixels."""

    @abstractmethod
    def read(self, split: SplitName) -> Split:
        """All images of ``split``, without ``train_size``; the other splits stay closed."""

    def check(self) -> list[str]:
        """Warnings; InputError for data that would fail in a job."""
        return []

    def thumbnails(self, split: SplitName) -> NDArray[np.uint8] | None:  # noqa: ARG002
        """`[N, 32, 32, 1]`, the images of ``load`` stretched to a square without black bars.

        Only prepared own images have them.
        """
        return None

    def patients(self, split: SplitName) -> NDArray[np.int64] | None:  # noqa: ARG002
        """A number per image of ``split``, without ``train_size``; None where unknown."""
        return None

    def units(self, split: SplitName) -> list[int] | None:
        """Patients per class where they are known, else images. No pixels."""
        return self.counts(split)

    def download(self) -> None:  # noqa: B027
        """Fetch the official file unless it exists; it appears whole or not at all."""

    def load(self, split: SplitName) -> Split:
        """Images and labels of ``split``; of ``train`` the ``train_size`` images of the study."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
        whole = self.read(split)
        keep = self._kept(split, whole.labels)
        same = len(keep) == len(whole)
        return whole if same else Split(whole.images[keep], whole.labels[keep])

    def train_images(self) -> int | None:
        """Number of training images of the study; None where the file is missing."""
        counts = self.counts("train")
        return None if counts is None else min(sum(counts), self.config.train_size or sum(counts))

    def check_top_up(self, synthetic: SyntheticConfig) -> None:
        """Raise InputError where ``balance: top_up`` would add nothing."""
        counts = np.array(self.counts("train") or [], dtype=np.int64)
        if synthetic.per_class is None or not len(counts):
            return
        if self.config.train_size is not None and self.config.train_size < counts.sum():
            counts[counts > 0] = self._shares(counts[counts > 0], self.config.train_size)
        if counts.min() >= synthetic.per_class:
            raise InputError(
                f"dataset {self.config.name!r}: synthetic.per_class {synthetic.per_class} adds "
                f"nothing: its classes have {', '.join(map(str, counts))} training images; set it "
                f"above {counts.min()}"
            )

    def _kept(self, split: SplitName, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sorted indices of the images in the study: a seeded, stratified choice of ``train``.

        Smaller choices are (nearly) contained in larger ones.
        """
        size = self.config.train_size
        if split != "train" or size is None or size >= len(labels):
            return np.arange(len(labels))
        values, counts = np.unique(labels, return_counts=True)
        chosen = []
        for value, n in zip(values, self._shares(counts, size), strict=True):
            rng = np.random.default_rng(derive_seed("train_size", self.config.origin, int(value)))
            chosen.append(rng.permutation(np.flatnonzero(labels == value))[:n])
        return np.sort(np.concatenate(chosen))

    def _shares(self, counts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """Images of each class among ``size``, each class at least once."""
        if size < len(counts):
            raise InputError(
                f"dataset {self.config.origin!r}: train_size {size} is less than its {len(counts)} "
                "classes; every class needs at least one training image"
            )
        return apportion(counts, size, minimum=1, capacity=counts)


class Phantom(DataSource):
    """Images drawn by code; their identity is the version of the drawing code."""

    def __init__(self, config: DatasetConfig, data_dir: str | Path | None) -> None:
        super().__init__(config, data_dir)
        assert config.phantom is not None
        self.phantom = config.phantom

    def fingerprint(self) -> str:
        return PHANTOM_VERSION

    def counts(self, split: SplitName) -> list[int]:
        number = getattr(self.phantom, split)
        classes = dataset_info(self.config, self.data_dir).num_classes
        return [int(n) for n in class_counts(number, classes, self.phantom.imbalance)]

    def patients(self, split: SplitName) -> NDArray[np.int64]:
        """Each image is drawn alone."""
        return np.arange(getattr(self.phantom, split))

    def read(self, split: SplitName) -> Split:
        return Split(*draw_split(self.config.origin, self.phantom, self.config.size, split))


class Npz(DataSource):
    """A file in MedMNIST's format: an official one, a user's, or prepared own images."""

    @property
    def path(self) -> Path:
        return npz_path(self.config, self.data_dir)

    @property
    def info(self) -> DatasetInfo:
        return dataset_info(self.config, self.data_dir)

    def fingerprint(self) -> str:
        """sha256 over name, CRC-32 and size of every member, as the zip directory has them."""
        path = self.path
        if not path.is_file():
            return ABSENT
        digest = hashlib.sha256()
        with npz.open_npz(path) as archive:
            for member in sorted(archive.infolist(), key=lambda m: m.filename):
                line = f"{member.filename}\0{member.CRC:08x}\0{member.file_size}\n"
                digest.update(line.encode())
        return digest.hexdigest()

    def counts(self, split: SplitName) -> list[int] | None:
        path = self.path
        if not path.is_file():
            return None
        with npz.open_npz(path) as archive:
            labels = npz.read_labels(archive, split + npz.LABEL_SUFFIX)
        return [int(n) for n in np.bincount(labels)]

    def read(self, split: SplitName) -> Split:
        path = self._existing()
        with npz.open_npz(path) as archive:
            labels = self._labels(archive, split)
            images = npz.read_array(archive, split + npz.IMAGE_SUFFIX).astype(np.uint8, copy=False)
        return Split(
            np.ascontiguousarray(images[..., None] if images.ndim == 3 else images), labels
        )

    def thumbnails(self, split: SplitName) -> NDArray[np.uint8] | None:
        name = split + npz.THUMBNAIL_SUFFIX
        with npz.open_npz(self.path) as archive:
            if f"{name}.npy" not in archive.namelist():
                return None
            labels = npz.read_labels(archive, split + npz.LABEL_SUFFIX)
            header = npz.read_header(archive, name)
            wanted = (len(labels), npz.THUMBNAIL, npz.THUMBNAIL)
            if header.shape != wanted or header.dtype != np.uint8:
                return None  # another program's array of that name
            found = npz.read_array(archive, name).astype(np.uint8, copy=False)
        return found[self._kept(split, labels), :, :, None]

    def patients(self, split: SplitName) -> NDArray[np.int64] | None:
        with npz.open_npz(self._existing()) as archive:
            labels = npz.read_labels(archive, split + npz.LABEL_SUFFIX)
            found = npz.read_groups(archive, split + npz.GROUP_SUFFIX, len(labels))
        return None if found is None else npz.numbered(found)

    def units(self, split: SplitName) -> list[int] | None:
        counts = self.counts(split)
        patients = None if counts is None else self.patients(split)
        if patients is None:
            return counts
        with npz.open_npz(self.path) as archive:
            labels = npz.read_labels(archive, split + npz.LABEL_SUFFIX)
        return [len(np.unique(patients[labels == label])) for label in range(len(counts or ()))]

    def check(self) -> list[str]:
        """Warnings about the file; small files are verified whole, large ones by their headers.

        Raises InputError for a file that is missing or no zip, and for arrays that are missing,
        pickled, of a wrong dtype, shape, size or label, or without one of at least two classes.
        """
        info, path = self.info, self._existing()
        small = path.stat().st_size <= _VERIFY_BYTES
        with npz.open_npz(path) as archive:
            warnings = [w for split in SPLITS for w in self._check_split(archive, split, info)]
            npz.require_apart(archive)
            if small and (broken := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"wrong checksum of {broken}")
        if info.md5 is not None and small and (found := _md5(path)) != info.md5:
            warnings.append(
                f"{path} is not the official {path.name} (md5 {found}, official {info.md5}): "
                "results are not comparable with published ones"
            )
        return warnings

    def download(self) -> None:
        """As above, from Zenodo.

        InputError where there is no source, the network fails or the md5 is not the official one.
        """
        info, path = self.info, self.path
        if path.is_file():
            return
        if info.url is None:
            raise npz.missing_file(self.config, path, None)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                with (
                    urllib.request.urlopen(info.url, timeout=30) as answer,
                    temporary.open("wb") as file,
                ):
                    shutil.copyfileobj(answer, file)
                if (found := _md5(temporary)) != info.md5:
                    raise InputError(f"{info.url} has md5 {found}, not {info.md5}. Try again")
            folder = resolve_data_dir(self.data_dir)
            if is_url(folder):
                Objects(folder).upload(path, path.name)
        except OSError as error:  # urllib's errors are
            missing = npz.missing_file(self.config, path, info.url)
            raise InputError(f"cannot download: {error}. {missing}") from error

    def _existing(self) -> Path:
        path = self.path
        if not path.is_file():
            raise npz.missing_file(self.config, path, self.info.url)
        return path

    def _labels(self, archive: zipfile.ZipFile, split: SplitName) -> NDArray[np.int64]:
        """Labels of ``split``; InputError unless they fit the header of its images."""
        header = npz.read_header(archive, split + npz.IMAGE_SUFFIX)
        npz.channels_of(header)
        number, height, width = header.shape[:3]
        if number == 0:
            raise InputError(f"array {header.name!r} is empty")
        if (height, width) != (self.config.size, self.config.size):
            advice = f"set size: {height}" if height == width else "images must be square"
            raise InputError(
                f"array {header.name!r} has images of {height} x {width} pixels, but dataset "
                f"{self.config.name!r} has size {self.config.size}; {advice}"
            )
        labels = npz.read_labels(archive, split + npz.LABEL_SUFFIX)
        if len(labels) != number:
            raise InputError(f"{split} has {number} images but {len(labels)} labels")
        return labels

    def _check_split(
        self, archive: zipfile.ZipFile, split: SplitName, info: DatasetInfo
    ) -> list[str]:
        labels = self._labels(archive, split)
        channels = npz.channels_of(npz.read_header(archive, split + npz.IMAGE_SUFFIX))
        if channels != info.channels:
            raise InputError(f"{split}_images have {channels} channel(s), not {info.channels}")
        counts = np.bincount(labels, minlength=info.num_classes)
        if len(counts) > info.num_classes:
            raise InputError(
                f"{split}_labels go up to {len(counts) - 1}, but the dataset has "
                f"{info.num_classes} classes: 0..{info.num_classes - 1}"
            )
        absent = ", ".join(map(str, np.flatnonzero(counts == 0)))
        where, size = f"dataset {self.config.name!r}: ", self.config.train_size or 0
        if split != "train":
            missing = f"{where}{split} has no image of class {absent}"
            return [f"{missing}; its recall cannot be measured there"] if absent else []
        if absent:
            raise InputError(f"train_labels have no image of class {absent}")
        if size > len(labels):
            more = f"train_size {size} is more than the {len(labels)} training images"
            return [f"{where}{more}; all are used"]
        if size:
            self._shares(counts, size)
        return []


class OwnImages(Npz):
    """Image files of a user; ``prepare`` makes the .npz that jobs read."""

    def fingerprint(self) -> str:
        """Hash of all files, labels and splits."""
        return own_fingerprint(self.config, list_own(self.config, self.data_dir))

    def counts(self, split: SplitName) -> list[int]:
        return list_own(self.config, self.data_dir).counts(split)

    def units(self, split: SplitName) -> list[int]:
        return list_own(self.config, self.data_dir).patients(split)


def data_source(config: DatasetConfig, data_dir: str | Path | None = None) -> DataSource:
    kind = Phantom if config.phantom is not None else OwnImages if is_own(config) else Npz
    return kind(config, data_dir)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def to_tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 `[N, H, W, C]` in 0..255 to float32 `[N, C, H, W]` in [-1, 1]."""
    import torch

    nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return torch.from_numpy(nchw).to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images: torch.Tensor) -> NDArray[np.uint8]:
    """Float `[N, C, H, W]` in [-1, 1] to uint8 `[N, H, W, C]`: rounded, and clipped to 0..255."""
    import torch

    scaled = images.detach().to("cpu", torch.float32).add(1.0).mul(127.5).round().clamp(0, 255)
    return np.asarray(scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous())
