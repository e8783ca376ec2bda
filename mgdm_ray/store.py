"""Content-addressed artefacts: ``STORAGE/artifacts/KIND/KEY/`` with payload and manifest.

An artefact appears by one atomic rename of a finished folder, so a reader sees all of it or
nothing. The done marker is written last, inside that folder, and is what counts.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_NAME = re.compile(r"^[a-z0-9_]{1,64}$")


class Store:
    """Artefacts on a local (or shared) disk.

    ``root`` is the study's storage folder. Several processes may write artefacts: the first to
    finish a key wins, the others' equal copy is dropped. Scratch space has no such protection:
    it belongs to the driver that has claimed the job (``claims``).
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()

    def folder(self, kind: str, key: str) -> Path:
        """Where the artefact is, or will be. Raises ValueError for a name that is not plain."""
        for part in (kind, key):
            if not _NAME.match(part):
                raise ValueError(f"not a plain artefact name: {part!r}")
        return self.root / "artifacts" / kind / key

    def work(self, kind: str, key: str) -> Path:
        """Scratch space of a job that survives its death (checkpoints); dropped when it is done."""
        self.folder(kind, key)
        return self.root / "work" / f"{kind}-{key}"

    def is_done(self, kind: str, key: str) -> bool:
        return (self.folder(kind, key) / "done").is_file()

    def manifest(self, kind: str, key: str) -> dict[str, Any]:
        """``{"record": ..., "inputs": ..., "needs": ..., "files": {name: {"bytes", "sha256"}}}``.

        Raises FileNotFoundError for an artefact that is not done.
        """
        if not self.is_done(kind, key):
            raise FileNotFoundError(f"no finished artefact {kind}/{key} in {self.root}")
        text = (self.folder(kind, key) / "manifest.json").read_text(encoding="utf-8")
        loaded: dict[str, Any] = json.loads(text)
        return loaded

    @contextlib.contextmanager
    def writing(self, kind: str, key: str) -> Iterator[Path]:
        """A private folder to fill; removed on leaving unless ``commit`` took it."""
        self.folder(kind, key)
        temporary = self.root / "tmp" / f"{key}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        temporary.mkdir(parents=True)
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def commit(
        self,
        kind: str,
        key: str,
        temporary: Path,
        record: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> Path:
        """Publish ``temporary`` as the artefact and return its folder.

        ``record`` and ``provenance`` (what it was computed from) go into the manifest.
        """
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        manifest = {
            "kind": kind,
            "key": key,
            "record": dict(record),
            **provenance,
            "files": {
                p.relative_to(temporary).as_posix(): {
                    "bytes": p.stat().st_size,
                    "sha256": _sha256(p),
                }
                for p in files
            },
        }
        path = temporary / "manifest.json"
        path.write_text(json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False))
        for file in [*files, path]:
            _sync(file)
        (temporary / "done").touch()
        _sync(temporary / "done")
        _sync(temporary)
        target = self.folder(kind, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not self.is_done(kind, key):
            shutil.rmtree(target)  # left by something that did not write through this class
        try:
            temporary.rename(target)
        except OSError:
            # Another process finished the same key first. Its content is equal by construction.
            if not self.is_done(kind, key):
                raise
        _sync(target.parent)
        shutil.rmtree(self.work(kind, key), ignore_errors=True)
        return target

    def done(self) -> Iterator[tuple[str, str]]:
        """Every finished (kind, key)."""
        for marker in sorted((self.root / "artifacts").glob("*/*/done")):
            yield marker.parent.parent.name, marker.parent.name


def no_space(error: BaseException) -> bool:
    """Whether ``error``, or what caused it, is a full disk."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        seen = seen.__cause__ or seen.__context__
    return "No space left on device" in str(error)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
