"""Crash-safe files: durable atomic writes, and locks that end with their holder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def held(lock: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file ``lock``, which exists only while it is held.

    The system releases it when the holder dies. Raises BlockingIOError if another process holds
    it and ``wait`` is off.
    """
    while True:
        with lock.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if not _is_at(lock, file.fileno()):
                continue  # its last holder removed it between our opening and locking it
            try:
                yield
            finally:
                # While still locked. If it fails, the lock is free all the same.
                with contextlib.suppress(OSError):
                    lock.unlink()
            return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on exit it atomically replaces ``path``, synced to disk.

    An error leaves ``path`` as it was. Concurrent writers wait for each other.
    """
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    with held(path.with_name(f"{path.stem}.tmp.lock")):
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    sync(path.parent)


def within(folder: Path, name: str) -> Path:
    """Return ``folder / name``. Raises OSError for an untrusted name that leaves the folder."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts:
        raise OSError(f"{name!r} leads out of {folder}")
    return folder / name


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
