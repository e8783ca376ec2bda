"""Folders as ``datasets`` writes them: save_to_disk and Parquet shards, with pyarrow's own writers.

``datasets`` itself is no dependency: the layout and the schema's note are what it documents.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mgdm_ray.config import DatasetConfig, InputError
from mgdm_ray.data.sources.huggingface import is_huggingface, list_huggingface
from mgdm_ray.data.sources.source import read_item

MINE = DatasetConfig(name="mine", path="x")


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def table(values: list[int], names: list[str] | None = None, **columns: Any) -> pyarrow.Table:
    images = [{"bytes": png(v), "path": None} for v in values]
    made = pyarrow.table({"image": images, "label": [v % 2 for v in values], **columns})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        note = json.dumps({"info": {"features": features}})
        made = made.replace_schema_metadata({"huggingface": note})
    return made


def save_arrow(folder: Path, made: pyarrow.Table) -> None:
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    with pyarrow.ipc.new_stream(folder / "data-00000-of-00001.arrow", made.schema) as writer:
        writer.write_table(made)


def test_save_to_disk_of_splits(tmp_path: Path) -> None:
    """Catches lost splits, class names replaced by numbers, and images of other rows."""
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    save_arrow(tmp_path / "train", table([0, 1, 2], ["normal", "ill"], group=["a", "b", None]))
    save_arrow(tmp_path / "test", table([201, 200], ["normal", "ill"]))
    assert is_huggingface(tmp_path)
    listing = list_huggingface(tmp_path, MINE)
    assert listing.classes == ("ill", "normal")
    found = [
        (i.split, listing.classes[i.label], i.group, int(read_item(listing, i).pixels[0, 0]))
        for i in listing.items
    ]
    assert found == [
        ("test", "ill", None, 201),
        ("test", "normal", None, 200),
        ("train", "normal", "a", 0),
        ("train", "ill", "b", 1),
        ("train", "normal", None, 2),
    ]


def test_parquet_shards(tmp_path: Path) -> None:
    """Catches shards of a hub's folder whose split or order is lost."""
    (tmp_path / "data").mkdir()
    for name, values in (("train-00000-of-00002", [0, 1]), ("train-00001-of-00002", [2, 3])):
        pyarrow.parquet.write_table(table(values), tmp_path / "data" / f"{name}.parquet")
    listing = list_huggingface(tmp_path, MINE)
    assert [i.split for i in listing.items] == ["train"] * 4
    assert [int(read_item(listing, i).pixels[0, 0]) for i in listing.items] == [0, 1, 2, 3]


def test_a_class_folder_is_none(tmp_path: Path) -> None:
    """Catches every folder being taken for a table."""
    (tmp_path / "a").mkdir()
    assert not is_huggingface(tmp_path)


def test_mistakes(tmp_path: Path) -> None:
    """Catches tracebacks for a table without images, labels without names, damaged files."""
    save_arrow(tmp_path / "one", pyarrow.table({"text": ["x"], "label": [0]}))
    with pytest.raises(InputError, match=r"'path'.*'text', 'label'"):
        list_huggingface(tmp_path / "one", MINE)
    save_arrow(tmp_path / "two", table([0, 1, 3], ["only"]))
    with pytest.raises(InputError, match=r"row 1: .*'1'"):
        list_huggingface(tmp_path / "two", MINE)
    (tmp_path / "two" / "data-00000-of-00001.arrow").write_bytes(b"ARROW")
    with pytest.raises(InputError, match=r"\.arrow"):
        list_huggingface(tmp_path / "two", MINE)
