"""Objects in S3, Google Cloud Storage and similar stores, through fsspec."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow.fs

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}
"""The package that fsspec needs for a protocol."""
CONFLICTS = 10


class ObjectsError(OSError):
    """The object store is unusable or does not answer."""


@contextlib.contextmanager
def _answering(url: str) -> Iterator[None]:
    """Turn a protocol library's own errors into ObjectsError; OSErrors pass unchanged."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ObjectsError(f"{url} does not answer ({type(error).__name__}: {error})") from error


def is_url(location: str) -> bool:
    return "://" in location


class Objects:
    """The objects below ``url``; all names are relative to it.

    Requires atomic writes, read-after-write consistency and create-if-absent (S3 since 2024).
    Credentials and endpoint come from the protocol's library (``AWS_*``, a role).
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        protocol = self.url.partition("://")[0]
        # Otherwise gcsfs asks by gRPC for the bucket's type before every request (60 s each where
        # that is not permitted).
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        try:
            # No cached listings: writes of others must be visible at once.
            self._fs, self._root = fsspec.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            package = PACKAGES.get(protocol, f"fsspec's package for {protocol}")
            raise ObjectsError(f"{url}: {package} is not installed: pip install {package}") from (
                error
            )
        except ValueError as error:
            raise ObjectsError(f"{url}: {error}; known: s3://, gs://, or a folder") from error

    def require(self) -> None:
        """Raise ObjectsError unless objects can be written once, read, listed and deleted."""
        name = f"tmp/{uuid.uuid4().hex}"
        try:
            won = [self.create(name, b"first"), self.create(name, b"second")]
            there = self.read(name), list(self.sizes(name))
            self.remove([name])
            if self.exists(name):  # s3fs does not report what it may not delete
                raise PermissionError(f"{name} cannot be deleted")
        except OSError as error:
            raise ObjectsError(
                f"{self.url} cannot be used: {type(error).__name__}: {error}. Does the bucket "
                "exist, and may these credentials read, list, write and delete in it?"
            ) from error
        if won != [True, False] or there != (b"first", [name]):
            raise ObjectsError(
                f"{self.url}: this server ignores create-if-absent (If-None-Match), without which "
                "finished jobs cannot be identified; use a newer server or a shared folder"
            )

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        with _answering(self.url):
            data: bytes = self._fs.cat_file(self._path(name))
            return data

    def read_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """Read the objects that exist, in parallel."""
        with _answering(self.url):
            paths = {self._path(name): name for name in names}
            if not paths:
                return {}
            found = self._fs.cat(list(paths), on_error="omit")
            return {paths[path]: data for path, data in found.items()}

    def write(self, name: str, data: bytes) -> None:
        with _answering(self.url):
            self._fs.pipe_file(self._path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Create an object; False, with nothing written, if it exists."""
        with _answering(self.url):
            for _ in range(CONFLICTS):
                try:
                    self._fs.pipe_file(self._path(name), data, mode="create")
                except FileExistsError:
                    return False
                except OSError as error:
                    if "PreconditionFailed" in str(error):
                        return False
                    if "ConditionalRequestConflict" not in str(error):
                        raise
                    continue  # S3's answer to two simultaneous creations
                return True
            raise ObjectsError(f"{self.url}: others kept writing {name}")

    def exists(self, name: str) -> bool:
        with _answering(self.url):
            return bool(self._fs.exists(self._path(name)))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the bytes of every object named ``prefix`` or ``prefix/...``."""
        with _answering(self.url):
            self._fs.invalidate_cache()
            try:
                found: dict[str, dict[str, Any]] = self._fs.find(self._path(prefix), detail=True)
            except FileNotFoundError:
                return {}
            start = len(self._root.rstrip("/")) + 1
            # An empty prefix may be listed as a folder.
            files = {path: facts for path, facts in found.items() if facts["type"] == "file"}
            return {path[start:]: int(facts["size"]) for path, facts in files.items()}

    def upload(self, path: Path, name: str) -> None:
        with _answering(self.url):
            self._fs.put_file(str(path), self._path(name))

    def download(self, name: str, path: Path) -> None:
        """Raises FileNotFoundError."""
        with _answering(self.url):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(self._path(name), str(path))

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; absent ones are ignored."""
        with _answering(self.url):
            paths = [self._path(name) for name in names]
            if not paths:
                return
            try:
                self._fs.rm(paths)
            except FileNotFoundError:  # some protocols stop at the first absent one
                for path in paths:
                    with contextlib.suppress(FileNotFoundError):
                        self._fs.rm_file(path)

    def remove_all(self, prefix: str) -> None:
        self.remove(self.sizes(prefix))

    def version(self, name: str) -> str:
        """Return a tag that changes with the object. Raises FileNotFoundError."""
        with _answering(self.url):
            self._fs.invalidate_cache()
            return str(self._fs.ukey(self._path(name)))

    def arrow(self, name: str) -> tuple[str, pyarrow.fs.FileSystem]:
        """Return (path, pyarrow file system) below ``name``, as Ray Train takes it."""
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return self._path(name), PyFileSystem(FSSpecHandler(self._fs))

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"
