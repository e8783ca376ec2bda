"""A machine's local copies of remote artefacts (up to a size limit) and data files."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import uuid
from pathlib import Path
from typing import ClassVar

from mgdm_ray.storage.files import held, replacing
from mgdm_ray.storage.remote.objects import Objects, is_url

FOLDER_VARIABLE, LIMIT_VARIABLE = "MGDM_CACHE_DIR", "MGDM_CACHE_GB"
DEFAULT_GB = 50.0
SHARE_UNWATCHED = 0.02
"""Share of the limit that a process adds before it measures again (one stat per file)."""


def cache_root(url: str) -> Path:
    """Return this machine's cache folder for ``url``."""
    parent = Path(os.environ.get(FOLDER_VARIABLE) or "~/.cache/mgdm-ray").expanduser()
    return parent / hashlib.sha256(url.encode()).hexdigest()[:16]


def limit_bytes() -> float:
    """Return the size limit in bytes. Raises ValueError for a bad environment variable."""
    given = os.environ.get(LIMIT_VARIABLE)
    try:
        limit = float(given) if given else DEFAULT_GB
    except ValueError:
        limit = -1.0
    if not limit > 0:
        raise ValueError(f"{LIMIT_VARIABLE}={given}: give a number of gigabytes above 0")
    return limit * 1e9


def at_hand(folder: str | Path, name: str) -> Path:
    """Return ``folder / name``; for a URL the path of a local copy, refreshed once per process.

    The file may be absent. Raises ObjectsError if the object store does not answer.
    """
    if not is_url(str(folder)):
        return Path(folder) / name
    return _copy_of(str(folder).rstrip("/"), name)


@functools.cache
def _copy_of(url: str, name: str) -> Path:
    objects, path = Objects(url), cache_root(url) / "data" / name
    noted = path.with_name(f"{path.name}.version")
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(path.with_name(f"{path.name}.lock")):
        try:
            version = objects.version(name)
        except FileNotFoundError:
            path.unlink(missing_ok=True)
            return path
        if not path.is_file() or not noted.is_file() or noted.read_text() != version:
            noted.unlink(missing_ok=True)
            with replacing(path) as temporary:
                objects.download(name, temporary)
            noted.write_text(version, encoding="utf-8")
    return path


class Cache:
    """Artefacts in ``root/artifacts``, shared by all processes of a machine.

    Each process lists what it uses in a file that it keeps locked until it ends. Above the limit,
    unused artefacts are removed, least recently used first; those in use may exceed it.
    """

    _lists: ClassVar[dict[Path, Path]] = {}
    """By root: this process's list of artefacts in use, locked until the process ends."""
    _locks: ClassVar[contextlib.ExitStack] = contextlib.ExitStack()
    _new_bytes: ClassVar[dict[Path, float]] = {}
    """By root: bytes added since this process last measured."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def use(self, kind: str, key: str) -> None:
        """Protect an artefact from removal until ``release``."""
        if self.root not in self._lists:
            path = self.root / "users" / uuid.uuid4().hex
            path.parent.mkdir(parents=True, exist_ok=True)
            self._locks.enter_context(held(path))
            self._lists[self.root] = path
        with self._lists[self.root].open("a", encoding="utf-8") as file:
            print(kind, key, file=file)

    def release(self) -> None:
        if self.root in self._lists:
            self._lists[self.root].write_text("", encoding="utf-8")

    def added(self, kind: str, key: str) -> None:
        """Account for a new artefact, and trim now and then."""
        new = self._new_bytes.get(self.root, 0.0) + _bytes(self.root / "artifacts" / kind / key)
        if new > limit_bytes() * SHARE_UNWATCHED:
            self.trim()
            new = 0.0
        self._new_bytes[self.root] = new

    def touch(self, kind: str, key: str) -> None:
        """Mark an artefact as recently used."""
        with contextlib.suppress(OSError):
            os.utime(self.root / "artifacts" / kind / key / "done")

    def trim(self) -> None:
        """Remove unused artefacts above the limit."""
        found = [(_used(path), _bytes(path), path) for path in self.root.glob("artifacts/*/*")]
        excess = sum(size for _, size, _ in found) - limit_bytes()
        if excess <= 0:
            return
        for _, size, path in sorted(found):
            if excess <= 0:
                return
            excess -= size if self._drop(path) else 0

    def _drop(self, folder: Path) -> bool:
        kind, key = folder.parent.name, folder.name
        # Under the lock of those who fetch it; they register their use before.
        with (
            contextlib.suppress(OSError),
            held(self.root / "tmp" / f"{kind}-{key}.lock", wait=False),
        ):
            if f"{kind} {key}" in self._in_use():
                return False
            # Renamed first: a half-removed folder must not look like an artefact.
            gone = self.root / "tmp" / f"{key}-{uuid.uuid4().hex}"
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
            return True
        return False

    def _in_use(self) -> set[str]:
        used: set[str] = set()
        for path in (self.root / "users").glob("*"):
            # A lock that can be taken belongs to a dead process; leaving removes the file.
            with contextlib.suppress(OSError), held(path, wait=False):
                continue
            with contextlib.suppress(OSError):
                used |= set(path.read_text(encoding="utf-8").splitlines())
        return used


def _used(folder: Path) -> float:
    try:
        return (folder / "done").stat().st_mtime
    except OSError:
        return 0.0


def _bytes(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return 0
