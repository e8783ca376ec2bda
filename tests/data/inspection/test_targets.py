"""Which kind of data a path is, and what it is called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mgdm_ray.config import InputError
from mgdm_ray.data.inspection.targets import find_sources, name_of
from mgdm_ray.data.sources.source import kind_at
from tests.data.sources.files import tree


@pytest.fixture
def places(tmp_path: Path) -> Path:
    tree(tmp_path / "scans", {"a": 1, "b": 1})
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "state.json").write_text("{}")
    (tmp_path / "hub" / "x.arrow").touch()
    (tmp_path / "m.csv").write_text("path,label\n")
    np.savez(tmp_path / "x.npz", train_images=np.zeros((4, 10, 10), np.uint8))
    np.savez(tmp_path / "y.npz", train_images=np.zeros((4, 10, 12), np.uint8))
    (tmp_path / "notes.txt").touch()
    study = "name: s\nnetworks: [resnet18]\n"
    dataset = "name: mine, path: scans, split: {group: 'x'}"
    (tmp_path / "s.yaml").write_text(
        f"{study}datasets: [phantom-xray, {{{dataset}}}]\ndata_dir: {tmp_path}\n"
    )
    (tmp_path / "none.yaml").write_text(f"{study}datasets: [phantom-xray]\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("scans", "class folders"),
        ("hub", "Hugging Face folder"),
        ("m.csv", "manifest"),
        ("x.npz", "npz"),
    ],
)
def test_kinds(places: Path, name: str, kind: str) -> None:
    """Catches a source read as another kind."""
    assert kind_at(places / name) == kind
    (source,) = find_sources(places / name)
    assert (source.kind, source.path, source.is_npz) == (kind, places / name, kind == "npz")


def test_options(places: Path) -> None:
    """Catches options that are accepted and forgotten; an .npz that is read at another size."""
    (source,) = find_sources(places / "m.csv", "(P[0-9]+)_", {"label": "dx"})
    assert source.config.split.group == "(P[0-9]+)_"
    assert source.config.columns.label == "dx"
    assert find_sources(places / "x.npz")[0].config.size == 10


def test_a_study_gives_its_own_datasets(places: Path) -> None:
    """Catches built-in datasets that are checked as files, and options of the study lost."""
    (source,) = find_sources(places / "s.yaml")
    assert (source.config.name, source.kind) == ("mine", "class folders")
    assert source.config.split.group == "x"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nowhere", {}),
        ("notes.txt", {}),
        ("a\0b", {}),
        ("y.npz", {}),
        ("none.yaml", {}),
        ("s.yaml", {"group": "x"}),
        ("x.npz", {"columns": {"label": "dx"}}),
        ("m.csv", {"group": "("}),
    ],
)
def test_refused(places: Path, name: str, options: dict[str, object]) -> None:
    """Catches a traceback, or an option that has no effect, without a word."""
    with pytest.raises(InputError):
        find_sources(places / name, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("scans", "scans"),
        ("my scans (2).csv", "my-scans-2"),
        ("retinamnist", "my-retinamnist"),
        ("...", "images"),
        ("v1.5/données", "donn-es"),
        ("x" * 90, "x" * 50),
    ],
)
def test_names(tmp_path: Path, path: str, name: str) -> None:
    """Catches a name that no study accepts, or that is a built-in dataset's."""
    assert name_of(tmp_path / path) == name
