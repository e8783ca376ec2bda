"""A manifest: a CSV or Parquet table with one row per image."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mgdm_ray.config import DatasetConfig, InputError
from mgdm_ray.data.npz import SplitName
from mgdm_ray.data.sources.listing import (
    SPLIT_NAMES,
    Item,
    Listing,
    contained,
    natural,
    number_labels,
    shown,
)

MAX_CELL = 100_000


def list_manifest(path: Path, config: DatasetConfig) -> Listing:
    """The images that a table names, paths relative to its folder.

    Columns: ``path``, ``label``, and where there are any ``split``, ``group``, ``stratum``,
    ``slice``; ``config.columns`` renames them. All values are text: a label "01" stays "01".
    Raises InputError with the row for what is wrong.
    """
    rows = list(_csv(path) if path.suffix.lower() == ".csv" else _parquet(path))
    return listing_of(path, path.parent, rows, config)


def listing_of(
    path: Path,
    root: Path,
    rows: Sequence[tuple[str, Mapping[str, str | None]]],
    config: DatasetConfig,
) -> Listing:
    """``rows`` are (place for messages, cells) pairs of the table at ``path``."""
    if not rows:
        raise InputError(f"{path}: has no rows")
    names = config.columns
    for needed in (names.path, names.label):
        if needed not in rows[0][1]:
            raise InputError(
                f"{path}: no column {needed!r}; it has {', '.join(map(shown, rows[0][1]))}. Rename "
                "it, or say in 'columns' which one it is"
            )
    labels = [_needed(cells, names.label, place) for place, cells in rows]
    classes = number_labels(labels, config.classes)
    number = {name: index for index, name in enumerate(classes)}
    seen: dict[tuple[str, int | None], str] = {}
    items = []
    for (place, cells), label in zip(rows, labels, strict=True):
        item = Item(
            path=_relative(root, _needed(cells, names.path, place), place),
            label=number[label],
            split=_split(cells.get(names.split), place),
            group=cells.get(names.group) or None,
            stratum=cells.get(names.stratum) or None,
            slice=_slice(cells.get("slice"), place),
        )
        first = seen.setdefault((item.path, item.slice), place)
        if first != place:
            raise InputError(f"{place}: image {shown(item.path)} is listed at {first} already")
        items.append(item)
    items.sort(key=lambda item: (natural(item.path), item.slice or 0))
    return Listing(root, classes, tuple(items))


def _needed(cells: Mapping[str, str | None], column: str, place: str) -> str:
    value = cells.get(column)
    if not value:
        raise InputError(f"{place}: column {column!r} is empty")
    return value


def _relative(root: Path, name: str, place: str) -> str:
    try:
        found = contained(root, name)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    return found.relative_to(root.resolve()).as_posix()


def _split(value: str | None, place: str) -> SplitName | None:
    if not value:
        return None
    known = SPLIT_NAMES.get(value.lower())
    if known is None:
        raise InputError(
            f"{place}: unknown split {shown(value)}; train, val, test, or nothing where it is to "
            "be chosen"
        )
    return known


def _slice(value: str | None, place: str) -> int | None:
    if not value:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 6:
        raise InputError(f"{place}: slice {shown(value)} is no index (0, 1, ...)")
    return int(value)


def _csv(path: Path) -> Iterable[tuple[str, dict[str, str | None]]]:
    csv.field_size_limit(MAX_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames or []
            if len(set(header)) != len(header):
                raise InputError(f"{path}:1: a column is named twice: {', '.join(header)}")
            for row in reader:
                place = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise InputError(f"{place}: {len(header)} columns, and this row has others")
                yield place, {name: value.strip() for name, value in row.items()}
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _parquet(path: Path) -> Iterable[tuple[str, dict[str, str | None]]]:
    for index, row in enumerate(read_parquet(path)):
        yield (
            f"{path} row {index}",
            {name: None if value is None else str(value).strip() for name, value in row.items()},
        )


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """All rows. InputError where it is no Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a Parquet file that can be read: {error}") from None
    return rows
