"""Content-addressed artefacts: ``STORAGE/artifacts/KIND/KEY/`` with payload and manifest.

An artefact is published by one atomic rename of a folder that already holds its done marker, so
readers see all of it or nothing. Ownership is by file locks, never by clocks.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mgdm_ray.storage.files import held, sync

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_NAME = re.compile(r"[a-z0-9_]{1,64}\Z")
_FULL = re.compile("no space left on device|disk is full|disk quota exceeded", re.IGNORECASE)

Contents = Literal["sizes", "changed", "all"]
"""What ``verify`` compares with the manifest: file sizes; also checksums of files whose
modification time has changed; or all checksums."""


class Store:
    """Artefacts on a local (or shared) disk.

    Several processes may write: the first to finish a key wins, equal copies are dropped. Scratch
    space belongs to the driver that holds the job's lock (``locks.Locks``).
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self.location = str(self.root)
        """Path or URL as the user gave it; ``open_store`` takes it."""

    def sweep(self) -> None:
        """Remove temporary folders of dead processes and scratch space of finished jobs.

        Safe beside live writers: a temporary folder whose lock is held stays.
        """
        for name in sorted({path.stem for path in (self.root / "tmp").glob("*")}):
            # OSError: the writer is alive, or the next sweep may succeed.
            with contextlib.suppress(OSError), held(self._lock(name), wait=False):
                shutil.rmtree(self._temporary() / name, ignore_errors=True)
        for kind, key in self.done():
            shutil.rmtree(self.work(kind, key), ignore_errors=True)

    def folder(self, kind: str, key: str) -> Path:
        """Return the artefact's folder, existing or not. Raises ValueError for an unsafe name."""
        for part in (kind, key):
            if not _NAME.match(part):
                raise ValueError(f"not a plain artefact name: {part!r}")
        return self.root / "artifacts" / kind / key

    def work(self, kind: str, key: str) -> Path:
        """Return the job's scratch folder (checkpoints): survives a crash, removed when done."""
        self.folder(kind, key)
        return self.root / "work" / f"{kind}-{key}"

    def is_done(self, kind: str, key: str) -> bool:
        return (self.folder(kind, key) / "done").is_file()

    def here(self, kind: str, key: str) -> Path:
        """Return a finished artefact's folder with its files on this machine.

        Raises FileNotFoundError if it is not done.
        """
        if not self.is_done(kind, key):
            raise FileNotFoundError(f"no finished artefact {kind}/{key} in {self.location}")
        return self.folder(kind, key)

    def manifest(self, kind: str, key: str) -> dict[str, Any]:
        """Return ``{"record", "inputs", "needs", "files": {name: {"bytes", ...}}}``.

        Raises FileNotFoundError if it is not done.
        """
        text = (self.here(kind, key) / "manifest.json").read_text(encoding="utf-8")
        loaded: dict[str, Any] = json.loads(text)
        return loaded

    @contextlib.contextmanager
    def writing(self, kind: str, key: str) -> Iterator[Path]:
        """Yield a private folder to fill; removed on exit unless ``commit`` took it."""
        self.folder(kind, key)
        temporary = self._temporary() / f"{key}-{uuid.uuid4().hex}"
        with held(self._lock(temporary.name)):  # keeps a sweep away
            temporary.mkdir()
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
        """Publish ``temporary`` as the artefact and return its folder, synced to disk.

        ``record`` and ``provenance`` (inputs and needs) go into the manifest.
        """
        manifest = manifest_of(kind, key, temporary, record, provenance)
        target = self.publish(kind, key, temporary, manifest)
        self.clear(self.work(kind, key))
        return target

    def publish(self, kind: str, key: str, temporary: Path, manifest: Mapping[str, Any]) -> Path:
        """Publish ``temporary``, whose files ``manifest`` describes."""
        text = json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False).encode()
        (temporary / "manifest.json").write_bytes(text)
        (temporary / "done").write_text(hashlib.sha256(text).hexdigest())
        for path in [*temporary.rglob("*"), temporary]:
            sync(path)
        target = self.folder(kind, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with held(self._lock(f"{kind}-{key}")):
            # If another process was first, its content is equal by construction.
            if not self.is_done(kind, key):
                self._set_aside(kind, key)
                temporary.rename(target)
        # The parent folders may be as new as the artefact.
        for folder in (target.parent, target.parent.parent, self.root):
            sync(folder)
        return target

    def share(self, path: Path) -> None:
        """Make ``path``, a file below ``root``, visible to other machines (no-op on a disk)."""

    def bring(self, folder: Path, *, anew: bool = False, deep: bool = True) -> None:
        """Fetch what other machines shared below ``folder``, itself below ``root``.

        Files of the same size are kept unless ``anew``. Without ``deep`` only direct children.
        """

    def ray_storage(self, kind: str, key: str) -> tuple[str, Any]:
        """Return (path, pyarrow file system or None) for what Ray keeps of a job's run."""
        return str(self.work(kind, key)), None

    def clear(self, folder: Path) -> None:
        """Remove ``folder``, below ``root``, and its shared files."""
        shutil.rmtree(folder, ignore_errors=True)

    def release(self) -> None:
        """Drop this process's use of the artefacts whose folders it asked for."""

    def verify(self, kind: str, key: str, contents: Contents = "all") -> str:
        """Return what is wrong with an artefact, or an empty string."""
        folder = self.folder(kind, key)
        try:
            text = (folder / "manifest.json").read_bytes()
            marker = (folder / "done").read_text(encoding="utf-8")
            # Older versions wrote an empty marker.
            if marker and marker != hashlib.sha256(text).hexdigest():
                return "manifest.json is not what was written"
            for name, facts in json.loads(text)["files"].items():
                wrong = _difference(folder / name, facts, contents)
                if wrong:
                    return f"{name} {wrong}"
        except FileNotFoundError as error:
            return f"{Path(error.filename).relative_to(folder)} is missing"
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            return f"it cannot be read ({type(error).__name__}: {error})"
        return ""

    def check(self, kind: str, key: str, contents: Contents = "all") -> str:
        """Move a damaged artefact to ``damaged/``, so that it is computed again.

        Returns what was wrong and where it is now; empty if it is intact or absent.
        """
        folder = self.folder(kind, key)
        if not folder.exists() or not self.verify(kind, key, contents):
            return ""
        self._temporary()
        with held(self._lock(f"{kind}-{key}")):
            wrong = self.verify(kind, key, contents)  # another process may have repaired it
            if not wrong or not folder.exists():
                return ""
            return f"{wrong}; moved to {self._set_aside(kind, key)}"

    def _set_aside(self, kind: str, key: str) -> Path | None:
        """Move away what lies in an artefact's place. The caller holds its lock."""
        folder = self.folder(kind, key)
        if not folder.exists():
            return None
        damaged = self.root / "damaged"
        damaged.mkdir(exist_ok=True)
        numbered = (damaged / f"{kind}-{key}-{number}" for number in itertools.count(1))
        place = next(path for path in numbered if not path.exists())
        sync(self.root)  # ``damaged/`` must survive a power failure
        folder.rename(place)
        for changed in (damaged, folder.parent):
            sync(changed)
        return place

    def _temporary(self) -> Path:
        folder = self.root / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _lock(self, name: str) -> Path:
        return self.root / "tmp" / f"{name}.lock"

    def done(self) -> Iterator[tuple[str, str]]:
        """Yield every finished (kind, key)."""
        for marker in sorted((self.root / "artifacts").glob("*/*/done")):
            if marker.is_file():
                yield marker.parent.parent.name, marker.parent.name


def manifest_of(
    kind: str, key: str, folder: Path, record: Mapping[str, Any], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the manifest of an artefact with the files in ``folder``."""
    return {
        "kind": kind,
        "key": key,
        "record": dict(record),
        **provenance,
        "files": {
            path.relative_to(folder).as_posix(): _facts(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }


def no_space(error: BaseException) -> bool:
    """Return whether a full disk or exhausted quota caused ``error``.

    Some libraries (safetensors, sqlite, Ray) report it only in their message.
    """
    seen: set[int] = set()
    causes: list[BaseException | None] = [error]
    while causes:
        one = causes.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        full = isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or _FULL.search(str(one)):
            return True
        causes += [one.__cause__, one.__context__]
    return False


def _facts(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"bytes": status.st_size, "sha256": sha256_of(path), "mtime_ns": status.st_mtime_ns}


def _difference(path: Path, facts: Mapping[str, Any], contents: Contents) -> str:
    """Return how a file differs from the manifest's ``facts``, or an empty string."""
    status = path.stat()
    if status.st_size != facts["bytes"]:
        return f"has {status.st_size} bytes instead of {facts['bytes']}"
    # Times are compared for equality only: clocks jump, and copies have their own.
    changed = status.st_mtime_ns != facts.get("mtime_ns", status.st_mtime_ns)
    if contents == "all" or (changed and contents == "changed"):
        return "" if sha256_of(path) == facts["sha256"] else "has another checksum"
    return ""


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
