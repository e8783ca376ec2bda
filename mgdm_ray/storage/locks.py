"""Who works on what in a storage that several drivers share.

A claim is a lock that the operating system holds for a process and gives back when it dies,
however it dies: no clock is read, no claim outlives its holder. On a file system shared between
machines its locks must work there (NFS 4 does).
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from mgdm_ray.storage.files import held


class Locks:
    """The claims of this process in the storage ``root``."""

    def __init__(self, root: str | Path) -> None:
        self.folder = Path(root) / "claims"
        self._held: dict[Path, contextlib.ExitStack] = {}

    def take(self, kind: str, key: str) -> bool:
        """Claim ``kind`` ``key``; False where another process holds it. Again: still True."""
        path = self._path(kind, key)
        if path in self._held:
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        claim = contextlib.ExitStack()
        try:
            claim.enter_context(held(path, wait=False))
        except BlockingIOError:
            return False
        self._held[path] = claim
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        return True

    def release(self, kind: str, key: str) -> None:
        """Give a claim back; nothing happens where there is none."""
        claim = self._held.pop(self._path(kind, key), None)
        if claim is not None:
            claim.close()

    def release_all(self) -> None:
        while self._held:
            self._held.popitem()[1].close()

    def holder(self, kind: str, key: str) -> str:
        """Who holds it, for people: ``process 12 on host``."""
        try:
            text = self._path(kind, key).read_text(encoding="utf-8").strip()
        except OSError:
            text = ""
        return text or "another process"

    def _path(self, kind: str, key: str) -> Path:
        return self.folder / f"{kind}-{key}"
