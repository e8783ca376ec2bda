"""Manifests: CSV and Parquet, their columns, and what is refused with its row."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mgdm_ray.config import DatasetConfig, InputError
from mgdm_ray.data.sources.manifest import list_manifest
from tests.data.sources.files import picture

MINE = DatasetConfig(name="mine", path="x")


def write(folder: Path, text: str) -> Path:
    path = folder / "images.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_all_columns(tmp_path: Path) -> None:
    """Catches a lost column, labels turned into numbers ("01" to 1), a byte-order mark kept."""
    text = (
        "\ufeffpath,label,split,group,stratum,slice\n"
        "b.png,02,Validation,P2,site B,3\n"
        '"a, ""x"".png",01,train,P1,site A,\n'
        "c.png,10,,,,\n"
    )
    listing = list_manifest(write(tmp_path, text), MINE)
    assert listing.classes == ("01", "02", "10")
    rows = [(i.path, i.label, i.split, i.group, i.stratum, i.slice) for i in listing.items]
    assert rows == [
        ('a, "x".png', 0, "train", "P1", "site A", None),
        ("b.png", 1, "val", "P2", "site B", 3),
        ("c.png", 2, None, None, None, None),
    ]


def test_other_names_of_columns(tmp_path: Path) -> None:
    """Catches ``columns`` that is accepted and not used."""
    config = DatasetConfig.model_validate(
        {"name": "m", "path": "x", "columns": {"path": "file", "label": "dx", "group": "patient"}}
    )
    listing = list_manifest(write(tmp_path, "file,dx,patient\na,x,1\nb,y,2\n"), config)
    assert [(i.path, i.group) for i in listing.items] == [("a", "1"), ("b", "2")]


def test_parquet_is_as_good_as_csv(tmp_path: Path) -> None:
    """Catches a Parquet manifest whose integers or missing values become other labels."""
    path = tmp_path / "images.parquet"
    table = pyarrow.table({"path": ["a", "b", "c"], "label": [2, 10, 2], "group": ["1", None, "1"]})
    pyarrow.parquet.write_table(table, path)
    listing = list_manifest(path, MINE)
    assert listing.classes == ("2", "10")
    assert [(i.path, i.label, i.group) for i in listing.items] == [
        ("a", 0, "1"),
        ("b", 1, None),
        ("c", 0, "1"),
    ]


def test_an_absolute_path_inside_the_folder(tmp_path: Path) -> None:
    """Catches manifests as many tools write them that are refused for no reason."""
    picture(tmp_path / "a.png", 1)
    listing = list_manifest(write(tmp_path, f"path,label\n{tmp_path}/a.png,x\nb.png,y\n"), MINE)
    assert [i.path for i in listing.items] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "images.csv"),
        ("path,label\n", "images.csv"),
        ("file,label\na,x\n", "'path'.*'file', 'label'"),
        ("path,label\na,\nb,y\n", r"csv:2: .*'label'"),
        ("path,label\na,x\na,y\n", r"csv:3: .*'a'.*csv:2"),
        ("path,label,split\na,x,tset\nb,y,\n", r"csv:2: .*'tset'.*train, val"),
        ("path,label\n../../etc/passwd,x\nb,y\n", r"csv:2: .*/etc/passwd"),
        ("path,label\n/etc/passwd,x\nb,y\n", r"csv:2: .*/etc/passwd"),
        ("path,label\na,x,z\nb,y\n", r"csv:2: .*2 columns"),
        ("path,path\na,x\n", r"csv:1: .*path, path"),
        ("path,label,slice\na,x,-1\nb,y,\n", r"csv:2: slice '-1'"),
        ("path,label\na\0b,x\nb,y\n", "images.csv"),
        ("path,label\n" + "a" * 5000 + ",x\nb,y\n", r"csv:2: 'aaa"),
    ],
)
def test_mistakes_are_told_with_their_row(tmp_path: Path, text: str, message: str) -> None:
    """Catches a mistake in a table of thousands of rows that cannot be found, or is let through."""
    with pytest.raises(InputError, match=message):
        list_manifest(write(tmp_path, text), MINE)


def test_bytes_that_are_no_table(tmp_path: Path) -> None:
    """Catches a traceback for a file that only has the right suffix."""
    for name in ("m.csv", "m.parquet"):
        (tmp_path / name).write_bytes(b"\x89PNG\xff\xfe\0\0")
        with pytest.raises(InputError, match=name):
            list_manifest(tmp_path / name, MINE)
