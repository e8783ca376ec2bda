"""Make own images square once, and store them as the .npz that every job reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from mgdm_ray.config import DatasetConfig
from mgdm_ray.data import npz
from mgdm_ray.data.npz import SPLITS, THUMBNAIL
from mgdm_ray.data.sources.image_files import Raw, Unreadable, square, thumbnail, to_uint8
from mgdm_ray.data.sources.listing import Item, Listing, shown
from mgdm_ray.data.sources.source import own_listing, read_item, unreadable, with_progress
from mgdm_ray.seeding import content_key
from mgdm_ray.storage.files import replacing

READER_VERSION = 1
"""Raised when equal files give other pixels."""
TINY_CLASS, MANY = 5, 5


def own_fingerprint(config: DatasetConfig, listing: Listing) -> str:
    """Identity of what jobs will read: files, labels, splits, and how files become images."""
    reading = config.reading.model_dump(mode="json", exclude={"damaged"})
    rows = [(i.sha, i.slice, i.label, i.split) for i in listing.items]
    return content_key([READER_VERSION, config.size, reading, listing.classes, rows])


def prepare(
    config: DatasetConfig,
    data_dir: str | Path | None,
    folder: Path,
    say: Callable[[str], None] = print,
) -> DatasetConfig:
    """``config`` with the .npz in ``folder`` as its path, written if needed; others unchanged.

    InputError for images that cannot be read, unless ``reading.damaged`` is ``leave_out``.
    """
    listing = own_listing(config, data_dir)
    if listing is None:
        return config
    path = folder / f"{config.origin}-{own_fingerprint(config, listing)}{_patients(listing)}.npz"
    for sentence in (*tiny_classes(listing), *patients_tested(listing)):
        say(f"warning: {config.name}: {sentence}")
    for name, why in listing.missing:
        say(f"warning: {config.name}: left out {shown(name)}: {why}")
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        say(f"preparing {config.origin}: {len(listing.items)} images to {config.size} px")
        with replacing(path) as temporary:
            _write(config, listing, temporary, say)
    return config.model_copy(update={"path": str(path.absolute())})


def _patients(listing: Listing) -> str:
    """The division of the test images into patients, for the name of the file that holds it: it
    changes no image, so it is in no key. Empty where no patient is known."""
    numbers = patient_numbers(listing.of("test"))
    return "" if numbers is None else f"-{content_key(numbers.tolist())[:8]}"


def patient_numbers(items: Sequence[Item]) -> NDArray[np.int64] | None:
    """In the order of appearance: no name, and nothing to look up. None if no patient is known; an
    image of an unknown one has a number of its own."""
    if not any(item.group for item in items):
        return None
    return npz.numbered(np.array([i.group or f"\0{row}" for row, i in enumerate(items)]))


def tiny_classes(listing: Listing) -> list[str]:
    """A sentence for every class of fewer than five images, or one for many of them."""
    found = []
    for label, name in enumerate(listing.classes):
        counts = {split: listing.counts(split)[label] for split in SPLITS}
        if (total := sum(counts.values())) < TINY_CLASS:
            where = ", ".join(f"{count} {split}" for split, count in counts.items())
            found.append(
                f"class {shown(name)} has {total} image(s) ({where}): too few to learn from, and "
                "its recall can take only a few values"
            )
    if len(found) > MANY:
        return [
            f"{len(found)} of {len(listing.classes)} classes have fewer than {TINY_CLASS} images. "
            "Each folder (or label) is a class: check that they are not patients"
        ]
    return found


def patients_tested(listing: Listing) -> list[str]:
    """A sentence where patients have several test images."""
    groups = [item.group or item.path for item in listing.of("test")]
    if len(set(groups)) == len(groups):
        return []
    return [
        f"the {len(groups)} test images are of {len(set(groups))} patients: intervals and verdicts "
        "count patients, so they are wider than the number of images suggests"
    ]


def decode_all(
    listing: Listing,
    config: DatasetConfig,
    keep: Callable[[int, Raw, NDArray[np.uint8]], None],
    progress: str,
    say: Callable[[str], None] | None = None,
) -> tuple[dict[int, str], bool]:
    """Decode every image and ``keep(row, raw, pixels)`` it, ``pixels`` uint8.

    Returns why each unreadable row is unreadable, and whether any image has colour. Images of more
    than 8 bits come last: their scale is known once all were read.
    """
    bad: dict[int, str] = {}
    deep: list[int] = []
    deepest, colour = 0, False
    for row, item in enumerate(with_progress(listing.items, progress, say)):
        try:
            raw = read_item(listing, item)
        except Unreadable as error:
            bad[row] = str(error)
            continue
        colour = colour or raw.colour
        if raw.pixels.dtype == np.uint16:
            deepest = max(deepest, int(raw.pixels.max()))
            deep.append(row)
        else:
            keep(row, raw, to_uint8(raw, config.reading, 0))
    for row in deep:
        raw = read_item(listing, listing.items[row])
        keep(row, raw, to_uint8(raw, config.reading, deepest))
    return bad, colour


def _write(config: DatasetConfig, listing: Listing, path: Path, say: Callable[[str], None]) -> None:
    """Pixels go through a file on disk, so that memory does not grow with their number."""
    scratch = path.with_suffix(".pixels.npy")
    number = len(listing.items)
    pixels = open_memmap(
        scratch, mode="w+", dtype=np.uint8, shape=(number, config.size, config.size, 3)
    )
    thumbnails = np.zeros((number, THUMBNAIL, THUMBNAIL), np.uint8)

    def keep(row: int, _: Raw, image: NDArray[np.uint8]) -> None:
        pixels[row] = square(image, config.size, config.reading.fit)
        thumbnails[row] = thumbnail(image)

    try:
        bad, colour = decode_all(listing, config, keep, "preparing", say)
        if bad and config.reading.damaged == "refuse":
            raise unreadable([(listing.items[row].path, why) for row, why in bad.items()])
        for row, why in bad.items():
            say(f"warning: left out {shown(listing.items[row].path)}: {why}")
        grey = (config.reading.channels or (3 if colour else 1)) == 1
        arrays: dict[str, NDArray[Any]] = {npz.CLASSES: np.array(listing.classes)}
        for split in SPLITS:
            rows = [i for i, x in enumerate(listing.items) if x.split == split and i not in bad]
            labels = [listing.items[row].label for row in rows]
            arrays[split + npz.IMAGE_SUFFIX] = _grey(pixels[rows]) if grey else pixels[rows]
            arrays[split + npz.LABEL_SUFFIX] = np.array(labels, dtype=np.int64)
            arrays[split + npz.THUMBNAIL_SUFFIX] = thumbnails[rows]
            if split == "test":
                patients = patient_numbers([listing.items[row] for row in rows])
                arrays |= {} if patients is None else {split + npz.GROUP_SUFFIX: patients}
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    finally:
        scratch.unlink(missing_ok=True)


def _grey(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`[N, S, S, 3]` to `[N, S, S]` by the luma of ITU-R 601, as Pillow has it."""
    weighted = images.astype(np.uint32) @ np.array([19595, 38470, 7471], dtype=np.uint32)
    return ((weighted + 0x8000) >> 16).astype(np.uint8)
