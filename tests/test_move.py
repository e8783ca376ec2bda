"""A storage in another place is the same storage."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from mgdm_ray import move
from mgdm_ray.pipeline.staging import open_storage
from mgdm_ray.storage.store import Store
from tests.stored_example import KEY, KIND, PAYLOAD, content, put


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGDM_CACHE_DIR", str(tmp_path / "cache"))


def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch an artefact, a record or a checksum that is lost between folder and bucket."""
    first, last = tmp_path / "first", tmp_path / "last"
    url = f"memory://bucket/{uuid.uuid4().hex}"
    put(first)
    (first / "studies" / "tiny" / "optuna").mkdir(parents=True)
    (first / "studies" / "tiny" / "records.jsonl").write_text("{}\n")
    (first / "studies" / "tiny" / "optuna" / "x.db").write_text("SQLite")
    assert move.main([str(first), url]) == 0
    assert f"1 of 1: {KIND} {KEY}" in capsys.readouterr().out
    assert move.main([url, str(last)]) == 0
    assert move.main([url, str(last)]) == 0
    assert capsys.readouterr().out.count(KEY) == 1
    ours, theirs = Store(first), Store(last)
    assert theirs.verify(KIND, KEY) == ""
    assert content(theirs.folder(KIND, KEY)) == PAYLOAD
    expected, found = ours.manifest(KIND, KEY), theirs.manifest(KIND, KEY)
    for manifest in (expected, found):
        for facts in manifest["files"].values():
            facts.pop("mtime_ns")
    assert found == expected
    assert (last / "studies" / "tiny" / "records.jsonl").read_text() == "{}\n"
    assert not (last / "studies" / "tiny" / "optuna" / "x.db").exists()


def test_damage_is_not_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch new checksums that make damage look right."""
    put(tmp_path / "first")
    (Store(tmp_path / "first").folder(KIND, KEY) / "a.bin").write_bytes(b"b" * 3000)
    assert move.main([str(tmp_path / "first"), str(tmp_path / "last")]) == 1
    assert "a.bin" in capsys.readouterr().err
    assert not list(open_storage(str(tmp_path / "last"), write=False).done())


def test_a_wrong_place_is_the_users_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert move.main([str(tmp_path / "nowhere"), str(tmp_path / "last")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert move.main(["nope://x", str(tmp_path / "last")]) == 2
