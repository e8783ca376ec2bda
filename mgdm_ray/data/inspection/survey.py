"""Read every image of a source once: its properties, and a small copy of it."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.config import InputError
from mgdm_ray.data.info import dataset_info
from mgdm_ray.data.inspection.burned_in_text import may_hold_text
from mgdm_ray.data.inspection.targets import Source
from mgdm_ray.data.load import data_source
from mgdm_ray.data.npz import SPLITS, THUMBNAIL
from mgdm_ray.data.sources import medical
from mgdm_ray.data.sources.image_files import Raw, square, thumbnail
from mgdm_ray.data.sources.listing import Item, Listing, contained
from mgdm_ray.data.sources.prepare import decode_all
from mgdm_ray.data.sources.source import (
    expanded,
    hashed,
    kind_of,
    list_source,
    with_groups,
    with_progress,
)
from mgdm_ray.data.sources.splits import divide


@dataclass(frozen=True)
class Facts:
    """Properties of one image file; ``digest`` is that of its pixels, in any file format."""

    width: int
    height: int
    kind: str
    colour: bool
    constant: bool
    digest: bytes
    text: bool = False


@dataclass
class Survey:
    """``facts``, ``images`` and ``small`` follow ``listing.items``: the readable images, with the
    splits that a study would give them."""

    source: Source
    listing: Listing
    images: NDArray[np.uint8]
    """`[N, size, size, 3]`, as a study of this size reads them."""
    small: NDArray[np.uint8]
    """`[N, 32, 32, 1]`: the ``thumbnail`` of each, for comparing."""
    facts: list[Facts] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    """Path to reason."""
    errors: list[str] = field(default_factory=list)
    """Why a study would refuse the data."""
    warnings: list[str] = field(default_factory=list)
    given_splits: bool = False
    identity: Counter[str] = field(default_factory=Counter)
    """Filled DICOM tags that identify a patient, each with its number of files."""
    dicom_files: int = 0

    def counts(self) -> dict[str, list[int]]:
        return {split: self.listing.counts(split) for split in SPLITS}


def survey(source: Source, size: int) -> Survey:
    """Read all images of ``source``. Raises InputError where a study could not list them at all."""
    return _survey_npz(source, size) if source.is_npz else _survey_own(source, size)


def _survey_npz(source: Source, size: int) -> Survey:
    config = source.config
    data = data_source(config, source.data_dir)
    warnings, classes = data.check(), dataset_info(config, source.data_dir).classes
    splits = {split: data.load(split) for split in SPLITS}
    items = []
    for name, split in splits.items():
        patients = None if config.train_size and name == "train" else data.patients(name)
        for index, label in enumerate(split.labels):
            group = None if patients is None else f"{name} {patients[index]}"
            items.append(Item(f"{name}[{index}]", int(label), name, group))
    found = _empty(source, Listing(source.path.parent, classes, tuple(items)), size)
    found.warnings, found.given_splits = warnings, True
    rows = (image for split in splits.values() for image in split.images)
    for row, (_, image) in enumerate(zip(with_progress(items, "checking"), rows, strict=True)):
        pixels = image[..., 0] if image.shape[-1] == 1 else image
        raw = Raw(pixels, "grey" if pixels.ndim == 2 else "RGB")
        found.facts.append(_keep(found, row, raw, pixels))
    return found


def _survey_own(source: Source, size: int) -> Survey:
    config = source.config
    lenient = config.reading.model_copy(update={"damaged": "leave_out"})
    opened = with_groups(hashed(list_source(config, source.path), lenient), config)
    listing, errors = _divided(expanded(opened, lenient), source)
    found = _empty(source, listing, size)
    found.errors = errors
    found.given_splits = any(i.split for i in opened.items) or config.split.file is not None
    facts: dict[int, Facts] = {}

    def keep(row: int, raw: Raw, pixels: NDArray[np.uint8]) -> None:
        facts[row] = _keep(found, row, raw, pixels)

    bad, _ = decode_all(listing, config, keep, "checking")
    found.damaged = {**dict(opened.missing), **{listing.items[r].path: bad[r] for r in bad}}
    rows = sorted(facts)
    found.facts = [facts[row] for row in rows]
    found.listing = listing = listing.with_items(listing.items[row] for row in rows)
    for new, old in enumerate(rows):
        if new < old:
            found.images[new], found.small[new] = found.images[old], found.small[old]
    found.images, found.small = found.images[: len(rows)], found.small[: len(rows)]
    files = {item.path for item in listing.items if kind_of(item, listing) == "dicom"}
    found.dicom_files = len(files)
    for path in sorted(files):
        found.identity.update(medical.identity_in(contained(listing.root, path)))
    return found


def _divided(listing: Listing, source: Source) -> tuple[Listing, list[str]]:
    """``listing`` as a study divides it, and why a study would refuse it."""
    try:
        return divide(listing, source.config, source.data_dir), []
    except InputError as error:
        errors = [str(error)]
    alone = listing.with_items(replace(i, group=None) for i in listing.items)
    try:
        items = divide(alone, source.config, source.data_dir).items
    except InputError:
        items = tuple(replace(i, split=i.split or "train") for i in alone.items)
    together = zip(items, listing.items, strict=True)
    return listing.with_items(replace(i, group=given.group) for i, given in together), errors


def _empty(source: Source, listing: Listing, size: int) -> Survey:
    """Pixels go to an unnamed file, so that memory does not grow with their number."""
    number = len(listing.items)
    small = np.zeros((number, THUMBNAIL, THUMBNAIL, 1), np.uint8)
    shape = (number, size, size, 3)
    if not number:
        return Survey(source, listing, np.zeros(shape, np.uint8), small)
    with tempfile.TemporaryFile() as file:
        images = np.memmap(file, np.uint8, "w+", shape=shape)
    return Survey(source, listing, images, small)


def _keep(found: Survey, row: int, raw: Raw, shown: NDArray[np.uint8]) -> Facts:
    """Store copies of an image, ``shown`` in 8 bits, and return its properties."""
    found.images[row] = square(shown, found.images.shape[1], found.source.config.reading.fit)
    found.small[row] = thumbnail(shown)[..., None]
    pixels = raw.pixels
    bits = f"{8 * pixels.dtype.itemsize} bit" if pixels.dtype.kind == "u" else "real values"
    content = hashlib.sha256(f"{pixels.shape} {pixels.dtype} {raw.inverted}".encode())
    content.update(np.ascontiguousarray(pixels).tobytes())
    return Facts(
        width=pixels.shape[1],
        height=pixels.shape[0],
        kind=f"{raw.mode} {bits}",
        colour=raw.colour,
        constant=bool((pixels == pixels[:1, :1]).all()),
        digest=content.digest(),
        text=may_hold_text(shown),
    )
