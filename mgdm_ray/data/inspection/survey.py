"""Every image of a source read once: what it is like, and a small copy of it."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.config import InputError
from mgdm_ray.data.info import dataset_info
from mgdm_ray.data.inspection.burned_in_text import may_hold_text
from mgdm_ray.data.inspection.targets import Source
from mgdm_ray.data.load import check_source, load_split
from mgdm_ray.data.npz import SPLITS, THUMBNAIL
from mgdm_ray.data.sources import medical
from mgdm_ray.data.sources.image_files import Raw, Unreadable, square, thumbnail, to_uint8
from mgdm_ray.data.sources.listing import Item, Listing, contained
from mgdm_ray.data.sources.source import (
    expanded,
    hashed,
    kind_of,
    list_source,
    read_item,
    with_groups,
    with_progress,
)
from mgdm_ray.data.sources.splits import divide


@dataclass(frozen=True)
class Facts:
    """One image as the file has it; ``digest`` is that of its pixels, whatever its format."""

    width: int
    height: int
    kind: str
    colour: bool
    constant: bool
    digest: bytes
    text: bool = False


@dataclass
class Survey:
    """What was found. ``facts``, ``images`` and ``small`` go with ``listing.items``, which are the
    readable ones with the splits that a study would give them."""

    source: Source
    listing: Listing
    images: NDArray[np.uint8]
    """`[N, size, size, 3]`, as a study would see them at this size."""
    small: NDArray[np.uint8]
    """`[N, 32, 32, 1]`: the ``thumbnail`` of each, for comparing."""
    facts: list[Facts] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    trouble: list[str] = field(default_factory=list)
    """What a study would be refused for, or warned of, in its own words."""
    notes: list[str] = field(default_factory=list)
    given_splits: bool = False
    identity: Counter[str] = field(default_factory=Counter)
    dicom_files: int = 0

    def counts(self) -> dict[str, list[int]]:
        return {split: self.listing.counts(split) for split in SPLITS}


def survey(source: Source, size: int) -> Survey:
    """Read all images of ``source``. Raises InputError where a study could not list them at all."""
    return _survey_npz(source, size) if source.is_npz else _survey_own(source, size)


def _survey_npz(source: Source, size: int) -> Survey:
    config = source.config
    notes = check_source(config, source.data_dir)
    info = dataset_info(config, source.data_dir)
    splits = {split: load_split(config, split, source.data_dir) for split in SPLITS}
    items = [
        Item(f"{name}[{index}]", int(label), name)
        for name, split in splits.items()
        for index, label in enumerate(split.labels)
    ]
    found = _empty(source, Listing(source.path.parent, info.classes, tuple(items)), size)
    found.notes, found.given_splits = notes, True
    rows = (image for split in splits.values() for image in split.images)
    for row, (_, image) in enumerate(zip(with_progress(items, "checking"), rows, strict=True)):
        pixels = image[..., 0] if image.shape[-1] == 1 else image
        raw = Raw(pixels, "grey" if pixels.ndim == 2 else "RGB")
        found.facts.append(_facts(raw, pixels))
        _keep(found, row, pixels)
    return found


def _survey_own(source: Source, size: int) -> Survey:
    config = source.config
    lenient = config.reading.model_copy(update={"damaged": "leave_out"})
    opened = with_groups(hashed(list_source(config, source.path), lenient), config)
    given = any(item.split for item in opened.items)
    listing, trouble = _divided(expanded(opened, lenient), source)
    found = _empty(source, listing, size)
    found.trouble, found.given_splits = trouble, given or config.split.file is not None
    found.damaged = dict(opened.missing)
    deep: dict[int, Item] = {}
    deepest = 0
    readable: list[Item] = []
    for item in with_progress(listing.items, "checking"):
        try:
            raw = read_item(listing, item)
        except Unreadable as error:
            found.damaged[item.path] = str(error)
            continue
        if raw.pixels.dtype == np.uint16:  # shown once the largest value of all is known
            deep[len(readable)] = item
            deepest = max(deepest, int(raw.pixels.max()))
            found.facts.append(_facts(raw, None))
        else:
            pixels = to_uint8(raw, config.reading, 0)
            found.facts.append(_facts(raw, pixels))
            _keep(found, len(readable), pixels)
        readable.append(item)
    for row, item in deep.items():
        pixels = to_uint8(read_item(listing, item), config.reading, deepest)
        found.facts[row] = dataclasses.replace(found.facts[row], text=may_hold_text(pixels))
        _keep(found, row, pixels)
    found.listing = listing.with_items(readable)
    found.images, found.small = found.images[: len(readable)], found.small[: len(readable)]
    _look_for_identity(found)
    return found


def _divided(listing: Listing, source: Source) -> tuple[Listing, list[str]]:
    """``listing`` as a study divides it, and why a study would refuse it, if so."""
    try:
        return divide(listing, source.config, source.data_dir), []
    except InputError as error:
        trouble = [str(error)]
    alone = listing.with_items(dataclasses.replace(i, group=None) for i in listing.items)
    try:
        items = divide(alone, source.config, source.data_dir).items
    except InputError:
        items = tuple(dataclasses.replace(i, split=i.split or "train") for i in alone.items)
    groups = [item.group for item in listing.items]
    together = zip(items, groups, strict=True)
    return listing.with_items(dataclasses.replace(i, group=g) for i, g in together), trouble


def _empty(source: Source, listing: Listing, size: int) -> Survey:
    """Pixels lie in a nameless file, so that memory does not grow with their number."""
    number = len(listing.items)
    small = np.zeros((number, THUMBNAIL, THUMBNAIL, 1), np.uint8)
    shape = (number, size, size, 3)
    if not number:
        return Survey(source, listing, np.zeros(shape, np.uint8), small)
    with tempfile.TemporaryFile() as file:
        images = np.memmap(file, np.uint8, "w+", shape=shape)
    return Survey(source, listing, images, small)


def _keep(found: Survey, row: int, pixels: NDArray[np.uint8]) -> None:
    size, fit = found.images.shape[1], found.source.config.reading.fit
    found.images[row] = square(pixels, size, fit)
    found.small[row] = thumbnail(pixels)[..., None]


def _facts(raw: Raw, shown: NDArray[np.uint8] | None) -> Facts:
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
        text=shown is not None and may_hold_text(shown),
    )


def _look_for_identity(found: Survey) -> None:
    listing = found.listing
    files = {item.path for item in listing.items if kind_of(item, listing) == "dicom"}
    found.dicom_files = len(files)
    for path in sorted(files):
        found.identity.update(medical.identity_in(contained(listing.root, path)))
