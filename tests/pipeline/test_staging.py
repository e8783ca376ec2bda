"""Where a study's files are for other machines."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgdm_ray.config import InputError, StudyConfig
from mgdm_ray.data.load import data_source
from mgdm_ray.pipeline.staging import bring_notes, inputs_for_all, open_storage, share_notes
from mgdm_ray.storage.remote.objects import Objects
from mgdm_ray.storage.remote.store import RemoteStore
from mgdm_ray.storage.store import Store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGDM_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def url() -> str:
    return f"memory://bucket/{uuid.uuid4().hex}"


def save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.full((8, 16, 16), value, np.uint8)
        arrays[f"{split}_labels"] = np.arange(8).reshape(8, 1) % 2
    np.savez(path, **arrays)


@pytest.fixture
def study(tmp_path: Path, tiny: dict[str, Any]) -> StudyConfig:
    """Two datasets of one's own whose files have one name, and a phantom."""
    save(tmp_path / "data" / "images.npz", 10)
    save(tmp_path / "elsewhere" / "images.npz", 20)
    datasets = [
        {"name": "one", "path": "images.npz"},
        {"name": "two", "path": str(tmp_path / "elsewhere" / "images.npz")},
        *tiny["datasets"],
    ]
    return StudyConfig.model_validate(
        {**tiny, "datasets": datasets, "data_dir": str(tmp_path / "data")}
    )


def contents(study: StudyConfig) -> dict[str, str]:
    return {d.name: data_source(d, study.data_dir).fingerprint() for d in study.datasets}


def test_every_machine_reads_the_drivers_images(study: StudyConfig, url: str) -> None:
    """Would catch a node without the files, and one dataset's file in the place of another's."""
    inputs = inputs_for_all(study, url, contents(study))
    assert inputs.data_dir.startswith(f"{url}/data/")
    for name, value in (("one", 10), ("two", 20)):
        split = data_source(inputs.datasets[name], inputs.data_dir).load("train")
        assert (split.images == value).all()
        assert split.images.shape == (8, 16, 16, 1)
        found = data_source(inputs.datasets[name], inputs.data_dir).fingerprint()
        assert found == contents(study)[name]


def test_files_are_uploaded_once(
    study: StudyConfig, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs_for_all(study, url, contents(study))
    assert capsys.readouterr().out.count("uploading images.npz") == 2
    again = inputs_for_all(study, url, contents(study))
    assert capsys.readouterr().out == ""
    save(Path(str(study.data_dir)) / "images.npz", 30)
    changed = inputs_for_all(study, url, contents(study))
    assert changed.data_dir != again.data_dir, "running studies keep what they read"


def test_pretrained_weights_come_along(
    study: StudyConfig, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a cell on another machine that trains from other weights, or fails."""
    from mgdm_ray.classifiers.weights import weights_file

    for network in ("squeezenet1_1", "alexnet"):
        (tmp_path / "data" / f"{network}.safetensors").write_bytes(network.encode())
    downstream = study.downstream.model_copy(update={"pretrained": str(tmp_path / "data")})
    config = study.model_copy(update={"downstream": downstream})
    inputs = inputs_for_all(config, url, contents(study))
    assert inputs.weights_folder is not None
    assert weights_file(inputs.weights_folder, "alexnet").read_bytes() == b"alexnet"
    assert "uploading alexnet.safetensors" in capsys.readouterr().out


def test_a_folder_is_read_where_it_is(study: StudyConfig, tmp_path: Path) -> None:
    inputs = inputs_for_all(study, str(tmp_path), contents(study))
    assert inputs.data_dir == str(tmp_path / "data")
    assert inputs.datasets == {d.name: d for d in study.datasets}


def test_notes_are_there_on_the_next_machine(
    study: StudyConfig, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch failures that are forgotten, and a warm start that finds no study."""
    first = RemoteStore(url)
    for name in ("tiny", "other"):
        path = first.root / "studies" / name / "records.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(name)
        (path.parent / "figures").mkdir()
        (path.parent / "figures" / "x.png").touch()
        share_notes(first, path.parent)
    monkeypatch.setenv("MGDM_CACHE_DIR", str(tmp_path / "second"))
    second = RemoteStore(url)
    bring_notes(second, study)
    assert [p.read_text() for p in second.root.glob("studies/*/records.jsonl")] == ["tiny"]
    assert not list(second.root.glob("studies/tiny/figures"))
    assert first.objects.exists("studies/tiny/figures/x.png")
    assert study.search is not None
    search = study.search.model_copy(update={"warm_start": "other"})
    bring_notes(second, study.model_copy(update={"search": search}))
    assert len(list(second.root.glob("studies/*/records.jsonl"))) == 2


def test_a_place_that_cannot_be_used_is_the_users_error(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(open_storage(str(tmp_path), write=True), Store)
    assert isinstance(open_storage(url, write=True), RemoteStore)
    with pytest.raises(InputError, match="AWS_ACCESS_KEY_ID"):
        open_storage("s3://key:secret@bucket/x", write=True)
    with pytest.raises(InputError, match="nope"):
        open_storage("nope://bucket", write=False)
    monkeypatch.setenv("MGDM_CACHE_GB", "lots")
    with pytest.raises(InputError, match="MGDM_CACHE_GB=lots"):
        open_storage(url, write=True)
    monkeypatch.delenv("MGDM_CACHE_GB")

    def careless(objects: Objects, name: str, data: bytes) -> bool:
        objects.write(name, data)
        return True

    monkeypatch.setattr(Objects, "create", careless)
    with pytest.raises(InputError, match="If-None-Match"):
        open_storage(url, write=True)
    open_storage(url, write=False)
