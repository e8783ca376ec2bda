"""A manifest: a CSV or Parquet table with one row per image."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
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
Cells = Mapping[str, str | None]


def list_manifest(path: Path, config: DatasetConfig) -> Listing:
    """List the images that a table names, paths relative to its folder.

    Columns: ``path``, ``label``, and optionally ``split``, ``group``, ``stratum``, ``slice``;
    ``config.columns`` renames them. All values are text: a label "01" stays "01". InputError with
    the row for what is wrong.
    """
    rows = list(_csv(path) if path.suffix.lower() == ".csv" else _parquet(path))
    if not rows:
        raise InputError(f"{path}: has no rows")
    names = config.columns
    for needed in (names.path, names.label):
        if needed not in rows[0][1]:
            raise InputError(
                f"{path}: no column {needed!r}; it has {', '.join(map(shown, rows[0][1]))}. Rename "
                "it, or set its name in 'columns'"
            )
    labels = [_needed(cells, names.label, place) for place, cells in rows]
    classes = number_labels(labels, config.classes)
    number = {name: index for index, name in enumerate(classes)}
    seen: dict[tuple[str, int | None], str] = {}
    items = []
    for (place, cells), label in zip(rows, labels, strict=True):
        item = Item(
            path=_relative(path.parent, _needed(cells, names.path, place), place),
            label=number[label],
            split=_split(cells.get(names.split), place),
            group=cells.get(names.group) or None,
            stratum=cells.get(names.stratum) or None,
            slice=_slice(cells.get("slice"), place),
        )
        first = seen.setdefault((item.path, item.slice), place)
        if first != place:
            raise InputError(f"{place}: image {shown(item.path)} is already listed at {first}")
        items.append(item)
    items.sort(key=lambda item: (natural(item.path), item.slice or 0))
    return Listing(path.parent, classes, tuple(items))


def _needed(cells: Cells, column: str, place: str) -> str:
    value = cells.get(column)
    if not value:
        raise InputError(f"{place}: column {column!r} is empty")
    return value


def _relative(root: Path, name: str, place: str) -> str:
    try:
        return contained(root, name).relative_to(root.resolve()).as_posix()
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def _split(value: str | None, place: str) -> SplitName | None:
    if value and value.lower() not in SPLIT_NAMES:
        raise InputError(
            f"{place}: unknown split {shown(value)}; use train, val or test, or leave it empty"
        )
    return SPLIT_NAMES[value.lower()] if value else None


def _slice(value: str | None, place: str) -> int | None:
    if value and (not value.isascii() or not value.isdigit() or len(value) > 6):
        raise InputError(f"{place}: slice {shown(value)} is not an index (0, 1, ...)")
    return int(value) if value else None


def _csv(path: Path) -> Iterable[tuple[str, Cells]]:
    """(place for messages, cells) of each row."""
    csv.field_size_limit(MAX_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames or []
            if len(set(header)) != len(header):
                raise InputError(f"{path}:1: duplicate column name: {', '.join(header)}")
            for row in reader:
                place = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise InputError(f"{place}: row does not have {len(header)} columns")
                yield place, {name: value.strip() for name, value in row.items()}
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _parquet(path: Path) -> Iterable[tuple[str, Cells]]:
    for index, row in enumerate(read_arrow(path).to_pylist()):
        yield (
            f"{path} row {index}",
            {name: None if value is None else str(value).strip() for name, value in row.items()},
        )


def read_arrow(path: Path) -> Any:
    """A Parquet or Arrow file as a pyarrow Table; InputError where it is damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        if path.suffix.lower() == ".parquet":
            return pyarrow.parquet.read_table(path)
        with pyarrow.memory_map(str(path)) as file:
            return pyarrow.ipc.open_stream(file).read_all()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        kind = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
        raise InputError(f"{path}: not a readable {kind} file: {error}") from None
