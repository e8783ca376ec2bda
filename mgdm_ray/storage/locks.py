"""Job locks in a storage that several drivers share.

The operating system releases a lock when its holder dies. On a file system shared between
machines file locks must work there (NFS 4 does).
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from mgdm_ray.storage.files import held


class Locks:
    """The locks that this process holds in the storage ``root``."""

    def __init__(self, root: str | Path) -> None:
        self.folder = Path(root) / "claims"
        self._held: dict[Path, contextlib.ExitStack] = {}

    def take(self, kind: str, key: str) -> bool:
        """Lock ``kind`` ``key``; False if another process holds it, True if we do already."""
        path = self._path(kind, key)
        if path in self._held:
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = contextlib.ExitStack()
        try:
            lock.enter_context(held(path, wait=False))
        except BlockingIOError:
            return False
        self._held[path] = lock
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        return True

    def release(self, kind: str, key: str) -> None:
        """Release a lock, if we hold it."""
        if lock := self._held.pop(self._path(kind, key), None):
            lock.close()

    def release_all(self) -> None:
        while self._held:
            self._held.popitem()[1].close()

    def holder(self, kind: str, key: str) -> str:
        """Return who holds it, for people: ``process 12 on host``."""
        try:
            text = self._path(kind, key).read_text(encoding="utf-8").strip()
        except OSError:
            text = ""
        return text or "another process"

    def _path(self, kind: str, key: str) -> Path:
        return self.folder / f"{kind}-{key}"
