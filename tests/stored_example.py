"""An artefact of a few files that the tests of the store write, and what must be true of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgdm_ray.storage.store import Store

KIND, KEY = "encode", "0" * 32
PAYLOAD = {"a.bin": b"a" * 3000, "empty": b"", "sub/deep/b.bin": b"b" * 2000}


def put(root: Path, payload: dict[str, bytes] = PAYLOAD) -> None:
    store = Store(root)
    with store.writing(KIND, KEY) as folder:
        for name, content in payload.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        store.commit(KIND, KEY, folder, {"key": KEY}, {"inputs": {}, "needs": {}})


def content(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}
    return {name: data for name, data in found.items() if name not in ("manifest.json", "done")}


def nothing_or_whole(root: Path) -> None:
    store = Store(root)
    if store.is_done(KIND, KEY):
        assert store.verify(KIND, KEY) == ""
        assert store.manifest(KIND, KEY)["record"] == {"key": KEY}
        assert list(store.done()) == [(KIND, KEY)]
    else:
        assert list(store.done()) == []
        with pytest.raises(FileNotFoundError, match=f"{KIND}/{KEY}"):
            store.manifest(KIND, KEY)


def whole(root: Path) -> None:
    store = Store(root)
    assert store.is_done(KIND, KEY)
    assert store.verify(KIND, KEY) == ""
    assert content(store.folder(KIND, KEY)) == PAYLOAD
    assert not store.work(KIND, KEY).exists()


def nothing(root: Path) -> None:
    """A storage with a scratch folder of the job that will write."""
    work = Store(root).work(KIND, KEY)
    work.mkdir(parents=True)
    (work / "checkpoint").write_bytes(b"c")


def rubbish(root: Path) -> None:
    nothing(root)
    folder = Store(root).folder(KIND, KEY)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"record": {"ke')
