"""Content-addressed artefacts: ``STORAGE/artifacts/KIND/KEY/`` with payload and manifest.

An artefact appears by one atomic rename of a finished folder, so a reader sees all of it or
nothing. The done marker is written last, inside that folder, and is what counts. No clock is ever
asked: what belongs to whom is told by locks, which the system takes back from the dead.
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
"""What of an artefact is compared with its manifest: the sizes of its files; also the checksums of
files whose modification time is not what it was when the artefact was made; or all checksums."""


class Store:
    """Artefacts on a local (or shared) disk.

    ``root`` is the study's storage folder. Several processes may write artefacts: the first to
    finish a key wins, the others' equal copy is dropped. Scratch space has no such protection:
    it belongs to the driver that has claimed the job (``claims``).
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self.location = str(self.root)
        """What a user calls it, and what ``open_store`` takes."""

    def sweep(self) -> None:
        """Remove what dead processes left: their temporary folders, and scratch of finished jobs.

        Safe beside others that write: a temporary folder whose lock is held stays.
        """
        for name in sorted({path.stem for path in (self.root / "tmp").glob("*")}):
            # An error is a folder whose writer lives, or which the next sweep may get.
            with contextlib.suppress(OSError), held(self._lock(name), wait=False):
                shutil.rmtree(self._temporary() / name, ignore_errors=True)
        for kind, key in self.done():
            shutil.rmtree(self.work(kind, key), ignore_errors=True)

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

    def here(self, kind: str, key: str) -> Path:
        """The folder of a finished artefact, with its files on this machine.

        Raises FileNotFoundError for one that is not done.
        """
        if not self.is_done(kind, key):
            raise FileNotFoundError(f"no finished artefact {kind}/{key} in {self.location}")
        return self.folder(kind, key)

    def manifest(self, kind: str, key: str) -> dict[str, Any]:
        """``{"record": ..., "inputs": ..., "needs": ..., "files": {name: {"bytes", ...}}}``.

        Raises FileNotFoundError for an artefact that is not done.
        """
        text = (self.here(kind, key) / "manifest.json").read_text(encoding="utf-8")
        loaded: dict[str, Any] = json.loads(text)
        return loaded

    @contextlib.contextmanager
    def writing(self, kind: str, key: str) -> Iterator[Path]:
        """A private folder to fill; removed on leaving unless ``commit`` took it."""
        self.folder(kind, key)
        temporary = self._temporary() / f"{key}-{uuid.uuid4().hex}"
        with held(self._lock(temporary.name)):  # tells a sweep that the writer lives
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
        """Publish ``temporary`` as the artefact and return its folder.

        ``record`` and ``provenance`` (what it was computed from) go into the manifest. On return
        it is on the disk: a power failure does not take it back.
        """
        manifest = manifest_of(kind, key, temporary, record, provenance)
        target = self.publish(kind, key, temporary, manifest)
        self.clear(self.work(kind, key))
        return target

    def publish(self, kind: str, key: str, temporary: Path, manifest: Mapping[str, Any]) -> Path:
        """The second half of ``commit``: ``temporary`` holds what ``manifest`` says."""
        text = json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False).encode()
        (temporary / "manifest.json").write_bytes(text)
        (temporary / "done").write_text(hashlib.sha256(text).hexdigest())
        for path in [*temporary.rglob("*"), temporary]:
            sync(path)
        target = self.folder(kind, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with held(self._lock(f"{kind}-{key}")):
            # Where another process was first, its content is equal by construction.
            if not self.is_done(kind, key):
                self._set_aside(kind, key)
                temporary.rename(target)
        # The names on the way to it, too: these folders may be as new as the artefact.
        for folder in (target.parent, target.parent.parent, self.root):
            sync(folder)
        return target

    def share(self, path: Path) -> None:
        """Let other machines see ``path``, a file below ``root``: on a shared disk they do."""

    def bring(self, folder: Path, *, anew: bool = False, deep: bool = True) -> None:
        """Have what other machines shared below ``folder`` (itself below ``root``) here too.

        What is here with the same size is taken to be the same, unless ``anew``. Not ``deep``:
        only the files that lie in ``folder`` itself.
        """

    def ray_storage(self, kind: str, key: str) -> tuple[str, Any]:
        """(path, pyarrow file system or None) for what Ray itself keeps of a job's run."""
        return str(self.work(kind, key)), None

    def clear(self, folder: Path) -> None:
        """Remove ``folder``, below ``root``, and what was shared of it."""
        shutil.rmtree(folder, ignore_errors=True)

    def release(self) -> None:
        """This process needs none of the artefacts any more whose folders it asked for."""

    def verify(self, kind: str, key: str, contents: Contents = "all") -> str:
        """What is wrong with an artefact, in words for people; empty where nothing is."""
        folder = self.folder(kind, key)
        try:
            text = (folder / "manifest.json").read_bytes()
            marker = (folder / "done").read_text(encoding="utf-8")
            # Artefacts of older versions have an empty marker.
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
        """Move an artefact that is damaged to ``damaged/``, so that it is not done any more.

        Returns what was wrong and where it is now; empty for one that is right, or is not there.
        """
        folder = self.folder(kind, key)
        if not folder.exists() or not self.verify(kind, key, contents):
            return ""
        self._temporary()
        with held(self._lock(f"{kind}-{key}")):
            wrong = self.verify(kind, key, contents)  # again: another process may have mended it
            if not wrong or not folder.exists():
                return ""
            return f"{wrong}; moved to {self._set_aside(kind, key)}"

    def _set_aside(self, kind: str, key: str) -> Path | None:
        """Move away what lies in an artefact's place. For holders of its lock only."""
        folder = self.folder(kind, key)
        if not folder.exists():
            return None
        damaged = self.root / "damaged"
        damaged.mkdir(exist_ok=True)
        numbered = (damaged / f"{kind}-{key}-{number}" for number in itertools.count(1))
        place = next(path for path in numbered if not path.exists())
        sync(self.root)  # a power failure must not take the place it is moved to
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
        """Every finished (kind, key)."""
        for marker in sorted((self.root / "artifacts").glob("*/*/done")):
            if marker.is_file():
                yield marker.parent.parent.name, marker.parent.name


def manifest_of(
    kind: str, key: str, folder: Path, record: Mapping[str, Any], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``Store.manifest`` gives of an artefact with the files in ``folder``."""
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
    """Whether a full disk, or a used-up quota, is behind ``error``.

    Libraries that write files themselves (safetensors, sqlite, Ray) say so in words only.
    """
    seen: set[int] = set()
    behind: list[BaseException | None] = [error]
    while behind:
        one = behind.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        full = isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or _FULL.search(str(one)):
            return True
        behind += [one.__cause__, one.__context__]
    return False


def _facts(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"bytes": status.st_size, "sha256": _sha256(path), "mtime_ns": status.st_mtime_ns}


def _difference(path: Path, facts: Mapping[str, Any], contents: Contents) -> str:
    """What a file of an artefact has against the manifest's ``facts``; empty where nothing."""
    status = path.stat()
    if status.st_size != facts["bytes"]:
        return f"has {status.st_size} bytes instead of {facts['bytes']}"
    # Only whether it is the same: clocks jump, and copies of a storage have times of their own.
    changed = status.st_mtime_ns != facts.get("mtime_ns", status.st_mtime_ns)
    if contents == "all" or (changed and contents == "changed"):
        return "" if _sha256(path) == facts["sha256"] else "has another checksum"
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
