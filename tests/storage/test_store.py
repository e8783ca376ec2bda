"""Artefacts appear whole or not at all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mgdm_ray.storage.store import Store

KEY = "0" * 32


def put(store: Store, text: str) -> Path:
    with store.writing("encode", KEY) as folder:
        (folder / "payload").write_text(text)
        return store.commit("encode", KEY, folder, {"key": KEY}, {"inputs": {"a": 1}, "needs": {}})


def test_an_artefact_reads_back_with_checksums(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.is_done("encode", KEY)
    folder = put(store, "hello")
    manifest = store.manifest("encode", KEY)
    assert manifest["record"] == {"key": KEY}
    assert manifest["inputs"] == {"a": 1}
    # sha256 of "hello", from coreutils
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    moment = (folder / "payload").stat().st_mtime_ns
    facts = {"bytes": 5, "sha256": digest, "mtime_ns": moment}
    assert manifest["files"] == {"payload": facts}
    assert (folder / "payload").read_text() == "hello"
    assert list(store.done()) == [("encode", KEY)]


def test_a_writer_that_dies_leaves_nothing_done(tmp_path: Path) -> None:
    """Would catch a half-written artefact taken for a result."""
    store = Store(tmp_path)

    def die() -> None:
        with store.writing("encode", KEY) as folder:
            (folder / "payload").write_text("half")
            raise RuntimeError("died")

    with pytest.raises(RuntimeError, match="died"):
        die()
    assert not store.is_done("encode", KEY)
    assert list(store.done()) == []
    assert list((tmp_path / "tmp").iterdir()) == []
    with pytest.raises(FileNotFoundError, match=f"encode/{KEY}"):
        store.manifest("encode", KEY)


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    """Would catch a crash, or an overwrite, when two drivers compute the same key."""
    store = Store(tmp_path)
    put(store, "first")
    folder = put(store, "second")
    assert (folder / "payload").read_text() == "first"


def test_rubbish_in_the_place_of_an_artefact_is_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.folder("encode", KEY).mkdir(parents=True)
    assert not store.is_done("encode", KEY)
    put(store, "good")
    assert store.is_done("encode", KEY)


def test_scratch_space_goes_when_the_artefact_is_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    work = store.work("encode", KEY)
    work.mkdir(parents=True)
    put(store, "x")
    assert not work.exists()


@pytest.mark.parametrize("name", ["../up", "a/b", "", "A", "x" * 65])
def test_names_cannot_leave_the_storage(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        Store(tmp_path).folder("encode", name)
