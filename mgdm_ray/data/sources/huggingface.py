"""Folders that Hugging Face's ``datasets`` wrote: ``save_to_disk``, or Parquet shards of a hub.

Read with pyarrow: nothing is unpickled and no code of a dataset is run, as a script would be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
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

IMAGE_COLUMNS = ("image", "img")


@dataclass(frozen=True)
class _Shard:
    path: Path
    split: SplitName | None


def is_huggingface(root: Path) -> bool:
    return any(True for _ in _shards(root))


def list_huggingface(root: Path, config: DatasetConfig) -> Listing:
    """The rows of all shards below ``root``; raises InputError for what is no table of images."""
    tables = {_name(root, shard): (_table(shard.path), shard) for shard in _shards(root)}
    found: list[tuple[str, str, SplitName | None, dict[str, Any]]] = []
    for name, (table, shard) in tables.items():
        _, label = _columns(table, config, shard.path)
        names = _class_names(table, label)
        others = [c for c in (config.columns.group, config.columns.stratum) if c in _have(table)]
        for row, cells in enumerate(table.select([label, *others]).to_pylist()):
            value = _label(cells.pop(label), names, f"{shard.path} row {row}")
            found.append((f"{name}#{row}", value, shard.split, cells))
    classes = number_labels([label for _, label, _, _ in found], config.classes)
    items = [
        Item(
            path,
            classes.index(label),
            split,
            _text(cells.get(config.columns.group)),
            _text(cells.get(config.columns.stratum)),
        )
        for path, label, split, cells in found
    ]

    def rows(item: Item) -> bytes:
        name, _, row = item.path.rpartition("#")
        table, shard = tables[name]
        image, _ = _columns(table, config, shard.path)
        return _bytes(table[image][int(row)].as_py(), shard.path.parent)

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


def _shards(root: Path) -> Iterator[_Shard]:
    """Arrow files of ``save_to_disk``, of one split or of several, or Parquet files by split."""
    if (root / "state.json").is_file():
        for path in sorted(root.glob("*.arrow"), key=lambda p: natural(p.name)):
            yield _Shard(path, None)
    elif (root / "dataset_dict.json").is_file():
        for folder in sorted(p for p in root.iterdir() if p.name in SPLIT_NAMES):
            for path in sorted(folder.glob("*.arrow"), key=lambda p: natural(p.name)):
                yield _Shard(path, SPLIT_NAMES[folder.name])
    else:
        for path in sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")]):
            yield _Shard(path, SPLIT_NAMES.get(path.stem.split("-")[0]))


def _name(root: Path, shard: _Shard) -> str:
    contained(root, str(shard.path.relative_to(root)))
    return shard.path.relative_to(root).as_posix()


def _table(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            return pyarrow.parquet.read_table(path)
        with pyarrow.memory_map(str(path)) as file:
            return pyarrow.ipc.open_stream(file).read_all()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a table that can be read: {error}") from None


def _have(table: Any) -> list[str]:
    return list(table.column_names)


def _columns(table: Any, config: DatasetConfig, path: Path) -> tuple[str, str]:
    have = _have(table)
    image = next((c for c in (config.columns.path, *IMAGE_COLUMNS) if c in have), None)
    label = config.columns.label
    if image is None or label not in have:
        missing = config.columns.path if image is None else label
        raise InputError(
            f"{path}: no column {missing!r}; it has {', '.join(map(shown, have))}. Say in "
            "'columns' which one is 'path' (the image) and which 'label'"
        )
    return image, label


def _class_names(table: Any, label: str) -> list[str] | None:
    """Names of a ClassLabel column, which ``datasets`` keeps in the schema."""
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
        raise InputError(f"{place}: label {shown(str(value))} has no name; there are {len(names)}")
    return names[value]


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)
