"""Folders written by Hugging Face's ``datasets``: ``save_to_disk``, or Parquet shards of a hub.

Read with pyarrow: nothing is unpickled, and no loading script is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
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
from mgdm_ray.data.sources.manifest import read_arrow

IMAGE_COLUMNS = ("image", "img")


def is_huggingface(root: Path) -> bool:
    return next(_shards(root), None) is not None


def list_huggingface(root: Path, config: DatasetConfig) -> Listing:
    """List the rows of all shards below ``root``; InputError for tables without images."""
    images: dict[str, tuple[Any, Path]] = {}
    found: list[tuple[str, str, SplitName | None, dict[str, Any]]] = []
    group, stratum = config.columns.group, config.columns.stratum
    for path, split in _shards(root):
        name = path.relative_to(root).as_posix()
        contained(root, name)
        table = read_arrow(path)
        image, label = _columns(table, config, path)
        images[name] = table[image], path.parent
        names = _class_names(table, label)
        others = [c for c in (group, stratum) if c in table.column_names]
        for row, cells in enumerate(table.select([label, *others]).to_pylist()):
            value = _label(cells.pop(label), names, f"{path} row {row}")
            found.append((f"{name}#{row}", value, split, cells))
    classes = number_labels([label for _, label, _, _ in found], config.classes)
    items = [
        Item(path, classes.index(label), split, _text(cells.get(group)), _text(cells.get(stratum)))
        for path, label, split, cells in found
    ]

    def rows(item: Item) -> bytes:
        name, _, row = item.path.rpartition("#")
        column, folder = images[name]
        return _bytes(column[int(row)].as_py(), folder)

    items.sort(key=lambda item: natural(item.path))
    return Listing(root, classes, tuple(items), rows=rows)


def _bytes(cell: Any, folder: Path) -> bytes:
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, dict) and isinstance(data := cell.get("bytes"), bytes):
        return data
    if isinstance(cell, dict) and isinstance(cell.get("path"), str):
        try:
            return contained(folder, cell["path"]).read_bytes()
        except InputError as error:
            raise OSError(str(error)) from None
    raise OSError("the row holds no image")


def _shards(root: Path) -> Iterator[tuple[Path, SplitName | None]]:
    """Arrow files of ``save_to_disk``, of one split or several, or Parquet files by split."""
    if (root / "state.json").is_file():
        for path in sorted(root.glob("*.arrow"), key=lambda p: natural(p.name)):
            yield path, None
    elif (root / "dataset_dict.json").is_file():
        for folder in sorted(p for p in root.iterdir() if p.name in SPLIT_NAMES):
            for path in sorted(folder.glob("*.arrow"), key=lambda p: natural(p.name)):
                yield path, SPLIT_NAMES[folder.name]
    else:
        for path in sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")]):
            yield path, SPLIT_NAMES.get(path.stem.split("-")[0])


def _columns(table: Any, config: DatasetConfig, path: Path) -> tuple[str, str]:
    """Names of the columns of the image and of the label."""
    have, label = table.column_names, config.columns.label
    image = next((c for c in (config.columns.path, *IMAGE_COLUMNS) if c in have), None)
    if image is None or label not in have:
        missing = config.columns.path if image is None else label
        raise InputError(
            f"{path}: no column {missing!r}; it has {', '.join(map(shown, have))}. Set 'path' (the "
            "image) and 'label' in 'columns'"
        )
    return image, label


def _class_names(table: Any, label: str) -> list[str] | None:
    """Names of a ClassLabel column, which ``datasets`` stores in the schema."""
    try:
        notes = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        names = notes["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _label(value: Any, names: list[str] | None, place: str) -> str:
    if value is None or value == "":
        raise InputError(f"{place}: has no label")
    if names is None:
        return str(value)
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise InputError(
            f"{place}: label {shown(str(value))} has no name; the schema names {len(names)} classes"
        )
    return names[value]


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)
