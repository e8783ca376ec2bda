"""Who works on what in a storage that several drivers share.

A claim is a lock that the operating system holds for a process and gives back when it dies,
however it dies: no clock is read, no claim outlives its holder. On a file system shared between
machines its locks must work there (NFS 4 does).
"""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path


class Claims:
    """The claims of this process in the storage ``root``."""

    def __init__(self, root: str | Path) -> None:
        self.folder = Path(root) / "claims"
        self._held: dict[str, int] = {}

    def take(self, kind: str, key: str) -> bool:
        """Claim ``kind`` ``key``; False where another process holds it. Again: still True."""
        name = f"{kind}-{key}"
        if name in self._held:
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            except BaseException:
                os.close(descriptor)
                raise
            if self._is(name, descriptor):
                break
            os.close(descriptor)  # its last holder removed it just before we had it
        self._held[name] = descriptor
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        return True

    def _is(self, name: str, descriptor: int) -> bool:
        """Whether the open file is the one that has this name."""
        try:
            named = os.stat(self.folder / name)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(descriptor))

    def release(self, kind: str, key: str) -> None:
        """Give a claim back; nothing happens where there is none."""
        descriptor = self._held.pop(f"{kind}-{key}", None)
        if descriptor is not None:
            # Removed while it is held, or another's claim would be removed.
            (self.folder / f"{kind}-{key}").unlink(missing_ok=True)
            os.close(descriptor)

    def release_all(self) -> None:
        for name in list(self._held):
            self.release(*name.split("-", 1))

    def holder(self, kind: str, key: str) -> str:
        """Who holds it, for people: ``process 12 on host``."""
        try:
            text = (self.folder / f"{kind}-{key}").read_text(encoding="utf-8").strip()
        except OSError:
            text = ""
        return text or "another process"
