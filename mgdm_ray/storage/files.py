"""Files that a crash leaves whole: writes that last, and locks that die with their holder."""

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
    """Hold ``lock``, a file that is there only as long as somebody holds it.

    The system frees the lock of a holder that dies, however it dies, so that neither process ids
    nor clocks need to be trusted. Raises BlockingIOError where another one holds it and ``wait``
    is off.
    """
    while True:
        with lock.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if not _is_at(lock, file.fileno()):
                continue  # its last holder took it away between our opening and locking it
            try:
                yield
            finally:
                # Inside the lock. Where it fails, the lock is free all the same.
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
    """Where to write what takes the place of ``path`` in one step, once it is on the disk.

    An error leaves ``path`` as it was and nothing beside it. What a kill leaves is written over by
    the next one who replaces ``path``; two at once wait for each other.
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
    """``folder / name``; OSError for a name, from elsewhere, that would lead out of the folder."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts:
        raise OSError(f"{name!r} leads out of {folder}")
    return folder / name


def sync(path: Path) -> None:
    """Force a file's content, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
