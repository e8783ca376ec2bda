"""What a source of a user's own images holds, before any pixel is read."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgdm_ray.config import InputError
from mgdm_ray.data.npz import SplitName

MAX_FILE_BYTES = 2**31
"""Larger files are refused: one image is read into memory as a whole."""
MAX_NAME = 4096
_ALIASES: dict[SplitName, str] = {
    "train": "train training",
    "val": "val valid validation dev",
    "test": "test testing",
}
SPLIT_NAMES = {alias: split for split, names in _ALIASES.items() for alias in names.split()}
"""Names of the splits in folders and columns."""


@dataclass(frozen=True)
class Item:
    """One image: a file, one slice of a file, or a row of a table."""

    path: str
    """Relative to the source's folder, with slashes; ``SHARD#ROW`` for a row."""
    label: int
    split: SplitName | None = None
    group: str | None = None
    stratum: str | None = None
    slice: int | None = None
    """Index of a slice or frame; None: the file's only or middle one."""
    sha: str = ""
    """SHA-256 of the file's bytes, once they were read."""


@dataclass(frozen=True)
class Listing:
    """All images of a source, in the natural order of their paths."""

    root: Path
    """Folder that no path may leave."""
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    ignored: tuple[str, ...] = ()
    """Files whose names are not those of images."""
    missing: tuple[tuple[str, str], ...] = ()
    """Files that could not be opened and are left out, each with the reason."""
    rows: Callable[[Item], bytes] | None = None
    """Reads the bytes of an image that lies in a table."""

    def bytes_of(self, item: Item) -> bytes:
        """The file as it is. OSError where it cannot be read."""
        if self.rows is not None:
            return self.rows(item)
        path = contained(self.root, item.path)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise OSError(f"larger than {MAX_FILE_BYTES / 2**30:g} GiB")
        return path.read_bytes()

    def of(self, split: SplitName) -> list[Item]:
        return [item for item in self.items if item.split == split]

    def counts(self, split: SplitName) -> list[int]:
        """Images per class."""
        found = Counter(item.label for item in self.of(split))
        return [found[label] for label in range(len(self.classes))]

    def patients(self, split: SplitName) -> list[int]:
        """Patients per class; an image of an unknown one counts as a patient."""
        found = {(i.label, i.group or (i.path, i.slice)) for i in self.of(split)}
        counts = Counter(label for label, _ in found)
        return [counts[label] for label in range(len(self.classes))]

    def split_groups(self) -> list[str]:
        """Patients whose images are in several splits, sorted."""
        splits: dict[str, set[SplitName]] = {}
        for item in self.items:
            if item.group and item.split:
                splits.setdefault(item.group, set()).add(item.split)
        return sorted(group for group, found in splits.items() if len(found) > 1)

    def with_items(self, items: Iterable[Item]) -> Listing:
        return dataclasses.replace(self, items=tuple(items))


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which 2 comes before 10."""
    parts = re.split(r"([0-9]+)", text)
    return tuple((0, int(p), p) if "0" <= p[0] <= "9" else (1, 0, p) for p in parts if p)


def contained(root: Path, name: str) -> Path:
    """``root/name``; InputError where ``..``, a link or an absolute name leads out of ``root``."""
    if len(name) > MAX_NAME or "\0" in name:
        raise InputError(f"{shown(name)} is not a valid file name")
    try:
        inside = (root / name).resolve(strict=False)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{shown(name)}: {error}") from None
    if not inside.is_relative_to(root.resolve()):
        raise InputError(
            f"{shown(name)} leads out of {root}: only images inside that folder are read; "
            "copy them there"
        )
    return inside


def shown(name: str) -> str:
    """Any name, safe and short enough for one line of a message."""
    text = repr(name)
    return text if len(text) <= 120 else f"{text[:80]}...{text[-30:]}"


def some(texts: Sequence[str], number: int = 3, separator: str = "; ") -> str:
    """The first ``number`` of ``texts``, and how many more there are."""
    more = [f"and {len(texts) - number} more"] if len(texts) > number else []
    return separator.join([*texts[:number], *more])


def number_labels(names: Sequence[str], classes: Sequence[str] | None) -> tuple[str, ...]:
    """The classes in the order of their numbers: ``classes`` if given, else in natural order.

    InputError for a label that is not in ``classes``, and for fewer than two classes.
    """
    found = sorted(set(names), key=natural)
    if classes is not None:
        unknown = [name for name in found if name not in classes]
        if unknown:
            raise InputError(
                f"label {shown(unknown[0])} is not in 'classes': {', '.join(classes)}; add it "
                "there, or remove its images"
            )
        return tuple(classes)
    if len(found) < 2:
        raise InputError(
            f"{len(found)} class(es) found{': ' + shown(found[0]) if found else ''}; at least 2 "
            "are needed"
        )
    return tuple(found)
